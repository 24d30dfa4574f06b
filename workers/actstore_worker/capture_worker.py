"""What one capture worker does: hold the model of the last run that it worked for, and capture shards of it."""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from actstore_storage.bucket import Bucket
from actstore_storage.errors import ActstoreError
from actstore_storage.runs import read_commit
from actstore_storage.shard import ShardWriter
from actstore_storage.specification import RunRecord
from actstore_worker.capture import CapturedBatch, ShardCapture
from actstore_worker.catalogue import ModelSource
from actstore_worker.loading import load_model
from actstore_worker.sae import load_sae
from actstore_worker.sequences import TokenSequences

# Shards that a worker has in hand: one that streams, one that is being committed.
TASKS = 2


@dataclass(frozen=True)
class ShardTask:
    """One attempt at one shard; `sequences` are the shard's own."""

    record: RunRecord
    model_source: ModelSource
    sae_paths: dict[str, Path]
    shard: int
    sequences: TokenSequences
    attempt: str


@dataclass(frozen=True)
class ShardReport:
    """What the bucket has of the shard now; `won` where this attempt put it there."""

    won: bool
    tokens: int
    bytes: int


class CaptureWorker:
    """`capture` runs on up to `TASKS` threads: while one shard is sorted, written out and committed, the next one has
    the model. `interrupt` runs on any thread.
    """

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self._bucket, self._device = bucket, device
        self._loaded: tuple[RunRecord, _InterruptibleCapture] | None = None
        self._turn = threading.Lock()
        self._interrupted: deque[str] = deque(maxlen=TASKS)

    def capture(self, task: ShardTask) -> ShardReport:
        """Errors: ActstoreError CANCELLED where it was interrupted; whatever the model, the disk or the bucket do."""
        with ExitStack() as open_writer:
            with self._turn:
                capture = self._load(task)
                capture.check = lambda: self._check(task.attempt)
                writer = open_writer.enter_context(ShardWriter(self._bucket, task.record, task.shard, task.attempt))
                capture.stream(writer, task.sequences)
            self._check(task.attempt)
            won = writer.commit()
        commit = read_commit(self._bucket, task.record, task.shard)
        return ShardReport(won, commit.tokens, sum(item.bytes for item in commit.objects.values()))

    def interrupt(self, attempt: str) -> None:
        """That attempt ends before its next batch. Attempts are never named twice."""
        self._interrupted.append(attempt)

    def _load(self, task: ShardTask) -> "_InterruptibleCapture":
        self._check(task.attempt)
        # Not by specification alone: runs of equal ones have names of their own, and a capture writes under its run's.
        if self._loaded is None or self._loaded[0] != task.record:
            self._loaded = None  # so that two models never lie in memory side by side
            model = load_model(task.model_source, dtype=task.record.specification.dtype, device=self._device)
            saes = tuple(load_sae(path, name) for name, path in task.sae_paths.items())
            self._loaded = task.record, _InterruptibleCapture(model, saes, task.record)
        return self._loaded[1]

    def _check(self, attempt: str) -> None:
        if attempt in self._interrupted:
            raise ActstoreError("the capture was cancelled", reason="CANCELLED")


class _InterruptibleCapture(ShardCapture):
    """Asks before each batch whether to go on: `check` raises where not, and the writer then removes the attempt."""

    check: Callable[[], None]

    def capture(self, batch: TokenSequences) -> CapturedBatch:
        self.check()
        return super().capture(batch)
