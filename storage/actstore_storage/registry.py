"""What workers of this store have loaded or found: models, their tokens' texts, SAEs."""

import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket, check_name
from actstore_storage.errors import CorruptObject, NotThere
from actstore_storage.layout import SAES, sae_files_folder, sae_key, storage_name
from actstore_storage.runs import FETCH_THREADS
from actstore_storage.specification import canonical_json
from actstore_storage.token_texts import TokenTexts

_TOKENIZERS_KEPT = 8
_COPY_BYTES = 1 << 22


@dataclass(frozen=True)
class ModelRecord:
    """`family` is transformers' model_type. An empty `revision` is the one that the name stands for by itself.

    `block` is how a layer is wired: pre_ln, post_ln or parallel; empty in records of before it was asked.
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
    pq.write_table(texts, sink, compression="zstd", write_page_checksum=True)
    bucket.put_if_absent(_texts_key(record.tokenizer_sha256), sink.getvalue())
    bucket.put(_model_key(record.name, record.revision), canonical_json(asdict(record)))


def find_registered_model(bucket: Bucket, name: str, revision: str) -> ModelRecord | None:
    """None where nothing is registered under the name."""
    return next(iter(_read_all(bucket, [_model_key(name, revision)], ModelRecord)), None)


def list_models(bucket: Bucket) -> list[ModelRecord]:
    """In order of name, then revision."""
    return sorted(_read_all(bucket, bucket.keys("models"), ModelRecord), key=lambda model: (model.name, model.revision))


def register_sae(bucket: Bucket, record: SaeModelRecord) -> None:
    """An SAE that was registered under the name before is replaced; runs carry the hash of the one they used."""
    bucket.put(sae_key(record.name), canonical_json(asdict(record)))


def list_saes(bucket: Bucket) -> list[SaeModelRecord]:
    """In order of name."""
    keys = [f"{SAES}/{folder}/sae.json" for folder in bucket.folders(SAES)]
    return sorted(_read_all(bucket, keys, SaeModelRecord), key=lambda sae: sae.name)


def find_registered_sae(bucket: Bucket, name: str) -> SaeModelRecord | None:
    """None where nothing is registered under the name."""
    return next(iter(_read_all(bucket, [sae_key(name)], SaeModelRecord)), None)


def store_sae_files(bucket: Bucket, name: str, sha256: str, folder: Path) -> None:
    """Every file of a folder. To be stored before the SAE is registered: whoever sees it finds them."""
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file, bucket.create(f"{sae_files_folder(name, sha256)}/{path.name}") as out:
            while chunk := file.read(_COPY_BYTES):
                out.write(chunk)


def fetch_sae_files(bucket: Bucket, name: str, sha256: str, folder: Path) -> bool:
    """Into an empty folder. False: that SAE's files do not lie in this bucket."""
    keys = bucket.keys(sae_files_folder(name, sha256))
    for key in keys:
        with bucket.open(key) as file, (folder / key.rpartition("/")[2]).open("wb") as out:
            while chunk := file.read(_COPY_BYTES):
                out.write(chunk)
    return bool(keys)


def token_texts(bucket: Bucket, tokenizer_sha256: str) -> TokenTexts:
    """What the token ids of a tokenizer stand for. Of a store where no model was registered since format version 4,
    texts are those of before, which lack leading spaces and bytes of some tokenizers.

    Errors: NotThere MODEL_NOT_FOUND, CorruptObject.
    """
    for key in (_texts_key(tokenizer_sha256), _old_texts_key(tokenizer_sha256)):
        try:
            return _read_texts(bucket, key)
        except KeyError:
            continue
    message = f"no model with tokenizer {tokenizer_sha256} is registered in {bucket.address}"
    raise NotThere(message, reason="MODEL_NOT_FOUND", field="tokenizer_sha256", value=tokenizer_sha256)


@lru_cache(_TOKENIZERS_KEPT)
def _read_texts(bucket: Bucket, key: str) -> TokenTexts:
    """Kept: the name is the content's hash, so it cannot change. Errors: KeyError where it is not there."""
    data = bucket.get(key)
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        columns = table.to_pydict()
        parts = {token: part for token, part in enumerate(columns.get("bytes", ())) if part is not None}
        return TokenTexts(tuple(columns["text"]), parts)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise CorruptObject(f"{key} is damaged: {error}", field="object", value=key) from error


def _model_key(name: str, revision: str) -> str:
    folder = f"models/{storage_name(name, 'model')}"
    return f"{folder}/revisions/{storage_name(revision, 'revision')}.json" if revision else f"{folder}/model.json"


def _texts_key(tokenizer_sha256: str) -> str:
    return f"{_tokenizer_folder(tokenizer_sha256)}/token-texts.parquet"


def _old_texts_key(tokenizer_sha256: str) -> str:
    """Before format version 4. It was created if absent, so texts by another rule could not take its name."""
    return f"{_tokenizer_folder(tokenizer_sha256)}/texts.parquet"


def _tokenizer_folder(tokenizer_sha256: str) -> str:
    return f"tokenizers/{check_name(tokenizer_sha256, 'tokenizer_sha256')}"


def _read_all(bucket: Bucket, keys: Sequence[str], kind: type[Record]) -> list[Record]:
    """Of those that are there."""

    def read(key: str) -> Record | None:
        try:
            return kind(**json.loads(bucket.get(key)))
        except KeyError:
            return None
        except (ValueError, TypeError) as error:
            raise CorruptObject(f"{key} is not a {kind.__name__}: {error}", field="object", value=key) from error

    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        return [record for record in pool.map(read, keys) if record is not None]
