"""What a question costs at the door: CPU and time of the service, beside a bare gRPC echo of the same payloads.

The store is a local directory with a run of eight shards, a 16,384-feature SAE and norms of twelve layers. Service,
echo and clients are processes of their own on the loopback. One client asks questions of one kind after the other, each
of them new (another feature, other quantiles), and `again` the same one; then 1 to 256 clients, each with its own
connection, ask norms. The echo, on `grpc.aio`, takes the same requests and sends as many bytes, without any work.

`KIND_cpu_ms`, `KIND_wall_ms`     CPU of the service's process and median time of a question: run, norm, norm_again,
                                  statistics, top20 (with windows of text) and top20_again.
`echo_cpu_ms`                     CPU of the echo's process for the same requests as `norm`.
`norm_share_of_echo_N`            norms a second of N clients over the echo's.
`again_share_of_echo_N`           the same, if all ask the same few questions.
`beside_slow_over_alone`          p99 of norms of one client beside sixteen that ask for a site's norms by position,
                                  computed from all rows, over the p99 without these.
`errors`                          calls of the service that did not end with OK.

Predicted: the service takes its own loop, a thread and some 0.3 ms of Python for an answer that is kept, three times an
echo.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from actstore_api.records.catalog import GetRun
from actstore_api.records.feature import GetFeatureStatistics, SampleExamples
from actstore_api.records.norm import GetNormProfile
from benchmarks.load import CLIENTS, NORMS, Call, answer_sizes, call_of, serve_echo, turn
from benchmarks.parts.feature_runs import D_SAE, RUN, SAE, Rows, write_run
from tests.service.process import running_service

SHARDS, SHARD_NONZEROS, SLOW = 8, 500_000, 16
# Different questions of a kind: more than one turn asks.
QUESTIONS = 4096

Question = Callable[[random.Random], object]
QUESTION: Mapping[str, Question] = {
    "run": lambda _: GetRun(RUN),
    "norm": lambda rng: GetNormProfile((RUN,), quantiles=(rng.random(), 0.5, 0.95)),
    "norm_again": lambda _: GetNormProfile((RUN,)),
    "statistics": lambda rng: GetFeatureStatistics(RUN, SAE, rng.randrange(D_SAE), bins=rng.randrange(20, 60)),
    "top20": lambda rng: SampleExamples(RUN, SAE, (rng.randrange(D_SAE),)),
    "top20_again": lambda _: SampleExamples(RUN, SAE, (1,)),
    "slow": lambda rng: GetNormProfile((RUN,), sites=("resid_post.6",), by="position", quantiles=(rng.random(),)),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=3, help="of each turn of each side")
    arguments.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        store.mkdir()
        write_run(str(store), SHARDS * SHARD_NONZEROS, Rows(norm_sites=NORMS), SHARD_NONZEROS)
        with running_service(ACTSTORE_STORE=str(store), ACTSTORE_ANONYMOUS="reader") as ready:
            found = asyncio.run(measure(ready["address"], ready["pid"], options.seconds))
    for name, value in found.items():
        print(f"{name:<34}{value:>14,}")
    if options.json:
        print(json.dumps(found))


def questions(kind: str) -> list[Call]:
    rng = random.Random(kind)
    return [call_of(kind, QUESTION[kind](rng)) for _ in range(1 if kind.endswith("again") else QUESTIONS)]


async def measure(address: str, process: int, seconds: float) -> dict[str, float]:
    norms, again = questions("norm"), questions("norm_again")
    sizes = await answer_sizes(address, [norms[0], *again])
    here, there = multiprocessing.Pipe()
    echo = multiprocessing.get_context("spawn").Process(target=serve_echo, args=(sizes, there), daemon=True)
    echo.start()
    echo_address, failed = str(here.recv()), Counter[str]()
    found: dict[str, float] = {}
    for kind in [kind for kind in QUESTION if kind != "slow"]:
        told, errors = await alone(kind, questions(kind), address, process, seconds)
        found, failed = found | told, failed + errors
    found |= (await alone("echo", norms, echo_address, echo.pid or 0, seconds))[0]
    for name, calls in (("norm", norms), ("again", again)):
        for clients in CLIENTS:
            service, bare = [await turn(each, calls, clients, seconds) for each in (address, echo_address)]
            failed += service.failed
            found[f"{name}_calls_per_second_{clients}"] = round(service.calls_per_second)
            share = service.calls_per_second / bare.calls_per_second
            found[f"{name}_share_of_echo_{clients}"] = round(share, 3)
    echo.kill()
    found["beside_slow_over_alone"], errors = await beside_slow(address, norms, seconds)
    failed += errors
    if failed:
        print(f"failed calls: {dict(failed)}")
    return found | {"errors": failed.total()}


async def alone(
    kind: str, calls: Sequence[Call], address: str, process: int, seconds: float
) -> tuple[dict[str, float], Counter[str]]:
    """One client, which has asked before. CPU counts all that the process does meanwhile."""
    await turn(address, calls, 1, seconds / 2)
    before = cpu_seconds(process)
    seen = await turn(address, calls, 1, seconds)
    cpu_ms = 1000 * (cpu_seconds(process) - before) / (len(seen.milliseconds) + 1)
    return {f"{kind}_cpu_ms": round(cpu_ms, 2), f"{kind}_wall_ms": round(seen.percentile(50), 2)}, seen.failed


async def beside_slow(address: str, norms: Sequence[Call], seconds: float) -> tuple[float, Counter[str]]:
    quiet = await turn(address, norms, 1, seconds)
    slow, busy = await asyncio.gather(
        turn(address, questions("slow"), SLOW, 2 * seconds), turn(address, norms, 1, 2 * seconds)
    )
    alone_ms, beside_ms = (seen.percentile(99) for seen in (quiet, busy))
    print(f"norms of one client, p99: {alone_ms:.1f} ms alone, {beside_ms:.1f} ms beside slow ones")
    return round(beside_ms / alone_ms, 2), quiet.failed + slow.failed + busy.failed


def cpu_seconds(process: int) -> float:
    """What all threads of a process have used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
