"""Sketches, from which quantiles of norms are computed without rows: how they are made, merged, stored and read.

They are KLL sketches (Karnin, Lang & Liberty, "Optimal quantile approximation in streams", FOCS 2016) in Apache
DataSketches's format. Sketches can be merged, which a run of many shards needs: a checkpoint merges those of its
shards. The values that a sketch keeps are random, without a seed in DataSketches's merging, so identical captures may
have other bytes here; but results from stored sketches are always the same.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from datasketches import kll_floats_sketch

from actstore_storage.format.products import OF_SPECIFICATION, sketches_format
from actstore_storage.format.tokens import TOKEN_CLASSES

# For each sketch, which then has at most 3 kB for any data.
SKETCH_K = 200
# The rank error of a quantile, or of the share of a bin: DataSketches's bound for 99 of 100 sketches.
RANK_ERROR: float = kll_floats_sketch.get_normalized_rank_error(SKETCH_K, True)
# The first byte of a sketch: its header's length in words of 4 bytes, by whether it has a single value.
_INTS_OF_ONE, _INTS_OF_MANY = 2, 5
# That header: length, version, family, flags, k, smallest capacity of a level, values, k of the coarsest part, levels.
_HEADER = struct.Struct("<BBBBHBxQHBx")
_VERSION, _KLL, _LEAST_CAPACITY = 1, 15, 8

# In DataSketches's bytes, by name of statistics, then by token class.
Sketches = Mapping[str, Mapping[str, bytes]]


class NormSketches:
    """Sketches of finite values, by name of statistics and token class, while values are added."""

    def __init__(self, names: Iterable[str], seed: int = 0) -> None:
        """`seed`: for the random choices of `add`. If all shards used the same one, their errors would be equal, and
        would not average out in merging.
        """
        self._found: dict[str, dict[str, kll_floats_sketch]] = {name: {} for name in names}
        self._random = Random(seed)  # noqa: S311

    def add(self, name: str, token_class: str, ascending: npt.NDArray[np.floating[Any]]) -> None:
        if not len(ascending):
            return
        values = ascending.astype("<f4", copy=False)
        sketch = self._found[name].setdefault(token_class, kll_floats_sketch(SKETCH_K))
        compactions = (len(values) // (2 * SKETCH_K)).bit_length()
        if compactions > 1:  # below that, a sketch has no room for the rest
            offset = self._random.getrandbits(compactions)
            sketch.merge(kll_floats_sketch.deserialize(compacted(values, compactions, offset)))
        else:
            sketch.update(values)

    def merge(self, other: Sketches) -> None:
        """Errors: ValueError for bytes that are not a sketch."""
        for name, classes in other.items():
            for token_class, sketch in classes.items():
                self._found[name].setdefault(token_class, kll_floats_sketch(SKETCH_K)).merge(_deserialized(sketch))

    @property
    def columns(self) -> list[pa.Array]:
        """As in sketches_format; one row for each token class with any value."""
        kept = [name for name in TOKEN_CLASSES if any(name in classes for classes in self._found.values())]
        blobs = [
            [classes[name].serialize() if name in classes else b"" for name in kept] for classes in self._found.values()
        ]
        return [pa.array(kept, pa.string()), *(pa.array(column, pa.binary()) for column in blobs)]

    def encoded(self, specification_sha256: str) -> bytes:
        """The sketches of a checkpoint, as one object."""
        schema = sketches_format(self._found).schema
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,  # otherwise each column's sketches would be copied into page and footer
            write_page_checksum=True,
        ) as file:
            file.add_key_value_metadata({OF_SPECIFICATION: specification_sha256})
            file.write_table(pa.Table.from_arrays(self.columns, schema=schema))
        return bytes(sink.getvalue())


@dataclass(frozen=True)
class WeightedValues:
    """The values that sketches kept, ascending, and how many values each represents. Small data is kept completely.

    The extremes, which a sketch knows even if it does not keep them, have weight 0.
    """

    values: npt.NDArray[np.float64]
    weights: npt.NDArray[np.int64]

    @classmethod
    def of(cls, sketches: Iterable[bytes], divisor: float = 1.0) -> "WeightedValues":
        """The values of all of these together, each divided by `divisor`."""
        parts = [(np.empty(0, np.float32), np.empty(0, np.int64)), *map(kept_values, sketches)]
        values, weights = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.argsort(values, kind="stable")
        return cls(values[order].astype(np.float64) / divisor, weights[order])

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays, with those that quantiles need."""
        return self.values.nbytes + 2 * self.weights.nbytes

    def quantiles(self, quantiles: Sequence[float]) -> list[float]:
        """As np.quantile with each value repeated by its weight; 0 and 1 are the extremes."""
        ends = self._ends
        places = np.asarray(quantiles, np.float64) * (ends[-1] - 1)
        below = np.floor(places).astype(np.int64)
        above = np.minimum(below + 1, ends[-1] - 1)
        low, high = (self.values[np.searchsorted(ends, at, side="right")] for at in (below, above))
        found = _between(low, high, places - below)
        found = np.where(places <= 0, self.values[0], np.where(places >= ends[-1] - 1, self.values[-1], found))
        return [float(value) for value in found]

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum(self.weights)


def _between(
    low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], part: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Interpolates as np.quantile does, to the bit: from the nearer end."""
    step = high - low
    found: npt.NDArray[np.float64] = np.where(part >= 0.5, high - step * (1 - part), low + step * part)
    return found


def _deserialized(sketch: bytes) -> kll_floats_sketch:
    try:
        return kll_floats_sketch.deserialize(sketch)
    except (RuntimeError, IndexError) as error:
        raise ValueError(str(error)) from error


def compacted(values: npt.NDArray[np.float32], compactions: int, offset: int) -> bytes:
    """Makes a sketch of ascending values with this many of KLL's compactions at once, in a fifth of the time of
    `update`.

    A compaction of sorted values keeps every other one, odd or even at random, with twice the weight; a value that is
    left over stays as it is. Several compactions in a row keep every 2^compactions-th value from a random offset, and
    of the rest, one for each bit of the number of values. This is KLL with larger buffers: the bound is no worse.
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
    """The capacity of this many levels together, as in DataSketches: each has two thirds of the level above, and at
    least 8.
    """
    depths = [((2 * SKETCH_K << depth) // 3**depth + 1) >> 1 for depth in range(levels)]
    return sum(max(_LEAST_CAPACITY, capacity) for capacity in depths)


def kept_values(sketch: bytes) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Reads a sketch's values and weights from its bytes: the package's own iterator gives values of merged sketches a
    weight of 1.

    A sketch of one value consists of 8 bytes and the value. Others have, after 20 bytes, where each level begins, the
    minimum and maximum, and the values of all levels; values of level i have weight 2^i.
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
    """Reads a sketch's number of values, the total weight of kept values, the minimum and the maximum; None if the
    bytes are not a sketch.
    """
    try:
        values, weights = kept_values(sketch)
        told = 1 if sketch[0] == _INTS_OF_ONE else int.from_bytes(sketch[8:16], "little")
        return (told, values[0], values[0 if told == 1 else 1]) if told == weights.sum() else None
    except (ValueError, IndexError):
        return None
