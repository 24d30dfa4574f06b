"""Dense activations of one site as they were stored."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore import _checks
from actstore._answer import Answer
from actstore._errors import Fault

_ELEMENT_TYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}  # bfloat16 as its raw bits


@dataclass(frozen=True, repr=False)
class Activations(Answer):
    """Stored vectors of one site or of several: a row for each token.

    Columns: sequence, position, document, token, flags, and `activation`, a vector of d_model float32s. With
    several sites, each has a column of its own, under its name. bfloat16 and float16 are widened to float32, which
    changes no value. Vectors are fixed-size lists in Arrow, `pl.Array(pl.Float32, d_model)` in polars, and arrays in
    pandas. `table` has the raw bits as they are stored.

    Attributes:
        sites: The sites of the request.
    """

    sites: tuple[str, ...]

    @property
    def site(self) -> str:
        """The first site, or the only one."""
        return self.sites[0]

    @property
    def dtype(self) -> str:
        """Element type that the first site is stored in: float32, bfloat16 or float16."""
        return self._metadata(self.site, b"dtype")

    @property
    def d_model(self) -> int:
        """Number of elements in a vector of the first site."""
        return int(self._metadata(self.site, b"d_model"))

    def to_numpy(self, site: str | None = None) -> npt.NDArray[np.float32]:
        """Return the vectors of one site as an array.

        Args:
            site: One of `sites`. None: the first.

        Returns:
            float32 [rows, d_model]; widened from the stored type, which changes no value.
        """
        site = self.site if site is None else _checks.one_of(site, "site", self.sites)
        dtype, width = self._metadata(site, b"dtype"), int(self._metadata(site, b"d_model"))
        return widen(self.table.column(self._column(site)), dtype, width)

    def to_arrow(self) -> pa.Table:
        """Return the rows as a `pyarrow.Table`, with vectors as fixed-size lists of float32."""
        found = self.table
        for site in self.sites:
            number = found.schema.get_field_index(self._column(site))
            width = int(self._metadata(site, b"d_model"))
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(self.to_numpy(site).ravel()), width)
            field = pa.field(self._column(site), vectors.type, metadata=found.schema.field(number).metadata)
            found = found.set_column(number, field, vectors)
        return found

    def _column(self, site: str) -> str:
        return "activation" if len(self.sites) == 1 else site

    def _metadata(self, site: str, key: bytes) -> str:
        metadata = self.table.schema.field(self._column(site)).metadata or {}
        if key not in metadata:
            raise Fault(f"the activation column of {site} has no {key.decode()} in its metadata")
        return str(metadata[key].decode())

    def _title(self) -> str:
        return f"Activations of {', '.join(self.sites)}: {len(self):,} tokens x {self.d_model} {self.dtype}"

    def _shown(self) -> list[dict[str, Any]]:
        vectors = {self._column(site): f"{self._metadata(site, b'd_model')} x {self.dtype}" for site in self.sites}
        return [{**row, **vectors} for row in super()._shown()]


def widen(column: pa.ChunkedArray, dtype: str, d_model: int) -> npt.NDArray[np.float32]:
    """float32 [rows, d_model] of fixed_size_binary rows. A bfloat16 is the upper half of a float32, so it shifts up."""
    if dtype not in _ELEMENT_TYPES:
        raise Fault(f"activations of dtype {dtype!r}: this client reads {', '.join(_ELEMENT_TYPES)}")
    width = d_model * np.dtype(_ELEMENT_TYPES[dtype]).itemsize
    chunks = [_bits(chunk, width) for chunk in column.chunks]
    bits = np.concatenate(chunks) if chunks else np.empty(0, np.uint8)
    elements = bits.view(_ELEMENT_TYPES[dtype])
    if dtype == "bfloat16":
        elements = (elements.astype(np.uint32) << 16).view(np.float32)
    return elements.astype(np.float32).reshape(-1, d_model)


def _bits(chunk: pa.Array, width: int) -> npt.NDArray[np.uint8]:
    """The bytes of a chunk's rows; a slice shares its parent's buffer, so the offset counts."""
    return np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width : (chunk.offset + len(chunk)) * width]
