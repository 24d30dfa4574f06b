"""Measures how long opening a run takes as it grows: 100, 10,000 and 100,000 shards in a SeaweedFS.

The runs are synthetic: real commits, each put into the store, and the checkpoints that a coordinator makes of them,
without data. Opening reads the record, lists checkpoints, reads each one's small columns, and lists and reads the
commits that no checkpoint covers.

Predicted: 100,000 shards are one checkpoint of 65,536, eight of 4,096, and so on; in a complete run every commit is in
a checkpoint. 100,000 rows of two columns take 0.05 s, and the rest is requests: 17 x 3 reads of a Parquet footer and
its columns.

Measured: 0.008, 0.06 and 0.18 s, with 2, 11 and 17 objects read. Reading all commits instead would be 100,000
requests: at 0.7 ms each in 16 threads, 70 s.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import commit_key, object_key
from actstore_storage.format.moments import Moments
from actstore_storage.format.products import ObjectRecord
from actstore_storage.format.specification import RunRecord
from actstore_storage.runs.checkpoint import Commits
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.upkeep.folding import fold_commits
from benchmarks.parts.counted_bucket import Reads, counted
from benchmarks.parts.synthetic_runs import synthetic_record
from tests.servers import SeaweedServer

SIZES = (100, 10_000, 100_000)
LAYERS, ROUNDS, WRITERS = 12, 5, 32
TOKENS = 40_000


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = arguments.parse_args()
    found: dict[str, float] = {}
    with SeaweedServer() as server:
        access = S3Access(server.endpoint, server.access_key, server.secret_key, secure=False)
        for size in SIZES:
            bucket = open_bucket(f"s3://{server.bucket}/open-{size}", access)
            folded = build(bucket, size)
            seconds = statistics.median(_timed(bucket, size) for _ in range(ROUNDS))
            objects = _objects_read(bucket, size)
            found |= {f"seconds_{size}": round(seconds, 3), f"objects_read_{size}": objects}
            print(f"{size:>8,} shards, {folded:>3} checkpoints: {seconds:.3f} s, {objects} objects read")
    if options.json:
        print(json.dumps(found))


def build(bucket: Bucket, shards: int) -> int:
    """Builds a run with this many shards, and returns the number of its checkpoints."""
    record = _record(shards)
    create_run(bucket, record)
    commits = list(_commits(record))
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda commit: bucket.put(commit_key("run", commit.shard), commit.to_json()), commits))
    return len(fold_commits(Snapshot(bucket, record, Commits([], commits))))


def _timed(bucket: Bucket, shards: int) -> float:
    began = time.perf_counter()
    snapshot = open_run(bucket, "run")
    taken = time.perf_counter() - began
    if not snapshot.complete or snapshot.tokens_committed != shards * TOKENS:
        raise RuntimeError("the run is not what was built")
    return taken


def _objects_read(bucket: Bucket, shards: int) -> int:
    """Opens the run once more, through a bucket that counts, and therefore without a clock."""
    reads = Reads()
    _timed(counted(bucket, reads), shards)
    return reads.objects


def _commits(record: RunRecord) -> Iterator[Commit]:
    moments = Moments.of(np.linspace(1, 2, 100))
    sites = record.specification.norm_sites
    digest = "0" * 64
    for shard in range(record.shards_total):
        attempt = f"{shard:012x}"
        products = ("tokens", "norms", "resid_post.6", "features-sae", "index-sae", "statistics-sae")
        objects = {
            product: ObjectRecord(object_key("run", shard, attempt, product), 1 << 24, TOKENS, digest, digest)
            for product in products
        }
        classes = {"text": TOKENS - 40, "bos": 40, "special": 0, "sink": 0}
        yield Commit(
            "run", shard, attempt, record.specification_sha256, 40, classes, objects,
            {site: {"text": moments, "bos": moments} for site in sites}, dict.fromkeys(sites, 0), "sdpa", "cuda", "0",
        )  # fmt: skip


def _record(shards: int) -> RunRecord:
    return synthetic_record(
        "run",
        sequences=40 * shards,
        sequence_tokens=TOKENS // 40,
        d_model=768,
        layers=LAYERS,
        dense_sites=("resid_post.6",),
        norm_sites=tuple(f"resid_post.{layer}" for layer in range(LAYERS)),
        dtype="bfloat16",
        sequences_per_shard=40,
        sequences_per_batch=8,
    )


if __name__ == "__main__":
    main()
