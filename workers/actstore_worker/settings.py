"""The settings of the workers: one frozen object, built by `__main__` from the environment or by a test."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from actstore_storage.bucket.access import S3Access
from actstore_worker.capture.limits import CoordinatorLimits, MergeLimits
from actstore_worker.errors import SettingsError
from actstore_worker.files.secrets import (
    GATEWAY_TOKEN,
    GATEWAY_TOKEN_FILE,
    S3_CREDENTIALS_FILE,
    S3_KEYS,
    SECRETS,
    read_tokens,
    with_files_for_secrets,
)
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.sae.stored import SAE_CACHE

_ADDRESS = re.compile(r"([\w.-]+|\[[\da-fA-F:.]+\]):\d{1,5}", re.ASCII)
# What models run on; empty: as the cluster has.
DEVICES = ("", "cpu", "cuda")


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
    # How long the cluster's GCS, or the raylet of this node, may refuse connections before the workers end.
    gone_seconds: float = 3.0

    def __post_init__(self) -> None:
        if self.worker_gpus + self.replica_gpus > 1:
            raise SettingsError(f"a capture worker and a model replica must fit on one GPU together: {self}")


@dataclass(frozen=True)
class WorkerSettings:
    # The bucket: a directory, or s3://bucket/prefix.
    store: str
    # File with the token that the service presents to the workers; in a second line, the previous token, if callers
    # still present it. Each process that needs the token reads it there: settings are copied to other processes.
    gateway_token_file: Path
    # Port on which the service reaches the workers. 0: a free port, which the ready line names.
    gateway_port: int = 0
    # How to reach an S3 store, with the file of its keys; None for a directory.
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
    # What keeps strangers from a Ray that runs without token authentication, in the operator's words. Empty: such a Ray
    # is refused.
    ray_isolated_by: str = ""
    # "cuda" or "cpu": what captures and models run on. Empty: cuda if the cluster has GPUs when the workers start. A
    # cluster whose GPU nodes come and go has none then.
    device: str = ""
    # Address of `/metrics` about captures and models, host:port, on the machine with the head of the Ray cluster.
    # Empty: none.
    metrics_listen: str = ""
    patching: PatchingLimits = field(default_factory=PatchingLimits)
    live: LiveLimits = field(default_factory=LiveLimits)
    coordinator: CoordinatorLimits = field(default_factory=CoordinatorLimits)
    merging: MergeLimits = field(default_factory=MergeLimits)
    ray: RayLimits = field(default_factory=RayLimits)

    def __post_init__(self) -> None:
        if self.s3 is not None and not self.s3.credentials_file:
            raise SettingsError(f"the workers read the keys of {self.s3.endpoint} from a file: {S3_CREDENTIALS_FILE}")
        if self.device not in DEVICES:
            raise SettingsError(f"ACTSTORE_DEVICE must be cuda or cpu, not {self.device!r}")
        if self.metrics_listen and not _ADDRESS.fullmatch(self.metrics_listen):
            raise SettingsError(f"ACTSTORE_WORKER_METRICS_LISTEN must be host:port, not {self.metrics_listen!r}")
        self._check_store()
        if self.capture_workers is not None and self.capture_workers < 1:
            raise SettingsError(f"ACTSTORE_CAPTURE_WORKERS must be at least 1, not {self.capture_workers}")
        if not 0 <= self.gateway_port < 65536:
            raise SettingsError(f"ACTSTORE_GATEWAY_PORT must be a port, not {self.gateway_port}")

    def _check_store(self) -> None:
        if self.store.startswith("s3://") and self.s3 is None:
            raise SettingsError(
                f"ACTSTORE_STORE is {self.store}, so ACTSTORE_S3_ENDPOINT, _ACCESS_KEY and _SECRET_KEY (or "
                "_CREDENTIALS_FILE) are required"
            )
        if not self.store.startswith("s3://") and self.s3 is not None and not self.dataset_stores:
            raise SettingsError(f"ACTSTORE_S3_ENDPOINT is set, but ACTSTORE_STORE is the directory {self.store}")
        for address in self.dataset_stores:
            if not address.startswith("s3://") or self.s3 is None:
                raise SettingsError(
                    f"ACTSTORE_DATASET_STORES names {address}; it takes s3://bucket/prefix addresses, separated by "
                    "spaces, and "
                    "needs ACTSTORE_S3_ENDPOINT; folders belong in ACTSTORE_DATASET_FOLDERS"
                )


def read_environment(environment: Mapping[str, str], secrets: Path | None = None) -> WorkerSettings:
    """Reads the settings. Secrets that the environment has by value are written to files in the folder `secrets`. None:
    they are refused, because files of this machine do not travel with the settings.

    Errors: SettingsError with the name of the variable.
    """
    environment = _without_secrets(environment) if secrets is None else with_files_for_secrets(environment, secrets)
    workers, parts = environment.get("ACTSTORE_CAPTURE_WORKERS"), environment.get("ACTSTORE_MERGE_PARTS")
    return WorkerSettings(
        store=_store(environment),
        gateway_token_file=_token_file(environment),
        gateway_port=_integer("ACTSTORE_GATEWAY_PORT", environment.get("ACTSTORE_GATEWAY_PORT", "0")),
        s3=_s3_access(environment, by_value=False),
        model_folders=_folders(environment, "ACTSTORE_MODEL_FOLDERS"),
        dataset_folders=_folders(environment, "ACTSTORE_DATASET_FOLDERS"),
        dataset_stores=tuple(environment.get("ACTSTORE_DATASET_STORES", "").split()),
        allow_hub=_switch(environment, "ACTSTORE_ALLOW_HUB", default=False),
        sae_cache=Path(environment.get("ACTSTORE_SAE_CACHE") or SAE_CACHE).absolute(),
        capture_workers=_integer("ACTSTORE_CAPTURE_WORKERS", workers) if workers else None,
        ray_address=environment.get("ACTSTORE_RAY_ADDRESS") or None,
        ray_isolated_by=environment.get("ACTSTORE_RAY_ISOLATED_BY", "").strip(),
        device=environment.get("ACTSTORE_DEVICE", ""),
        metrics_listen=environment.get("ACTSTORE_WORKER_METRICS_LISTEN", ""),
        merging=MergeLimits(_integer("ACTSTORE_MERGE_PARTS", parts)) if parts else MergeLimits(),
    )


def read_store(environment: Mapping[str, str]) -> tuple[str, S3Access | None]:
    """Returns the address of the store, and the access to an S3 store. Errors: as `read_environment`."""
    return _store(environment), _s3_access(environment, by_value=True)


def _without_secrets(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Errors: SettingsError if there is a secret."""
    for name in SECRETS:
        if environment.get(name):
            raise SettingsError(
                f"{name} is set, and the workers would have to send it through a Ray cluster that keeps a copy: set "
                f"{GATEWAY_TOKEN_FILE if name == GATEWAY_TOKEN else S3_CREDENTIALS_FILE} instead, a file that each "
                "node of the cluster has at the same path"
            )
    return environment


def _token_file(environment: Mapping[str, str]) -> Path:
    """An absolute path, as for the store."""
    file = environment.get(GATEWAY_TOKEN_FILE)
    if not file:
        raise SettingsError(
            f"{GATEWAY_TOKEN} or {GATEWAY_TOKEN_FILE} is required: the service and the workers share it"
        )
    read_tokens(Path(file))
    return Path(file).absolute()


def _store(environment: Mapping[str, str]) -> str:
    """A directory's path is made absolute, because Ray's workers run in folders of their own."""
    address = _required(environment, "ACTSTORE_STORE")
    return address if "://" in address else str(Path(address).resolve())


def _s3_access(environment: Mapping[str, str], *, by_value: bool) -> S3Access | None:
    endpoint = environment.get("ACTSTORE_S3_ENDPOINT")
    if not endpoint:
        return None
    return S3Access(
        endpoint=endpoint,
        **_s3_keys(environment, by_value=by_value),
        region=environment.get("ACTSTORE_S3_REGION", "us-east-1"),
        secure=_switch(environment, "ACTSTORE_S3_SECURE", default=True),
    )


def _s3_keys(environment: Mapping[str, str], *, by_value: bool) -> dict[str, str]:
    """A credentials file, which may be renewed while the workers run, or the keys themselves."""
    if file := environment.get("ACTSTORE_S3_CREDENTIALS_FILE"):
        return {"credentials_file": str(Path(file).absolute())}
    if not by_value:
        raise SettingsError(f"{S3_CREDENTIALS_FILE}, or both {' and '.join(S3_KEYS)}, are required with an S3 endpoint")
    return {
        "access_key": _required(environment, "ACTSTORE_S3_ACCESS_KEY"),
        "secret_key": _required(environment, "ACTSTORE_S3_SECRET_KEY"),
    }


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise SettingsError(f"{name} is required")
    return value


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise SettingsError(f"{name} must be a whole number, not {text!r}") from error


def _switch(environment: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = environment.get(name)
    if not text:
        return default
    if text not in ("0", "1"):
        raise SettingsError(f"{name} must be 0 or 1, not {text!r}")
    return text == "1"


def _folders(environment: Mapping[str, str], name: str) -> tuple[Path, ...]:
    """Absolute paths, as for the store. Errors: SettingsError for a folder that does not exist."""
    folders = tuple(Path(text).resolve() for text in environment.get(name, "").split(os.pathsep) if text)
    for folder in folders:
        if not folder.is_dir():
            raise SettingsError(f"{name} names {folder}, which is not a folder")
    return folders
