"""What a connection takes beside an address: the keys of a bucket, time limits, retries and certificates."""

from dataclasses import dataclass, field

from actstore import _checks
from actstore._errors import refused
from actstore._transport.credentials import ClientCertificate

# gRPC itself tries no question more often.
ATTEMPTS_MAX = 5


@dataclass(frozen=True)
class S3Access:
    """The keys to the bucket of an `s3://` address.

    Args:
        endpoint: `host:port`, or a host.
        access_key: Access key ID.
        secret_key: Secret access key; never shown by `repr`.
        region: Region of the bucket.
        secure: Whether to use HTTPS.
        credentials_file: File that has both keys instead, as AWS's tools write it (profile `default`). It is read again
            when it changes.
    """

    endpoint: str
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    region: str = "us-east-1"
    secure: bool = True
    credentials_file: str = ""

    def __post_init__(self) -> None:
        for name in ("endpoint", "access_key", "secret_key", "region", "credentials_file"):
            _checks.text(getattr(self, name), name)
        _checks.switch(self.secure, "secure")
        if not self.credentials_file:
            for name in ("access_key", "secret_key"):
                self._check_given(name)

    def _check_given(self, name: str) -> None:
        if not getattr(self, name):
            message = f"{name} is empty, and there is no credentials_file"
            raise refused(message, name, "empty", "access_key and secret_key, or credentials_file")


@dataclass(frozen=True)
class Timeout:
    """Time limits of a connection to a service.

    Args:
        connect_seconds: How long one attempt to connect may take.
        reconnect_seconds: Pause between two attempts to connect to a service that is away.
        answer_seconds: How long to wait for one answer. None: as long as the contract gives to the question, which is
            60 seconds for most and up to an hour for those that run a model. Streams (a capture's progress, a sweep,
            stored rows) have no limit.
        keepalive_seconds: How long a connection with open questions may be silent before it is tested. One whose other
            side is gone is then given up, and its questions are asked again or fail.
    """

    connect_seconds: float = 10.0
    reconnect_seconds: float = 0.5
    answer_seconds: float | None = None
    keepalive_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("connect_seconds", "reconnect_seconds", "answer_seconds", "keepalive_seconds"):
            seconds = getattr(self, name)
            if name == "answer_seconds" and seconds is None:
                continue
            if not _checks.number(seconds, name, least=0.0):
                raise refused(f"{name} is 0", name, repr(seconds), "more than 0")


@dataclass(frozen=True)
class Retries:
    """How often a question is repeated while the service is unavailable or busy.

    While it is unavailable, only questions that change nothing are repeated: starting a capture is not. A service that
    is busy has not begun with the question and says when to try again, so every question is repeated then.

    Args:
        attempts: How often a question is asked in all, 1 to 5; 1: never repeated.
        initial_backoff_seconds: Pause before the first repetition.
        maximum_backoff_seconds: Longest pause.
        backoff_multiplier: Factor from one pause to the next.
        watch_attempts: How often in a row a capture's progress is listened to again, if the stream breaks off without
            any news.
        watch_pause_seconds: Pause before that.
    """

    attempts: int = 4
    initial_backoff_seconds: float = 0.2
    maximum_backoff_seconds: float = 2.0
    backoff_multiplier: float = 2.0
    watch_attempts: int = 5
    watch_pause_seconds: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= _checks.count(self.attempts, "attempts") <= ATTEMPTS_MAX:
            allowed = f"1 to {ATTEMPTS_MAX}"
            raise refused(f"attempts is {self.attempts}", "attempts", self.attempts, allowed)
        _checks.count(self.watch_attempts, "watch_attempts")
        _checks.number(self.watch_pause_seconds, "watch_pause_seconds", least=0.0)
        for name in ("initial_backoff_seconds", "maximum_backoff_seconds", "backoff_multiplier"):
            if not _checks.number(getattr(self, name), name, least=0.0):
                raise refused(f"{name} is 0", name, "0", "more than 0")


@dataclass(frozen=True)
class Connection:
    """How a service is connected to. `root_certificates`: PEM; None: those of gRPC. `certificate`: the client's own.
    `authority`: the name that the service's certificate must have; None: the host of the address.
    """

    timeout: Timeout = field(default_factory=Timeout)
    retries: Retries = field(default_factory=Retries)
    max_message_bytes: int = 256 * 2**20
    root_certificates: bytes | None = None
    certificate: ClientCertificate | None = None
    authority: str | None = None
