"""The objects of a shard: their records, their kinds, and their layout.

docs/reference/format.md describes them in words.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from actstore_storage.format.specification import DTYPES, RunRecord

TOKENS, NORMS, NORM_SKETCHES = "tokens", "norms", "norm-sketches"
# The indices of the tokens with dense rows, if a run stores those of some positions only.
POSITIONS = "positions"

# In the metadata of a checkpoint's objects: the specification of their run.
OF_SPECIFICATION = b"actstore.specification_sha256"

# Elements of dense rows as NumPy types; bfloat16, which NumPy does not have, as its raw bits.
ELEMENT_TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}

# One request of reasonable size on S3. On a local disk, groups of 16 MiB were written 1.1 to 1.4 times as fast as
# groups of 4 MiB.
DENSE_GROUP_BYTES = 16 << 20
_GROUP_ROWS = 65_536
# For data that is read around single tokens: some sequences.
_TOKEN_GROUP_ROWS, _FEATURE_GROUP_ROWS = 4096, 16_384
# Small, because one feature has few rows and a reader fetches whole row groups.
INDEX_GROUP_ROWS = 16_384
# For merged indexes, whose rows include their tokens: 119 kB before compression, which one question fetches.
SEGMENT_GROUP_ROWS = 4096


@dataclass(frozen=True)
class ObjectRecord:
    """One object of a shard: its key in the bucket, and what a reader must find there.

    `footer_sha256` is the hash of the Parquet footer, its length and the magic bytes at the end: pages have checksums,
    but the footer, which describes them, has none. Empty in runs before it was introduced.
    """

    key: str
    bytes: int
    rows: int
    sha256: str
    footer_sha256: str = ""


@dataclass(frozen=True)
class ObjectFormat:
    """The layout of a product. `group_rows` is the unit of reading; `dictionaries` are columns with few distinct
    values.
    """

    schema: pa.Schema
    group_rows: int
    compression: str = "none"
    statistics: tuple[str, ...] = ()
    dictionaries: tuple[str, ...] = ()


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


TOKENS_FORMAT = ObjectFormat(
    _schema(sequence=pa.int64(), position=pa.int32(), document=pa.int64(), token=pa.int32(), flags=pa.uint8()),
    _TOKEN_GROUP_ROWS,
    compression="zstd",
    statistics=("sequence",),
)
# For runs that know the sources of their documents. They are repeated for each token, at almost no cost: see
# docs/reference/format.md.
_SOURCES = _schema(source=pa.string(), row=pa.int64())
SOURCED_TOKENS_FORMAT = replace(
    TOKENS_FORMAT, schema=pa.schema([*TOKENS_FORMAT.schema, *_SOURCES]), dictionaries=tuple(_SOURCES.names)
)
FEATURES_FORMAT = ObjectFormat(
    _schema(row=pa.int32(), feature=pa.int32(), activation=pa.float32()),
    _FEATURE_GROUP_ROWS,
    compression="lz4",
    statistics=("row",),
)
INDEX_FORMAT = ObjectFormat(
    _schema(feature=pa.int32(), activation=pa.float32(), row=pa.int32(), flags=pa.uint8()),
    INDEX_GROUP_ROWS,
    compression="lz4",
    statistics=("feature",),
)
SEGMENT_FORMAT = ObjectFormat(
    _schema(
        feature=pa.int32(),
        activation=pa.float32(),
        sequence=pa.int64(),
        position=pa.int32(),
        document=pa.int64(),
        token=pa.int32(),
        flags=pa.uint8(),
    ),
    SEGMENT_GROUP_ROWS,
    compression="lz4",
    statistics=("feature", "activation"),
)
TOKEN_COUNTS_FORMAT = ObjectFormat(
    _schema(token=pa.int32(), token_class=pa.string(), count=pa.int64()), _GROUP_ROWS, compression="zstd"
)
POSITIONS_FORMAT = ObjectFormat(_schema(row=pa.int32()), _GROUP_ROWS, compression="zstd", statistics=("row",))
STATISTICS_FORMAT = ObjectFormat(
    _schema(feature=pa.int32(), token_class=pa.string(), count=pa.int64(), maximum=pa.float32(), sum=pa.float64()),
    INDEX_GROUP_ROWS,
    compression="lz4",
    statistics=("feature",),
)


def norms_format(columns: Iterable[str]) -> ObjectFormat:
    """The layout of norms: one column per name."""
    kinds: Mapping[str, pa.DataType] = dict.fromkeys(columns, pa.float32())
    return ObjectFormat(_schema(**kinds), _GROUP_ROWS)


def sketches_format(names: Iterable[str]) -> ObjectFormat:
    """The layout of norm sketches: one column per name, one row per token class; null if a class has no
    finite value.
    """
    kinds: Mapping[str, pa.DataType] = {"token_class": pa.string(), **dict.fromkeys(names, pa.binary())}
    return ObjectFormat(_schema(**kinds), _GROUP_ROWS, compression="zstd")


def dense_format(record: RunRecord, site: str, dtype: str = "") -> ObjectFormat:
    """The layout of a site's dense rows. `dtype`: the dtype of a shard that had to widen it; empty: the run's."""
    dtype, elements = dtype or record.specification.stored_dtype, record.dense_width(site)
    width = elements * DTYPES[dtype]
    metadata = {"dtype": dtype, "d_model": str(elements)}
    field = pa.field("activation", pa.binary(width), nullable=False, metadata=metadata)
    return ObjectFormat(pa.schema([field]), max(1, DENSE_GROUP_BYTES // width))
