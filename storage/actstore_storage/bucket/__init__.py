"""A bucket: named immutable objects under one root. Implementations: a local directory, S3.

Every key passes `check_key`, so that no name from outside can leave its folder.
"""

import re
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import pyarrow as pa

from actstore_storage.errors import ActstoreError, BadRequest, CorruptObject, StoreError

# Requests in flight: small objects on S3 are all latency.
FETCH_THREADS = 16

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Bucket(ABC):
    """A flat namespace of keys.

    Errors: StoreError for permissions, credentials, a full disk or a missing bucket; StoreUnreachable where trying
    again may help; KeyError for an object that is not there.
    """

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object whole; a reader sees all of it or nothing. Replaces an object of that name."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless one of that name is there: True for the one writer that wins, False for all others."""

    @abstractmethod
    def create(self, key: str) -> AbstractContextManager[pa.NativeFile]:
        """A stream to write a large object through; it is there once the block ends well, not after an exception."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The whole object."""

    @abstractmethod
    def open(self, key: str) -> pa.NativeFile:
        """A seekable Arrow file that reads ranges on demand; columnar readers use this."""

    @abstractmethod
    def keys(self, prefix: str, *, after: str | None = None, until: str | None = None) -> list[str]:
        """The keys of all objects below the folder `prefix` (no trailing slash), sorted.

        With `after` and `until` those after the one and up to the other, which is included; neither need be there.
        """

    @abstractmethod
    def folders(self, prefix: str) -> list[str]:
        """The names (not keys) of the folders directly below the folder `prefix`, sorted; an emptied one may linger."""

    @abstractmethod
    def top(self) -> tuple[list[str], list[str]]:
        """The names of the objects, and of the folders, at the top, each sorted. Names that are no key of a bucket are
        there, too; those with a dot in front are not.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; no error where it is not there."""

    @abstractmethod
    def store_error(self, error: OSError) -> StoreError | None:
        """The store's own failure behind an error of an opened file; None where the bytes in it are at fault."""

    @property
    @abstractmethod
    def address(self) -> str:
        """For people and errors: `/data/store` or `s3://bucket/prefix`. Never holds a secret."""

    def exists(self, key: str) -> bool:
        try:
            self.open(key).close()
        except KeyError:
            return False
        return True


def told_apart(bucket: Bucket, error: Exception, damage: CorruptObject) -> ActstoreError:
    """Answers the store's own failure behind an error of reading an object; where there is none, the damage."""
    failure = bucket.store_error(error) if isinstance(error, OSError) else None
    return failure or damage


def check_name(text: str, field: str) -> str:
    """Refuses text that may not become one folder of a key: letters, digits, `.`, `_`, `-`, at most 128, no leading
    dot.
    """
    if not _NAME.fullmatch(text):
        raise BadRequest(
            f"{field} {text!r} is not a valid name: use letters, digits, '.', '_' and '-', beginning with a letter "
            "or digit, "
            "at most 128",
            reason="NAME_INVALID",
            field=field,
            value=text,
            allowed=_NAME.pattern,
        )
    return text


def is_key(text: str) -> bool:
    """Tells whether a foreign name found in a store could be ours."""
    return all(_NAME.fullmatch(part) for part in text.split("/"))


def check_key(key: str) -> str:
    """Refuses text that is no key of a bucket: names between single slashes."""
    for part in key.split("/"):
        check_name(part, "key")
    return key
