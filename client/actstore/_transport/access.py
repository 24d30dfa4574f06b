"""The keys to a bucket."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class S3Access:
    """How to reach the bucket of an `s3://` address. `endpoint` is `host:port` or a host."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"
    secure: bool = True
