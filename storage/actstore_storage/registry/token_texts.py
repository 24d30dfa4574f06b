"""The texts of token ids: of each one alone, and in a sequence, where several tokens may share the bytes of one
character.
"""

import codecs
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket
from actstore_storage.errors import NotThere, corrupt_object, damaged
from actstore_storage.format.keys import old_token_texts_key, token_texts_key
from actstore_storage.format.records import canonical_json, seal, unseal

_TOKENIZERS_KEPT = 8
# In the metadata of token texts: a record of what they are.
_TEXTS_RECORD = b"actstore.record"

# Bytes that are not a character are shown as Python writes them in a literal.
SHOW_BYTES = "backslashreplace"


@dataclass(frozen=True)
class TokenTexts:
    r"""The texts of the token ids of a tokenizer.

    `alone[i]` is the text of id i alone: "" if there is no such token, and bytes that are not a character as
    `\xe2\x80`. `parts` has the bytes of ids whose text in a sequence differs from the text alone.
    """

    alone: tuple[str, ...]
    parts: Mapping[int, bytes] = field(default_factory=dict)

    @cached_property
    def ids(self) -> Mapping[str, Sequence[int]]:
        """The ids with this text alone, in order; "" has none."""
        found: dict[str, list[int]] = {}
        for token, text in enumerate(self.alone):
            if text:
                found.setdefault(text, []).append(token)
        return found

    def in_order(self, tokens: Iterable[int]) -> list[str]:
        """A text for each of several consecutive tokens; joined, they are the original text. A character whose bytes
        several tokens share belongs to the last one, and the others have "".
        """
        found: list[str] = []
        for in_parts, group in groupby(tokens, key=self.parts.__contains__):
            ids = list(group)
            found += self._joined(ids) if in_parts else [self.alone[token] for token in ids]
        return found

    def _joined(self, tokens: Sequence[int]) -> list[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(SHOW_BYTES)
        last = len(tokens) - 1
        return [decoder.decode(self.parts[token], final=place == last) for place, token in enumerate(tokens)]


def store_token_texts(
    bucket: Bucket, tokenizer_sha256: str, texts: Sequence[str], parts: Mapping[int, bytes] | None = None
) -> None:
    """Stores texts as in `TokenTexts`, unless the tokenizer's exist already."""
    sink = io.BytesIO()
    in_a_row = [(parts or {}).get(token) for token in range(len(texts))]
    table = pa.table({"text": pa.array(texts, pa.string()), "bytes": pa.array(in_a_row, pa.binary())})
    table = table.replace_schema_metadata({_TEXTS_RECORD: seal(_texts_record(tokenizer_sha256, table))})
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    bucket.put_if_absent(token_texts_key(tokenizer_sha256), sink.getvalue())


def token_texts(bucket: Bucket, tokenizer_sha256: str) -> TokenTexts:
    """Reads the texts of the token ids of a tokenizer, which are cached in memory.

    If no model was registered since format version 4, texts are the old ones, which lack leading spaces and bytes of
    some tokenizers.

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
    """Reads texts from the bucket. Errors: KeyError if they do not exist; CorruptObject."""
    data = bucket.get(key)
    try:
        table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
        columns = table.to_pydict()
        parts = {token: part for token, part in enumerate(columns.get("bytes", ())) if part is not None}
        texts = TokenTexts(tuple(columns["text"]), parts)
    except (OSError, ValueError, pa.ArrowException, KeyError) as error:
        raise damaged(key, error) from error
    record = (table.schema.metadata or {}).get(_TEXTS_RECORD)
    if record is None and key == old_token_texts_key(tokenizer_sha256):  # from before there were any
        return texts
    if record is None or unseal(record, key, dict, sealed=True) != _texts_record(tokenizer_sha256, table):
        raise corrupt_object(key, f"{key} does not match the token texts that were stored")
    return texts


def _texts_record(tokenizer_sha256: str, texts: pa.Table) -> dict[str, str]:
    columns = [
        [part if isinstance(part, str | None) else part.hex() for part in column.to_pylist()] for column in texts
    ]
    return {
        "tokenizer_sha256": tokenizer_sha256,
        "texts_sha256": hashlib.sha256(canonical_json(columns)).hexdigest(),
    }
