"""What a profile of norms by layer costs as a run grows, and what writing norms costs: `python -m benchmarks.norms`.

Runs of 1, 10 and 100 shards with norms of 12 sites and no other rows, written by ShardWriter and folded as by a
coordinator. A profile is asked from opening the run on, of all sites, with its moments alone and with its five
quantiles. DuckDB takes the same means from the norms files of the same run. Predicted: a complete run is one checkpoint
and one object of sketches, whatever its shards, so that 100 times the tokens cost the same but for a longer checkpoint;
DuckDB reads 48 bytes a token.

Writing is told in us of CPU time a token, with moments and sketches of the 12 columns: one part of what norms cost in a
capture. The other is computing them, which docs/benchmarks.md has.
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

from actstore_storage.bucket import Bucket
from actstore_storage.checkpoint import fold_commits
from actstore_storage.norms import DEFAULT_QUANTILES, ProfileQuestion, norm_profile
from actstore_storage.opening import open_bucket
from actstore_storage.runs import create_run, open_run
from actstore_storage.shard import ShardWriter, TokenRows
from actstore_storage.specification import RunRecord, Specification

SITES = tuple(f"{kind}.{layer}" for layer in range(6) for kind in ("resid_pre", "resid_post"))
SHARDS = (1, 10, 100)
SEQUENCES, CONTEXT_LENGTH = 32, 256
ROUNDS = 15


def record_of(shards: int) -> RunRecord:
    specification = Specification(
        model="synthetic",
        model_revision="",
        weights_sha256="a" * 64,
        tokenizer_sha256="b" * 64,
        dataset="random",
        dataset_sha256="c" * 64,
        text_field="text",
        max_tokens=None,
        context_length=CONTEXT_LENGTH,
        prepend_bos=True,
        dense_sites=(),
        norm_sites=SITES,
        saes=(),
        dtype="float32",
        sequences_per_shard=SEQUENCES,
        sequences_per_batch=SEQUENCES,
    )
    sequences = shards * SEQUENCES
    tokens = sequences * CONTEXT_LENGTH
    return RunRecord("run", specification, specification.sha256, sequences, tokens, 6, 512, "sdpa", "cpu", "0")


def write_run(bucket: Bucket, shards: int) -> float:
    """CPU time of writing, in seconds."""
    record, random, seconds = record_of(shards), np.random.default_rng(0), 0.0
    create_run(bucket, record)
    for shard in range(shards):
        first, rows = shard * SEQUENCES, SEQUENCES * CONTEXT_LENGTH
        sequence = np.repeat(np.arange(first, first + SEQUENCES), CONTEXT_LENGTH)
        position = np.tile(np.arange(CONTEXT_LENGTH, dtype=np.int32), SEQUENCES)
        flags = (position == 0).astype(np.uint8)
        tokens = TokenRows(sequence, position, sequence, random.integers(0, 50_000, rows, np.int32), flags)
        norms = {site: random.lognormal(layer / 6, 0.3, rows).astype(np.float32) for layer, site in enumerate(SITES)}
        began = time.process_time()
        with ShardWriter(bucket, record, shard, "benchmark") as writer:
            writer.add(tokens, {}, norms, {})
            writer.commit()
        seconds += time.process_time() - began
    fold_commits(open_run(bucket, "run"))
    return seconds


def duckdb_means(paths: list[str]) -> None:
    columns = ", ".join(f'avg("{site}")' for site in SITES)
    with duckdb.connect() as database:
        database.execute("set threads = 1")
        database.execute(f"select {columns} from read_parquet({paths!r})").fetchall()  # noqa: S608


def seconds_of(ask: Callable[[], object]) -> float:
    """Median after one that warms up."""
    ask()
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - began)
    return median(taken)


def measure(folder: Path, shards: int) -> dict[str, float]:
    folder.mkdir()
    bucket = open_bucket(str(folder))
    written = write_run(bucket, shards)
    paths = [str(path) for path in folder.rglob("norms.parquet")]
    asked = {"moments": ProfileQuestion(quantiles=()), "quantiles": ProfileQuestion(quantiles=DEFAULT_QUANTILES)}
    found = {
        name: seconds_of(lambda question=question: norm_profile(open_run(bucket, "run"), question))
        for name, question in asked.items()
    }
    written_us = written / (shards * SEQUENCES * CONTEXT_LENGTH) * 1e6
    return found | {"duckdb": seconds_of(lambda: duckdb_means(paths)), "write_us_a_token": written_us}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    arguments = parser.parse_args()
    print("shards   moments ms   quantiles ms   DuckDB ms   write us a token")
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for shards in SHARDS:
            one = found[shards] = measure(Path(name) / str(shards), shards)
            milliseconds = [1000 * one[side] for side in ("moments", "quantiles", "duckdb")]
            print(f"{shards:6}", *(f"{value:12.2f}" for value in (*milliseconds, one["write_us_a_token"])), flush=True)
    first, last = found[SHARDS[0]], found[SHARDS[-1]]
    growth = max(last[side] / first[side] for side in ("moments", "quantiles"))
    numbers = {"growth_100x": growth, "ratio_to_duckdb": last["duckdb"] / last["moments"]} | {
        f"write_us_a_token_{len(SITES)}_columns": last["write_us_a_token"]
    }
    print(", ".join(f"{name} {value:.2f}" for name, value in numbers.items()))
    if arguments.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
