"""Measures a norm profile as a run grows, and the cost of norms in a capture: `python -m benchmarks.norms`.

Runs of 1, 10 and 100 shards with norms of 12 sites and no other rows, written by ShardWriter and folded as by a
coordinator. A profile is timed including the opening of the run, for all sites, with its moments only and with its five
quantiles. DuckDB computes the same means from the norms files of the same run. Predicted: a complete run is one
checkpoint and one object of sketches, whatever its number of shards, so that 100 times the tokens cost the same except
for a longer checkpoint; DuckDB reads 48 bytes per token.

`capture_cost` is what norms add to the forward pass of a model of Pythia-70M's shape: norms and cosines of all 24
sites, their moments and their sketches, in CPU time of one core. It is the larger of two measurements: how much longer
a pass with them takes, which drifts with the machine, and the time measured inside the pass. Predicted: 24 vectors of 2
kB per token from memory at 14 GB/s, 3.5 us, and 56 sums over them in cache at 45 ns, 2.5 us; about 20 ns for each of 90
statistics' numbers, 1.8 us: 8 us compared with 350 of computation. Parquet and the commit come on top.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import duckdb
import numpy as np
import torch

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.norm_columns import columns_beside
from actstore_storage.format.sites import parse_site
from actstore_storage.format.specification import RunRecord
from actstore_storage.norms.profile import DEFAULT_QUANTILES, ProfileQuestion, norm_profile
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.shard_writer import ShardWriter, TokenRows
from actstore_storage.upkeep.folding import fold_commits
from actstore_worker.capture.shards.norms import BatchNorms
from actstore_worker.models.loading import load_model
from actstore_worker.models.taps import visit
from benchmarks.capture_peers import BATCH, SITE, TOKENS, plan_sites, write_inputs
from benchmarks.parts.synthetic_runs import synthetic_record
from tests.capturing import padded

SITES = tuple(f"{kind}.{layer}" for layer in range(6) for kind in ("resid_pre", "resid_post"))
SHARDS = (1, 10, 100)
SEQUENCES, CONTEXT_LENGTH = 32, 256
ROUNDS, CAPTURE_ROUNDS = 15, 25


def record_of(shards: int) -> RunRecord:
    return synthetic_record(
        "run",
        sequences=shards * SEQUENCES,
        sequence_tokens=CONTEXT_LENGTH,
        d_model=512,
        layers=6,
        norm_sites=SITES,
        sequences_per_shard=SEQUENCES,
        sequences_per_batch=SEQUENCES,
    )


def write_run(bucket: Bucket, shards: int) -> None:
    record, random = record_of(shards), np.random.default_rng(0)
    create_run(bucket, record)
    for shard in range(shards):
        first, rows = shard * SEQUENCES, SEQUENCES * CONTEXT_LENGTH
        sequence = np.repeat(np.arange(first, first + SEQUENCES), CONTEXT_LENGTH)
        position = np.tile(np.arange(CONTEXT_LENGTH, dtype=np.int32), SEQUENCES)
        flags = (position == 0).astype(np.uint8)
        tokens = TokenRows(sequence, position, sequence, random.integers(0, 50_000, rows, np.int32), flags)
        norms = {site: random.lognormal(layer / 6, 0.3, rows).astype(np.float32) for layer, site in enumerate(SITES)}
        with ShardWriter(bucket, record, shard, "benchmark") as writer:
            writer.add(tokens, {}, norms, {})
            writer.commit()
    fold_commits(open_run(bucket, "run"))


def duckdb_means(paths: list[str]) -> None:
    columns = ", ".join(f'avg("{site}")' for site in SITES)
    with duckdb.connect() as database:
        database.execute("set threads = 1")
        database.execute(f"select {columns} from read_parquet({paths!r})").fetchall()  # noqa: S608


def capture_cost(folder: Path) -> dict[str, float]:
    """CPU time per token, in us: of a forward pass that keeps nothing, of one with the norms of all its sites, and the
    part of the latter for sums over vectors, and for statistics and passing rows on; and of encoding and committing
    them, which is outside the pass. On one thread, in turns, with the minimum over each side's rounds, because other
    work on the machine only adds time.
    """
    folder.mkdir()
    write_inputs(folder, TOKENS)
    (folder / "store").mkdir()
    bucket = open_bucket(str(folder / "store"))
    plan = plan_sites(folder, "cpu", TOKENS, (), ())
    record, model = create_run(bucket, plan.record), load_model(plan.model_source, device=torch.device("cpu"))
    sites = set(map(parse_site, record.specification.norm_sites))
    columns = columns_beside(record.specification.norm_sites, model.kinds)
    batches = list(plan.shard_sequences(0).batches(BATCH))
    least: dict[str, float] = {}

    def take(side: str, us: float) -> None:
        least[side] = min(us, least.get(side, us))

    for number in range(CAPTURE_ROUNDS):
        with ShardWriter(bucket, record, 0, f"benchmark{number}", columns=columns) as writer:
            for batch in batches:
                ids, tokens = torch.from_numpy(padded(batch)[0]), batch.rows(None, frozenset())
                clock = TokenClock(ids.numel())
                visit(model, ids, None, {parse_site(SITE)}, lambda *_: None)
                take("plain", clock.us())
                found: dict[str, np.ndarray] = {}
                norms = BatchNorms(
                    sites, columns, lambda name, own, kept=found: kept.update({name: own.flatten().numpy()})
                )
                sums = TokenClock(ids.numel())
                clock = TokenClock(ids.numel())
                visit(model, ids, None, sites, sums.timed(norms.see))
                writing = TokenClock(ids.numel())
                writer.add(tokens, {}, found, {})
                take("statistics", writing.us())
                take("whole", clock.us())
                take("sums", sums.inside_us)
            began = time.process_time()  # of all threads of the process; the others are idle
            writer.commit()
            take("commit", 1e6 * (time.process_time() - began) / sum(len(batch.tokens) for batch in batches))
    return least


class TokenClock:
    """CPU time of this thread, in us per token for this many tokens."""

    def __init__(self, tokens: int) -> None:
        self._tokens, self.inside_us = tokens, 0.0
        self._began = time.thread_time()

    def us(self) -> float:
        return 1e6 * (time.thread_time() - self._began) / self._tokens

    def timed(self, call: Callable[..., None]) -> Callable[..., None]:
        """Its calls' time adds up in `inside_us`."""

        def timed(*arguments: object) -> None:
            before = self.us()
            call(*arguments)
            self.inside_us += self.us() - before

        return timed


def sides_of(folder: Path, shards: int) -> dict[str, Callable[[], object]]:
    """What is timed for a run with this many shards, which is written first."""
    folder.mkdir()
    bucket = open_bucket(str(folder))
    write_run(bucket, shards)
    paths = [str(path) for path in folder.rglob("norms.parquet")]
    return {
        "moments": lambda: norm_profile(open_run(bucket, "run"), ProfileQuestion(quantiles=())),
        "quantiles": lambda: norm_profile(open_run(bucket, "run"), ProfileQuestion(quantiles=DEFAULT_QUANTILES)),
        "duckdb": lambda: duckdb_means(paths),
    }


def profile_seconds(folder: Path) -> dict[tuple[int, str], float]:
    """By shards and side: the median of rounds in which all take turns, after one warm-up round."""
    asked = {(shards, side): ask for shards in SHARDS for side, ask in sides_of(folder / str(shards), shards).items()}
    taken: dict[tuple[int, str], list[float]] = {one: [] for one in asked}
    for _ in range(1 + ROUNDS):
        for one, ask in asked.items():
            began = time.perf_counter()
            ask()
            taken[one].append(time.perf_counter() - began)
    return {one: median(seconds[1:]) for one, seconds in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = profile_seconds(Path(name))
        print("shards   moments ms   quantiles ms   DuckDB ms")
        for shards in SHARDS:
            print(
                f"{shards:6}", *(f"{1000 * found[shards, side]:12.2f}" for side in ("moments", "quantiles", "duckdb"))
            )
        torch.set_num_threads(1)
        cost = capture_cost(Path(name) / "capture")
    print("us a token: forward pass {plain:.1f}, with norms {whole:.1f}".format(**cost), end="; ")
    print("sums over vectors {sums:.1f}, statistics {statistics:.1f}; Parquet and commit {commit:.1f}".format(**cost))
    first, last = SHARDS[0], SHARDS[-1]
    numbers = {
        "growth_100x": max(found[last, side] / found[first, side] for side in ("moments", "quantiles")),
        "ratio_to_duckdb": found[last, "duckdb"] / found[last, "moments"],
        "capture_cost": max(cost["whole"] - cost["plain"], cost["sums"] + cost["statistics"]) / cost["plain"],
    }
    print(", ".join(f"{name} {value:.3f}" for name, value in numbers.items()))
    if arguments.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
