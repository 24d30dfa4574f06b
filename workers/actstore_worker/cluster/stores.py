"""What each process of the workers opens according to its settings: the catalog, and its device."""

import torch

from actstore_storage.bucket import Bucket
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.sae.stored import StoredSaes
from actstore_worker.settings import WorkerSettings


def catalog_of(settings: WorkerSettings, bucket: Bucket) -> ModelCatalog:
    """The models and SAEs of the settings, and the SAEs that were trained from the bucket."""
    return ModelCatalog(settings.model_folders, settings.allow_hub, StoredSaes(bucket, settings.sae_cache))


def device_here(settings: WorkerSettings) -> torch.device:
    on_gpu = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if on_gpu else "cpu")


def gpu_memory() -> dict[str, int]:
    """Bytes of GPUs by their state; none in a process that has not used one."""
    if not torch.cuda.is_initialized():
        return {}
    return {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()}
