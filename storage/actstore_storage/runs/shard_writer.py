"""Writes one shard: its objects first, then the commit that makes them visible."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.bucket import Bucket
from actstore_storage.format.commit import Commit
from actstore_storage.format.moments import Moments
from actstore_storage.format.norm_columns import L2, NormColumn, statistics_names, with_derived
from actstore_storage.format.products import (
    ELEMENT_TYPES,
    NORM_SKETCHES,
    NORMS,
    POSITIONS,
    POSITIONS_FORMAT,
    SOURCED_TOKENS_FORMAT,
    TOKENS,
    TOKENS_FORMAT,
    ObjectFormat,
    ObjectRecord,
    dense_format,
    norms_format,
    sketches_format,
)
from actstore_storage.format.sites import parse_site
from actstore_storage.format.sketches import NormSketches
from actstore_storage.format.specification import RunRecord
from actstore_storage.format.tokens import TOKEN_CLASSES, token_classes
from actstore_storage.runs.attempt import ShardAttempt
from actstore_storage.runs.document_sources import DocumentSources
from actstore_storage.runs.feature_index import SparseFeatures


@dataclass(frozen=True)
class TokenRows:
    """Columns of equal length, one row per token, in order of (sequence, position). `flags` has bits BOS
    and SPECIAL.
    """

    sequence: npt.NDArray[np.int64]
    position: npt.NDArray[np.int32]
    document: npt.NDArray[np.int64]
    token: npt.NDArray[np.int32]
    flags: npt.NDArray[np.uint8]


class ShardWriter(ShardAttempt):
    """One attempt at a shard, including its tokens.

    `record` is the capturing process's own: the commit takes device, attention implementation and code version from it.
    `widened` are dense sites that are given, and stored, as float32 because the run's own dtype cannot hold them.
    `columns` are given with the norms and stored with them. `sources` has every document of the shard; None: unknown.
    """

    def __init__(
        self,
        bucket: Bucket,
        record: RunRecord,
        shard: int,
        attempt: str,
        widened: Iterable[str] = (),
        columns: Sequence[NormColumn] = (),
        sources: DocumentSources | None = None,
    ) -> None:
        super().__init__(bucket, record, shard, attempt, record.specification.saes)
        self._dtypes = dict.fromkeys(record.specification.dense_sites, record.specification.stored_dtype)
        self._widened = dict.fromkeys(sorted(widened), "float32")
        self._dtypes |= self._widened
        self._sources = sources
        self._last = (-1, -1)
        self._sequences = 0
        self._tokens_by_class = dict.fromkeys(TOKEN_CLASSES, 0)
        sites = [NormColumn(L2, parse_site(site)) for site in record.specification.norm_sites]
        self._columns = {column.name: column for column in (*sites, *columns)}
        names = statistics_names(self._columns.values())
        self._moments = {name: dict.fromkeys(TOKEN_CLASSES, Moments()) for name in names}
        self._sketches = NormSketches(names, seed=shard)

    def add(
        self,
        tokens: TokenRows,
        dense: Mapping[str, npt.NDArray[Any]],
        norms: Mapping[str, npt.NDArray[np.float32]],
        features: Mapping[str, SparseFeatures],
        chosen: npt.NDArray[np.int32] | None = None,
    ) -> None:
        """Adds one batch. Batches come in order of (sequence, position), with whole sequences.

        Every site and SAE of the run has one entry: `dense` arrays of [chosen rows, width] in the run's stored dtype
        (the raw bits as uint16 for bfloat16), `norms` L2 norms of [rows], and so has each additional column. `chosen`
        are the batch's rows that dense sites store, ascending; None if the run stores all rows. Raises ValueError if
        they do not fit the run.
        """
        rows = len(tokens.sequence)
        self._check_order(tokens)
        self._check_products(dense, self._record.specification.dense_sites)
        self._check_products(norms, self._columns)
        self._check_products(features, self._saes)
        sources = [] if self._sources is None else self._sources.columns(tokens.document)
        ids = [pa.array(getattr(tokens, name), kind) for name, kind in _columns(TOKENS_FORMAT)]
        self._objects[TOKENS].write([*ids, *sources])
        classes = token_classes(tokens.flags)
        for name, mask in classes.items():
            self._tokens_by_class[name] += int(mask.sum())
        if norms:
            self._objects[NORMS].write([_norms(name, norms[name], rows) for name in self._columns])
            self._add_moments(norms, classes)
        if (chosen is None) == (POSITIONS in self._objects):
            raise ValueError("`chosen` must be given if and only if the run stores dense rows of some tokens only")
        dense_rows = rows if chosen is None else self._positions(chosen, rows)
        for site, values in dense.items():
            self._objects[site].write([self._dense(site, values, dense_rows)])
        self._add_features(features, tokens.flags)

    def _open_products(self) -> None:
        asked = self._record.specification
        self._open(TOKENS, TOKENS_FORMAT if self._sources is None else SOURCED_TOKENS_FORMAT)
        if asked.norm_sites:
            self._open(NORMS, norms_format(self._columns))
            self._open(NORM_SKETCHES, sketches_format(self._moments))
        for site in asked.dense_sites:
            self._open(site, dense_format(self._record, site, self._dtypes[site]))
        if asked.dense_sites and asked.positions.kind != "all":
            self._open(POSITIONS, POSITIONS_FORMAT)

    def _check_whole(self) -> None:
        wanted = self._record.shard_sequences(self._shard)
        if self._sequences != len(wanted):
            raise ValueError(f"shard {self._shard} got {self._sequences} of its {len(wanted)} sequences")

    def _write_last(self) -> None:
        if NORM_SKETCHES in self._objects:
            self._objects[NORM_SKETCHES].write(self._sketches.columns)

    def _committed(self, records: Mapping[str, ObjectRecord]) -> Commit:
        moments = {
            site: {name: found for name, found in classes.items() if found.count}
            for site, classes in self._moments.items()
        }
        return Commit(
            run=self._record.run,
            shard=self._shard,
            attempt=self._attempt,
            specification_sha256=self._record.specification_sha256,
            sequences=self._sequences,
            tokens_by_class=self._tokens_by_class,
            objects=records,
            norm_moments=moments,
            non_finite=self._non_finite,
            attention_implementation=self._record.attention_implementation,
            device=self._record.device,
            code_version=self._record.code_version,
            widened=self._widened,
        )

    def _check_order(self, tokens: TokenRows) -> None:
        if not len(tokens.sequence):
            raise ValueError("the batch has no rows")
        sequences, positions = tokens.sequence.astype(np.int64), tokens.position.astype(np.int64)
        steps = np.diff(sequences, prepend=self._last[0])
        later = (steps > 0) | ((steps == 0) & (np.diff(positions, prepend=self._last[1]) > 0))
        if not later.all():
            raise ValueError(
                f"row {int(np.argmin(later))} does not follow the row before it in order of (sequence, position)"
            )
        allowed = self._record.shard_sequences(self._shard)
        if sequences[0] not in allowed or sequences[-1] not in allowed:
            raise ValueError(f"shard {self._shard} has sequences {allowed}, but got {sequences[0]} to {sequences[-1]}")
        self._sequences += int((steps > 0).sum())
        self._last = (int(sequences[-1]), int(positions[-1]))

    def _add_moments(
        self, norms: Mapping[str, npt.NDArray[np.float32]], classes: Mapping[str, npt.NDArray[np.bool_]]
    ) -> None:
        told = with_derived(self._columns.values(), norms, self._record.specification.norm_sites)
        values = np.stack(list(told.values()))
        for kept, mask in classes.items():
            if mask.any():
                self._add_class(kept, list(told), np.sort(values if mask.all() else values[:, mask], axis=1))

    def _add_class(self, kept: str, names: Sequence[str], ascending: npt.NDArray[np.float32]) -> None:
        """`ascending` is [name, row]. NaN comes last, after infinity, and is left out."""
        finite: npt.NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(ascending[:, [0, -1]]), axis=1)
        whole = iter(Moments.of_rows(ascending if finite.all() else ascending[finite]))
        for name, row, all_finite in zip(names, ascending, finite, strict=True):
            own = row if all_finite else row[np.isfinite(row)]
            found = next(whole) if all_finite else Moments.of(own)
            self._count_non_finite(name, len(row) - len(own))
            self._moments[name][kept] = self._moments[name][kept].merge(found)
            self._sketches.add(name, kept, own)

    def _positions(self, chosen: npt.NDArray[np.int32], rows: int) -> int:
        if len(chosen) and (chosen[0] < 0 or chosen[-1] >= rows or (np.diff(chosen) <= 0).any()):
            raise ValueError(f"chosen rows must ascend, from 0 to {rows - 1}")
        self._objects[POSITIONS].write([pa.array(chosen + self._rows, pa.int32())])
        return len(chosen)

    def _dense(self, site: str, values: npt.NDArray[Any], rows: int) -> pa.Array:
        kind, shape = ELEMENT_TYPES[self._dtypes[site]], (rows, self._record.dense_width(site))
        if values.shape != shape or values.dtype != kind:
            raise ValueError(f"{site} is {values.dtype} {values.shape}, not {np.dtype(kind)} {shape}")
        if site not in self._moments:  # else its norms show it
            self._count_non_finite(site, int((~_finite(values).all(axis=1)).sum()))
        bits = pa.py_buffer(np.ascontiguousarray(values))
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(values.itemsize * shape[1]), rows, [None, bits])


def _norms(name: str, values: npt.NDArray[np.float32], rows: int) -> pa.Array:
    if values.shape != (rows,) or values.dtype != np.float32:
        raise ValueError(f"norms of {name} are {values.dtype} {values.shape}, not float32 ({rows},)")
    return pa.array(values)


def _finite(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if values.dtype == np.uint16:  # bfloat16 is infinite or NaN if all eight bits of the exponent are set
        finite: npt.NDArray[np.bool_] = (values & 0x7F80) != 0x7F80
    else:
        finite = np.isfinite(values)
    return finite


def _columns(layout: ObjectFormat) -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in layout.schema]
