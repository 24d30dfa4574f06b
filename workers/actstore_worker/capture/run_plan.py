"""The plan of a run before anything of it is in the bucket, for captures and for encoding stored rows."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore_api.records.capture import DatasetFiles
from actstore_storage.format.specification import FORMAT_VERSION, RunRecord
from actstore_worker.capture.limits import PlanLimits
from actstore_worker.capture.queueing.progress import NO_FILES
from actstore_worker.datasets.places import DatasetPlaces

if TYPE_CHECKING:  # the coordinator's process follows runs without torch, which only planning one loads
    from actstore_worker.capture.shards.tasks import Task
    from actstore_worker.models.model import ModelDescription
    from actstore_worker.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class PlanSettings(PlanLimits):
    datasets: DatasetPlaces
    # Where the capture workers run models: cpu or cuda.
    device: str = "cpu"
    # The newest format version of runs that is written.
    write_format: int = FORMAT_VERSION


@dataclass(frozen=True, kw_only=True)
class RunPlan(ABC):
    """A planned run. `saes` are those that its shards need. `bytes_by_product` is an estimate."""

    record: RunRecord
    sae_paths: Mapping[str, Path]
    saes: "tuple[SparseAutoencoder, ...]"
    bytes_by_product: Mapping[str, int]
    # The documents that are read, and the number of them that begin with a BOS.
    documents: int = 0
    documents_with_bos: int = 0
    dataset_files: DatasetFiles = NO_FILES

    @property
    @abstractmethod
    def model_to_register(self) -> "ModelDescription | None":
        """The model; None if it was already registered for the run whose rows are encoded."""

    @property
    @abstractmethod
    def flops_per_token(self) -> float:
        """Floating-point operations per token, estimated."""

    @abstractmethod
    def task(self, shard: int, attempt: str) -> "Task[Any]":
        """Returns a task with the plan's record, not the record of the process that created the run: a commit says
        which device and version made it.
        """
