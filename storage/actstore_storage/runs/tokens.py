"""Reads the tokens of a run's shards, and the sources of their documents."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.side_by_side import read_side_by_side
from actstore_storage.format.commit import Commit
from actstore_storage.format.products import POSITIONS, TOKENS, TOKENS_FORMAT
from actstore_storage.parquet.reading import open_product
from actstore_storage.parquet.row_cache import NO_CACHE, RowCache
from actstore_storage.runs.document_sources import SOURCE_FIELDS, answered, source_columns
from actstore_storage.runs.snapshot import Snapshot

TOKEN_COLUMNS = tuple(TOKENS_FORMAT.schema.names)
# The numbers of a shard's tokens in the cache, without their sources and with them.
_ALONE, _WITH_SOURCES = 0, 1


def dense_token_rows(bucket: Bucket, commit: Commit, tokens: int) -> npt.NDArray[np.int64]:
    """Reads which tokens have dense rows: row i of every dense site of the shard belongs to token row [i] of this. The
    shard has this many tokens.
    """
    if POSITIONS not in commit.objects:
        return np.arange(tokens)
    with open_product(bucket, commit, POSITIONS) as file:
        rows: npt.NDArray[np.int64] = file.read()["row"].to_numpy().astype(np.int64)
    return rows


def sourced_tokens(bucket: Bucket, commit: Commit, cache: RowCache) -> pa.Table:
    """Reads a shard's tokens, as `shard_tokens`, with the columns of sources if the shard has them."""

    def read() -> pa.Table:
        with open_product(bucket, commit, TOKENS) as file:
            return file.read(columns=[*TOKEN_COLUMNS, *source_columns(file)]).combine_chunks()

    return cache.get(commit.objects[TOKENS].key, _WITH_SOURCES, read)


def document_sources(snapshot: Snapshot) -> pa.Table:
    """Reads the sources of documents: columns document, source and row, one row per document of the committed shards,
    ascending.
    """

    def read(commit: Commit) -> pa.Table:
        with open_product(snapshot.bucket, commit, TOKENS) as file:
            tokens = file.read(columns=["document", *source_columns(file)], use_threads=False)
        documents, firsts = np.unique(tokens["document"].to_numpy(), return_index=True)
        return pa.table([pa.array(documents), *answered(tokens.take(pa.array(firsts)))], schema=schema)

    schema = pa.schema([TOKENS_FORMAT.schema.field("document"), *SOURCE_FIELDS])
    found = pa.concat_tables([schema.empty_table(), *read_side_by_side(read, snapshot.commits)])
    _, firsts = np.unique(found["document"].to_numpy(), return_index=True)  # a document may be in two shards
    return found.take(pa.array(firsts))


def shard_tokens(bucket: Bucket, commit: Commit, cache: RowCache = NO_CACHE) -> pa.Table:
    """Reads the columns TOKEN_COLUMNS of a shard."""

    def read() -> pa.Table:
        with open_product(bucket, commit, TOKENS) as file:
            return file.read(columns=list(TOKEN_COLUMNS)).combine_chunks()

    return cache.get(commit.objects[TOKENS].key, _ALONE, read)
