"""What each process of the workers opens according to its settings: the catalog, and its device."""

import socket
from typing import TYPE_CHECKING

import ray

from actstore_storage.bucket import Bucket
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.cluster.placement.reporting import NO_GPU, GpuMemory
from actstore_worker.errors import SettingsError
from actstore_worker.sae.stored import StoredSaes
from actstore_worker.settings import WorkerSettings

if TYPE_CHECKING:
    import torch


def catalog_of(settings: WorkerSettings, bucket: Bucket) -> ModelCatalog:
    """The models and SAEs of the settings, and the SAEs that were trained from the bucket."""
    return ModelCatalog(settings.model_folders, settings.allow_hub, StoredSaes(bucket, settings.sae_cache))


def device_here(settings: WorkerSettings) -> "torch.device":
    """Returns what this actor runs models on: a GPU if Ray gave it one, whatever other nodes have.

    Errors: SettingsError if the settings ask for GPUs, and this process can use none.
    """
    import torch  # Not in the coordinator's process, which needs the catalog alone.

    given = bool(ray.get_runtime_context().get_accelerator_ids().get("GPU"))
    usable = given and torch.cuda.is_available()
    if settings.device == "cuda" and not usable:
        why = "torch sees no CUDA device" if given else "Ray gave it none"
        raise SettingsError(f"ACTSTORE_DEVICE is cuda, and a process on {socket.gethostname()} has no GPU: {why}")
    return torch.device("cuda" if usable and settings.device != "cpu" else "cpu")


def gpu_memory() -> GpuMemory:
    """What torch says of its GPU; nothing in a process that has not used one."""
    import torch  # As above.

    if not torch.cuda.is_initialized():
        return NO_GPU
    found = torch.cuda.memory_stats()
    return GpuMemory(
        {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()},
        {"retried": found.get("num_alloc_retries", 0), "failed": found.get("num_ooms", 0)},
    )
