"""What workers of this store have loaded or found: models, their tokens' texts, SAEs."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket
from actstore_storage.errors import CorruptObject, NotThere
from actstore_storage.format.keys import (
    MODELS,
    SAES,
    model_key,
    old_token_texts_key,
    sae_files_folder,
    sae_files_key,
    sae_key,
    token_texts_key,
)
from actstore_storage.format.records import canonical_json, seal, unseal
from actstore_storage.format.specification import Specification
from actstore_storage.runs.opening import FETCH_THREADS
from actstore_storage.runs.token_texts import TokenTexts

_TOKENIZERS_KEPT = 8
_COPY_BYTES = 1 << 22
# In the metadata of tokens' texts: a record of what they are.
_TEXTS_RECORD = b"actstore.record"


@dataclass(frozen=True)
class ModelRecord:
    """`family` is transformers' model_type. An empty `revision` is the one that the name stands for by itself.

    `block` is how a layer is wired: pre_ln, post_ln or parallel; it and `config_sha256` are empty in records of before
    they were asked.
    """

    name: str
    revision: str
    weights_sha256: str
    tokenizer_sha256: str
    family: str
    layer_count: int
    d_model: int
    head_count: int
    vocabulary_size: int
    context_length: int
    block: str = ""
    config_sha256: str = ""

    @property
    def key(self) -> str:
        return model_key(self.name, self.revision)


@dataclass(frozen=True)
class SaeModelRecord:
    """`site` is the short name of the site that it reads; `model` is empty where the SAE does not say."""

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


Record = TypeVar("Record", ModelRecord, SaeModelRecord)


def register_model(
    bucket: Bucket, record: ModelRecord, token_texts: Sequence[str], token_parts: Mapping[int, bytes] | None = None
) -> None:
    """`token_texts` and `token_parts`: as of `TokenTexts`. A model that was registered under the name before is
    replaced.
    """
    sink = io.BytesIO()
    parts = [(token_parts or {}).get(token) for token in range(len(token_texts))]
    texts = pa.table({"text": pa.array(token_texts, pa.string()), "bytes": pa.array(parts, pa.binary())})
    texts = texts.replace_schema_metadata({_TEXTS_RECORD: seal(_texts_record(record.tokenizer_sha256, texts))})
    pq.write_table(texts, sink, compression="zstd", write_page_checksum=True)
    bucket.put_if_absent(token_texts_key(record.tokenizer_sha256), sink.getvalue())
    bucket.put(record.key, seal(asdict(record)))


def find_registered_model(bucket: Bucket, name: str, revision: str) -> ModelRecord | None:
    """None where nothing is registered under the name."""
    return next(iter(_read_all(bucket, [model_key(name, revision)], ModelRecord)), None)


def block_of(bucket: Bucket, asked: Specification) -> str:
    """How the blocks of a run's model are wired: pre_ln, post_ln or parallel; empty where that is not known."""
    model = find_registered_model(bucket, asked.model, asked.model_revision)
    # A name may mean another model by now, of another architecture.
    return model.block if model is not None and asked.made_by(model.weights_sha256, model.config_sha256) else ""


def list_models(bucket: Bucket) -> list[ModelRecord]:
    """In order of name, then revision."""
    return sorted(_read_all(bucket, bucket.keys(MODELS), ModelRecord), key=lambda model: (model.name, model.revision))


def register_sae(bucket: Bucket, record: SaeModelRecord) -> None:
    """An SAE that was registered under the name before is replaced; runs carry the hash of the one they used."""
    bucket.put(record.key, seal(asdict(record)))


def list_saes(bucket: Bucket) -> list[SaeModelRecord]:
    """In order of name."""
    keys = [f"{SAES}/{folder}/sae.json" for folder in bucket.folders(SAES)]
    return sorted(_read_all(bucket, keys, SaeModelRecord), key=lambda sae: sae.name)


def find_registered_sae(bucket: Bucket, name: str) -> SaeModelRecord | None:
    """None where nothing is registered under the name."""
    return next(iter(_read_all(bucket, [sae_key(name)], SaeModelRecord)), None)


def store_sae_files(bucket: Bucket, name: str, sha256: str, folder: Path) -> None:
    """Every file of a folder. To be stored before the SAE is registered: whoever sees it finds them."""
    digests = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file, bucket.create(f"{sae_files_folder(name, sha256)}/{path.name}") as out:
            digests[path.name] = _copied(file, out)
    bucket.put(sae_files_key(name, sha256), seal({"sae": name, "sha256": sha256, "files": digests}))


def fetch_sae_files(bucket: Bucket, name: str, sha256: str, folder: Path) -> bool:
    """Into an empty folder. False: that SAE's files do not lie in this bucket.

    Errors: CorruptObject for a file that is not the one that was stored, or is gone.
    """
    keys = bucket.keys(sae_files_folder(name, sha256))
    digests = {}
    for key in keys:
        path = folder / key.rpartition("/")[2]
        with bucket.open(key) as file, path.open("wb") as out:
            digests[path.name] = _copied(file, out)
    for key, what in unlike_sae_files(bucket, name, sha256, digests):
        raise CorruptObject(f"object {key} is damaged: {what}", field="object", value=key)
    return bool(keys)


def unlike_sae_files(bucket: Bucket, name: str, sha256: str, digests: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Keys and what is wrong there with an SAE's files, of which these SHA-256 were found, by name.

    Nothing of files that were stored before there was a record of them. Errors: CorruptObject.
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
            yield f"{sae_files_folder(name, sha256)}/{file}", "it is not the file that was stored"


def _files_of(fields: Mapping[str, Any], name: str, sha256: str) -> dict[str, str]:
    if (fields["sae"], fields["sha256"]) != (name, sha256):
        raise ValueError(f"it is of SAE {fields['sae']}")
    return dict(fields["files"])


def hash_objects(bucket: Bucket, *keys: str) -> str:
    """The SHA-256 of objects of any size, one after the other. Errors: KeyError where one is gone; StoreError."""
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


def _copied(source: BinaryIO | pa.NativeFile, out: BinaryIO | pa.NativeFile) -> str:
    """The SHA-256 of what was copied."""
    digest = hashlib.sha256()
    while chunk := source.read(_COPY_BYTES):
        digest.update(chunk)
        out.write(chunk)
    return digest.hexdigest()


def token_texts(bucket: Bucket, tokenizer_sha256: str) -> TokenTexts:
    """What the token ids of a tokenizer stand for, kept in memory.

    Of a store where no model was registered since format version 4, texts are those of before, which lack leading
    spaces and bytes of some tokenizers.

    Errors: NotThere MODEL_NOT_FOUND, CorruptObject.
    """
    for key in (token_texts_key(tokenizer_sha256), old_token_texts_key(tokenizer_sha256)):
        try:
            return _kept_texts(bucket, key, tokenizer_sha256)
        except KeyError:
            continue
    message = f"no model with tokenizer {tokenizer_sha256} is registered in {bucket.address}"
    raise NotThere(message, reason="MODEL_NOT_FOUND", field="tokenizer_sha256", value=tokenizer_sha256)


@lru_cache(_TOKENIZERS_KEPT)
def _kept_texts(bucket: Bucket, key: str, tokenizer_sha256: str) -> TokenTexts:
    """The name is the content's hash, so it cannot change."""
    return read_token_texts(bucket, key, tokenizer_sha256)


def read_token_texts(bucket: Bucket, key: str, tokenizer_sha256: str) -> TokenTexts:
    """As they lie in the bucket now. Errors: KeyError where they are not there; CorruptObject."""
    data = bucket.get(key)
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        columns = table.to_pydict()
        parts = {token: part for token, part in enumerate(columns.get("bytes", ())) if part is not None}
        texts = TokenTexts(tuple(columns["text"]), parts)
    except (OSError, ValueError, pa.ArrowException, KeyError) as error:
        raise CorruptObject(f"{key} is damaged: {error}", field="object", value=key) from error
    record = (table.schema.metadata or {}).get(_TEXTS_RECORD)
    if record is None and key == old_token_texts_key(tokenizer_sha256):  # of before there were any
        return texts
    if record is None or unseal(record, key, dict, sealed=True) != _texts_record(tokenizer_sha256, table):
        raise CorruptObject(f"{key} has other texts than were stored there", field="object", value=key)
    return texts


def _texts_record(tokenizer_sha256: str, texts: pa.Table) -> dict[str, str]:
    columns = [
        [part if isinstance(part, str | None) else part.hex() for part in column.to_pylist()] for column in texts
    ]
    return {
        "tokenizer_sha256": tokenizer_sha256,
        "texts_sha256": hashlib.sha256(canonical_json(columns)).hexdigest(),
    }


def _read_all(bucket: Bucket, keys: Sequence[str], kind: type[Record]) -> list[Record]:
    """Of those that are there. Errors: CorruptObject."""

    def read(key: str) -> Record | None:
        try:
            return read_registered(bucket, key, kind)
        except KeyError:
            return None

    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        return [record for record in pool.map(read, keys) if record is not None]


def read_registered(bucket: Bucket, key: str, kind: type[Record]) -> Record:
    """Errors: KeyError where there is none; CorruptObject, also for a record under another's key."""
    record = unseal(bucket.get(key), key, lambda fields: kind(**fields))
    if record.key != key:
        raise CorruptObject(f"{key} is the record of {record.key}", field="object", value=key)
    return record
