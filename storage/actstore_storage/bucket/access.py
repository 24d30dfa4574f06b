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
