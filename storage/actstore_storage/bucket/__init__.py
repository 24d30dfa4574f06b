"""A bucket: named immutable objects under one root. Implementations: a local directory, S3.

Every key passes `check_key`, so that no name from a caller can lead outside its folder.
"""

import re
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import pyarrow as pa

from actstore_storage.errors import ActstoreError, BadRequest, CorruptObject, StoreError

# Concurrent requests, because reading small objects from S3 is limited by latency.
FETCH_THREADS = 16

# Two objects that are written one after the other may have the same time: S3 tells whole seconds.
SETTLED_SECONDS = 2.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Stamp:
    """What tells the object under a key from a later one under the same key.

    Args:
        version: Changes with the object, whatever it contains, unless both were written at the same time.
        age_seconds: How long ago the object was written, by the store's clock.
    """

    version: tuple[object, ...]
    age_seconds: float = field(compare=False)

    @property
    def settled(self) -> bool:
        """Whether an object that is written from now on has another stamp."""
        return self.age_seconds >= SETTLED_SECONDS


class Bucket(ABC):
    """A flat namespace of keys.

    Errors: StoreError for permissions, credentials, a full disk or a missing bucket; StoreUnreachable if retrying may
    help; KeyError for a missing object.
    """

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Writes an object atomically: a reader sees all of it or nothing. It replaces an object with that name."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes an object unless one with that name exists. True for the one writer that succeeds, False for all
        others.
        """

    @abstractmethod
    def create(self, key: str) -> AbstractContextManager[pa.NativeFile]:
        """Returns a stream for writing a large object. The object exists once the block ends without an exception."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Returns the whole object."""

    @abstractmethod
    def stamp(self, key: str) -> Stamp:
        """Returns what tells the object from a later one, without reading it."""

    @abstractmethod
    def open(self, key: str) -> pa.NativeFile:
        """Returns a seekable Arrow file that reads ranges on demand, for columnar readers."""

    @abstractmethod
    def keys(self, prefix: str, *, after: str | None = None, until: str | None = None) -> list[str]:
        """Returns the keys of all objects below the folder `prefix` (no trailing slash), sorted.

        With `after` and `until`: only keys after the first, up to and including the second; neither needs to exist.
        """

    @abstractmethod
    def folders(self, prefix: str) -> list[str]:
        """Returns the names (not keys) of the folders directly below the folder `prefix`, sorted; an empty one may
        remain for a while.
        """

    @abstractmethod
    def top(self) -> tuple[list[str], list[str]]:
        """Returns the names of objects and of folders at the top level, each sorted. It includes names that are not
        valid keys, but not those that begin with a dot.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes an object; no error if it does not exist."""

    @abstractmethod
    def store_error(self, error: OSError) -> StoreError | None:
        """Returns the store's own failure that caused an error of an opened file; None if its bytes are wrong."""

    @property
    @abstractmethod
    def address(self) -> str:
        """The address for people and errors: `/data/store` or `s3://bucket/prefix`. It never contains a secret."""

    def check(self) -> None:  # noqa: B027  most buckets have no caller who could leave
        """Raises CANCELLED if whoever asked no longer waits; code that computes for long calls it now and then."""

    def exists(self, key: str) -> bool:
        try:
            self.open(key).close()
        except KeyError:
            return False
        return True


def told_apart(bucket: Bucket, error: Exception, damage: CorruptObject) -> ActstoreError:
    """Returns the store's own failure that caused an error while reading an object, or else the damage."""
    failure = bucket.store_error(error) if isinstance(error, OSError) else None
    return failure or damage


def check_name(text: str, field: str) -> str:
    """Refuses text that cannot be one folder of a key: letters, digits, `.`, `_`, `-`, at most 128, no leading dot."""
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
    """Whether a name found in a store could be one of ours."""
    return all(_NAME.fullmatch(part) for part in text.split("/"))


def check_key(key: str) -> str:
    """Refuses text that is not a valid key: names separated by single slashes."""
    for part in key.split("/"):
        check_name(part, "key")
    return key
