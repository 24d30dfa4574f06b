"""What one capture worker does: hold the model of the last run that it worked for, and capture shards of it; or hold a
run's new SAEs, and encode stored rows with them.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from actstore_storage.bucket import Bucket
from actstore_storage.errors import ActstoreError
from actstore_storage.format.keys import commit_key, data_folder
from actstore_storage.format.specification import RunRecord
from actstore_storage.runs.borrowed_shard import FeatureWriter
from actstore_storage.runs.document_sources import DocumentSources
from actstore_storage.runs.opening import read_commit
from actstore_storage.runs.shard_writer import ShardWriter
from actstore_worker.capture.shards.encode_rows import RowsEncoder
from actstore_worker.capture.shards.overflow import OverflowRefused
from actstore_worker.capture.shards.shard import CapturedBatch, ShardCapture
from actstore_worker.capture.shards.speed import measured_flops
from actstore_worker.datasets.batching import Batch
from actstore_worker.datasets.sequences import TokenSequences
from actstore_worker.models.files.source import ModelSource
from actstore_worker.models.model import TORCH_DTYPES
from actstore_worker.models.wiring import load_model
from actstore_worker.sae import SparseAutoencoder, load_sae
from actstore_worker.sae.stored import SAE_CACHE, StoredSaes

# Shards that a worker has in hand: one that streams, one that is being committed.
TASKS = 2


@dataclass(frozen=True)
class ShardTask:
    """One attempt at one shard; `sequences` are the shard's own, and `sources` of their documents."""

    record: RunRecord
    model_source: ModelSource
    sae_paths: dict[str, Path]
    shard: int
    sequences: TokenSequences
    attempt: str
    sources: DocumentSources


@dataclass(frozen=True)
class EncodeTask:
    """One attempt at one shard of a run over another's rows; `sae_paths` are the SAEs that the other lacks."""

    record: RunRecord
    sae_paths: Mapping[str, Path]
    shard: int
    attempt: str


Task = ShardTask | EncodeTask


@dataclass(frozen=True)
class ShardReport:
    """What the bucket has of the shard now, borrowed rows aside; `won` where this attempt put it there."""

    won: bool
    tokens: int
    bytes: int


class CaptureWorker:
    """`capture` runs on up to `TASKS` threads: while one shard is sorted, written out and committed, the next one has
    the model or the SAEs. `interrupt` runs on any thread.
    """

    def __init__(self, bucket: Bucket, device: torch.device, sae_cache: Path = SAE_CACHE) -> None:
        self._bucket, self._device = bucket, device
        self._stored_saes = StoredSaes(bucket, sae_cache)
        # Of the run in hand, the one or the other.
        self._capturing: tuple[RunRecord, _InterruptibleCapture] | None = None
        self._encoding: tuple[RunRecord, RowsEncoder] | None = None
        self._turn = threading.Lock()
        self._flops: float | None = None
        self._interrupted: deque[str] = deque(maxlen=TASKS)

    def capture(self, task: Task) -> ShardReport:
        """Errors: ActstoreError CANCELLED where it was interrupted; whatever the model, the disk or the bucket do."""
        if self._bucket.exists(commit_key(task.record.run, task.shard)):
            return self._report(task, won=False)  # another coordinator's worker was here
        with ExitStack() as open_writer:
            with self._turn:
                self._check(task.attempt)
                writer = (
                    self._encode(task, open_writer) if isinstance(task, EncodeTask) else self._run(task, open_writer)
                )
            self._check(task.attempt)
            won = writer.commit()
        return self._report(task, won)

    def flops(self) -> float:
        """In float32, or in the dtype of the run in hand. A measurement of 0.2 s, once."""
        if self._flops is None:
            dtype = "float32" if self._capturing is None else self._capturing[0].specification.dtype
            self._flops = measured_flops(self._device, TORCH_DTYPES[dtype])
        return self._flops

    def interrupt(self, attempt: str) -> None:
        """That attempt ends before its next batch. Attempts are never named twice."""
        self._interrupted.append(attempt)

    def _run(self, task: ShardTask, stack: ExitStack) -> ShardWriter:
        """A writer that has all of the shard. A site with a value that its dtype cannot hold is wide the next time."""
        capture = self._model(task)
        capture.check = lambda: self._check(task.attempt)
        widened: set[str] = set()
        while True:
            with ExitStack() as attempt:
                writer = attempt.enter_context(
                    ShardWriter(
                        self._bucket,
                        task.record,
                        task.shard,
                        task.attempt,
                        sorted(widened),
                        capture.norm_columns,
                        task.sources if task.record.document_sources else None,
                    )
                )
                try:
                    capture.stream(writer, task.sequences, widened)
                except OverflowRefused as error:
                    if not task.record.specification.widen_on_overflow or error.site in widened:
                        raise
                    widened.add(error.site)
                    continue
                stack.push(attempt.pop_all())
                return writer

    def _encode(self, task: EncodeTask, stack: ExitStack) -> FeatureWriter:
        """A writer that has all of the shard's new features."""
        encoder = self._encoder(task)
        encoder.check = lambda: self._check(task.attempt)
        writer = stack.enter_context(encoder.writer(task.shard, task.attempt))
        encoder.stream(writer)
        return writer

    def _report(self, task: Task, won: bool) -> ShardReport:
        commit = read_commit(self._bucket, task.record, task.shard)
        own = f"{data_folder(task.record.run)}/"
        return ShardReport(
            won, commit.tokens, sum(item.bytes for item in commit.objects.values() if item.key.startswith(own))
        )

    def _model(self, task: ShardTask) -> "_InterruptibleCapture":
        # Not by specification alone: runs of equal ones have names of their own, and a capture writes under its run's.
        if self._capturing is None or self._capturing[0] != task.record:
            self._capturing = self._encoding = None  # so that two models never lie in memory side by side
            model = load_model(
                task.model_source,
                dtype=task.record.specification.dtype,
                device=self._device,
                attention=task.record.attention_implementation,
                device_map="auto" if self._device.type == "cuda" and torch.cuda.device_count() > 1 else None,
            )
            self._capturing = task.record, _InterruptibleCapture(model, self._saes(task), task.record)
        return self._capturing[1]

    def _encoder(self, task: EncodeTask) -> RowsEncoder:
        if self._encoding is None or self._encoding[0] != task.record:
            self._capturing = self._encoding = None
            self._encoding = task.record, RowsEncoder(self._bucket, task.record, self._saes(task), self._device)
        return self._encoding[1]

    def _saes(self, task: Task) -> tuple[SparseAutoencoder, ...]:
        return tuple(load_sae(self._sae_path(task, name), name) for name in task.sae_paths)

    def _sae_path(self, task: Task, name: str) -> Path:
        """One that the coordinator fetched from the bucket lies on its machine, and may not on this one."""
        path = task.sae_paths[name]
        if path.exists():
            return path
        sha256 = next(sae.sha256 for sae in task.record.specification.saes if sae.name == name)
        return self._stored_saes.fetch(name, sha256) or path

    def _check(self, attempt: str) -> None:
        if attempt in self._interrupted:
            raise ActstoreError("the capture was cancelled", reason="CANCELLED")


class _InterruptibleCapture(ShardCapture):
    """Asks before each batch whether to go on: `check` raises where not, and the writer then removes the attempt."""

    check: Callable[[], None]

    def capture(self, batch: Batch, widened: frozenset[str] = frozenset()) -> CapturedBatch:
        self.check()
        return super().capture(batch, widened)
