"""Loads a service with mixed questions of 1 to 256 clients, beside a bare gRPC echo of the same payloads.

The store is a local directory with a run of a 16,384-feature SAE, a dense site of d_model 768 and norms of twelve
layers. Each client has its own connection, and asks its next question, drawn at random, when it has its answer: lists,
norm profiles, statistics and examples of features, and a sequence's rows as a stream. The other side is an echo on
`grpc.aio`: it takes the same requests and sends answers of the same number and sizes of messages, without any work, so
that it is what gRPC for Python reaches on this machine. Both sides, and the clients, are processes of their own on the
loopback; the sides take turns at every number of clients.

`throughput_share_N`, `p50_share_N`  the service's calls a second, and the echo's median latency over the service's.
`p99_over_p50_64`                    the service's latencies over all questions with 64 clients.
`errors`                             calls of the service that did not end with OK, refusals included.
`memory_growth`                      resident memory of the service without what its caches hold, at the end of the last
                                     period under load of 64 clients over that at the end of the first; five periods.
                                     All numbers of clients have been served before.
`resident_growth`                    the same with the caches, which grow up to their bounds.

Predicted: opening the run and reading takes 2 to 8 ms of Python a question, an echo 0.2 ms: shares below a tenth, which
are the price of the answers and not of gRPC. Memory is flat, because buffers and cached rows are bounded.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import numpy as np

from actstore_api.codec import encode
from actstore_api.records.activation import ReadActivations, TokenSelection
from actstore_api.records.catalog import GetRun, ListRuns
from actstore_api.records.feature import GetFeatureStatistics, SampleExamples
from actstore_api.records.norm import GetNormProfile
from actstore_api.records.terms import Range
from actstore_api.verbs import VERBS, verb_of
from benchmarks.parts.feature_runs import D_SAE, RUN, SAE, Rows, write_run
from tests.service.process import running_service

CLIENTS = (1, 4, 16, 64, 256)
NONZEROS = 2_000_000
DENSE, D_MODEL = "resid_post.6", 768
NORMS = tuple(f"resid_post.{layer}" for layer in range(12))
# Different questions of each kind, so that no answer is always the same one.
VARIANTS = 16
# How many questions of a hundred are of which kind.
MIX = {"runs": 15, "run": 15, "norms": 20, "statistics": 20, "examples": 20, "rows": 10}
CALL_SECONDS = 60
PERIODS = 5
OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]


@dataclass(frozen=True)
class Call:
    """One question as bytes; `streams` says of which kind the call is."""

    kind: str
    path: str
    request: bytes
    streams: bool


@dataclass(frozen=True)
class Taken:
    """Bytes of memory of the service: in RAM, and those of them that its caches count, which have a bound."""

    resident: float
    held: float


@dataclass
class Seen:
    """What the clients saw in one turn: milliseconds of each call, and the codes of those that failed."""

    seconds: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def calls_per_second(self) -> float:
        return len(self.milliseconds) / self.seconds

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.milliseconds, percent))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=5, help="of each turn of each side")
    arguments.add_argument("--minutes", type=float, default=1, help="under load of 64 clients, for the memory")
    arguments.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        store.mkdir()
        write_run(str(store), NONZEROS, Rows(D_MODEL, (DENSE,), NORMS))
        with running_service(ACTSTORE_STORE=str(store), ACTSTORE_ANONYMOUS="reader") as ready:
            found = asyncio.run(measure(ready, options.seconds, options.minutes))
    for name, value in found.items():
        print(f"{name:<34}{value:>14,}")
    if options.json:
        print(json.dumps(found))


async def measure(ready: Mapping[str, str], seconds: float, minutes: float) -> dict[str, float]:
    calls = questions()
    sizes = await answer_sizes(ready["address"], calls)
    here, there = multiprocessing.Pipe()
    echo = multiprocessing.get_context("spawn").Process(target=serve_echo, args=(sizes, there), daemon=True)
    echo.start()
    sides = {"service": ready["address"], "echo": str(here.recv())}
    found: dict[str, float] = {}
    failed: Counter[str] = Counter()
    for clients in CLIENTS:
        seen = {name: await turn(address, calls, clients, seconds) for name, address in sides.items()}
        failed += seen["service"].failed
        found |= compared(clients, seen["service"], seen["echo"])
    echo.kill()
    (first, *_, last), late = await soak(ready, calls, 60 * minutes / PERIODS)
    found |= {
        "memory_growth": round((last.resident - last.held) / (first.resident - first.held), 3),
        "resident_growth": round(last.resident / first.resident, 3),
        "memory_megabytes": round(last.resident / 1e6),
        "held_megabytes": round(last.held / 1e6),
    }
    failed += late
    if failed:
        print(f"failed calls: {dict(failed)}")
    return found | {"errors": failed.total()}


def compared(clients: int, service: Seen, echo: Seen) -> dict[str, float]:
    found = {
        "throughput_share": round(service.calls_per_second / echo.calls_per_second, 3),
        "p50_share": round(echo.percentile(50) / service.percentile(50), 3),
        "calls_per_second": round(service.calls_per_second),
        "p50_ms": round(service.percentile(50), 2),
        "p99_over_p50": round(service.percentile(99) / service.percentile(50), 2),
        "echo_calls_per_second": round(echo.calls_per_second),
    }
    return {f"{name}_{clients}": value for name, value in found.items()}


async def soak(ready: Mapping[str, str], calls: Sequence[Call], seconds: float) -> tuple[list[Taken], Counter[str]]:
    """What the service takes at the end of each period of this many seconds, and the codes of failed calls."""
    memory, failed = [], Counter[str]()
    for _ in range(PERIODS):
        failed += (await turn(ready["address"], calls, 64, seconds)).failed
        memory.append(taken(ready["metrics"]))
    return memory, failed


def taken(metrics: str) -> Taken:
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=CALL_SECONDS) as page:
        found = dict(line.rsplit(" ", 1) for line in page.read().decode().splitlines() if not line.startswith("#"))
    held = float(found["actstore_held_rows_bytes"]) + float(found["actstore_held_runs_bytes"])
    return Taken(float(found["process_resident_memory_bytes"]), held)


def questions() -> list[Call]:
    """VARIANTS questions of each kind."""
    rng = random.Random(0)
    found: list[Call] = []
    for number in range(VARIANTS):
        feature = rng.randrange(D_SAE)
        records: dict[str, object] = {
            "runs": ListRuns(),
            "run": GetRun(RUN),
            "norms": GetNormProfile((RUN,), quantiles=()),
            "statistics": GetFeatureStatistics(RUN, SAE, feature),
            "examples": SampleExamples(RUN, SAE, (feature,)),
            "rows": ReadActivations(RUN, (DENSE,), where=TokenSelection(sequences=Range(number, number + 1))),
        }
        found += [call_of(kind, record) for kind, record in records.items()]
    return found


def call_of(kind: str, record: object) -> Call:
    verb = verb_of(record)
    return Call(kind, verb.path, encode(record).SerializeToString(), verb.streams)


async def turn(address: str, calls: Sequence[Call], clients: int, seconds: float) -> Seen:
    """Every client asks one question that does not count, and then as many as it can until the time is over."""
    seen = Seen()
    channels = [grpc.aio.insecure_channel(address, OPTIONS + _own_connection(number)) for number in range(clients)]
    try:
        await asyncio.gather(*(_ask(channel, calls[0], Seen()) for channel in channels))
        began = time.perf_counter()
        clock = [_client(channel, calls, began + seconds, seen, seed) for seed, channel in enumerate(channels)]
        await asyncio.gather(*clock)
        seen.seconds = time.perf_counter() - began
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))
    return seen


def _own_connection(number: int) -> list[tuple[str, object]]:
    """Channels with the same options share a connection."""
    return [("grpc.use_local_subchannel_pool", 1), ("actstore.client", number)]


async def _client(channel: grpc.aio.Channel, calls: Sequence[Call], end: float, seen: Seen, seed: int) -> None:
    rng = random.Random(seed)
    by_kind = {
        kind: [call for call in calls if call.kind == kind] for kind in dict.fromkeys(call.kind for call in calls)
    }
    weights = [MIX.get(kind, 1) for kind in by_kind]
    while time.perf_counter() < end:
        [kind] = rng.choices(list(by_kind), weights)
        await _ask(channel, rng.choice(by_kind[kind]), seen)


async def _ask(channel: grpc.aio.Channel, call: Call, seen: Seen) -> None:
    began = time.perf_counter()
    try:
        await _answer(channel, call)
    except grpc.aio.AioRpcError as error:
        seen.failed[error.code().name] += 1
    else:
        seen.milliseconds.append(1000 * (time.perf_counter() - began))


async def _answer(channel: grpc.aio.Channel, call: Call) -> list[int]:
    """The sizes of the answer's messages."""
    if not call.streams:
        return [len(await channel.unary_unary(call.path)(call.request, timeout=CALL_SECONDS))]
    return [len(message) async for message in channel.unary_stream(call.path)(call.request, timeout=CALL_SECONDS)]


async def answer_sizes(address: str, calls: Sequence[Call]) -> dict[tuple[str, bytes], list[int]]:
    async with grpc.aio.insecure_channel(address, OPTIONS) as channel:
        return {(call.path, call.request): await _answer(channel, call) for call in calls}


def serve_echo(sizes: Mapping[tuple[str, bytes], list[int]], ready: Connection) -> None:
    asyncio.run(_echo(sizes, ready))


async def _echo(sizes: Mapping[tuple[str, bytes], list[int]], ready: Connection) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Echo(sizes),))
    ready.send(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    await server.start()
    await server.wait_for_termination()


class _Echo(grpc.GenericRpcHandler):
    """Answers each request with zeros, in as many and as large messages as the service's answer had."""

    def __init__(self, sizes: Mapping[tuple[str, bytes], list[int]]) -> None:
        self._answers = {key: [bytes(size) for size in each] for key, each in sizes.items()}
        # For requests that the service was not asked before.
        self._typical = {path: answer for (path, _), answer in self._answers.items()}
        self._streams = {verb.path for verb in VERBS.values() if verb.streams}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        path = handler_call_details.method

        def of(request: bytes) -> list[bytes]:
            return self._answers.get((path, request), self._typical[path])

        async def answer(request: bytes, _: object) -> bytes:
            return of(request)[0]

        async def stream(request: bytes, _: object) -> AsyncIterator[bytes]:
            for message in of(request):
                yield message

        if path in self._streams:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(answer)


if __name__ == "__main__":
    main()
