"""Checks everything except runs: models, token texts, SAEs, trainings, requested captures, cached answers."""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.probe import PROBE
from actstore_storage.errors import CorruptObject
from actstore_storage.format.keys import (
    KEPT,
    MODELS,
    QUEUED,
    SAES,
    TOKENIZERS,
    TOP_FOLDERS,
    WANTED,
    kept_folder,
    kept_key,
    model_key,
    old_token_texts_key,
    sae_files_folder,
    sae_files_key,
    sae_folder,
    sae_key,
    token_texts_key,
    training_checkpoints_folder,
    training_key,
    wanted_key,
)
from actstore_storage.format.records import is_sealed, unseal
from actstore_storage.format.specification import RunRecord
from actstore_storage.registry.archives import read_archive
from actstore_storage.registry.models import ModelRecord
from actstore_storage.registry.registered import read_registered
from actstore_storage.registry.saes import SaeModelRecord, hash_objects, unlike_sae_files
from actstore_storage.registry.token_texts import read_token_texts
from actstore_storage.runs.wanted import read_queued, read_wanted
from actstore_storage.upkeep.answer_cache import is_kept, read_kept, remove_kept, remove_unnamed, unnamed
from actstore_storage.upkeep.fsck.finding import Finding

_MODEL = re.compile(rf"{MODELS}/[^/]+/(model|revisions/[^/]+)\.json")
_TEXTS = re.compile(rf"{TOKENIZERS}/([^/]+)/(?:token-)?texts\.parquet")
_FILES = re.compile(r"files/([0-9a-zA-Z]+)(?:\.json|/[^/]+)")
# The files of a trained SAE that its hash includes.
_HASHED = "cfg.json", "sae_weights.safetensors"
_CAPTURE_AGAIN = "the next capture that uses it writes it again"
_REMOVE_AND_CAPTURE = f"remove it, and {_CAPTURE_AGAIN}"


def check_beside_runs(bucket: Bucket, runs: Iterable[RunRecord], quick: bool, remove: bool) -> Iterator[Finding]:
    """Checks everything except the runs, and whether what the runs refer to exists. `quick` omits files of SAEs,
    checkpoints of trainings and the tables of cached answers. Errors: StoreError.
    """
    yield from _check_top(bucket)
    yield from _check_models(bucket)
    yield from _check_texts(bucket)
    for folder in bucket.folders(SAES):
        yield from _check_sae(bucket, folder, quick)
    yield from _check_named_by_runs(bucket, runs)
    for key in bucket.keys(WANTED):
        yield from _check_wanted(bucket, key)
    for key in bucket.keys(QUEUED):
        yield from _check_queued(bucket, key, remove)
    for sha256 in bucket.folders(KEPT):
        yield from _check_kept(bucket, sha256, quick, remove)


def _check_top(bucket: Bucket) -> Iterator[Finding]:
    objects, folders = bucket.top()
    yield from (_unknown(name) for name in objects)
    yield from (_unknown(f"{name}/") for name in folders if name not in (*TOP_FOLDERS, PROBE))


def _check_models(bucket: Bucket) -> Iterator[Finding]:
    for key in bucket.keys(MODELS):
        if not _MODEL.fullmatch(key):
            yield _unknown(key)
            continue
        try:
            record = read_registered(bucket, key, ModelRecord)
        except CorruptObject as error:
            yield Finding("damaged", key, f"{error.message}; {_REMOVE_AND_CAPTURE}")
            continue
        key = _texts_key(bucket, record.tokenizer_sha256, sealed=is_sealed(bucket.get(key)))
        if not bucket.exists(key):
            yield Finding("missing", key, f"it has the token texts of {record.name}; {_CAPTURE_AGAIN}")


def _check_texts(bucket: Bucket) -> Iterator[Finding]:
    for key in bucket.keys(TOKENIZERS):
        found = _TEXTS.fullmatch(key)
        if not found:
            yield _unknown(key)
            continue
        try:
            read_token_texts(bucket, key, found[1])
        except CorruptObject as error:
            yield Finding("damaged", key, f"{error.message}; {_REMOVE_AND_CAPTURE}")


def _texts_key(bucket: Bucket, tokenizer_sha256: str, *, sealed: bool) -> str:
    """Where they must be for a model or a run of format version 4 (`sealed`); for an earlier one, where they are."""
    old = old_token_texts_key(tokenizer_sha256)
    return old if not sealed and bucket.exists(old) else token_texts_key(tokenizer_sha256)


def _check_named_by_runs(bucket: Bucket, runs: Iterable[RunRecord]) -> Iterator[Finding]:
    """Checks each object that runs refer to once."""
    needed: dict[str, str] = {}
    for record in runs:
        asked = record.specification
        keys = (
            model_key(asked.model, asked.model_revision),
            _texts_key(bucket, asked.tokenizer_sha256, sealed=record.sealed),
        )
        for key in (*keys, *(sae_key(sae.name) for sae in asked.saes)):
            needed.setdefault(key, record.run)
    for key, run in sorted(needed.items()):
        if not bucket.exists(key):
            yield Finding("missing", key, f"run {run} was captured with it; {_CAPTURE_AGAIN}")


def _check_sae(bucket: Bucket, folder: str, quick: bool) -> Iterator[Finding]:
    """Checks the record, the training, and the files of every SAE that had this name."""
    name = folder.replace("--", "/")
    own = f"{sae_folder(name)}/"
    checkpoints = bucket.keys(training_checkpoints_folder(name))
    keys = set(bucket.keys(sae_folder(name))) - set(checkpoints)
    files = {key: found[1] for key in keys if (found := _FILES.fullmatch(key.removeprefix(own)))}
    hashes = set(files.values())
    yield from _check_sae_record(bucket, name, keys, hashes)
    yield from _check_training(bucket, name, keys, hashes)
    if not quick:
        for sha256 in sorted(hashes):
            yield from _check_files(bucket, name, sha256)
        for key in checkpoints:
            yield from _check_archive(bucket, key)
    yield from map(_unknown, sorted(keys - {sae_key(name), training_key(name), *files}))


def _check_sae_record(bucket: Bucket, name: str, keys: set[str], hashes: set[str]) -> Iterator[Finding]:
    """`keys` are all keys of the SAE except its training's checkpoints, `hashes` are those that name its files."""
    record, finding = _read_sae(bucket, name)
    if finding is not None:
        yield finding
    elif record is None:
        if hashes:
            yield Finding("missing", sae_key(name), "not registered, although its files exist; train it again")
    elif record.sha256 in hashes and is_sealed(bucket.get(sae_key(name))):
        key = sae_files_key(name, record.sha256)
        if key not in keys:
            yield Finding("missing", key, "it has the hashes of the SAE's files, which may themselves be intact")


def _check_training(bucket: Bucket, name: str, keys: set[str], hashes: set[str]) -> Iterator[Finding]:
    key = training_key(name)
    if key in keys:
        remedy = "remove it and its checkpoints to train the SAE again"
        yield from _check_named(bucket, key, "name", training_key, remedy)
    elif hashes:
        yield Finding("missing", key, "it has the record of the SAE's training, which cannot be resumed without it")


def _read_sae(bucket: Bucket, name: str) -> tuple[SaeModelRecord | None, Finding | None]:
    try:
        return read_registered(bucket, sae_key(name), SaeModelRecord), None
    except KeyError:
        return None, None
    except CorruptObject as error:
        what = f"{error.message}; remove it, and the next capture or training that uses it writes it again"
        return None, Finding("damaged", sae_key(name), what)


def _check_files(bucket: Bucket, name: str, sha256: str) -> Iterator[Finding]:
    folder = sae_files_folder(name, sha256)
    keys = bucket.keys(folder)
    hashed = [f"{folder}/{file}" for file in _HASHED]
    is_recorded = bucket.exists(sae_files_key(name, sha256))  # before format version 4 none was
    if not is_recorded and set(hashed) <= set(keys):
        if hash_objects(bucket, *hashed) != sha256:
            yield Finding(
                "damaged", hashed[-1], "it, or the cfg.json of the same folder, is not the file that was stored"
            )
        return
    digests = {key.rpartition("/")[2]: hash_objects(bucket, key) for key in keys}
    try:
        for key, what in unlike_sae_files(bucket, name, sha256, digests):
            yield Finding("damaged", key, f"{what}: train the SAE again, under another name")
    except CorruptObject as error:
        yield Finding("damaged", sae_files_key(name, sha256), error.message)


def _check_archive(bucket: Bucket, key: str) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            read_archive(bucket, key, Path(scratch))
        except CorruptObject as error:
            yield Finding("damaged", key, f"{error.message}; remove it, and the training starts from the beginning")
        except KeyError:  # a later one has just replaced it
            return


def _check_wanted(bucket: Bucket, key: str) -> Iterator[Finding]:
    """The fields of the request itself are unknown to the storage library."""
    try:
        read_wanted(bucket.get(key), key, dict)
    except CorruptObject as error:
        remedy = "no coordinator can resume this capture: submit it again, or cancel it"
        yield Finding("damaged", key, f"{error.message}; {remedy}")
    except KeyError:  # its capture has just ended
        return


def _check_queued(bucket: Bucket, key: str, remove: bool) -> Iterator[Finding]:
    try:
        # A capture that is being submitted has its place a moment before its request.
        settled = bucket.stamp(key).settled
        read_queued(bucket.get(key), key)
    except CorruptObject as error:
        yield Finding("damaged", key, f"{error.message}; its capture comes first: cancel it to submit it again")
    except KeyError:  # its capture has just ended
        return
    if settled and not bucket.exists(wanted_key(key.removeprefix(f"{QUEUED}/").removesuffix(".json"))):
        if remove:
            bucket.delete(key)
        yield Finding("removed" if remove else "orphan", key, "no capture with this place is requested")


def _check_named(bucket: Bucket, key: str, field: str, key_of: Callable[[str], str], remedy: str) -> Iterator[Finding]:
    """Checks a record whose field names its owner; its other fields are unknown to the storage library."""

    def checked(fields: Mapping[str, Any]) -> None:
        if key_of(fields[field]) != key:
            raise ValueError(f"it belongs to {fields[field]}")

    try:
        unseal(bucket.get(key), key, checked)
    except CorruptObject as error:
        yield Finding("damaged", key, f"{error.message}; {remedy}")
    except KeyError:  # it has just been removed
        return


def _check_kept(bucket: Bucket, sha256: str, quick: bool, remove: bool) -> Iterator[Finding]:
    """An incomplete answer is computed again when it is requested, so it takes space but does no harm."""
    if not bucket.keys(kept_folder(sha256)):
        return  # some stores list an emptied folder for a while
    if not (is_kept(bucket, sha256) if quick else read_kept(bucket, sha256)):
        what = "a cached answer that is incomplete"
        if remove:
            yield from (Finding("removed", key, what) for key in remove_kept(bucket, sha256))
        else:
            yield Finding("orphan", kept_key(sha256), what)
        return
    found = remove_unnamed(bucket, sha256) if remove else unnamed(bucket, sha256)
    yield from (Finding("removed" if remove else "orphan", key, "nothing refers to it") for key in found)


def _unknown(key: str) -> Finding:
    return Finding("unknown", key, "actstore writes no object with such a name")
