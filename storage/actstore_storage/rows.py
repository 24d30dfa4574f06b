"""Stored rows as they lie in the bucket, in order of (sequence, position)."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket
from actstore_storage.commit import Commit
from actstore_storage.errors import BadRequest
from actstore_storage.products import TOKENS, TOKENS_FORMAT, dense_format
from actstore_storage.reading import open_product
from actstore_storage.registry import token_texts
from actstore_storage.sites import KINDS, parse_site
from actstore_storage.snapshot import Snapshot
from actstore_storage.specification import DTYPES

# What one record batch holds at most, so that it travels in one message.
BATCH_BYTES = 2 << 20
TOKEN_BATCH_ROWS = 16_384


def read_activations(
    snapshot: Snapshot, site: str, *, first_sequence: int = 0, sequence_count: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Columns sequence, position, document, token, flags and `activation`: raw bits, see `dense_matrix`.

    Sequences that no committed shard holds are left out.
    """
    name = _dense_site(snapshot, site)
    shards = _overlapping(snapshot, first_sequence, sequence_count)
    return (batch for commit in shards for batch in _shard_rows(snapshot, commit, name, first_sequence, sequence_count))


def read_tokens(
    snapshot: Snapshot, *, first_sequence: int = 0, sequence_count: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Columns sequence, position, document, token, flags and `text`: the token's own text."""
    shards = _overlapping(snapshot, first_sequence, sequence_count)
    texts = pa.array(token_texts(snapshot.bucket, snapshot.record.specification.tokenizer_sha256), pa.string())
    for commit in shards:
        tokens = shard_tokens(snapshot.bucket, commit)
        first, last = _row_range(tokens, first_sequence, sequence_count)
        chosen = tokens.slice(first, last - first)
        chosen = chosen.append_column("text", texts.take(chosen["token"]))
        yield from chosen.combine_chunks().to_batches(TOKEN_BATCH_ROWS)


def shard_tokens(bucket: Bucket, commit: Commit) -> pa.Table:
    with open_product(bucket, commit, TOKENS) as file:
        return file.read(columns=TOKENS_FORMAT.schema.names).combine_chunks()


def dense_matrix(column: pa.Array | pa.ChunkedArray, dtype: str, d_model: int) -> npt.NDArray[np.float32]:
    """[rows, d_model] of an `activation` column. Widening to float32 is exact for every dtype that is stored."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    width = d_model * DTYPES[dtype]
    if column.type != pa.binary(width):
        raise ValueError(f"{dtype} x {d_model} is {width} bytes wide, and the column is {column.type}")
    raw = np.frombuffer(column.buffers()[1] or b"", np.uint8)[
        column.offset * width : (column.offset + len(column)) * width
    ]
    if dtype == "bfloat16":  # the upper half of a float32
        matrix = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        matrix = raw.view("<f4" if dtype == "float32" else "<f2").astype(np.float32, copy=False)
    return matrix.reshape(len(column), d_model)


def _shard_rows(
    snapshot: Snapshot, commit: Commit, site: str, first_sequence: int, sequence_count: int | None
) -> Iterator[pa.RecordBatch]:
    tokens = shard_tokens(snapshot.bucket, commit)
    first, last = _row_range(tokens, first_sequence, sequence_count)
    field = dense_format(snapshot.record).schema.field("activation")
    batch_rows = max(1, BATCH_BYTES // field.type.byte_width)
    with open_product(snapshot.bucket, commit, site) as file:
        for start, column in _groups(file, first, last):
            rows = tokens.slice(start, len(column)).append_column(field, column)
            yield from rows.combine_chunks().to_batches(batch_rows)


def _groups(file: pq.ParquetFile, first: int, last: int) -> Iterator[tuple[int, pa.ChunkedArray]]:
    """The rows from `first` to before `last` in the row groups that hold them, each with its first row's number."""
    begin = 0
    for group in range(file.num_row_groups):
        end = begin + file.metadata.row_group(group).num_rows
        if begin < last and end > first:
            column = file.read_row_group(group, use_threads=False)["activation"]
            start = max(begin, first)
            yield start, column.slice(start - begin, min(end, last) - start)
        begin = end


def _dense_site(snapshot: Snapshot, text: str) -> str:
    stored = snapshot.record.specification.dense_sites
    name = str(parse_site(text, KINDS, snapshot.record.layer_count))
    if name not in stored:
        raise BadRequest(
            f"run {snapshot.record.run} does not store {name}",
            reason="SITE_UNKNOWN",
            field="site",
            value=text,
            allowed=stored or "none: this run was captured without dense sites",
        )
    return name


def _overlapping(snapshot: Snapshot, first_sequence: int, sequence_count: int | None) -> list[Commit]:
    for field, value in (("first_sequence", first_sequence), ("sequence_count", sequence_count)):
        if value is not None and value < 0:
            raise BadRequest(f"{field} is {value}", field=field, value=value, allowed="0 or more")
    end = snapshot.record.sequences_total if sequence_count is None else first_sequence + sequence_count

    def overlaps(commit: Commit) -> bool:
        held = snapshot.record.shard_sequences(commit.shard)
        return held.start < end and held.stop > first_sequence

    return [commit for commit in snapshot.commits if overlaps(commit)]


def _row_range(tokens: pa.Table, first_sequence: int, sequence_count: int | None) -> tuple[int, int]:
    sequences = tokens["sequence"].to_numpy()
    first = int(np.searchsorted(sequences, first_sequence))
    if sequence_count is None:
        return first, len(sequences)
    return first, int(np.searchsorted(sequences, first_sequence + sequence_count))
