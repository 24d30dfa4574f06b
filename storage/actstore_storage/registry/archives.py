"""Stores a folder's files as one object: a tar archive whose last member is a record of the others' hashes."""

import hashlib
import tarfile
from pathlib import Path
from typing import Any

from actstore_storage.bucket import Bucket, told_apart
from actstore_storage.errors import damaged
from actstore_storage.format.records import seal, unseal

_HASHES = "hashes.json"


def write_archive(bucket: Bucket, key: str, folder: Path) -> None:
    """Stores every file of the folder, and one more with their hashes. Errors: StoreError."""
    (folder / _HASHES).write_bytes(seal({"key": key, "files": _digests(folder)}))
    with bucket.create(key) as out, tarfile.open(fileobj=out, mode="w|") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)


def read_archive(bucket: Bucket, key: str, folder: Path) -> None:
    """Unpacks an archive into an empty folder. Errors: StoreError; CorruptObject, also for the archive of
    another key.
    """
    try:
        with bucket.open(key) as source, tarfile.open(fileobj=source, mode="r|") as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise told_apart(bucket, error, damaged(key, error, kind="archive")) from error
    if (folder / _HASHES).is_file():  # before format version 4 there was none
        told: dict[str, Any] = unseal((folder / _HASHES).read_bytes(), key, dict, sealed=True)
        if told != {"key": key, "files": _digests(folder)}:
            raise damaged(key, "its files do not match the hash in its key", kind="archive")


def _digests(folder: Path) -> dict[str, str]:
    """By name; the files need not fit into memory."""
    found = {}
    for path in folder.iterdir():
        if path.name != _HASHES:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
