"""A bucket in S3-compatible storage. Only this file uses the S3 client.

minio handles small objects, listings and the conditional put; pyarrow's own S3 client streams large objects and reads
ranges of them.
"""

import configparser
import io
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from xml.etree.ElementTree import ParseError

import pyarrow as pa
import urllib3
from minio import Minio
from minio.credentials import AWSConfigProvider, Credentials
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from minio.helpers import check_bucket_name
from pyarrow import fs
from urllib3.exceptions import HTTPError

from actstore_storage.bucket import Bucket, Stamp, check_key, is_key
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.s3_connection import NO_OBJECT, NO_S3_ANSWER, Asked, Reached, proxy_for, store_failure
from actstore_storage.errors import BadRequest, StoreError, StoreUnreachable

BACKOFF_SECONDS = 0.2  # doubles with each attempt
REPEATED_MAX = 1000  # repeated keys in a row that end a listing with an error: one page

_ENDPOINT = re.compile(r"(?:[\w.-]+|\[[\da-fA-F:.]+\])(?::(\d{1,5}))?", re.ASCII)
_PORT_MAX = 65_535
_REGION = re.compile(r"[\w-]*", re.ASCII)
# The error of minio's parser for a successful answer that is not S3's, such as a login page.
_NO_ANSWER = (ParseError, ValueError)
# Arrow's client has its own names for some codes, and gives the others only in its message.
_ARROW_CODE = re.compile(r"AWS Error (\w+)")
_ARROW_UNKNOWN = re.compile(r"Unable to parse ExceptionName: (\w+)")

Answer = TypeVar("Answer")


class _S3Store:
    """One prefix of one S3 bucket: its clients, answers and errors."""

    def __init__(self, access: S3Access, name: str, prefix: str) -> None:
        """Sends no request yet. `prefix` is empty or a path: the folder of the bucket that contains this store."""
        _check_endpoint(access.endpoint)
        _check_bucket(name)
        _check_region(access.region)
        self._name, self._prefix = name, f"{prefix}/" if prefix else ""
        timeout = urllib3.Timeout(connect=access.connect_seconds, read=access.answer_seconds)
        # Retries are our own, because urllib3 would repeat a conditional put and then find its own first attempt as the
        # winner.
        options: dict[str, Any] = {
            "maxsize": access.connections,
            "timeout": timeout,
            "retries": urllib3.Retry(0, redirect=0),
        }
        proxy = proxy_for(access.endpoint, secure=access.secure)
        pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        self._access, self._keys, self._proxy = access, _Keys(access), proxy
        self._minio = Minio(
            access.endpoint, credentials=self._keys, region=access.region, secure=access.secure, http_client=pool
        )
        self._arrow_with: tuple[Credentials, fs.S3FileSystem] | None = None

    @property
    def _arrow(self) -> fs.S3FileSystem:
        """Arrow's client keeps its keys, so new keys need a new client."""
        keys = self._keys.retrieve()
        if self._arrow_with is None or self._arrow_with[0] is not keys:
            self._arrow_with = keys, _arrow_client(self._access, keys, self._proxy)
        return self._arrow_with[1]

    @property
    def address(self) -> str:
        return f"s3://{self._name}/{self._prefix}".rstrip("/")

    def open(self, key: str) -> pa.NativeFile:
        try:
            return self._arrow.open_input_file(f"{self._name}/{self._path(key)}")
        except FileNotFoundError:
            raise KeyError(key) from None
        except OSError as error:
            raise self._failure(error) from error

    def top(self) -> tuple[list[str], list[str]]:
        found = self._ask(lambda: list(self._items(self._prefix)), "")
        names = sorted((item.object_name.removeprefix(self._prefix).rstrip("/"), item.is_dir) for item in found)
        visible = [(name, is_folder) for name, is_folder in names if name and not name.startswith(".")]
        objects = [name for name, is_folder in visible if not is_folder]
        return objects, [name for name, is_folder in visible if is_folder]

    def store_error(self, error: OSError) -> StoreError | None:
        return self._failure(error) if error.errno is not None or _ARROW_CODE.search(str(error)) else None

    def _path(self, key: str) -> str:
        return self._prefix + key

    def _listed(self, prefix: str, after: str | None = None, until: str | None = None) -> list[str]:
        """All keys below the folder, sorted, except those of folders themselves, which end in a slash."""
        path = f"{self._path(prefix)}/"
        start = None if after is None else self._path(after)

        def listed() -> list[str]:
            keys = []
            for item in self._items(path, recursive=True, start_after=start):
                key = item.object_name.removeprefix(self._prefix)
                if until is not None and key > until:
                    break
                if not item.is_dir and (after is None or key > after):
                    keys.append(key)
            return keys

        return sorted(self._ask(listed, prefix))

    def _items(self, path: str, **how: Any) -> Iterator[Any]:
        """Yields each key once. Some stores repeat a key on two pages, and with a listing that repeats forever minio
        would never stop.
        """
        seen: set[str] = set()
        repeated = 0
        for item in self._minio.list_objects(self._name, path, **how):
            if item.object_name not in seen:
                seen.add(item.object_name)
                repeated = 0
                yield item
            elif (repeated := repeated + 1) >= REPEATED_MAX:
                message = f"{self.address} repeats the same keys in its listing, so the listing never ends"
                raise StoreError(message, reason="STORE_UNSAFE", field="store", value=self.address)

    def _ask(self, request: Callable[[], Answer], key: str, *, writing: bool = False) -> Answer:
        for tried in range(1, self._access.attempts + 1):
            try:
                return request()
            except (MinioException, HTTPError, *_NO_ANSWER) as error:
                if _code(error) == NO_OBJECT:
                    raise KeyError(key) from None
                failure = self._failure(error, writing=writing)
                if tried == self._access.attempts or not isinstance(failure, StoreUnreachable):
                    raise failure from error
                time.sleep(BACKOFF_SECONDS * 2 ** (tried - 1))
        raise AssertionError("unreachable")

    def _failure(self, error: Exception, *, writing: bool = False) -> StoreError:
        """Describes an error without secrets: only its code, never the server's message."""
        settings = Reached(self._access.endpoint, self._access.secure, self._access.region, self._proxy)
        return store_failure(Asked(self.address, self._name, writing), settings, error, _code(error))


class S3Files(_S3Store):
    """Files that other programs wrote to S3, with any names, for reading: a dataset store."""

    def keys(self, prefix: str) -> list[str]:
        """The keys of all files below the folder `prefix` (no trailing slash), sorted."""
        return self._listed(prefix)

    def exists(self, key: str) -> bool:
        try:
            self.open(key).close()
        except KeyError:
            return False
        return True


class S3Bucket(_S3Store, Bucket):
    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        self._ask(lambda: self._minio.put_object(self._name, path, io.BytesIO(data), len(data)), key, writing=True)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        tries = 0

        def put() -> bool:
            nonlocal tries
            tries += 1
            try:
                # `put_object` would send this header as x-amz-meta-if-none-match and silently overwrite.
                self._minio._put_object(self._name, path, data, headers={"If-None-Match": "*"})
            except S3Error as error:
                if _code(error) != "preconditionfailed":
                    raise
                # After an attempt whose answer was lost, the existing object may be our own.
                return tries > 1 and self.get(key) == data
            return True

        return self._ask(put, key, writing=True)

    @contextmanager
    def create(self, key: str) -> Iterator[pa.NativeFile]:
        path = f"{self._name}/{self._path(key)}"
        try:
            with self._arrow.open_output_stream(path) as stream:
                yield stream
        except BaseException as error:
            # Closing completed the upload; it cannot be aborted any more.
            with suppress(StoreError):
                self.delete(key)
            if isinstance(error, OSError):
                raise self._failure(error, writing=True) from error
            raise

    def get(self, key: str) -> bytes:
        path = self._path(key)

        def read() -> bytes:
            response = self._minio.get_object(self._name, path)
            try:
                return bytes(response.read())
            finally:
                response.close()
                response.release_conn()

        return self._ask(read, key)

    def stamp(self, key: str) -> Stamp:
        path = self._path(key)
        found = self._ask(lambda: self._minio.stat_object(self._name, path), key)
        written = found.last_modified or datetime.now(UTC)
        return Stamp((found.etag, written, found.version_id), _age_seconds(written, found.metadata or {}))

    def keys(self, prefix: str, *, after: str | None = None, until: str | None = None) -> list[str]:
        return [key for key in self._listed(prefix, after, until) if is_key(key)]

    def folders(self, prefix: str) -> list[str]:
        path = f"{self._path(prefix)}/"
        found = self._ask(lambda: list(self._items(path)), prefix)
        names = (item.object_name.removeprefix(path).rstrip("/") for item in found if item.is_dir)
        return sorted(name for name in names if is_key(name))

    def delete(self, key: str) -> None:
        path = self._path(key)
        with suppress(KeyError):
            self._ask(lambda: self._minio.remove_object(self._name, path), key, writing=True)

    def _path(self, key: str) -> str:
        return self._prefix + check_key(key)


class _Keys:
    """The current keys, for minio too; the same object as long as they stay the same."""

    def __init__(self, access: S3Access) -> None:
        self._file, self._seen = access.credentials_file, (0, 0, 0)
        self._found = Credentials(access.access_key or "none", access.secret_key or "none")
        if not self._file:
            _checked(self._found)

    def retrieve(self) -> Credentials:
        """Returns the keys. Errors: StoreError STORE_CREDENTIALS for a file that cannot be read, or has no keys."""
        if not self._file:
            return self._found
        try:
            state = Path(self._file).stat()
            # The time alone does not detect a second write within a tick of the clock, about four milliseconds.
            changed = state.st_mtime_ns, state.st_size, state.st_ino
            if changed != self._seen:
                self._found, self._seen = _checked(AWSConfigProvider(self._file, "default").retrieve()), changed
        except (OSError, ValueError, configparser.Error) as error:
            message = f"{self._file} has no S3 credentials: {type(error).__name__}"
            raise StoreError(message, reason="STORE_CREDENTIALS", field="credentials_file", value=self._file) from error
        return self._found


def _checked(keys: Credentials) -> Credentials:
    """Keys are sent in a header: the newline at the end of a secret's file would cause an error that shows them."""
    named = {"access_key": keys.access_key, "secret_key": keys.secret_key, "session_token": keys.session_token or ""}
    for field, key in named.items():
        if not (key.isascii() and key.isprintable()):
            message = f"the S3 {field} contains a character that a key cannot have, such as a line break"
            raise StoreError(message, reason="STORE_CREDENTIALS", field=field, allowed="printable ASCII characters")
    return keys


def _arrow_client(access: S3Access, keys: Credentials, proxy: str | None) -> fs.S3FileSystem:
    return fs.S3FileSystem(
        proxy_options=proxy,
        access_key=keys.access_key,
        secret_key=keys.secret_key,
        session_token=keys.session_token,
        region=access.region,
        endpoint_override=access.endpoint,
        scheme="https" if access.secure else "http",
        connect_timeout=access.connect_seconds,
        request_timeout=access.answer_seconds,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=access.attempts),
        allow_delayed_open=True,  # one request instead of three if it fits into one part
    )


def _check_endpoint(endpoint: str) -> None:
    found = _ENDPOINT.fullmatch(endpoint)
    if not found or int(found[1] or 0) > _PORT_MAX:
        raise BadRequest(
            f"{endpoint!r} is not a valid S3 endpoint; http or https is set separately, by secure",
            field="endpoint",
            value=endpoint,
            allowed="host or host:port",
        )


def _check_bucket(name: str) -> None:
    try:
        check_bucket_name(name)
    except ValueError:
        raise BadRequest(
            f"{name!r} is not a valid name of an S3 bucket",
            field="store",
            value=name,
            allowed="3 to 63 letters, digits, dots and hyphens",
        ) from None


def _check_region(region: str) -> None:
    if not _REGION.fullmatch(region):
        message = f"{region!r} is not a valid S3 region"
        raise BadRequest(
            message, field="region", value=region, allowed="letters, digits and hyphens, such as us-east-1"
        )


def _age_seconds(written: datetime, headers: Mapping[str, str]) -> float:
    """By the store's clock. A store that does not tell the time has only new objects."""
    try:
        return (parsedate_to_datetime(headers["date"]) - written).total_seconds()
    except (KeyError, ValueError):
        return 0.0


def _code(error: Exception) -> str:
    """One spelling of an error's code: minio has NoSuchBucket, pyarrow NO_SUCH_BUCKET, a proxy only a number."""
    if isinstance(error, S3Error):
        return str(error.code).lower()
    if isinstance(error, ServerError):
        return f"http {error.status_code}"
    if isinstance(error, InvalidResponseError):
        return f"http {error._code}"  # its only way to say so
    if isinstance(error, _NO_ANSWER):
        return NO_S3_ANSWER
    found = _ARROW_UNKNOWN.search(str(error)) or _ARROW_CODE.search(str(error))
    return found[1].replace("_", "").lower() if found else type(error).__name__
