"""Reads norms of single tokens, and computes statistics of groups of tokens."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from actstore_storage.bucket.side_by_side import SHARDS_AT_ONCE, read_side_by_side
from actstore_storage.errors import BadRequest, check_limit
from actstore_storage.format.commit import Commit
from actstore_storage.format.moments import Moments
from actstore_storage.format.norm_columns import read_columns, token_values
from actstore_storage.format.products import NORMS, TOKENS
from actstore_storage.format.sites import Site
from actstore_storage.format.tokens import DEFAULT_EXCLUSION, class_numbers, kept_rows
from actstore_storage.parquet.reading import open_product
from actstore_storage.runs.snapshot import Snapshot

HISTOGRAM_BINS_MAX = 1000
# Norms, tokens x columns, of shards that are read concurrently; a larger shard is read alone. 64 MB as stored, and
# about as much again while they are processed.
NORMS_AT_ONCE = 16_000_000

Found = TypeVar("Found")
Values = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
LabelledNorms = tuple[Values, Labels | None]


class Excluding(Protocol):
    """A question about norms that excludes some tokens."""

    @property
    def exclude(self) -> frozenset[str]: ...

    @property
    def exclude_position_0(self) -> bool: ...


@dataclass(frozen=True)
class KeptTokens:
    """The tokens that are not excluded: of no class in `exclude`, and (`exclude_position_0`) not the first of their
    sequence.
    """

    exclude: frozenset[str] = DEFAULT_EXCLUSION
    exclude_position_0: bool = False

    @classmethod
    def of(cls, question: Excluding) -> "KeptTokens":
        """The tokens that are not excluded in a question."""
        return cls(question.exclude, question.exclude_position_0)

    @property
    def answered(self) -> dict[str, Any]:
        """The fields of an answer about excluded tokens."""
        return {"excluded": self.exclude, "excluded_position_0": self.exclude_position_0}

    @property
    def told_by_class(self) -> bool:
        """Whether exclusion depends on a token's class only, so that the commits' statistics by class can be used."""
        return not self.exclude_position_0

    @property
    def left_out(self) -> frozenset[str]:
        """The names of excluded classes, as in answers."""
        return self.exclude | ({"position_0"} if self.exclude_position_0 else set())

    def mask(self, tokens: Mapping[str, npt.NDArray[np.integer]]) -> npt.NDArray[np.bool_]:
        kept = kept_rows(tokens["flags"].astype(np.uint8), self.exclude)
        return kept & (tokens["position"] > 0) if self.exclude_position_0 else kept


# All except BOS.
DEFAULT_KEPT = KeptTokens()


def read_norms(
    snapshot: Snapshot, quantity: str, sites: Sequence[Site], kept: KeptTokens, label: str | None
) -> LabelledNorms:
    """Finite values of tokens that are not excluded, and each one's position, document or token class (None: no
    labels).

    Each shard's parts are appended to one array, so that they are in memory only once, except for shards that are being
    read.
    """

    def read(commit: Commit) -> list[LabelledNorms]:
        tokens = _tokens(snapshot, commit, kept, label)
        counts, own = kept.mask(tokens), None if label is None else _labels(tokens, label)
        found = []
        for norms in shard_values(snapshot, commit, quantity, sites):
            chosen = counts & np.isfinite(norms)
            found.append((norms[chosen], None if own is None else own[chosen]))
        return found

    size = snapshot.tokens_committed * len(sites)
    values, labels, filled = np.empty(size, np.float32), None if label is None else np.empty(size, np.int64), 0
    columns = len(columns_of(snapshot, quantity, sites))
    for parts in read_shards(snapshot, snapshot.commits, columns, read):
        for norms, own in parts:
            end = filled + len(norms)
            values[filled:end] = norms
            if own is not None and labels is not None:
                labels[filled:end] = own
            filled = end
    return values[:filled], None if labels is None else labels[:filled]


def read_shards(
    snapshot: Snapshot, commits: Iterable[Commit], columns: int, read: Callable[[Commit], Found]
) -> Iterator[Found]:
    """Calls `read`, which takes this many columns of norms, for each of the snapshot's commits, in their order."""
    tokens = int(snapshot.commits.token_counts.max(initial=1))
    return read_side_by_side(read, commits, min(SHARDS_AT_ONCE, max(1, NORMS_AT_ONCE // (tokens * columns))))


def exact_quantiles(values: Values, quantiles: Sequence[float]) -> list[float]:
    """np.quantile of the values as float64, without a float64 copy; it changes their order."""
    places = np.asarray(quantiles) * (len(values) - 1)
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, len(values) - 1)
    values.partition(np.union1d(below, above))
    pairs = np.stack([values[below], values[above]], axis=1).astype(np.float64)
    return [float(np.quantile(pair, part)) for pair, part in zip(pairs, places - below, strict=True)]


def group_norms(
    values: Values, labels: Labels | None, quantiles: Sequence[float]
) -> Iterator[tuple[object, Moments, list[float]]]:
    """By label, ascending, without empty groups; without labels all are one group, None."""
    if not len(values):
        return
    if labels is None:
        yield None, Moments.of(values), exact_quantiles(values, quantiles) if quantiles else []
        return
    order = np.argsort(labels, kind="stable")
    labels, values = labels[order], values[order]
    starts = np.flatnonzero(np.diff(labels, prepend=labels[0] - 1))
    for first, last in zip(starts, [*starts[1:], len(labels)], strict=True):
        own = values[first:last]
        yield int(labels[first]), Moments.of(own), exact_quantiles(own, quantiles) if quantiles else []


def histogram_rows(
    values: npt.NDArray[np.floating], bins: int, edges: Sequence[float], weights: npt.NDArray[np.int64] | None = None
) -> list[dict[str, float | int]]:
    """Columns low, high, count; each bin includes its low edge, and the last one both.

    Without `edges`: `bins` of equal ratio from the minimum to the maximum, or of equal width if one is not above 0.
    `weights`: how many values each represents.
    """
    bounds = np.asarray(edges, np.float64) if len(edges) else _bounds(values, bins)
    counts, _ = np.histogram(values.astype(np.float64), bounds, weights=weights)
    return [
        {"low": float(low), "high": float(high), "count": int(count)}
        for low, high, count in zip(bounds[:-1], bounds[1:], counts, strict=True)
    ]


def check_bins(bins: int, edges: Sequence[float]) -> None:
    check_limit(len(edges) - 1 if len(edges) else bins, HISTOGRAM_BINS_MAX, "edges" if len(edges) else "bins", least=1)
    if len(edges) and not (np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
        raise BadRequest(
            "edges of a histogram must ascend", field="edges", value=list(edges), allowed="ascending numbers"
        )


def _bounds(values: npt.NDArray[np.floating], bins: int) -> npt.NDArray[np.float64]:
    low, high = float(values.min()), float(values.max())
    bounds = np.geomspace(low, high, bins + 1) if low > 0 else np.linspace(low, high, bins + 1)
    bounds[0], bounds[-1] = low, high
    return bounds


def _tokens(
    snapshot: Snapshot, commit: Commit, kept: KeptTokens, label: str | None
) -> dict[str, npt.NDArray[np.integer]]:
    wanted = {"flags"} | ({"position"} if kept.exclude_position_0 else set())
    wanted |= {label} & {"position", "document"} if label else set()
    with open_product(snapshot.bucket, commit, TOKENS) as file:
        table = file.read(columns=sorted(wanted), use_threads=False)
    return {name: table[name].to_numpy() for name in table.column_names}


def _labels(tokens: Mapping[str, npt.NDArray[np.integer]], label: str) -> Labels:
    return class_numbers(tokens["flags"]) if label == "token_class" else tokens[label].astype(np.int64)


def columns_of(snapshot: Snapshot, quantity: str, sites: Sequence[Site]) -> list[str]:
    """The columns of norms.parquet from which the quantity is computed at these sites; up to three per site."""
    stored = snapshot.record.specification.norm_sites
    return list(dict.fromkeys(name for site in sites for name in read_columns(quantity, site, stored)))


def shard_values(
    snapshot: Snapshot, commit: Commit, quantity: str, sites: Sequence[Site]
) -> Iterator[npt.NDArray[np.floating]]:
    """The values of every token of the shard, one site after the other."""
    stored, d_model = snapshot.record.specification.norm_sites, snapshot.record.d_model
    with open_product(snapshot.bucket, commit, NORMS) as file:
        table = file.read(columns=columns_of(snapshot, quantity, sites), use_threads=False)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    for site in sites:
        yield token_values(quantity, site, columns, stored, d_model)
