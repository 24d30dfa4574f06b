"""The settings of the workers: one frozen object, built by `__main__` or by a test.

A setting is a field with a text: `actstore_storage.settings` reads it, from the variable and the key of its name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from actstore_api.logs.lines import LogForm
from actstore_storage.bucket.access import S3Access
from actstore_storage.format.specification import FORMAT_VERSION, FORMATS_WRITTEN
from actstore_storage.settings.checks import check_least, check_positive
from actstore_storage.settings.reading import Beside, FoundSettings, read_settings
from actstore_storage.settings.store import StoreSettings, absolute, check_keys
from actstore_worker.capture.limits import CoordinatorLimits, MergeLimits, PlanLimits
from actstore_worker.datasets.limits import DatasetLimits
from actstore_worker.errors import SettingsError
from actstore_worker.files.secrets import check_secret, read_tokens, write_s3_keys, write_secret
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.sae.stored import SAE_CACHE

# Their variables may be set for this process too, and their keys are in the same file.
SETTINGS_BESIDE = Beside(("actstore_service.settings:Settings",), ("actstore._variables:ClientVariables",))

_ADDRESS = re.compile(r"([\w.-]+|\[[\da-fA-F:.]+\]):\d{1,5}", re.ASCII)

# There may be no GPU, and no model replica while nobody asks.
_MAY_BE_NONE = ("gpus_max", "model_replicas_min")


@dataclass(frozen=True)
class RayLimits:
    # Bytes of shared memory for data that actors exchange: sequences of shards, tables of sweeps. Beyond it Ray writes
    # to disk.
    object_store_bytes: int = 256 * 2**20
    # GPUs that the cluster may have with the nodes that an autoscaler brings. None: those that it has. A question that
    # needs a GPU is refused while there is none and none may come.
    gpus_max: int | None = None
    # The largest number of model replicas for sweeps and questions. More than model_replicas_min start under load, but
    # never more than there may be GPUs, if there may be any. Further load waits.
    model_replicas: int = 2
    # Model replicas that are kept while nobody asks. With 0 no GPU is taken then, and the first question waits until
    # one has started.
    model_replicas_min: int = 1
    # Seconds for which a model replica is kept that is not needed. Beyond it the replica is let go, with its models.
    replica_idle_seconds: float = 300.0
    # Seconds that a question waits for a model replica, and its node, to come. Beyond it the question is refused.
    replica_start_seconds: float = 900.0
    # Models that one replica keeps loaded. Beyond it, the one that was not used for longest is dropped.
    models_per_replica: int = 2
    # Sweeps and questions that one replica interleaves. Further ones wait in the queue, then in the gateway.
    sweeps_per_replica: int = 16
    # The share of the replicas' places that sweeps get while questions wait, too. Both wait in turns by principal.
    sweeps_share: float = 0.25
    # Model replicas that may die one after the other with one sweep, of which each continues it. Beyond it the sweep
    # fails.
    sweep_tries: int = 3
    # Calls that the gateway holds open at once, including watches and those that wait for a replica. Further ones wait
    # without turns by principal, so this is to be more than all services forward at once.
    gateway_calls: int = 512
    # Share of one GPU that each capture worker takes on a GPU cluster. Together with replica_gpus at most 1, so that
    # one of each fits; more is refused at the start.
    worker_gpus: float = 0.75
    # Share of one GPU that each model replica takes on a GPU cluster. More than worker_gpus leaves is refused at the
    # start.
    replica_gpus: float = 0.25
    # Seconds that the gateway may take to answer its first call. Beyond it the workers do not start.
    start_seconds: float = 120.0
    # Seconds for which the cluster's GCS, or this node's raylet, may refuse connections. Beyond it the workers end.
    gone_seconds: float = 3.0

    def __post_init__(self) -> None:
        check_positive(self, *(one.name for one in fields(self) if one.name not in _MAY_BE_NONE))
        check_least(self, 0, *_MAY_BE_NONE)
        if self.model_replicas_min > self.model_replicas:
            raise SettingsError(
                f"model_replicas_min is {self.model_replicas_min}, and model_replicas is {self.model_replicas}",
                field="model_replicas_min",
                value=self.model_replicas_min,
                allowed=f"0..{self.model_replicas}",
            )
        if self.sweeps_share >= 1:
            raise SettingsError(
                f"sweeps_share is {self.sweeps_share}, and must be below 1",
                field="sweeps_share",
                value=self.sweeps_share,
                allowed="above 0, below 1",
            )
        if self.worker_gpus + self.replica_gpus > 1:
            raise SettingsError(f"a capture worker and a model replica must fit on one GPU together: {self}")


@dataclass(frozen=True)
class WorkerSettings:
    # The bucket: a directory, or s3://bucket/prefix.
    store: str
    # Token that the service presents to the workers; the same on both sides. The workers write it to a file at once. On
    # a Ray cluster that others started, it is refused: name a file.
    gateway_token: str = field(default="", repr=False)
    # File with that token; in a second line, the previous token, while services still present that. It is read again
    # when it changes, in the process that needs it.
    gateway_token_file: Path | None = None
    # Port on which the service reaches the workers. 0: a free port, which the ready line names.
    gateway_port: int = 0
    # How to reach an S3 store; None for a directory. Keys that are given by value are written to a file at once, as the
    # token.
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
    # The largest number of capture workers. They start when shards wait. None: one per GPU that the cluster may have,
    # or one per node if it may have none.
    capture_workers: int | None = None
    # None: start a new Ray, and stop it at the end.
    ray_address: str | None = None
    # The newest format version of runs that captures write. A capture that needs a newer one is refused. Set it to the
    # version of the previous release while its services and clients still read the bucket, and for a rollback to it.
    write_format: int = FORMAT_VERSION
    planning: PlanLimits = field(default_factory=PlanLimits)
    # What keeps strangers from a Ray that runs without token authentication, in the operator's words. Empty: such a Ray
    # is refused.
    ray_isolated_by: str = ""
    # What captures and models run on. auto: GPUs if the cluster has any, or may have by ray.gpus_max; each process uses
    # what it is given. cuda: as auto, and a process without a usable GPU does not start.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Address of `/metrics` about captures, host:port, on the machine with the head of the Ray cluster. None: none.
    worker_metrics_listen: str | None = None
    # How log lines are written, by all processes of the workers: json, one object a line, or text, for people.
    log_form: LogForm = LogForm.JSON
    patching: PatchingLimits = field(default_factory=PatchingLimits)
    live: LiveLimits = field(default_factory=LiveLimits)
    coordinator: CoordinatorLimits = field(default_factory=CoordinatorLimits)
    merge: MergeLimits = field(default_factory=MergeLimits)
    datasets: DatasetLimits = field(default_factory=DatasetLimits)
    ray: RayLimits = field(default_factory=RayLimits)

    def __post_init__(self) -> None:
        if not (self.gateway_token or self.gateway_token_file):
            raise SettingsError(
                "ACTSTORE_GATEWAY_TOKEN or ACTSTORE_GATEWAY_TOKEN_FILE is required: service and workers share it",
                field="gateway_token",
            )
        check_secret(self.gateway_token, "ACTSTORE_GATEWAY_TOKEN")
        if self.worker_metrics_listen and not _ADDRESS.fullmatch(self.worker_metrics_listen):
            raise SettingsError(
                f"ACTSTORE_WORKER_METRICS_LISTEN must be host:port, not {self.worker_metrics_listen!r}",
                field="worker_metrics_listen",
                value=self.worker_metrics_listen,
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
        if self.write_format not in FORMATS_WRITTEN:
            allowed = " or ".join(map(str, FORMATS_WRITTEN))
            raise SettingsError(
                f"ACTSTORE_WRITE_FORMAT is {self.write_format}; this version writes {allowed}",
                field="write_format",
                value=self.write_format,
                allowed=allowed,
            )
        if not 0 <= self.gateway_port < 65536:
            raise SettingsError(f"ACTSTORE_GATEWAY_PORT must be a port, not {self.gateway_port}")

    @property
    def token_file(self) -> Path:
        """The file of the token, once it is in one."""
        assert self.gateway_token_file is not None  # noqa: S101  `workers_settings` has seen to it
        return self.gateway_token_file

    def __getstate__(self) -> dict[str, Any]:
        """Settings are copied to other processes by pickle, and Ray keeps the copies: none has a secret in it."""
        if self.gateway_token or (self.s3 is not None and self.s3.secret_key):
            raise TypeError("settings with a secret cannot be copied to other processes; see `workers_settings`")
        return dict(self.__dict__)


def workers_settings(found: FoundSettings, secrets: Path | None = None) -> WorkerSettings:
    """The settings as they were read, with places that exist, and with files instead of secrets.

    Args:
        found: What was read.
        secrets: Folder in which secrets that were given by value are written. None: they are refused, because other
            nodes of a cluster do not have the folder.

    Raises:
        SettingsError: A setting is missing or impossible.
    """
    made = _without_secrets(found.made(WorkerSettings), secrets)
    store, s3 = absolute(made.store, made.s3)
    read_tokens(made.token_file)
    return replace(
        made,
        store=store,
        s3=s3,
        model_folders=_folders(made.model_folders, "ACTSTORE_MODEL_FOLDERS"),
        dataset_folders=_folders(made.dataset_folders, "ACTSTORE_DATASET_FOLDERS"),
    )


def read_environment(environment: Mapping[str, str], secrets: Path | None = None) -> WorkerSettings:
    """Reads the settings from variables alone, and from the file that ACTSTORE_CONFIG names.

    Errors: as `workers_settings`.
    """
    return workers_settings(read_settings((WorkerSettings,), environment, SETTINGS_BESIDE), secrets)


def _without_secrets(made: WorkerSettings, folder: Path | None) -> WorkerSettings:
    if made.gateway_token:
        file = _folder(folder, "ACTSTORE_GATEWAY_TOKEN", "ACTSTORE_GATEWAY_TOKEN_FILE") / "gateway-token"
        write_secret(file, f"{made.gateway_token}\n")
        made = replace(made, gateway_token="", gateway_token_file=file)
    return replace(made, s3=s3_without_keys(made.s3, folder))


def s3_without_keys(s3: S3Access | None, folder: Path | None) -> S3Access | None:
    """The same access with its keys in a file of the folder, unless they are in a file already.

    Errors: SettingsError for keys by value without a folder: they would be sent through a cluster of others.
    """
    if s3 is not None and s3.secret_key and not s3.credentials_file:
        file = _folder(folder, "ACTSTORE_S3_SECRET_KEY", "ACTSTORE_S3_CREDENTIALS_FILE") / "s3-credentials"
        write_s3_keys(file, s3.access_key, s3.secret_key)
        s3 = replace(s3, credentials_file=str(file))
    return s3 and replace(s3, access_key="", secret_key="")


def _folder(folder: Path | None, secret: str, instead: str) -> Path:
    if folder is None:
        message = (
            f"{secret} would be sent through a Ray cluster, which keeps a copy: set {instead} instead, a file that"
        )
        raise SettingsError(f"{message} each node of the cluster has at the same path", field=secret, allowed=instead)
    return folder


@dataclass(frozen=True)
class TrainerSettings(StoreSettings):
    # None: trainings side by side start a new Ray, and stop it at the end.
    ray_address: str | None = None
    # As for the workers: what keeps strangers from a Ray that runs without token authentication.
    ray_isolated_by: str = ""
    # As for the workers.
    log_form: LogForm = LogForm.JSON


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
