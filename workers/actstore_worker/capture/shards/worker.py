"""A capture worker: keeps the model and SAEs of the last run loaded, and captures shards with them."""

import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from actstore_storage.bucket import Bucket
from actstore_storage.errors import ActstoreError
from actstore_storage.format.keys import commit_key, data_folder
from actstore_storage.format.specification import RunRecord
from actstore_storage.runs.opening import read_commit
from actstore_worker.capture.shards.speed import measured_flops
from actstore_worker.capture.shards.tasks import Task
from actstore_worker.models.dtypes import TORCH_DTYPES
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.formats.loading import load_sae
from actstore_worker.sae.stored import SAE_CACHE, StoredSaes

# Shards that a worker has in progress: one that runs, one that is being committed.
TASKS = 2


@dataclass(frozen=True)
class ShardReport:
    """What the bucket now has of the shard, without borrowed rows; `won` if this attempt's commit succeeded.

    `device_seconds` is how long the attempt used the device, or the model where there is no device. `seconds` has the
    attempt's stages: wait (for the device, which another shard uses), load (model and SAEs), compute (forward passes,
    SAEs, sorting and writing) and commit. `non_finite` counts rows of sites and features that are infinite or NaN.
    """

    won: bool
    tokens: int
    bytes: int
    device_seconds: float = 0.0
    sinks: int = 0
    non_finite: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class CaptureWorker:
    """Captures shards. `capture` runs on up to `TASKS` threads: while one shard is sorted, written and committed, the
    next one uses the model or the SAEs. `interrupt` may run on any thread.
    """

    def __init__(self, bucket: Bucket, device: torch.device, sae_cache: Path = SAE_CACHE) -> None:
        self._bucket, self._device = bucket, device
        self._stored_saes = StoredSaes(bucket, sae_cache)
        # Of the current run.
        self._held: tuple[RunRecord, Any] | None = None
        self._turn = threading.Lock()
        self._flops: float | None = None
        self._interrupted: deque[str] = deque(maxlen=TASKS)

    def capture(self, task: Task[Any]) -> ShardReport:
        """Captures one shard. Errors: ActstoreError CANCELLED if it was interrupted; any error of the model, the disk
        or the bucket.
        """
        task = task.on(self._device.type)
        if self._bucket.exists(commit_key(task.record.run, task.shard)):
            return self._report(task, won=False)  # Another coordinator's worker has captured it.
        stages = _Stages()
        with ExitStack() as open_writer:
            with self._turn:
                stages.ended("wait")
                self._check(task.attempt)
                loaded = self._loaded(task)
                stages.ended("load")
                loaded.check = lambda: self._check(task.attempt)
                writer = task.write(loaded, self._bucket, open_writer)
                stages.ended("compute")
            self._check(task.attempt)
            won = writer.commit()
            stages.ended("commit")
        device_seconds = stages.seconds["load"] + stages.seconds["compute"]
        return replace(self._report(task, won), device_seconds=device_seconds, seconds=stages.seconds)

    def flops(self) -> float:
        """The speed in float32, or in the dtype of the current run. A measurement of 0.2 s, once."""
        if self._flops is None:
            dtype = "float32" if self._held is None else self._held[1].dtype
            self._flops = measured_flops(self._device, TORCH_DTYPES[dtype])
        return self._flops

    def interrupt(self, attempt: str) -> None:
        """Ends that attempt before its next batch. Names of attempts are never reused."""
        self._interrupted.append(attempt)

    def _report(self, task: Task[Any], won: bool) -> ShardReport:
        commit = read_commit(self._bucket, task.record, task.shard)
        own = f"{data_folder(task.record.run)}/"
        return ShardReport(
            won,
            commit.tokens,
            sum(item.bytes for item in commit.objects.values() if item.key.startswith(own)),
            sinks=commit.tokens_by_class.get("sink", 0),
            non_finite=_by_kind(commit.non_finite),
        )

    def _loaded(self, task: Task[Any]) -> Any:
        # The specification alone is not enough: equal specifications can have different run names, and a capture writes
        # under its run's name.
        if self._held is None or self._held[0] != task.record:
            self._held = None  # so that two models are never in memory at the same time
            self._held = task.record, task.load(self._bucket, self._saes(task), self._device)
        return self._held[1]

    def _saes(self, task: Task[Any]) -> tuple[SparseAutoencoder, ...]:
        return tuple(load_sae(self._sae_path(task, name), name) for name in task.sae_paths)

    def _sae_path(self, task: Task[Any], name: str) -> Path:
        """The path of an SAE. One that the coordinator downloaded from the bucket is on its machine, but may not be on
        this one.
        """
        path = task.sae_paths[name]
        if path.exists():
            return path
        sha256 = next(sae.sha256 for sae in task.record.specification.saes if sae.name == name)
        return self._stored_saes.fetch(name, sha256) or path

    def _check(self, attempt: str) -> None:
        if attempt in self._interrupted:
            raise ActstoreError("the capture was cancelled", reason="CANCELLED")


class _Stages:
    """The seconds of stages that follow each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def ended(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage], self._began = now - self._began, now


def _by_kind(non_finite: Mapping[str, int]) -> dict[str, int]:
    """Counts by what is not finite, instead of by product."""
    found = {"rows": 0, "features": 0}
    for product, count in non_finite.items():
        found["features" if product.startswith("features-") else "rows"] += count
    return found
