"""Reads stored rows in order of (sequence, position)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.errors import BadRequest
from actstore_storage.format.commit import Commit
from actstore_storage.format.products import TOKENS_FORMAT, dense_format
from actstore_storage.format.sites import KINDS, kinds_of_block, parse_site, why_missing
from actstore_storage.format.specification import DTYPES
from actstore_storage.parquet.reading import at_least_one, open_product
from actstore_storage.parquet.row_cache import NO_CACHE, RowCache
from actstore_storage.registry.models import block_of
from actstore_storage.registry.token_texts import token_texts
from actstore_storage.runs.document_sources import SOURCE_FIELDS, answered
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import EVERY_ROW, TokenFilter
from actstore_storage.runs.tokens import TOKEN_COLUMNS, dense_token_rows, shard_tokens, sourced_tokens

# The most bytes in one record batch, so that it fits into one message.
BATCH_BYTES = 2 << 20
TOKEN_BATCH_ROWS = 16_384


def read_activations(
    snapshot: Snapshot,
    sites: str | Sequence[str],
    keep: TokenFilter = EVERY_ROW,
    columns: Sequence[str] = TOKEN_COLUMNS,
    cache: RowCache = NO_CACHE,
) -> Iterator[pa.RecordBatch]:
    """Reads dense rows: the `columns` of sequence, position, document, token and flags, and raw bits of the sites, for
    which see `dense_matrix`.

    One site's column is `activation`; several sites have their short names, and their rows are of the same tokens.
    Sequences whose shard is not committed are left out, and so are tokens whose rows the run does not store. If a shard
    had to widen a site, all rows of that site are returned as float32, which changes no value. If there are no rows,
    one empty batch is returned, for its schema.
    """
    names = [_dense_site(snapshot, site) for site in ([sites] if isinstance(sites, str) else sites)]
    titles = ["activation"] if isinstance(sites, str) else names
    columns = _ordered(columns)
    shards = keep.commits(snapshot)
    read = [SiteRead(snapshot, shards, name, title) for name, title in zip(names, titles, strict=True)]
    schema = pa.schema([*(TOKENS_FORMAT.schema.field(name) for name in columns), *(site.field for site in read)])
    found = (batch for commit in shards for batch in _shard_rows(snapshot, commit, read, keep, schema, cache))
    return at_least_one(found, schema)


def read_tokens(
    snapshot: Snapshot, keep: TokenFilter = EVERY_ROW, cache: RowCache = NO_CACHE
) -> Iterator[pa.RecordBatch]:
    """Reads tokens: columns sequence, position, document, token, flags and `text`, the token's own text; and source and
    row of its document, null if the run does not know them.
    """
    texts = pa.array(token_texts(snapshot.bucket, snapshot.record.specification.tokenizer_sha256).alone, pa.string())
    schema = pa.schema([*TOKENS_FORMAT.schema, pa.field("text", pa.string()), *SOURCE_FIELDS])
    shards = keep.commits(snapshot)

    def found() -> Iterator[pa.RecordBatch]:
        for commit in shards:
            tokens = sourced_tokens(snapshot.bucket, commit, cache)
            chosen = tokens.filter(pa.array(keep.mask(tokens)))
            own = [chosen[name] for name in TOKEN_COLUMNS]
            columns = [*own, texts.take(chosen["token"]), *answered(chosen)]
            yield from pa.table(columns, schema=schema).combine_chunks().to_batches(TOKEN_BATCH_ROWS)

    return at_least_one(found(), schema)


def dense_matrix(column: pa.Array | pa.ChunkedArray, dtype: str, d_model: int) -> npt.NDArray[np.float32]:
    """Converts an `activation` column to float32 [rows, d_model], which is exact for every stored dtype."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    width = d_model * DTYPES[dtype]
    if column.type != pa.binary(width):
        raise ValueError(f"{dtype} x {d_model} is {width} bytes wide, but the column is {column.type}")
    raw = np.frombuffer(column.buffers()[1] or b"", np.uint8)[
        column.offset * width : (column.offset + len(column)) * width
    ]
    if dtype == "bfloat16":  # the upper half of a float32
        matrix = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        matrix = raw.view("<f4" if dtype == "float32" else "<f2").astype(np.float32, copy=False)
    return matrix.reshape(len(column), d_model)


class SiteRead:
    """How one site is read: the dtype of all its rows, and its column."""

    def __init__(self, snapshot: Snapshot, shards: Sequence[Commit], site: str, title: str = "activation") -> None:
        self._record, self.site = snapshot.record, _dense_site(snapshot, site)
        self.width = snapshot.record.dense_width(self.site)
        stored = snapshot.record.specification.stored_dtype
        self.dtype = "float32" if any(self.site in commit.widened for commit in shards) else stored
        self.field = dense_format(snapshot.record, self.site, self.dtype).schema.field("activation").with_name(title)

    @property
    def row_bytes(self) -> int:
        return int(self.field.type.byte_width)

    def widens(self, commit: Commit) -> bool:
        """Whether rows of this shard are returned in another dtype than they are stored in."""
        return self._stored(commit) != self.dtype

    def column(self, commit: Commit, raw: pa.Array) -> pa.Array:
        if not self.widens(commit):
            return raw
        matrix = dense_matrix(raw, self._stored(commit), self.width)
        bits = pa.py_buffer(np.ascontiguousarray(matrix))
        return pa.FixedSizeBinaryArray.from_buffers(self.field.type, len(raw), [None, bits])

    def _stored(self, commit: Commit) -> str:
        return commit.widened.get(self.site, self._record.specification.stored_dtype)


class DenseReader:
    """Rows of a site's object by number; keeps the last row group, in addition to those in the cache."""

    def __init__(self, file: pq.ParquetFile, key: str = "", cache: RowCache = NO_CACHE) -> None:
        self._file, self._key, self._cache = file, key, cache
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self.ends = np.cumsum([0, *counts])
        self._held: tuple[int, pa.Array] | None = None

    def rows(self, first: int, last: int) -> pa.Array:
        """Rows from `first` to `last` (exclusive)."""
        parts = []
        while first < last:
            group = int(np.searchsorted(self.ends, first, side="right")) - 1
            begin, end = int(self.ends[group]), min(int(self.ends[group + 1]), last)
            parts.append(self._group(group).slice(first - begin, end - first))
            first = end
        return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)

    def _group(self, group: int) -> pa.Array:
        if self._held is None or self._held[0] != group:
            self._held = None
            read = partial(self._file.read_row_group, group, use_threads=False)
            column = self._cache.get(self._key, group, read)["activation"]
            self._held = group, column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        return self._held[1]


def _shard_rows(
    snapshot: Snapshot,
    commit: Commit,
    read: Sequence[SiteRead],
    keep: TokenFilter,
    schema: pa.Schema,
    cache: RowCache,
) -> Iterator[pa.RecordBatch]:
    tokens = shard_tokens(snapshot.bucket, commit, cache)
    rows = dense_token_rows(snapshot.bucket, commit, tokens.num_rows)
    wanted = np.flatnonzero(keep.mask(tokens)[rows])
    if not len(wanted):
        return
    batch_rows = max(1, BATCH_BYTES // sum(site.row_bytes for site in read))
    with ExitStack() as files:
        opened = [files.enter_context(open_product(snapshot.bucket, commit, site.site)) for site in read]
        keys = [commit.objects[site.site].key for site in read]
        readers = [DenseReader(file, key, cache) for file, key in zip(opened, keys, strict=True)]
        smallest = max(readers, key=lambda reader: len(reader.ends))
        for first, last in zip(smallest.ends[:-1], smallest.ends[1:], strict=True):
            chosen = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, last)]
            if not len(chosen):
                continue
            beside = _take(tokens, rows[chosen])
            found = [beside[name].combine_chunks() for name in schema.names[: -len(read)]]
            for site, reader in zip(read, readers, strict=True):
                raw = reader.rows(int(chosen[0]), int(chosen[-1]) + 1)
                raw = raw if len(raw) == len(chosen) else raw.take(pa.array(chosen - chosen[0]))
                found.append(site.column(commit, raw))
            yield from pa.Table.from_arrays(found, schema=schema).to_batches(batch_rows)


def _take(table: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    """Without a copy if the rows are contiguous."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return table.slice(int(rows[0]), len(rows))
    return table.take(pa.array(rows))


def _ordered(columns: Sequence[str]) -> list[str]:
    for name in columns:
        if name not in TOKEN_COLUMNS:
            raise BadRequest(f"stored rows have no column {name!r}", field="columns", value=name, allowed=TOKEN_COLUMNS)
    return [name for name in TOKEN_COLUMNS if name in columns]


def _dense_site(snapshot: Snapshot, text: str) -> str:
    stored = snapshot.record.specification.dense_sites
    name = str(parse_site(text, KINDS, snapshot.record.layer_count))
    if name not in stored:
        block = block_of(snapshot.bucket, snapshot.record.specification)
        raise BadRequest(
            f"run {snapshot.record.run} does not store {name}{why_missing(name, kinds_of_block(block))}",
            reason="SITE_UNKNOWN",
            field="site",
            value=text,
            allowed=stored or "none: this run was captured without dense sites",
        )
    return name
