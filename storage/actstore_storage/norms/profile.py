"""Profiles of norms: statistics of each site's activations, and cosines between them.

Statistics in the commits are used without reading anything else; quantiles and histograms come from sketches. Rows by
position or document read the stored norms, and so do exact quantiles, or those of shards without sketches. By token,
each row has one token's own norms: by_token.py.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.errors import BadRequest, check_limit
from actstore_storage.format.moments import Moments
from actstore_storage.format.norm_columns import (
    L2,
    QUANTITIES,
    RELATIVE_INCREASE,
    SHARE_OF_STREAM,
    SIGNED,
    statistics_of,
)
from actstore_storage.format.sites import Site
from actstore_storage.format.sketches import RANK_ERROR, Sketches, WeightedValues
from actstore_storage.format.tokens import TOKEN_CLASSES, kept_classes
from actstore_storage.norms.by_token import token_norms
from actstore_storage.norms.rows import (
    DEFAULT_KEPT,
    KeptTokens,
    LabelledNorms,
    check_bins,
    exact_quantiles,
    group_norms,
    histogram_rows,
    read_norms,
)
from actstore_storage.norms.sites import chosen_sites
from actstore_storage.norms.sketches import lost_sketches, read_sketches
from actstore_storage.runs.document_sources import SOURCE_FIELDS
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.tokens import document_sources

DEFAULT_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
QUANTILES_MAX = 100
# Exact quantiles hold one site's norms in memory, once and as float32: 400 MB.
QUANTILE_TOKENS_MAX = 100_000_000
# Rows by position or document hold and sort them with their groups: 600 MB.
GROUPED_TOKENS_MAX = 20_000_000
# In one answer, which is one message of about 100 bytes per row.
PROFILE_ROWS_MAX = 50_000
LAYER, SITE, TOKEN_CLASS, POSITION = "layer", "site", "token_class", "position"
DOCUMENT, TOKEN = "document", "token"
# The groupings, except by single tokens, and the type of the column for each, after site and layer.
_GROUPS: Mapping[str, pa.DataType | None] = {
    LAYER: None,
    SITE: None,
    TOKEN_CLASS: pa.string(),
    POSITION: pa.int32(),
    DOCUMENT: pa.int64(),
}
# Memory of the moments of one site, of each token class at most.
_MOMENTS_BYTES = 4096
# Memory of one quantile of one site, and of its question.
_QUANTILE_BYTES = 200
_MOMENTS = ("mean", "standard_deviation", "geometric_mean", "minimum", "maximum")


@dataclass(frozen=True)
class ProfileQuestion:
    """`sites` are kinds or single sites; empty: all that have the quantity. `kept` says which tokens are
    not excluded.
    """

    sites: Sequence[str] = ()
    quantity: str = L2
    by: str = LAYER
    quantiles: Sequence[float] = DEFAULT_QUANTILES
    kept: KeptTokens = DEFAULT_KEPT
    # Quantiles and histograms are computed from the stored norms, even if there are sketches.
    exact: bool = False
    # Only by token: the first sequence, and the number of sequences (None: all that follow).
    sequences: tuple[int, int | None] | None = None

    @property
    def from_statistics(self) -> bool:
        """Whether the commits have everything except quantiles."""
        return self.by in (LAYER, SITE, TOKEN_CLASS) and self.kept.told_by_class

    @property
    def from_sketches(self) -> bool:
        """Whether quantiles and histograms come from sketches, if all shards have them."""
        return self.from_statistics and not self.exact


# For all sites.
L2_BY_LAYER = ProfileQuestion()


def norm_profile(snapshot: Snapshot, question: ProfileQuestion = L2_BY_LAYER) -> pa.Table:
    """One row per site, by kind then layer, over its finite values; columns as in norm.proto. By token as
    `token_norms`.

    The standard deviation is the population's; quantiles interpolate linearly; `rank_error` is how far their ranks may
    be off: 0 if they are exact, else sketches.RANK_ERROR.
    """
    _check(question)
    if question.by == TOKEN:
        return _by_token(snapshot, question)
    places = _places(snapshot, question)
    sketches = _sketches(snapshot, places, question) if question.quantiles else None
    # quantile -> name, so that a repeated quantile is one column
    names = {quantile: "q" + repr(abs(float(quantile))).removesuffix(".0") for quantile in question.quantiles}
    rows: list[dict[str, object]] = []
    for place in places:
        rows += _rows(snapshot, place, question, names, sketches)
        check_limit(len(rows), PROFILE_ROWS_MAX, "rows", least=0)
    if question.quantity == RELATIVE_INCREASE:
        _add_bounds(snapshot, question, rows)
    found = pa.Table.from_pylist(rows, _profile_schema(question, names.values()))
    return _with_sources(snapshot, found) if question.by == DOCUMENT else found


def _check(question: ProfileQuestion) -> None:
    for field, allowed in (("quantity", QUANTITIES), ("by", (*_GROUPS, TOKEN))):
        value = getattr(question, field)
        if value not in allowed:
            raise BadRequest(f"{field} {value!r} is unknown", field=field, value=value, allowed=allowed)
    check_limit(len(question.quantiles), QUANTILES_MAX, "quantiles", least=0)
    for quantile in question.quantiles:
        if not 0 <= quantile <= 1:
            raise BadRequest(f"quantile {quantile}", field="quantiles", value=quantile, allowed="0 to 1")
    _check_sequences(question)


def _check_sequences(question: ProfileQuestion) -> None:
    """By token they must be given, because all tokens of a run would be too many; otherwise all sequences are used."""
    by_token, named = question.by == TOKEN, question.sequences is not None
    if by_token != named:
        which = "need a range of sequences" if by_token else "are always over all sequences"
        allowed = "a range of sequences, such as range(4)" if by_token else f"none, or by={TOKEN!r}"
        value = _span(question.sequences)
        raise BadRequest(f"norms by {question.by} {which}", field="sequences", value=value, allowed=allowed)


def _span(sequences: tuple[int, int | None] | None) -> str:
    first, count = sequences or (0, 0)
    return "none" if count == 0 else f"{first} to {'the last' if count is None else first + count - 1}"


def _by_token(snapshot: Snapshot, question: ProfileQuestion) -> pa.Table:
    sites = chosen_sites(snapshot, question.sites, question.quantity)
    first, count = question.sequences or (0, None)
    total = snapshot.record.sequences_total
    sequences = range(first, total if count is None else min(first + count, total))
    shards = snapshot.shards_of(sequences)
    if not ((snapshot.shards >= shards.start) & (snapshot.shards < shards.stop)).any():
        run = snapshot.record.run
        held = f"{len(snapshot.commits)} of {snapshot.record.shards_total} shards are committed"
        raise BadRequest(
            f"no committed shard of run {run} holds these sequences: {held}"
            if sequences
            else f"run {run} has only {total} sequences, so none of these exist",
            field="sequences",
            value=_span(question.sequences),
            allowed=f"committed sequences among 0 to {total - 1}",
        )
    found = token_norms(snapshot, question.quantity, sites, question.kept, sequences)
    if not found.num_rows:
        raise none_left(snapshot, sites, question.kept)
    return found


def _places(snapshot: Snapshot, question: ProfileQuestion) -> list[list[Site]]:
    """The sites that share a row: one each, or by kind."""
    chosen = chosen_sites(snapshot, question.sites, question.quantity)
    if question.by != SITE:
        return [[site] for site in chosen]
    return [[site for site in chosen if site.kind == kind] for kind in dict.fromkeys(site.kind for site in chosen)]


def _sketches(
    snapshot: Snapshot, places: Sequence[Sequence[Site]], question: ProfileQuestion
) -> Sequence[Sketches] | None:
    """The sketches of these sites, in parts; None if the stored norms have to be read."""
    if not question.from_sketches:
        return None
    d_model = snapshot.record.d_model
    return read_sketches(
        snapshot, [statistics_of(question.quantity, site, d_model)[0] for place in places for site in place]
    )


def _sketched(
    snapshot: Snapshot, sites: Sequence[Site], question: ProfileQuestion, parts: Sequence[Sketches], group: object
) -> WeightedValues:
    """The sketch values of these sites' tokens of one class, or of all that are not excluded."""
    kept = kept_classes(question.kept.exclude) if group is None else [str(group)]
    told = [statistics_of(question.quantity, site, snapshot.record.d_model) for site in sites]

    def merged() -> WeightedValues:
        found = [part[name][one] for name, _ in told for part in parts for one in kept if one in part[name]]
        return WeightedValues.of(found, told[0][1])

    return snapshot.memory.read(("sketched", *told, *kept), merged, lambda values: values.nbytes)


def _sketched_quantiles(
    snapshot: Snapshot, sites: Sequence[Site], question: ProfileQuestion, parts: Sequence[Sketches], group: object
) -> list[float]:
    """The question's distinct quantiles."""
    quantiles = list(dict.fromkeys(question.quantiles))
    what = "quantiles", question.quantity, group, frozenset(question.kept.exclude), *sites, *quantiles

    def computed() -> list[float]:
        return _sketched(snapshot, sites, question, parts, group).quantiles(quantiles)

    return snapshot.memory.read(what, computed, lambda found: _QUANTILE_BYTES * len(found))


def _rows(
    snapshot: Snapshot,
    sites: Sequence[Site],
    question: ProfileQuestion,
    names: Mapping[float, str],
    sketches: Sequence[Sketches] | None,
) -> Iterator[dict[str, object]]:
    found = _moments(snapshot, sites, question) if question.from_statistics else {}
    if sketches is not None:
        found = {
            group: (moments, _sketched_quantiles(snapshot, sites, question, sketches, group))
            for group, (moments, _) in found.items()
        }
    elif names or not question.from_statistics:
        found = _with_quantiles(snapshot, sites, question, list(names), found)
    if not found:
        raise none_left(snapshot, sites, question.kept)
    place = {"site": sites[0].kind} | ({} if question.by == SITE else {"layer": sites[0].layer})
    if question.by in (LAYER, SITE):
        place["non_finite"] = sum(snapshot.non_finite(str(site)) for site in sites)
    for group, (moments, quantiles) in found.items():
        yield {
            **place,
            question.by: place.get(question.by, group),
            "tokens": moments.count,
            "mean": moments.mean,
            "standard_deviation": moments.standard_deviation,
            "geometric_mean": None if question.quantity in SIGNED else moments.geometric_mean,
            "minimum": moments.minimum,
            "maximum": moments.maximum,
            **dict(zip(names.values(), quantiles, strict=True)),
            "rank_error": 0.0 if sketches is None else RANK_ERROR,
        }


_Found = dict[object, tuple[Moments, list[float]]]


def _moments(snapshot: Snapshot, sites: Sequence[Site], question: ProfileQuestion) -> _Found:
    """By group, without quantiles; from the commits."""
    what = "moments", question.quantity, question.by, frozenset(question.kept.exclude), *sites
    return snapshot.memory.read(what, lambda: _merged_moments(snapshot, sites, question), lambda _: _MOMENTS_BYTES)


def _merged_moments(snapshot: Snapshot, sites: Sequence[Site], question: ProfileQuestion) -> _Found:
    kept = kept_classes(question.kept.exclude)
    by_class: dict[str, Moments] = {}
    for site in sites:
        name, divisor = statistics_of(question.quantity, site, snapshot.record.d_model)
        for token_class, moments in snapshot.norm_moments(name).items():
            if token_class in kept:
                by_class[token_class] = by_class.get(token_class, Moments()).merge(moments.over(divisor))
    if question.by == TOKEN_CLASS:
        return {name: (by_class[name], []) for name in kept if name in by_class}
    merged = reduce(Moments.merge, by_class.values(), Moments())
    return {None: (merged, [])} if merged.count else {}


def _with_quantiles(
    snapshot: Snapshot, sites: Sequence[Site], question: ProfileQuestion, quantiles: list[float], found: _Found
) -> _Found:
    """From the stored norms, one site, or one kind's layers, at a time."""
    label = None if question.by in (LAYER, SITE) else question.by
    values, labels = _read(snapshot, sites, question, label)
    if label is None and question.from_statistics:
        return {group: (moments, exact_quantiles(values, quantiles)) for group, (moments, _) in found.items()}
    grouped: _Found = {group: (moments, places) for group, moments, places in group_norms(values, labels, quantiles)}
    if label == TOKEN_CLASS:
        grouped = {TOKEN_CLASSES[place]: told for place, told in grouped.items() if isinstance(place, int)}
    if not question.from_statistics:
        return grouped
    return {group: (moments, grouped[group][1]) for group, (moments, _) in found.items()}


def _read(snapshot: Snapshot, sites: Sequence[Site], question: ProfileQuestion, label: str | None) -> LabelledNorms:
    limit = GROUPED_TOKENS_MAX if label else QUANTILE_TOKENS_MAX
    tokens = snapshot.tokens_committed * len(sites)
    lost = lost_sketches(snapshot) if tokens > limit and question.from_sketches else ""
    check_limit(tokens, limit, "tokens", least=0, because=lost)
    return read_norms(snapshot, question.quantity, sites, question.kept, label)


def _add_bounds(snapshot: Snapshot, question: ProfileQuestion, rows: list[dict[str, object]]) -> None:
    """| |x + w| - |x| | <= |w|; divided by |x|, the mean share of the stream."""
    shares = norm_profile(snapshot, replace(question, quantity=SHARE_OF_STREAM, quantiles=()))
    keys = [name for name in ("site", "layer", question.by) if name in shares.column_names]
    means = {tuple(row[key] for key in keys): row["mean"] for row in shares.to_pylist()}
    for row in rows:
        row["bound"] = means.get(tuple(row[key] for key in keys))


def norm_histogram(
    snapshot: Snapshot, question: ProfileQuestion, *, bins: int = 0, edges: Sequence[float] = ()
) -> pa.Table:
    """Columns site, layer, low, high, count and rank_error (of the share of a bin), for a question by layer; with
    `edges`, or this many bins as in rows.py.
    """
    _check(question)
    check_bins(bins, edges)
    if question.by != LAYER:
        raise BadRequest("histograms need by='layer'", field="by", value=question.by, allowed=LAYER)
    rows, places = [], _places(snapshot, question)
    sketches = _sketches(snapshot, places, question)
    for [site] in places:
        values: npt.NDArray[np.floating]
        if sketches is None:
            (values, _), weights = _read(snapshot, [site], question, None), None
        else:
            found = _sketched(snapshot, [site], question, sketches, None)
            values, weights = found.values, found.weights
        if not len(values):
            raise none_left(snapshot, [site], question.kept)
        place = {"site": site.kind, "layer": site.layer, "rank_error": 0.0 if sketches is None else RANK_ERROR}
        rows += [place | row for row in histogram_rows(values, bins, edges, weights)]
    ends = [("low", pa.float64()), ("high", pa.float64()), ("count", pa.int64()), ("rank_error", pa.float64())]
    return pa.Table.from_pylist(rows, pa.schema([("site", pa.string()), ("layer", pa.int32()), *ends]))


def _with_sources(snapshot: Snapshot, found: pa.Table) -> pa.Table:
    """Adds source and row of each row's document."""
    sources = document_sources(snapshot)
    places = pa.array(np.searchsorted(sources[DOCUMENT].to_numpy(), found[DOCUMENT].to_numpy()))
    beside = found.column_names.index(DOCUMENT) + 1
    for place, field in enumerate(SOURCE_FIELDS, start=beside):
        found = found.add_column(place, field, sources[field.name].take(places))
    return found


def _profile_schema(question: ProfileQuestion, quantile_names: Iterable[str]) -> pa.Schema:
    fields = [("site", pa.string())]
    fields += [] if question.by == SITE else [("layer", pa.int32())]
    kind = _GROUPS[question.by]
    fields += [] if kind is None else [(question.by, kind)]
    fields += [("tokens", pa.int64())]
    fields += [("non_finite", pa.int64())] if question.by in (LAYER, SITE) else []
    bound = ("bound",) if question.quantity == RELATIVE_INCREASE else ()
    quantiles = (*quantile_names, "rank_error") if question.quantiles else ()
    return pa.schema(fields + [(name, pa.float64()) for name in (*_MOMENTS, *bound, *quantiles)])


def none_left(snapshot: Snapshot, sites: Sequence[Site], kept: KeptTokens) -> BadRequest:
    where = " and ".join(dict.fromkeys((str(sites[0]), str(sites[-1]))))
    return nothing_left(
        f"no token of {where} is left after exclusions in {len(snapshot.commits)} committed shards", kept
    )


def nothing_left(message: str, kept: KeptTokens) -> BadRequest:
    excluded = ", ".join(sorted(kept.left_out)) or "nothing"
    return BadRequest(f"{message} ({excluded} excluded)", reason="NOTHING_LEFT", field="exclude", value=excluded)
