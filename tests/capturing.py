"""Captures without a coordinator, for tests: a shard, or a whole run, on the calling thread."""

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from actstore_storage.bucket import Bucket
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.shard_writer import ShardWriter
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.capture.plan import Plan
from actstore_worker.capture.preparing import register
from actstore_worker.capture.shards.shard import ShardCapture
from actstore_worker.capture.shards.tasks import ShardTask
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.datasets.sequences import TokenSequences


def capture_shard(capture: ShardCapture, bucket: Bucket, plan: Plan, shard: int, attempt: str) -> bool:
    """True: this attempt's commit won."""
    columns, sources = capture.norm_columns, plan.shard_sources(shard)
    with ShardWriter(bucket, plan.record, shard, attempt, columns=columns, sources=sources) as writer:
        capture.stream(writer, plan.shard_sequences(shard))
        return writer.commit()


def capture_run(plan: Plan, bucket: Bucket, worker: CaptureWorker) -> Snapshot:
    """Every shard, as a capture worker does it."""
    register(bucket, plan)
    create_run(bucket, plan.record)
    for shard in range(plan.record.shards_total):
        own = plan.shard_sequences(shard), f"attempt{shard}", plan.shard_sources(shard)
        task = ShardTask(plan.record, plan.model_source, plan.sae_paths, shard, *own)
        assert worker.capture(task).won
    return open_run(bucket, plan.record.run)


def padded(sequences: TokenSequences) -> tuple[Int[NDArray[np.int64], "batch position"], NDArray[np.bool_]]:
    """Token ids with zeros on the right, and where the tokens are."""
    inside = np.arange(sequences.lengths.max()) < sequences.lengths[:, None]
    ids = np.zeros(inside.shape, dtype=np.int64)
    ids[inside] = sequences.tokens
    return ids, inside
