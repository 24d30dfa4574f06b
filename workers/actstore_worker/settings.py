"""The settings of the workers: one frozen object, built by `__main__` or by a test.

A setting is a field with a text: `actstore_storage.settings` reads it, from the variable and the key of its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from actstore_storage.bucket.access import S3Access
from actstore_storage.settings.checks import check_least, check_positive
from actstore_storage.settings.reading import Beside, FoundSettings, read_settings
from actstore_storage.settings.store import StoreSettings, absolute, check_keys
from actstore_worker.capture.limits import CoordinatorLimits, MergeLimits
from actstore_worker.errors import SettingsError
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.sae.stored import SAE_CACHE

# Their variables may be set for this process too, and their keys are in the same file.
SETTINGS_BESIDE = Beside(("actstore_service.settings:Settings",), ("actstore._variables:ClientVariables",))


@dataclass(frozen=True)
class RayLimits:
    # Shared memory for data that actors exchange: sequences of shards, tables of sweeps.
    object_store_bytes: int = 256 * 2**20
    # The largest number of model replicas for sweeps and questions. There is at least one; more start under load, but
    # never more than there are GPUs, if there are any.
    model_replicas: int = 2
    # Models that one replica keeps loaded.
    models_per_replica: int = 2
    # Sweeps and questions that one replica interleaves; further ones wait in the queue, then in the gateway.
    sweeps_per_replica: int = 16
    # Calls that the gateway holds open at once, including watches.
    gateway_calls: int = 200
    # On a GPU cluster each capture worker and each model replica takes this share of one GPU, so that one of each fits.
    worker_gpus: float = 0.75
    replica_gpus: float = 0.25
    # How long the gateway may take to answer its first call.
    start_seconds: float = 120.0

    def __post_init__(self) -> None:
        check_positive(self)
        if self.worker_gpus + self.replica_gpus > 1:
            raise SettingsError(f"a capture worker and a model replica must fit on one GPU together: {self}")


@dataclass(frozen=True)
class WorkerSettings:
    # The bucket: a directory, or s3://bucket/prefix.
    store: str
    # Token that the service presents to the workers; the same on both sides.
    gateway_token: str = field(repr=False)
    # Port on which the service reaches the workers. 0: a free port, which the ready line names.
    gateway_port: int = 0
    # How to reach an S3 store; None for a directory.
    s3: S3Access | None = None
    # Folders below which requests may name models and SAEs.
    model_folders: tuple[Path, ...] = ()
    # Folders below which requests may name datasets.
    dataset_folders: tuple[Path, ...] = ()
    # s3://bucket/prefix, below which requests may name datasets; accessed with the credentials of the store.
    dataset_stores: tuple[str, ...] = ()
    # Whether names that no folder has are looked up on the Hugging Face hub.
    allow_hub: bool = False
    # On each machine, the folder for copies of SAEs that were trained from the store, one folder each.
    sae_cache: Path = SAE_CACHE
    # None: one per GPU, or one on a machine without GPUs.
    capture_workers: int | None = None
    # None: start a new Ray, and stop it at the end.
    ray_address: str | None = None
    patching: PatchingLimits = field(default_factory=PatchingLimits)
    live: LiveLimits = field(default_factory=LiveLimits)
    coordinator: CoordinatorLimits = field(default_factory=CoordinatorLimits)
    merge: MergeLimits = field(default_factory=MergeLimits)
    ray: RayLimits = field(default_factory=RayLimits)

    def __post_init__(self) -> None:
        if not self.gateway_token:
            raise SettingsError("ACTSTORE_GATEWAY_TOKEN is required: the service and the workers share it")
        if not (self.gateway_token.isascii() and self.gateway_token.isprintable()):
            raise SettingsError(
                "ACTSTORE_GATEWAY_TOKEN contains a character that cannot be sent in a header, such as a line break"
            )
        check_keys(self.store, self.s3)
        if not self.store.startswith("s3://") and self.s3 is not None and not self.dataset_stores:
            raise SettingsError(f"ACTSTORE_S3_ENDPOINT is set, but ACTSTORE_STORE is the directory {self.store}")
        for address in self.dataset_stores:
            if not address.startswith("s3://") or self.s3 is None:
                raise SettingsError(
                    f"ACTSTORE_DATASET_STORES names {address}; it takes s3://bucket/prefix addresses, separated by "
                    "spaces, and "
                    "needs ACTSTORE_S3_ENDPOINT; folders belong in ACTSTORE_DATASET_FOLDERS"
                )
        check_least(self, 1, "capture_workers")
        if not 0 <= self.gateway_port < 65536:
            raise SettingsError(f"ACTSTORE_GATEWAY_PORT must be a port, not {self.gateway_port}")


def workers_settings(found: FoundSettings) -> WorkerSettings:
    """The settings as they were read, with places that exist. Errors: SettingsError."""
    made = found.made(WorkerSettings)
    store, s3 = absolute(made.store, made.s3)
    return replace(
        made,
        store=store,
        s3=s3,
        model_folders=_folders(made.model_folders, "ACTSTORE_MODEL_FOLDERS"),
        dataset_folders=_folders(made.dataset_folders, "ACTSTORE_DATASET_FOLDERS"),
    )


def read_environment(environment: Mapping[str, str]) -> WorkerSettings:
    """Reads the settings from variables alone, and from the file that ACTSTORE_CONFIG names. Errors: SettingsError."""
    return workers_settings(read_settings((WorkerSettings,), environment, SETTINGS_BESIDE))


@dataclass(frozen=True)
class TrainerSettings(StoreSettings):
    # None: trainings side by side start a new Ray, and stop it at the end.
    ray_address: str | None = None


def read_trainer(environment: Mapping[str, str]) -> TrainerSettings:
    """Returns what a trainer needs of the workers' settings. Errors: as `read_environment`."""
    beside = replace(SETTINGS_BESIDE, settings=("actstore_worker.settings:WorkerSettings", *SETTINGS_BESIDE.settings))
    return read_settings((TrainerSettings,), environment, beside).made(TrainerSettings)


def _folders(named: tuple[Path, ...], variable: str) -> tuple[Path, ...]:
    """Without links, as requests are compared with them. Errors: SettingsError for a folder that does not exist."""
    folders = tuple(folder.resolve() for folder in named)
    for folder in folders:
        if not folder.is_dir():
            raise SettingsError(f"{variable} names {folder}, which is not a folder", field=variable, value=folder)
    return folders
