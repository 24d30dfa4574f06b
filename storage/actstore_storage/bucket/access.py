"""How to reach an S3-compatible store."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class S3Access:
    """How to reach an S3-compatible store.

    `endpoint` is `host` or `host:port`, `secure` chooses https. `credentials_file`, where given, has the keys instead,
    as AWS's tools write them (profile `default`), and is read again when it changes: keys that expire can be renewed.
    """

    endpoint: str
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    region: str = "us-east-1"
    secure: bool = True
    credentials_file: str = ""
