"""What answers: versions of the service and the workers, and what they can do."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Capabilities:
    """What a service can do, beyond what its API level says.

    `workers`: captures, patching and live questions are answered. `request_ids`: each call has an id, which errors and
    logs contain. `retry_delay`: a call that is refused with BUSY is told when to try again.
    """

    workers: bool = False
    request_ids: bool = False
    retry_delay: bool = False


@dataclass(frozen=True)
class ServiceLimits:
    """Limits of a service that a client can plan with.

    `request_bytes`: of the largest question. `response_bytes`: of the largest message of an answer. `calls`: calls of
    one kind that one caller may have open. `streams`: streams of stored rows that one caller may have open.
    `stalled_seconds`: how long a client may take to accept one message of a stream.
    """

    request_bytes: int
    response_bytes: int
    calls: int
    streams: int
    stalled_seconds: float


@dataclass(frozen=True)
class WorkersInfo:
    """The workers of a service. `formats_read`, `format_written`: format versions of runs in the bucket."""

    version: str
    api_level: int
    formats_read: tuple[int, ...]
    format_written: int


@dataclass(frozen=True)
class ServiceInfo:
    """A service, as it is for the caller.

    `api_level` is the level of the contract that it answers, and `oldest_client_level` the lowest level of clients.
    `formats_read` are the format versions of runs in the bucket that it reads. `roles` are those of the caller; empty:
    the service does not tell callers apart. `workers` None: there are none, or they do not answer, or they are too old
    to say.
    """

    version: str
    api_level: int
    oldest_client_level: int
    formats_read: tuple[int, ...]
    capabilities: Capabilities
    limits: ServiceLimits
    roles: tuple[str, ...] = ()
    workers: WorkersInfo | None = None


@dataclass(frozen=True)
class GetServiceInfo:
    """Asks a service for its version, and what it can do."""


@dataclass(frozen=True)
class GetServiceInfoAnswer:
    """The answer to GetServiceInfo."""

    info: ServiceInfo


@dataclass(frozen=True)
class GetWorkersInfo:
    """Asks the workers for their version, and the formats that they read and write."""


@dataclass(frozen=True)
class GetWorkersInfoAnswer:
    """The answer to GetWorkersInfo."""

    info: WorkersInfo
