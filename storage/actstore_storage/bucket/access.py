"""Access to an S3-compatible store."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class S3Access:
    """Access to an S3-compatible store: its endpoint, and either two keys or a file that has them."""

    endpoint: str
    """Host, or `host:port`, of the S3 endpoint. Required for a store at `s3://bucket/prefix`."""
    access_key: str = ""
    """Access key of the store. Required for an S3 store without a credentials file."""
    secret_key: str = field(default="", repr=False)
    """Secret key of the store. Required for an S3 store without a credentials file."""
    region: str = "us-east-1"
    """Region that requests are signed for."""
    secure: bool = True
    """Whether to use https (1) or plain http (0)."""
    credentials_file: str = ""
    """File that has the keys instead, as AWS's tools write it (profile `default`).

    It is read again when it changes, so that keys that expire can be renewed while a process runs.
    """
    connect_seconds: float = 5.0
    """How long a connection to the store may take. Beyond it the request is tried again."""
    answer_seconds: float = 60.0
    """How long the store may be silent within a request. Beyond it the request is tried again."""
    attempts: int = 4
    """How often a request is tried in all while the store cannot be reached. Beyond it the store counts as away."""
    connections: int = 32
    """Connections to the store that a process keeps open. Further ones are closed after use."""
