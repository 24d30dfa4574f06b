"""What a run stores of norms beside L2, per token and in its commits, and what is derived of that.

Of each site the norm of the vector less its mean over d_model, which with L2 gives root mean square and standard
deviation; of each place where a sublayer writes into the residual stream the cosine between the two, which with their
norms gives the stream's growth there; of each block the cosine between what it reads and what the next one reads.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from actstore_storage.format.sites import Site, parse_site

L2, RMS, STANDARD_DEVIATION, CENTRED_L2 = "l2", "rms", "standard_deviation", "centred_l2"
COSINE_TO_STREAM, COSINE_TO_NEXT = "cosine_to_stream", "cosine_to_next"
SHARE_OF_STREAM, RELATIVE_INCREASE = "share_of_stream", "relative_increase"
QUANTITIES = (
    L2,
    RMS,
    STANDARD_DEVIATION,
    CENTRED_L2,
    COSINE_TO_STREAM,
    COSINE_TO_NEXT,
    SHARE_OF_STREAM,
    RELATIVE_INCREASE,
)
# May be below 0, so that they have no geometric mean.
SIGNED = frozenset({COSINE_TO_STREAM, COSINE_TO_NEXT, RELATIVE_INCREASE})
# Divided by sqrt(d_model), these are those.
_SCALED = {RMS: L2, STANDARD_DEVIATION: CENTRED_L2}
# Only in the commits' statistics; of a token they follow from the columns.
_DERIVED = (SHARE_OF_STREAM, RELATIVE_INCREASE)
WRITES = ("attn_out", "mlp_out")

Values = npt.NDArray[np.floating]


@dataclass(frozen=True)
class NormColumn:
    """A column of norms.parquet, and the key of its statistics in a commit. `other` is what a cosine is to."""

    quantity: str
    site: Site
    other: Site | None = None

    @property
    def name(self) -> str:
        return str(self.site) if self.quantity == L2 else f"{self.quantity}.{self.site}"


def stream_of(write: Site, stored: Iterable[str]) -> Site:
    """Names what a sublayer's output is added to: in a parallel block, which has no resid_mid, both to resid_pre."""
    middle = Site(write.layer, "resid_mid")
    return middle if write.kind == "mlp_out" and str(middle) in stored else Site(write.layer, "resid_pre")


def columns_beside(norm_sites: Sequence[str], kinds: Iterable[str]) -> tuple[NormColumn, ...]:
    """Names what a capture stores beside L2, where a model has sites of these kinds.

    A pair is stored where norms of both are: its share of growth is told by them. A post-LN block adds mlp_out to what
    no site has (resid_mid after its norm), and gives the next one `normalized_resid_post`.
    """
    sites, kinds = [parse_site(text) for text in norm_sites], set(kinds)
    found = [NormColumn(CENTRED_L2, site) for site in sites]
    post_ln = "normalized_resid_post" in kinds
    for site in sites:
        if site.kind not in WRITES or (post_ln and site.kind == "mlp_out"):
            continue
        stream = Site(site.layer, "resid_mid" if site.kind == "mlp_out" and "resid_mid" in kinds else "resid_pre")
        if str(stream) in norm_sites:
            found.append(NormColumn(COSINE_TO_STREAM, site, stream))
    for site in sites:
        out = Site(site.layer, "normalized_resid_post" if post_ln else "resid_post")
        if site.kind == "resid_pre" and str(out) in norm_sites:
            found.append(NormColumn(COSINE_TO_NEXT, site, out))
    return tuple(found)


def statistics_names(columns: Iterable[NormColumn]) -> list[str]:
    """Names the statistics of these columns, and of what is derived of them."""
    names = []
    for column in columns:
        names.append(column.name)
        if column.quantity == COSINE_TO_STREAM:
            names += [NormColumn(quantity, column.site).name for quantity in _DERIVED]
    return names


def with_derived(
    columns: Iterable[NormColumn], stored: Mapping[str, Values], norm_sites: Sequence[str]
) -> dict[str, Values]:
    """Computes what is derived of stored columns, beside these, by name of statistics."""
    found: dict[str, Values] = {}
    for column in columns:
        found[column.name] = stored[column.name]
        if column.quantity == COSINE_TO_STREAM:
            share, increase = _growth(column.site, stored, norm_sites)
            found[NormColumn(SHARE_OF_STREAM, column.site).name] = share
            found[NormColumn(RELATIVE_INCREASE, column.site).name] = increase
    return found


def statistics_of(quantity: str, site: Site, d_model: int) -> tuple[str, float]:
    """Names the statistics that tell a quantity, and what they are divided by."""
    scale = sqrt(d_model) if quantity in _SCALED else 1.0
    return NormColumn(_SCALED.get(quantity, quantity), site).name, scale


def read_columns(quantity: str, site: Site, norm_sites: Sequence[str]) -> list[str]:
    """Names the columns of norms.parquet from which a quantity is computed."""
    if quantity not in _DERIVED:
        return [NormColumn(_SCALED.get(quantity, quantity), site).name]
    stream = stream_of(site, norm_sites)
    return [str(site), str(stream), NormColumn(COSINE_TO_STREAM, site).name]


def token_values(
    quantity: str, site: Site, columns: Mapping[str, Values], norm_sites: Sequence[str], d_model: int
) -> Values:
    """Computes a quantity of each token from the columns that `read_columns` names."""
    if quantity in _DERIVED:
        return _growth(site, columns, norm_sites)[_DERIVED.index(quantity)]
    name, scale = statistics_of(quantity, site, d_model)
    return columns[name] if scale == 1 else columns[name] / scale


def _growth(site: Site, columns: Mapping[str, Values], norm_sites: Sequence[str]) -> tuple[Values, Values]:
    """|w| / |x| and (|x + w| - |x|) / |x|, by the law of cosines; no number where |x| is 0."""
    write, stream = columns[str(site)], columns[str(stream_of(site, norm_sites))]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = write.astype(np.float64) / stream
        squared = 1 + share * (2 * columns[NormColumn(COSINE_TO_STREAM, site).name].astype(np.float64) + share)
        increase = np.sqrt(np.maximum(squared, 0)) - 1
        return share.astype(np.float32), increase.astype(np.float32)
