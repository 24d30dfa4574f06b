"""Writes a shard of a run over another run's rows: the new objects, in addition to those that the other
commit names.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from actstore_storage.bucket import Bucket
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import features_product
from actstore_storage.format.products import ObjectRecord
from actstore_storage.format.specification import RunRecord
from actstore_storage.runs.attempt import ShardAttempt
from actstore_storage.runs.feature_index import SparseFeatures


class FeatureWriter(ShardAttempt):
    """Writes features of the SAEs that `base`, the shard's commit in the other run, does not have.

    Everything else in the commit is the base's. If the two were made on different devices, or by different versions, it
    has both: the rows' and these features'.
    """

    def __init__(self, bucket: Bucket, record: RunRecord, base: Commit, attempt: str) -> None:
        new = [sae for sae in record.specification.saes if features_product(sae.name) not in base.objects]
        super().__init__(bucket, record, base.shard, attempt, new)
        self.base = base

    def add(self, flags: npt.NDArray[np.uint8], features: Mapping[str, SparseFeatures]) -> None:
        """The next rows, with their tokens' flags. Errors: ValueError if features of an SAE are missing."""
        self._check_products(features, self._saes)
        self._add_features(features, flags)

    def _open_products(self) -> None:
        """Opens only objects of features."""

    def _check_whole(self) -> None:
        if self._rows != self.base.tokens:
            raise ValueError(f"shard {self._shard} got {self._rows} of its {self.base.tokens} rows")

    def _write_last(self) -> None:
        """Nothing: the base's commit has the statistics of norms."""

    def _committed(self, records: Mapping[str, ObjectRecord]) -> Commit:
        return replace(
            self.base,
            run=self._record.run,
            attempt=self._attempt,
            specification_sha256=self._record.specification_sha256,
            objects={**self.base.objects, **records},
            non_finite={**self.base.non_finite, **self._non_finite},
            device=_both(self.base.device, self._record.device),
            code_version=_both(self.base.code_version, self._record.code_version),
        )


def _both(one: str, other: str) -> str:
    return ", ".join(dict.fromkeys((*one.split(", "), other)))
