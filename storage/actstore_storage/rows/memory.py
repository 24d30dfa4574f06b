"""Memory for dense rows that a training loader reuses.

Mapping a new page costs more than copying it, and Arrow reads into new memory each time. So a row group is read in its
stored form, including page headers, into existing memory, and each row is found by the offset of its first byte.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket
from actstore_storage.format.commit import Commit
from actstore_storage.format.products import ELEMENT_TYPES
from actstore_storage.parquet.pages import page_at
from actstore_storage.parquet.reading import open_product, open_product_source
from actstore_storage.rows.reading import DenseReader, SiteRead

# Room for the headers of a row group's pages, as a fraction of its rows: 30 bytes per page of 256 kB. If it is too
# small, rows are decoded.
_HEADERS_SHARE = 1 / 64


@dataclass(frozen=True)
class GroupPlace:
    """A row group of a site's object: rows `first` to `last` (exclusive) of the shard, in those bytes of the object."""

    first: int
    last: int
    offset: int
    bytes: int


def group_places(footer: pq.FileMetaData) -> tuple[GroupPlace, ...]:
    """Reads from a footer where each row group is."""
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    ends = np.cumsum([0, *(group.num_rows for group in groups)]).tolist()
    chunks = [group.column(0) for group in groups]
    return tuple(
        GroupPlace(first, last, chunk.data_page_offset, chunk.total_compressed_size)
        for (first, last), chunk in zip(pairwise(ends), chunks, strict=True)
    )


class RowMemory:
    """Room for `slots` ranges of at most `slot_rows` rows of each site.

    Two threads may fill two slots at once. Rows that are taken are copies.
    """

    def __init__(self, sites: Sequence[SiteRead], slots: int, slot_rows: int) -> None:
        self._sites = {site.site: site for site in sites}
        self._slot_bytes = {site.site: int(slot_rows * site.row_bytes * (1 + _HEADERS_SHARE)) for site in sites}
        self._bytes = {name: np.empty(slots * size, np.uint8) for name, size in self._slot_bytes.items()}

    def fill(self, slot: int, site: str, reading: "Reading") -> npt.NDArray[np.int64]:
        """Returns where in the site's memory each row begins. Errors: CorruptObject."""
        begin, size = slot * self._slot_bytes[site], self._slot_bytes[site]
        starts = reading.into(self._sites[site], self._bytes[site][begin : begin + size])
        return starts + begin

    def take(self, site: str, starts: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """[rows, width]."""
        read, held = self._sites[site], self._bytes[site]
        # A view with one row of raw bytes at every byte, because rows may begin anywhere. NumPy copies such rows as
        # fast as aligned ones.
        anywhere: npt.NDArray[np.void] = np.ndarray(
            (len(held) - read.row_bytes + 1,), f"V{read.row_bytes}", held, strides=(1,)
        )
        return anywhere[starts].view(ELEMENT_TYPES[read.dtype]).reshape(len(starts), read.width)


@dataclass(frozen=True)
class Reading:
    """Rows `first` to `last` (exclusive) of a shard's site, and the locations of the row groups of its object."""

    bucket: Bucket
    commit: Commit
    first: int
    last: int
    places: Mapping[str, Sequence[GroupPlace]]
    verify: bool

    def into(self, site: SiteRead, memory: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Returns where in `memory` each row begins. A complete row group is read in its stored form."""
        whole = (self.first, self.last)
        place = next((place for place in self.places[site.site] if (place.first, place.last) == whole), None)
        if place is not None and place.bytes <= len(memory) and not site.widens(self.commit):
            return self._as_it_lies(site, place, memory[: place.bytes])
        return self._decoded(site, memory)

    def _as_it_lies(self, site: SiteRead, place: GroupPlace, memory: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        with open_product_source(self.bucket, self.commit, site.site) as source:
            source.seek(place.offset)
            if source.readinto(memory) != place.bytes:
                raise OSError("it ends before its rows do")
            try:
                return _row_starts(memory.data, place.last - place.first, site.row_bytes, verify=self.verify)
            except ValueError as error:
                raise OSError(f"a page cannot be read: {error}") from error

    def _decoded(self, site: SiteRead, memory: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """For a part of a row group, or rows in another dtype than they are stored in."""
        with open_product(self.bucket, self.commit, site.site, verify=self.verify) as file:
            raw = site.column(self.commit, DenseReader(file).rows(self.first, self.last))
        memory[: len(raw) * site.row_bytes] = elements(raw, site.dtype, site.width).view(np.uint8).ravel()
        return np.arange(len(raw), dtype=np.int64) * site.row_bytes


def _row_starts(data: memoryview, rows: int, row_bytes: int, *, verify: bool) -> npt.NDArray[np.int64]:
    """Errors: ValueError if it is not `rows` rows in pages of plain values."""
    starts, at = [], 0
    while at < len(data):
        page = page_at(data, at)
        if verify:
            page.check(data)
        if page.end - page.start != page.values * row_bytes:
            raise ValueError(f"{page.values} rows of {row_bytes} bytes take {page.end - page.start}")
        starts.append(page.start + np.arange(page.values, dtype=np.int64) * row_bytes)
        at = page.end
    found = np.concatenate(starts)
    if len(found) != rows:
        raise ValueError(f"the pages have {len(found)} rows, but the footer says {rows}")
    return found


def elements(raw: pa.Array, dtype: str, width: int) -> npt.NDArray[Any]:
    """Views [rows, width] of the memory that Arrow read into."""
    kind = np.dtype(ELEMENT_TYPES[dtype])
    row_bytes, first = width * kind.itemsize, raw.offset
    held = np.frombuffer(raw.buffers()[1] or b"", np.uint8)[first * row_bytes : (first + len(raw)) * row_bytes]
    return held.view(kind).reshape(len(raw), width)
