"""An attempt at a shard: the objects that it writes, which are removed unless its commit succeeds."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.bucket import Bucket
from actstore_storage.errors import StoreError
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import (
    commit_key,
    features_product,
    index_product,
    object_key,
    sae_products,
    statistics_product,
)
from actstore_storage.format.products import (
    FEATURES_FORMAT,
    INDEX_FORMAT,
    STATISTICS_FORMAT,
    ObjectFormat,
    ObjectRecord,
)
from actstore_storage.format.specification import RunRecord, SaeRecord
from actstore_storage.parquet.writing import OpenObject, open_object
from actstore_storage.runs.feature_index import FeatureIndex, SparseFeatures


class ShardAttempt(ABC):
    """Writes a shard's objects, and its commit. A context manager. Nothing is visible before `commit`; leaving without
    it, or losing to another attempt, removes what was written. `saes` are those whose features it writes.
    """

    def __init__(self, bucket: Bucket, record: RunRecord, shard: int, attempt: str, saes: Iterable[SaeRecord]) -> None:
        self._bucket, self._record, self._shard, self._attempt = bucket, record, shard, attempt
        self._saes = {sae.name: FeatureIndex(sae.d_sae) for sae in saes}
        self._objects: dict[str, OpenObject] = {}
        self._non_finite: dict[str, int] = {}
        self._rows = 0
        self._streams = ExitStack()
        self._commit_began = False

    def __enter__(self) -> Self:
        try:
            self._digester = self._streams.enter_context(ThreadPoolExecutor(1, "digest"))
            self._open_products()
            for sae in self._saes:
                self._open(features_product(sae), FEATURES_FORMAT)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._commit_began:
            return
        abandoned = error or _AbandonedError()
        self._streams.__exit__(type(abandoned), abandoned, trace)
        with suppress(StoreError):  # what cannot be removed now is an orphan that no reader sees
            self._remove()

    def commit(self) -> bool:
        """True: this attempt's commit succeeded. False: another attempt's commit exists, and these objects were
        removed.
        """
        self._check_whole()
        for sae, index in self._saes.items():
            by_feature = index.sort()
            self._open(index_product(sae), INDEX_FORMAT).write(by_feature.index_columns())
            self._open(statistics_product(sae), STATISTICS_FORMAT).write(by_feature.statistics_columns())
        self._write_last()
        records = {product: item.finish(self._name_of(product)) for product, item in self._objects.items()}
        self._streams.close()
        # From here on an error may hide a successful commit (its answer was lost), so nothing may be removed.
        self._commit_began = True
        commit = self._committed(records)
        won = self._bucket.put_if_absent(commit_key(self._record.run, self._shard), commit.to_json())
        if not won:
            self._remove()
        return won

    @abstractmethod
    def _open_products(self) -> None:
        """Opens every object except those of features."""

    @abstractmethod
    def _check_whole(self) -> None:
        """Errors: ValueError for a shard that lacks some of its rows."""

    @abstractmethod
    def _write_last(self) -> None:
        """Writes what needs the whole shard, except features."""

    @abstractmethod
    def _committed(self, records: Mapping[str, ObjectRecord]) -> Commit: ...

    def _open(self, product: str, layout: ObjectFormat) -> OpenObject:
        key = object_key(self._record.run, self._shard, self._attempt, product)
        self._objects[product] = self._streams.enter_context(open_object(self._bucket, key, layout, self._digester))
        return self._objects[product]

    def _name_of(self, product: str) -> str:
        """The identity of an object, by all that affects its content: attempts at a shard write the same bytes, and so
        do runs that differ only by their SAEs.
        """
        asked = self._record.specification
        rows = replace(asked, saes=(), rows_of="").sha256
        own = "".join(f"/{sae.sha256}" for sae in asked.saes if product in sae_products(sae.name))
        return f"{rows}/{self._shard:08d}/{product}{own}"

    def _remove(self) -> None:
        for product in self._objects:
            self._bucket.delete(object_key(self._record.run, self._shard, self._attempt, product))

    def _add_features(self, features: Mapping[str, SparseFeatures], flags: npt.NDArray[np.uint8]) -> None:
        """Adds features of the next rows, which have these flags."""
        for sae, sparse in features.items():
            product = features_product(sae)
            counted = sparse.finite()
            self._count_non_finite(product, len(sparse.row) - len(counted.row))
            rows = self._saes[sae].add(counted, flags, self._rows)
            self._objects[product].write([pa.array(rows), pa.array(counted.feature), pa.array(counted.activation)])
        self._rows += len(flags)

    def _count_non_finite(self, product: str, count: int) -> None:
        self._non_finite[product] = self._non_finite.get(product, 0) + count

    def _check_products(self, given: Iterable[str], wanted: Iterable[str]) -> None:
        if set(given) != set(wanted):
            raise ValueError(f"the run stores {sorted(wanted)}, but {sorted(given)} were given")


class _AbandonedError(Exception):
    """Tells the bucket's streams that the shard was left without a commit."""
