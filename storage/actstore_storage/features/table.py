"""Statistics of every feature of an SAE at once: how often and how strongly it fires, and token_r2."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actstore_storage.errors import BadRequest, check_limit
from actstore_storage.features.reader import FeatureReader
from actstore_storage.features.sources import PART_ROWS, Sources, feature_ranges, token_counts
from actstore_storage.format.tokens import DEFAULT_EXCLUSION, kept_classes, kept_numbers, kept_rows
from actstore_storage.runs.snapshot import Snapshot

FEATURES_MAX = 1_000_000
# Up to this many features are read one by one instead of all of the SAE's.
FEW_FEATURES = 256
STATISTICS = ("density", "active_tokens", "maximum", "mean_when_active", "token_r2")


@dataclass(frozen=True)
class FeatureSearch:
    """Features whose statistics are within bounds, both included; in descending order of `order`, or ascending.

    `token_r2` reads every activation, and is computed only if a bound, `order` or `with_token_r2` asks for it.
    """

    bounds: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    order: str = "density"
    ascending: bool = False
    k: int = 100
    features: tuple[int, ...] = ()
    with_token_r2: bool = False

    def __post_init__(self) -> None:
        for name in (*self.bounds, self.order):
            if name not in STATISTICS:
                raise BadRequest(
                    f"features have no statistic {name!r}", field="statistic", value=name, allowed=STATISTICS
                )
        for name, (low, high) in self.bounds.items():
            if low is not None and high is not None and not low <= high:
                message = f"{name} cannot be at least {low} and at most {high}"
                raise BadRequest(message, field=name, value=f"{low}..{high}", allowed="low <= high")
        check_limit(self.k, FEATURES_MAX, "k")

    @property
    def wants_token_r2(self) -> bool:
        return self.with_token_r2 or "token_r2" in (*self.bounds, self.order)


@dataclass(frozen=True)
class TokenR2:
    """How much of a feature's variance the token id explains; FeatureStatistic in feature.proto defines token_r2.

    `raw` is Var(E[f | token]) / Var(f), the squared correlation ratio. With few tokens chance explains some of it:
    `corrected` is Kelley's epsilon squared (PNAS 1935), which is 1 for a lookup of the token, and 0 on average if f
    does not depend on it, so it can be slightly negative. Both are NaN if the feature never varies, and `corrected` is
    NaN if no token occurs twice.
    """

    raw: float
    corrected: float


def feature_table(
    snapshot: Snapshot, sae: str, search: FeatureSearch | None = None, *, exclude: frozenset[str] = DEFAULT_EXCLUSION
) -> pa.Table:
    """Finds features by their statistics. Columns feature, active_tokens, density, maximum, mean_when_active and, if
    requested, token_r2 (corrected).

    Ties are in order of feature; features whose statistic is NaN come last.
    """
    search = search or FeatureSearch()
    reader = FeatureReader(snapshot, sae)
    for feature in search.features:
        reader.check(feature)
    columns = statistics_columns(reader, exclude)
    if search.wants_token_r2:
        columns["token_r2"] = _token_r2_column(reader, search.features, exclude)
    keep = np.ones(reader.d_sae, bool)
    if search.features:
        keep &= np.isin(columns["feature"], search.features)
    for name, (low, high) in search.bounds.items():
        keep &= ~np.isnan(columns[name])
        keep &= True if low is None else columns[name] >= low
        keep &= True if high is None else columns[name] <= high
    chosen = np.flatnonzero(keep)
    keys = columns[search.order][chosen].astype(np.float64)
    order = np.argsort(keys if search.ascending else -keys, kind="stable")[: search.k]
    return pa.table({name: pa.array(values[chosen[order]]) for name, values in columns.items()})


def token_r2(snapshot: Snapshot, sae: str, feature: int, *, exclude: frozenset[str] = DEFAULT_EXCLUSION) -> TokenR2:
    """Computes token_r2 of one feature. Reads the feature's activations and how often each token occurs."""
    reader = FeatureReader(snapshot, sae)
    return _token_r2_of_one(reader, feature, exclude, _kept_counts(reader, exclude))


def _token_r2_of_one(
    reader: FeatureReader, feature: int, exclude: frozenset[str], counts: npt.NDArray[np.int64]
) -> TokenR2:
    entries = reader.ranking(feature, exclude).all()
    found = _r2(np.zeros(len(entries), np.int64), entries.token, entries.activation, counts, 1)
    return TokenR2(float(found.raw[0]), float(found.corrected[0]))


def _token_r2_column(
    reader: FeatureReader, features: tuple[int, ...], exclude: frozenset[str]
) -> npt.NDArray[np.float64]:
    """Corrected, for each feature. If only some are requested, the others are NaN, and are not returned."""
    if not 0 < len(features) <= FEW_FEATURES:
        return token_r2_of_all(reader, exclude).corrected
    found, counts = np.full(reader.d_sae, np.nan), _kept_counts(reader, exclude)
    for feature in set(features):
        found[feature] = _token_r2_of_one(reader, feature, exclude, counts).corrected
    return found


@dataclass(frozen=True)
class ManyTokenR2:
    """`TokenR2` of each feature."""

    raw: npt.NDArray[np.float64]
    corrected: npt.NDArray[np.float64]


def token_r2_of_all(reader: FeatureReader, exclude: frozenset[str], part_rows: int = PART_ROWS) -> ManyTokenR2:
    """Computes `token_r2` of every feature, for as many features at a time as have `part_rows` activations."""
    snapshot = reader.snapshot
    sources = Sources(snapshot, reader.sae, range(snapshot.record.shards_total))
    counts = _kept_counts(reader, exclude)
    parts = []
    for first, end in feature_ranges(reader.class_counts.count.sum(axis=1), part_rows):
        snapshot.bucket.check()
        feature, entries = sources.rows(first, end)
        kept = kept_rows(entries.flags, exclude)
        snapshot.bucket.check()
        parts.append(
            _r2(
                feature[kept].astype(np.int64) - first,
                entries.token[kept],
                entries.activation[kept],
                counts,
                end - first,
            )
        )
    return ManyTokenR2(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("raw", "corrected")))


def statistics_columns(reader: FeatureReader, exclude: frozenset[str]) -> dict[str, npt.NDArray[Any]]:
    """Computes each feature's statistics except `token_r2`, over the tokens that are not excluded."""
    numbers = kept_numbers(exclude)
    tokens = sum(reader.snapshot.tokens_by_class.get(name, 0) for name in kept_classes(exclude))
    counts = reader.class_counts
    active = counts.count[:, numbers].sum(axis=1)
    total = counts.sum[:, numbers].sum(axis=1)
    return {
        "feature": np.arange(reader.d_sae, dtype=np.int32),
        "active_tokens": active,
        "density": active / max(1, tokens),
        "maximum": counts.maximum[:, numbers].max(axis=1),
        "mean_when_active": np.divide(total, active, out=np.zeros(len(active)), where=active > 0),
    }


def _kept_counts(reader: FeatureReader, exclude: frozenset[str]) -> npt.NDArray[np.int64]:
    """How often each token id occurs among tokens that are not excluded."""
    by_class = token_counts(reader.snapshot, reader.sae)
    return _padded_sum(by_class[name] for name in kept_classes(exclude))


def _padded_sum(parts: Iterable[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    arrays = list(parts)
    size = max(map(len, arrays))
    found = np.zeros(size, np.int64)
    for array in arrays:
        found[: len(array)] += array
    return found


def _r2(
    feature: npt.NDArray[np.int64],
    token: npt.NDArray[np.int32],
    activation: npt.NDArray[np.float32],
    counts: npt.NDArray[np.int64],
    features: int,
) -> ManyTokenR2:
    """Tokens on which a feature is 0 are included through `counts` only."""
    values, tokens, distinct = activation.astype(np.float64), int(counts.sum()), int((counts > 0).sum())
    pairs, group = np.unique(feature * max(1, len(counts)) + token, return_inverse=True)
    sums = np.bincount(group, values, len(pairs))
    of_feature, of_token = np.divmod(pairs, max(1, len(counts)))
    between = np.bincount(of_feature, sums * sums / np.maximum(1, counts[of_token]), features)
    total, squares = np.bincount(feature, values, features), np.bincount(feature, values * values, features)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = total * total / tokens
        variance = squares - centre
        raw = np.where(variance > 1e-12 * squares, (between - centre) / variance, np.nan)
        corrected = (
            1 - (1 - raw) * (tokens - 1) / (tokens - distinct) if tokens > distinct else np.full(features, np.nan)
        )
    return ManyTokenR2(raw, corrected)


def scored(table: pa.Table, k: int, by: str) -> pa.Table:
    """Takes the k rows with the largest values of a column; ties in the table's order."""
    order = pc.sort_indices(
        table.append_column("_row", pa.array(range(len(table)))), [(by, "descending"), ("_row", "ascending")]
    )
    return table.take(order[:k])
