"""How large the activations of each site are.

Means and extremes come from the commits, which carry moments; quantiles are exact and read the stored norms.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.commit import Moments
from actstore_storage.errors import BadRequest
from actstore_storage.exclusion import DEFAULT_EXCLUSION, check_limit, kept_classes, kept_rows
from actstore_storage.products import NORMS, TOKENS
from actstore_storage.reading import open_product
from actstore_storage.sites import RESIDUAL_KINDS, Site, parse_site
from actstore_storage.snapshot import Snapshot

DEFAULT_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
QUANTILES_MAX = 100
# Exact quantiles hold one site's norms in memory, once and as float32: 400 MB.
QUANTILE_TOKENS_MAX = 100_000_000


def norm_profile(
    snapshot: Snapshot,
    *,
    sites: Sequence[str] = (),
    quantiles: Sequence[float] = DEFAULT_QUANTILES,
    exclude: frozenset[str] = DEFAULT_EXCLUSION,
) -> pa.Table:
    """A row a site, by kind then layer, over its finite norms; columns as in norm.proto.

    `sites` are kinds or single sites, and none means all. The standard deviation is the population's, quantiles
    interpolate linearly.
    """
    check_limit(len(quantiles), QUANTILES_MAX, "quantiles", least=0)
    for quantile in quantiles:
        if not 0 <= quantile <= 1:
            raise BadRequest(f"quantile {quantile}", field="quantiles", value=quantile, allowed="0 to 1")
    chosen = _chosen_sites(snapshot, sites)
    moments = {site: merged_moments(snapshot, site, exclude) for site in chosen}
    if quantiles:
        check_limit(max(found.count for found in moments.values()), QUANTILE_TOKENS_MAX, "tokens")
    # quantile -> name, so that a quantile asked for twice is one column
    names = {quantile: "q" + repr(abs(float(quantile))).removesuffix(".0") for quantile in quantiles}
    return pa.Table.from_pylist(
        [_profile_row(snapshot, site, moments[site], names, exclude) for site in chosen],
        _profile_schema(names.values()),
    )


def stored_sites(snapshot: Snapshot) -> list[Site]:
    found = [parse_site(text) for text in snapshot.record.specification.norm_sites]
    return sorted(found, key=lambda site: (RESIDUAL_KINDS.index(site.kind), site.layer))


def _chosen_sites(snapshot: Snapshot, texts: Sequence[str]) -> list[Site]:
    stored = stored_sites(snapshot)
    chosen: set[Site] = set()
    for text in texts:
        of_kind = {site for site in stored if site.kind == text}
        found = of_kind or {parse_site(text, RESIDUAL_KINDS, snapshot.record.layer_count)} & set(stored)
        if not found:
            raise unknown_site(snapshot, text, [str(site) for site in stored])
        chosen |= found
    return [site for site in stored if site in chosen or not texts]


def merged_moments(snapshot: Snapshot, site: Site, exclude: frozenset[str]) -> Moments:
    kept = kept_classes(exclude)
    by_class = snapshot.norm_moments(str(site))
    merged = reduce(Moments.merge, [by_class[name] for name in kept if name in by_class], Moments())
    if not merged.count:
        raise nothing_left(f"no token is left of {site} in {len(snapshot.commits)} committed shards", exclude)
    return merged


def _profile_row(
    snapshot: Snapshot, site: Site, moments: Moments, quantiles: Mapping[float, str], exclude: frozenset[str]
) -> dict[str, object]:
    row: dict[str, object] = {
        "site": site.kind,
        "layer": site.layer,
        "tokens": moments.count,
        "non_finite": snapshot.non_finite(str(site)),
        "mean": moments.mean,
        "standard_deviation": moments.standard_deviation,
        "geometric_mean": moments.geometric_mean,
        "minimum": moments.minimum,
        "maximum": moments.maximum,
    }
    if quantiles:
        values = _exact_quantiles(_norms(snapshot, site, exclude, moments.count), list(quantiles))
        row |= dict(zip(quantiles.values(), values, strict=True))
    return row


def _norms(snapshot: Snapshot, site: Site, exclude: frozenset[str], count: int) -> npt.NDArray[np.float32]:
    """The `count` norms that the commits say are left."""
    norms, filled = np.empty(count, np.float32), 0
    for commit in snapshot.commits:
        with open_product(snapshot.bucket, commit, TOKENS) as file:
            kept = kept_rows(file.read(columns=["flags"])["flags"].to_numpy(), exclude)
        with open_product(snapshot.bucket, commit, NORMS) as file:
            values = file.read(columns=[str(site)]).column(0).to_numpy()
        part = values[kept & np.isfinite(values)]
        norms[filled : filled + len(part)] = part
        filled += len(part)
    return norms


def _exact_quantiles(values: npt.NDArray[np.float32], quantiles: Sequence[float]) -> list[float]:
    """np.quantile's of the values as float64, without a copy of them as float64; changes their order."""
    places = np.asarray(quantiles) * (len(values) - 1)
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, len(values) - 1)
    values.partition(np.union1d(below, above))
    pairs = np.stack([values[below], values[above]], axis=1).astype(np.float64)
    return [float(np.quantile(pair, part)) for pair, part in zip(pairs, places - below, strict=True)]


def _profile_schema(quantile_names: Iterable[str]) -> pa.Schema:
    numbers = ("mean", "standard_deviation", "geometric_mean", "minimum", "maximum", *quantile_names)
    fixed = [("site", pa.string()), ("layer", pa.int32()), ("tokens", pa.int64()), ("non_finite", pa.int64())]
    return pa.schema(fixed + [(name, pa.float64()) for name in numbers])


def nothing_left(message: str, exclude: frozenset[str]) -> BadRequest:
    excluded = ", ".join(sorted(exclude)) or "nothing"
    return BadRequest(f"{message} ({excluded} excluded)", reason="NOTHING_LEFT", field="exclude", value=excluded)


def unknown_site(snapshot: Snapshot, text: str, allowed: Sequence[str]) -> BadRequest:
    return BadRequest(
        f"run {snapshot.record.run} has no norms of {text!r}",
        reason="SITE_UNKNOWN",
        field="site",
        value=text,
        allowed=allowed or "none: this run was captured without norms",
    )
