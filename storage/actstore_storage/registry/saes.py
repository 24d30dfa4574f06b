"""Records of SAEs that workers of this store have loaded or trained, and the files of trained ones."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from actstore_storage.bucket import Bucket
from actstore_storage.errors import damaged
from actstore_storage.format.keys import SAES, sae_files_folder, sae_files_key, sae_key
from actstore_storage.format.records import seal, unseal
from actstore_storage.registry.registered import read_all_registered

_COPY_BYTES = 1 << 22


@dataclass(frozen=True)
class SaeModelRecord:
    """An SAE that workers loaded or trained. `site` is the short name of the site that it reads; `model` is empty if
    the SAE does not say.
    """

    name: str
    sha256: str
    architecture: str
    site: str
    d_in: int
    d_sae: int
    model: str

    @property
    def key(self) -> str:
        return sae_key(self.name)


def register_sae(bucket: Bucket, record: SaeModelRecord) -> None:
    """Registers an SAE. It replaces an SAE with the same name; runs contain the hash of the one they used."""
    bucket.put(record.key, seal(asdict(record)))


def list_saes(bucket: Bucket) -> list[SaeModelRecord]:
    """Reads every SAE's record, in order of name."""
    keys = [f"{SAES}/{folder}/sae.json" for folder in bucket.folders(SAES)]
    return sorted(read_all_registered(bucket, keys, SaeModelRecord), key=lambda sae: sae.name)


def find_registered_sae(bucket: Bucket, name: str) -> SaeModelRecord | None:
    """Reads the record of an SAE; None if nothing is registered under the name."""
    return next(iter(read_all_registered(bucket, [sae_key(name)], SaeModelRecord)), None)


def store_sae_files(bucket: Bucket, name: str, sha256: str, folder: Path) -> None:
    """Stores every file of a folder. It must come before the SAE is registered, so that everyone who sees it finds the
    files.
    """
    digests = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file, bucket.create(f"{sae_files_folder(name, sha256)}/{path.name}") as out:
            digests[path.name] = _copied(file, out)
    bucket.put(sae_files_key(name, sha256), seal({"sae": name, "sha256": sha256, "files": digests}))


def fetch_sae_files(bucket: Bucket, name: str, sha256: str, folder: Path) -> bool:
    """Copies an SAE's files into an empty folder. False: that SAE's files are not in this bucket.

    Errors: CorruptObject for a file that does not match its hash, or is missing.
    """
    keys = bucket.keys(sae_files_folder(name, sha256))
    digests = {}
    for key in keys:
        path = folder / key.rpartition("/")[2]
        with bucket.open(key) as file, path.open("wb") as out:
            digests[path.name] = _copied(file, out)
    for key, what in unlike_sae_files(bucket, name, sha256, digests):
        raise damaged(key, what)
    return bool(keys)


def unlike_sae_files(bucket: Bucket, name: str, sha256: str, digests: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields keys and descriptions of damage to an SAE's files, for which these SHA-256 were found, by name.

    Files that were stored before they had a record are not checked. Errors: CorruptObject.
    """
    key = sae_files_key(name, sha256)
    try:
        stored = unseal(bucket.get(key), key, lambda fields: _files_of(fields, name, sha256), sealed=True)
    except KeyError:
        return
    for file in sorted({*stored, *digests}):
        if file not in digests:
            yield f"{sae_files_folder(name, sha256)}/{file}", "it is gone"
        elif stored.get(file) != digests[file]:
            yield f"{sae_files_folder(name, sha256)}/{file}", "it does not match the hash of the file that was stored"


def _files_of(fields: Mapping[str, Any], name: str, sha256: str) -> dict[str, str]:
    if (fields["sae"], fields["sha256"]) != (name, sha256):
        raise ValueError(f"it belongs to SAE {fields['sae']}")
    return dict(fields["files"])


def _copied(source: BinaryIO | pa.NativeFile, out: BinaryIO | pa.NativeFile) -> str:
    """The SHA-256 of the copied bytes."""
    digest = hashlib.sha256()
    while chunk := source.read(_COPY_BYTES):
        digest.update(chunk)
        out.write(chunk)
    return digest.hexdigest()


def hash_objects(bucket: Bucket, *keys: str) -> str:
    """Computes the SHA-256 of objects of any size, one after the other. Errors: KeyError for a missing one."""
    digest = hashlib.sha256()
    try:
        for key in keys:
            with bucket.open(key) as source:
                while chunk := source.read(_COPY_BYTES):
                    digest.update(chunk)
    except OSError as error:
        failure = bucket.store_error(error)
        if failure is None:
            raise
        raise failure from error
    return digest.hexdigest()
