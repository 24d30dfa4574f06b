"""What makes a shard visible, and the statistics that it carries so that queries need not read the rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from actstore_storage.errors import CorruptObject
from actstore_storage.format.records import seal, unseal
from actstore_storage.format.specification import RunRecord

TOKEN_CLASSES = ("text", "bos", "special", "sink")
# Of values in float64, so much stays in a core's cache while all sums over it are made.
_CHUNK_BYTES = 1 << 19
# Decoded commits that a process keeps, some 20 kB each.
_COMMITS_KEPT = 1024


@dataclass(frozen=True)
class ObjectRecord:
    """One object of a shard: its key in the bucket, and what a reader must find there.

    `footer_sha256` is of the Parquet footer, its length and the magic bytes at the end: pages have checksums, and the
    footer, which tells where they lie and what is in them, has none. Empty: of before it was kept.
    """

    key: str
    bytes: int
    rows: int
    sha256: str
    footer_sha256: str = ""


@dataclass(frozen=True)
class Moments:
    """Mergeable statistics. `m2` is the sum of squared distances from the mean, `log_sum` minus infinity where a number
    is not above 0.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf
    log_sum: float = 0.0

    @classmethod
    def of(cls, values: npt.NDArray[np.floating[Any]]) -> "Moments":
        return cls.of_rows(values[None])[0] if values.size else cls()

    @classmethod
    def of_rows(cls, values: npt.NDArray[np.floating[Any]]) -> list["Moments"]:
        """Of each row of [row, value], which has one value or more."""
        found: list[Moments] = []
        rows = max(1, _CHUNK_BYTES // (8 * values.shape[1]))
        for first in range(0, len(values), rows):
            wide = values[first : first + rows].astype(np.float64)
            mean, minimum, maximum = wide.mean(axis=1), wide.min(axis=1), wide.max(axis=1)
            above = minimum > 0
            log_sum = np.full(len(wide), -np.inf)  # and the geometric mean of a 0 is rightly 0
            log_sum[above] = np.log(wide if above.all() else wide[above]).sum(axis=1)
            wide -= mean[:, None]
            columns = (mean, np.vecdot(wide, wide), minimum, maximum, log_sum)
            found += [cls(wide.shape[1], *row) for row in zip(*(one.tolist() for one in columns), strict=True)]
        return found

    def merge(self, other: "Moments") -> "Moments":
        """Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance", equations 2.1."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * other.count / count,
            self.m2 + other.m2 + delta * delta * self.count * other.count / count,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.log_sum + other.log_sum,
        )

    def over(self, divisor: float) -> "Moments":
        """Of the numbers divided by a positive one."""
        return Moments(
            self.count,
            self.mean / divisor,
            self.m2 / divisor**2,
            self.minimum / divisor,
            self.maximum / divisor,
            self.log_sum - self.count * math.log(divisor),
        )

    @property
    def variance(self) -> float:
        """Of the population, not of a sample; 0 for nothing."""
        return self.m2 / self.count if self.count else 0.0

    @property
    def standard_deviation(self) -> float:
        return math.sqrt(self.variance)

    @property
    def geometric_mean(self) -> float:
        return math.exp(self.log_sum / self.count) if self.count else 0.0


@dataclass(frozen=True)
class Commit:
    """`runs/<run>/commits/<shard>.json`. `objects` is by product: tokens, norms, a site, features-<sae> and so on.

    `norm_moments` is by site, then by token class, over finite norms and without classes that have none; of what is
    stored beside L2 norms, by the names of norm_columns.py.
    `non_finite` counts, by product, the rows (of a site) or the features that are infinite or no number.
    `widened` has the dtype of each dense site that is not stored in the run's own, because a value would not fit.
    `code_version`, `device` and `attention` say how this shard came to be, which in a resumed run may differ from
    what `run.json` says.
    """

    run: str
    shard: int
    attempt: str
    specification_sha256: str
    sequences: int
    tokens_by_class: Mapping[str, int]
    objects: Mapping[str, ObjectRecord]
    norm_moments: Mapping[str, Mapping[str, Moments]]
    non_finite: Mapping[str, int]
    attention_implementation: str
    device: str
    code_version: str
    widened: Mapping[str, str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(self.tokens_by_class.values())

    def to_json(self) -> bytes:
        """As dataclasses.asdict would have it, which copies each number of thousands."""
        objects = {product: vars(record) for product, record in self.objects.items()}
        moments = {
            site: {name: _moments_fields(found) for name, found in classes.items()}
            for site, classes in self.norm_moments.items()
        }
        return seal(vars(self) | {"objects": objects, "norm_moments": moments})

    @classmethod
    def from_json(cls, data: bytes, key: str, *, sealed: bool = False) -> "Commit":
        """Once for the same bytes: whoever asks a service again opens the same run again. `sealed`: with its own hash,
        or it is damaged.
        """
        return _decoded(data, key, sealed)

    @classmethod
    def _of(cls, fields: dict[str, Any]) -> "Commit":
        objects = {product: ObjectRecord(**record) for product, record in fields.pop("objects").items()}
        moments = {
            site: {name: _moments(values) for name, values in classes.items()}
            for site, classes in fields.pop("norm_moments").items()
        }
        return cls(objects=objects, norm_moments=moments, **fields)


def commit_of(record: RunRecord, shard: int, data: bytes, key: str) -> Commit:
    """Read from its bytes. Errors: CorruptObject, also for the commit of another run or shard."""
    commit = Commit.from_json(data, key, sealed=record.sealed)
    found = (commit.run, commit.shard, commit.specification_sha256)
    if found != (record.run, shard, record.specification_sha256):
        raise CorruptObject(f"{key} is a commit of something else: {found}", field="object", value=key)
    return commit


@lru_cache(_COMMITS_KEPT)
def _decoded(data: bytes, key: str, sealed: bool) -> Commit:
    return unseal(data, key, Commit._of, sealed=sealed)


def _moments_fields(moments: Moments) -> dict[str, Any]:
    fields = vars(moments)
    return fields | {"log_sum": None} if math.isinf(fields["log_sum"]) else fields  # JSON has no infinity


def _moments(fields: dict[str, Any]) -> Moments:
    if fields["log_sum"] is None:
        fields["log_sum"] = -math.inf
    return Moments(**fields)
