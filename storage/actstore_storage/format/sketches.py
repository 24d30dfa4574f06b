"""Sketches, from which quantiles of norms are told without their rows: how they are made, merged, stored and read.

KLL sketches (Karnin, Lang & Liberty, "Optimal quantile approximation in streams", FOCS 2016) as Apache DataSketches
makes them. They merge, which a run of many shards needs: a checkpoint has its shards' as one. Which numbers a sketch
keeps is drawn by chance, in DataSketches' merging without a seed, so that equal captures may have other bytes here;
what a reader makes of stored sketches is the same each time.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from datasketches import kll_floats_sketch

from actstore_storage.format.products import OF_SPECIFICATION, sketches_format
from actstore_storage.format.tokens import TOKEN_CLASSES

# Of each sketch, which then has at most 3 kB whatever it is of.
SKETCH_K = 200
# By so much may the rank of a quantile, or the share of a bin, be off: DataSketches' bound for 99 of 100 sketches.
RANK_ERROR: float = kll_floats_sketch.get_normalized_rank_error(SKETCH_K, True)
# The first byte of a sketch: its header's length in words of 4 bytes, by whether it is of a single value.
_INTS_OF_ONE, _INTS_OF_MANY = 2, 5
# That header: length, version, family, flags, k, least capacity of a level, values, k of the coarsest part, levels.
_HEADER = struct.Struct("<BBBBHBxQHBx")
_VERSION, _KLL, _LEAST_CAPACITY = 1, 15, 8

# In DataSketches' bytes, by name of statistics, then by token class.
Sketches = Mapping[str, Mapping[str, bytes]]


class NormSketches:
    """Sketches of finite values, by name of statistics and token class, while values are added."""

    def __init__(self, names: Iterable[str], seed: int = 0) -> None:
        """`seed`: of what `add` draws. Shards that drew alike would be off alike, which no merging evens out."""
        self._found: dict[str, dict[str, kll_floats_sketch]] = {name: {} for name in names}
        self._random = Random(seed)  # noqa: S311

    def add(self, name: str, token_class: str, ascending: npt.NDArray[np.floating[Any]]) -> None:
        if not len(ascending):
            return
        values = ascending.astype("<f4", copy=False)
        sketch = self._found[name].setdefault(token_class, kll_floats_sketch(SKETCH_K))
        compactions = (len(values) // (2 * SKETCH_K)).bit_length()
        if compactions > 1:  # below that, a sketch has no room for what is left
            offset = self._random.getrandbits(compactions)
            sketch.merge(kll_floats_sketch.deserialize(compacted(values, compactions, offset)))
        else:
            sketch.update(values)

    def merge(self, other: Sketches) -> None:
        """Errors: ValueError for bytes that are no sketch."""
        for name, classes in other.items():
            for token_class, sketch in classes.items():
                self._found[name].setdefault(token_class, kll_floats_sketch(SKETCH_K)).merge(_deserialized(sketch))

    @property
    def columns(self) -> list[pa.Array]:
        """As sketches_format has them; a row for each token class that has any value."""
        kept = [name for name in TOKEN_CLASSES if any(name in classes for classes in self._found.values())]
        blobs = [
            [classes[name].serialize() if name in classes else b"" for name in kept] for classes in self._found.values()
        ]
        return [pa.array(kept, pa.string()), *(pa.array(column, pa.binary()) for column in blobs)]

    def encoded(self, specification_sha256: str) -> bytes:
        """A checkpoint's, as one object."""
        schema = sketches_format(self._found).schema
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,  # they would copy each column's sketches into page and footer
            write_page_checksum=True,
        ) as file:
            file.add_key_value_metadata({OF_SPECIFICATION: specification_sha256})
            file.write_table(pa.Table.from_arrays(self.columns, schema=schema))
        return bytes(sink.getvalue())


@dataclass(frozen=True)
class WeightedValues:
    """What sketches kept, ascending, and how many values each stands for: of fewer values than a sketch keeps, all.

    The extremes, which a sketch knows but need not have kept, stand for none.
    """

    values: npt.NDArray[np.float64]
    weights: npt.NDArray[np.int64]

    @classmethod
    def of(cls, sketches: Iterable[bytes], divisor: float = 1.0) -> "WeightedValues":
        """Of all of these together, each value over `divisor`."""
        parts = [(np.empty(0, np.float32), np.empty(0, np.int64)), *map(kept_values, sketches)]
        values, weights = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.argsort(values, kind="stable")
        return cls(values[order].astype(np.float64) / divisor, weights[order])

    def quantiles(self, quantiles: Sequence[float]) -> list[float]:
        """As np.quantile of each value repeated so often as it stands for; 0 and 1 are the extremes."""
        ends = np.cumsum(self.weights)
        places = np.asarray(quantiles, np.float64) * (ends[-1] - 1)
        below = np.floor(places).astype(np.int64)
        above = np.minimum(below + 1, ends[-1] - 1)
        pairs = np.stack([self.values[np.searchsorted(ends, at, side="right")] for at in (below, above)], axis=1)
        found = np.array([np.quantile(pair, part) for pair, part in zip(pairs, places - below, strict=True)])
        found = np.where(places <= 0, self.values[0], np.where(places >= ends[-1] - 1, self.values[-1], found))
        return [float(value) for value in found]


def _deserialized(sketch: bytes) -> kll_floats_sketch:
    try:
        return kll_floats_sketch.deserialize(sketch)
    except (RuntimeError, IndexError) as error:
        raise ValueError(str(error)) from error


def compacted(values: npt.NDArray[np.float32], compactions: int, offset: int) -> bytes:
    """Makes a sketch of ascending values, by so many of KLL's compactions at once, which takes a fifth of `update`'s
    time.

    A compaction of sorted values keeps every other one, the odd or the even by chance, each for two; a value that is
    over stays as it is. Several in a row keep every 2^compactions-th from a random offset below that, and of what is
    over, one for each bit of the values' number. It is what KLL does with larger buffers than its own: no worse bound.
    """
    starts, over, first = [0], [], 0
    for level in range(compactions):
        if len(values) >> level & 1:
            over.append(first + offset % (1 << level))
            first += 1 << level
        starts.append(len(over))
    top = values[first + offset :: 1 << compactions]
    room = _capacity(len(starts)) - len(over) - len(top)
    header = _HEADER.pack(
        _INTS_OF_MANY, _VERSION, _KLL, 0, SKETCH_K, _LEAST_CAPACITY, len(values), SKETCH_K, len(starts)
    )
    levels = struct.pack(f"<{len(starts)}I", *(room + start for start in starts))
    return header + levels + values[[0, -1, *over]].tobytes() + top.tobytes()


@lru_cache
def _capacity(levels: int) -> int:
    """Of so many levels together, as DataSketches counts it: of each two thirds of that above it, and at least 8."""
    depths = [((2 * SKETCH_K << depth) // 3**depth + 1) >> 1 for depth in range(levels)]
    return sum(max(_LEAST_CAPACITY, capacity) for capacity in depths)


def kept_values(sketch: bytes) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Reads a sketch's values and weights, by the bytes: the package's own iterator gives merged sketches' values a
    weight of 1.

    A sketch of one value is that alone behind 8 bytes. Others have, behind 20, where each level begins, the least and
    the largest value, and the values of all levels; those of level i stand for 2^i each.
    """
    if sketch[0] == _INTS_OF_ONE:
        return np.frombuffer(sketch, "<f4", 1, 8), np.ones(1, np.int64)
    levels = sketch[18]
    starts = np.frombuffer(sketch, "<u4", levels, 20).astype(np.int64)
    extremes, values = np.split(np.frombuffer(sketch, "<f4", offset=20 + 4 * levels), [2])
    sizes = np.diff(starts, append=starts[0] + len(values))
    weights = np.repeat(1 << np.arange(levels), sizes)
    return np.concatenate([extremes, values]), np.concatenate([np.zeros(2, np.int64), weights])


def told_of(sketch: bytes) -> tuple[int, np.float32, np.float32] | None:
    """Reads how many values a sketch says that it is of, and what it kept stands for, with the least and the largest;
    None where these are no sketch's bytes.
    """
    try:
        values, weights = kept_values(sketch)
        told = 1 if sketch[0] == _INTS_OF_ONE else int.from_bytes(sketch[8:16], "little")
        return (told, values[0], values[0 if told == 1 else 1]) if told == weights.sum() else None
    except (ValueError, IndexError):
        return None
