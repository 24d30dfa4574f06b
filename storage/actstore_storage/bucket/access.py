"""Access to an S3-compatible store."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class S3Access:
    """Access to an S3-compatible store.

    `endpoint` is `host` or `host:port`, `secure` selects https. `credentials_file`, if given, contains the keys in the
    format of AWS's tools (profile `default`). It is read again when it changes, so expiring keys can be renewed.
    """

    endpoint: str
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    region: str = "us-east-1"
    secure: bool = True
    credentials_file: str = ""
