"""The commit that makes a shard visible, with statistics, so that queries need not read the rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from actstore_storage.errors import corrupt_object
from actstore_storage.format.moments import NormMoments, fields_of_moments, restore_infinities
from actstore_storage.format.products import ObjectRecord
from actstore_storage.format.records import as_record, seal, unseal
from actstore_storage.format.specification import RunRecord

# Decoded commits that a process keeps, about 20 kB each.
_COMMITS_KEPT = 1024


@dataclass(frozen=True)
class Commit:
    """Makes a shard visible: the record of its objects and their statistics. `runs/<run>/commits/<shard>.json`.
    `objects` is by product: tokens, norms, a site, features-<sae> and so on.

    `norm_moments` is by site, then by token class, over finite norms and without classes that have none; quantities
    other than L2 norms have the names of norm_columns.py. `non_finite` counts, by product, the rows (of a site) or the
    features that are infinite or NaN. `widened` has the dtype of each dense site that is not stored in the run's own,
    because a value would not fit. `code_version`, `device` and `attention` describe how this shard was made, which in a
    resumed run may differ from `run.json`.
    """

    run: str
    shard: int
    attempt: str
    specification_sha256: str
    sequences: int
    tokens_by_class: Mapping[str, int]
    objects: Mapping[str, ObjectRecord]
    norm_moments: NormMoments
    non_finite: Mapping[str, int]
    attention_implementation: str
    device: str
    code_version: str
    widened: Mapping[str, str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(self.tokens_by_class.values())

    def to_json(self) -> bytes:
        """Writes the record. It is equal to dataclasses.asdict, but does not copy thousands of numbers."""
        objects = {product: vars(record) for product, record in self.objects.items()}
        return seal(vars(self) | {"objects": objects, "norm_moments": fields_of_moments(self.norm_moments)})

    @classmethod
    def from_json(cls, data: bytes, key: str, *, sealed: bool = False) -> "Commit":
        """Reads the record. Results are cached by content, because repeated questions open the same run again.
        `sealed`: it must have its own hash.
        """
        return _decoded(data, key, sealed)


def commit_of(record: RunRecord, shard: int, data: bytes, key: str) -> Commit:
    """Reads a shard's commit from its bytes. Errors: CorruptObject, also for the commit of another run or shard."""
    commit = Commit.from_json(data, key, sealed=record.sealed)
    found = (commit.run, commit.shard, commit.specification_sha256)
    if found != (record.run, shard, record.specification_sha256):
        raise corrupt_object(key, f"{key} is the commit of another run or shard: {found}")
    return commit


@lru_cache(_COMMITS_KEPT)
def _decoded(data: bytes, key: str, sealed: bool) -> Commit:
    return unseal(data, key, _commit, sealed=sealed)


def _commit(fields: dict[str, Any]) -> Commit:
    restore_infinities(fields["norm_moments"])
    return as_record(fields, Commit)
