"""The tasks of a worker: one attempt at one shard, and how the shard is made.

A run's shards are captured with its model, or encoded from another run's rows with the new SAEs. Code that assigns
tasks does not depend on which it is.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from actstore_storage.bucket import Bucket
from actstore_storage.format.specification import RunRecord
from actstore_storage.runs.borrowed_shard import FeatureWriter
from actstore_storage.runs.document_sources import DocumentSources
from actstore_storage.runs.shard_writer import ShardWriter
from actstore_worker.capture.shards.encode_rows import RowsEncoder
from actstore_worker.capture.shards.overflow import OverflowRefused
from actstore_worker.capture.shards.shard import ShardCapture
from actstore_worker.datasets.sequences import TokenSequences
from actstore_worker.models.files.source import ModelSource
from actstore_worker.models.loading import load_model
from actstore_worker.sae.autoencoder import SparseAutoencoder


class Loaded(Protocol):
    """What all shards of one run are made with, on its device."""

    # Called before each batch; raises an error to stop the shard.
    check: Callable[[], None]

    @property
    def dtype(self) -> str:
        """The dtype of most of the computation."""


Held = TypeVar("Held", bound=Loaded)


class Task(Protocol[Held]):
    """One attempt at one shard. `sae_paths` are the SAEs that it needs."""

    @property
    def record(self) -> RunRecord: ...

    @property
    def sae_paths(self) -> Mapping[str, Path]: ...

    @property
    def shard(self) -> int: ...

    @property
    def attempt(self) -> str: ...

    def load(self, bucket: Bucket, saes: tuple[SparseAutoencoder, ...], device: torch.device) -> Held:
        """Loads what all shards of the run are made with. Errors: BadRequest RUN_MISMATCH."""

    def write(self, loaded: Held, bucket: Bucket, stack: ExitStack) -> ShardWriter | FeatureWriter:
        """Returns a writer with the whole shard, to be committed; it is open until the stack is left."""


def fields_of(run: str, shard: int, attempt: str) -> dict[str, str]:
    """What lines say of the work that they are about."""
    return {"run": run, "shard": str(shard), "attempt": attempt}


@dataclass(frozen=True)
class ShardTask:
    """A shard that is captured with the model. `sequences` are the shard's own, and `sources` those of
    their documents.
    """

    record: RunRecord
    model_source: ModelSource
    sae_paths: Mapping[str, Path]
    shard: int
    sequences: TokenSequences
    attempt: str
    sources: DocumentSources

    def load(self, bucket: Bucket, saes: tuple[SparseAutoencoder, ...], device: torch.device) -> ShardCapture:  # noqa: ARG002
        model = load_model(
            self.model_source,
            dtype=self.record.specification.dtype,
            device=device,
            attention=self.record.attention_implementation,
            device_map="auto" if device.type == "cuda" and torch.cuda.device_count() > 1 else None,
        )
        return ShardCapture(model, saes, self.record)

    def write(self, loaded: ShardCapture, bucket: Bucket, stack: ExitStack) -> ShardWriter:
        """If a value does not fit into its site's dtype, the site is stored as float32 in the next attempt."""
        widened: set[str] = set()
        while True:
            with ExitStack() as attempt:
                writer = attempt.enter_context(self._writer(loaded, bucket, widened))
                try:
                    loaded.stream(writer, self.sequences, widened)
                except OverflowRefused as error:
                    if not self.record.specification.widen_on_overflow or error.site in widened:
                        raise
                    widened.add(error.site)
                    continue
                stack.push(attempt.pop_all())
                return writer

    def _writer(self, loaded: ShardCapture, bucket: Bucket, widened: set[str]) -> ShardWriter:
        sources = self.sources if self.record.document_sources else None
        shard = bucket, self.record, self.shard, self.attempt
        return ShardWriter(*shard, sorted(widened), loaded.norm_columns, sources)


@dataclass(frozen=True)
class EncodeTask:
    """A shard of a run over another run's rows. `sae_paths` are the SAEs that the other run does not have."""

    record: RunRecord
    sae_paths: Mapping[str, Path]
    shard: int
    attempt: str

    def load(self, bucket: Bucket, saes: tuple[SparseAutoencoder, ...], device: torch.device) -> RowsEncoder:
        return RowsEncoder(bucket, self.record, saes, device)

    def write(self, loaded: RowsEncoder, bucket: Bucket, stack: ExitStack) -> FeatureWriter:  # noqa: ARG002
        writer = stack.enter_context(loaded.writer(self.shard, self.attempt))
        loaded.stream(writer)
        return writer
