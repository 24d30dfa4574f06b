"""Opens the bucket of an address: `./folder`, `/folder` or `s3://bucket/prefix`."""

from pathlib import Path
from typing import TYPE_CHECKING

from actstore_storage.bucket import Bucket, check_key
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.errors import BadRequest, StoreError

if TYPE_CHECKING:
    from actstore_storage.bucket.s3 import S3Files


def open_bucket(address: str, s3: S3Access | None = None) -> Bucket:
    """Opens the bucket of an address. No request is sent yet; a local folder must exist."""
    if "://" not in address:
        return LocalBucket(Path(address))
    name, prefix = _bucket_and_prefix(address)
    from actstore_storage.bucket.s3 import S3Bucket  # a local store does not need it

    return S3Bucket(_access(address, s3), name, check_key(prefix) if prefix else "")


def open_files(address: str, s3: S3Access | None) -> "S3Files":
    """Opens files that other programs wrote to `s3://bucket/prefix`, for reading; the prefix may have any name."""
    from actstore_storage.bucket.s3 import S3Files

    name, prefix = _bucket_and_prefix(address)
    return S3Files(_access(address, s3), name, prefix)


def _bucket_and_prefix(address: str) -> tuple[str, str]:
    scheme, _, rest = address.partition("://")
    name, _, prefix = rest.rstrip("/").partition("/")
    if scheme != "s3" or not name:
        raise BadRequest(
            f"{address!r} is not a valid address of a store",
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
