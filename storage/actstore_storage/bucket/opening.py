"""From an address to a bucket: `./folder`, `/folder` or `s3://bucket/prefix`."""

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from actstore_storage.bucket import Bucket, check_key
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.errors import BadRequest, StoreError
from actstore_storage.format.keys import TOP_FOLDERS

if TYPE_CHECKING:
    from actstore_storage.bucket.s3 import S3Files

# Where a folder is no store, so many in it are looked at for one.
NEIGHBOURS_MAX = 100


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


def open_bucket(address: str, s3: S3Access | None = None) -> Bucket:
    """Nothing is sent to the store yet; a local folder must exist."""
    if "://" not in address:
        return LocalBucket(Path(address))
    name, prefix = _bucket_and_prefix(address)
    from actstore_storage.bucket.s3 import S3Bucket  # a local store need not wait for it

    return S3Bucket(_access(address, s3), name, check_key(prefix) if prefix else "")


def open_files(address: str, s3: S3Access | None) -> "S3Files":
    """What others put under `s3://bucket/prefix`, to be read; the prefix, too, may have any name."""
    from actstore_storage.bucket.s3 import S3Files

    name, prefix = _bucket_and_prefix(address)
    return S3Files(_access(address, s3), name, prefix)


def _bucket_and_prefix(address: str) -> tuple[str, str]:
    scheme, _, rest = address.partition("://")
    name, _, prefix = rest.rstrip("/").partition("/")
    if scheme != "s3" or not name:
        raise BadRequest(
            f"{address!r} is not the address of a store",
            field="store",
            value=address,
            allowed="./folder, /folder, s3://bucket or s3://bucket/prefix",
        )
    return name, prefix


def _access(address: str, s3: S3Access | None) -> S3Access:
    if s3 is None:
        message = f"{address} needs an S3 endpoint and keys"
        raise StoreError(message, reason="STORE_CREDENTIALS", field="store", value=address)
    return s3


def check_store(bucket: Bucket) -> None:
    """For readers: that something of a store lies there, or that a writer has begun one.

    Errors: StoreError STORE_NOT_FOUND. Without this check every question would be answered with nothing.
    """
    if _is_store(bucket):
        return
    below = _stores_below(Path(bucket.address)) if isinstance(bucket, LocalBucket) else []
    near = f"; {below[0]} is one" if below else ""
    raise StoreError(
        f"{bucket.address} is no store: nothing that actstore writes is there{near}",
        field="store",
        value=bucket.address,
        allowed=", ".join(below) or "a store that something was captured into, as .actstore/store of `actstore up`",
    )


def _is_store(bucket: Bucket) -> bool:
    if isinstance(bucket, LocalBucket) and bucket.written:
        return True
    return any(bucket.folders(folder) or bucket.keys(folder) for folder in TOP_FOLDERS)


def _stores_below(folder: Path) -> list[str]:
    try:
        near = [path for path in islice(folder.iterdir(), NEIGHBOURS_MAX) if path.is_dir()]
        found = [path for path in (*near, folder / ".actstore" / "store") if path.is_dir()]
        return sorted(str(path) for path in found if _is_store(LocalBucket(path)))
    except OSError:
        return []
