"""The quantities that a run stores in addition to L2 norms, per token and in its commits, and those that are derived
from them.

For each site: the norm of the vector minus its mean over d_model, which with L2 gives root mean square and standard
deviation. For each sublayer's output: its cosine to the residual stream that it is added to, which with their norms
gives the stream's growth there. For each block: the cosine between its input and the next block's input.
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
# These may be negative, so they have no geometric mean.
SIGNED = frozenset({COSINE_TO_STREAM, COSINE_TO_NEXT, RELATIVE_INCREASE})
# Norms that become these quantities when divided by sqrt(d_model).
_SCALED = {RMS: L2, STANDARD_DEVIATION: CENTRED_L2}
# Only in the commits' statistics; for a token they follow from the columns.
_DERIVED = (SHARE_OF_STREAM, RELATIVE_INCREASE)
WRITES = ("attn_out", "mlp_out")

Values = npt.NDArray[np.floating]


@dataclass(frozen=True)
class NormColumn:
    """A column of norms.parquet, and the key of its statistics in a commit. `other` is the second site of a cosine."""

    quantity: str
    site: Site
    other: Site | None = None

    @property
    def name(self) -> str:
        return str(self.site) if self.quantity == L2 else f"{self.quantity}.{self.site}"


def stream_of(write: Site, stored: Iterable[str]) -> Site:
    """The site that a sublayer's output is added to: in a parallel block, which has no resid_mid, resid_pre
    for both.
    """
    middle = Site(write.layer, "resid_mid")
    return middle if write.kind == "mlp_out" and str(middle) in stored else Site(write.layer, "resid_pre")


def columns_beside(norm_sites: Sequence[str], kinds: Iterable[str]) -> tuple[NormColumn, ...]:
    """The columns that a capture stores in addition to L2, if a model has sites of these kinds.

    A pair is stored if both have norms, which its share of growth needs. A post-LN block adds mlp_out to a value that
    is not a site (resid_mid after its norm), and passes `normalized_resid_post` to the next one.
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
    """The names of statistics of these columns, and of derived quantities."""
    names = []
    for column in columns:
        names.append(column.name)
        if column.quantity == COSINE_TO_STREAM:
            names += [NormColumn(quantity, column.site).name for quantity in _DERIVED]
    return names


def with_derived(
    columns: Iterable[NormColumn], stored: Mapping[str, Values], norm_sites: Sequence[str]
) -> dict[str, Values]:
    """Computes derived quantities and returns them with the stored columns, by name of statistics."""
    found: dict[str, Values] = {}
    for column in columns:
        found[column.name] = stored[column.name]
        if column.quantity == COSINE_TO_STREAM:
            share, increase = _growth(column.site, stored, norm_sites)
            found[NormColumn(SHARE_OF_STREAM, column.site).name] = share
            found[NormColumn(RELATIVE_INCREASE, column.site).name] = increase
    return found


def statistics_of(quantity: str, site: Site, d_model: int) -> tuple[str, float]:
    """The name of the statistics that give a quantity, and its divisor."""
    scale = sqrt(d_model) if quantity in _SCALED else 1.0
    return NormColumn(_SCALED.get(quantity, quantity), site).name, scale


def read_columns(quantity: str, site: Site, norm_sites: Sequence[str]) -> list[str]:
    """The columns of norms.parquet from which a quantity is computed."""
    if quantity not in _DERIVED:
        return [NormColumn(_SCALED.get(quantity, quantity), site).name]
    stream = stream_of(site, norm_sites)
    return [str(site), str(stream), NormColumn(COSINE_TO_STREAM, site).name]


def token_values(
    quantity: str, site: Site, columns: Mapping[str, Values], norm_sites: Sequence[str], d_model: int
) -> Values:
    """Computes a quantity of each token from the columns of `read_columns`."""
    if quantity in _DERIVED:
        return _growth(site, columns, norm_sites)[_DERIVED.index(quantity)]
    name, scale = statistics_of(quantity, site, d_model)
    return columns[name] if scale == 1 else columns[name] / scale


def _growth(site: Site, columns: Mapping[str, Values], norm_sites: Sequence[str]) -> tuple[Values, Values]:
    """|w| / |x| and (|x + w| - |x|) / |x|, by the law of cosines; NaN if |x| is 0."""
    write, stream = columns[str(site)], columns[str(stream_of(site, norm_sites))]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = write.astype(np.float64) / stream
        squared = 1 + share * (2 * columns[NormColumn(COSINE_TO_STREAM, site).name].astype(np.float64) + share)
        increase = np.sqrt(np.maximum(squared, 0)) - 1
        return share.astype(np.float32), increase.astype(np.float32)
