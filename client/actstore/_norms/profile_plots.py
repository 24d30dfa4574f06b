"""Profiles of norms in pictures that are not lines over layers: by position, and as histograms."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actstore._errors import refused
from actstore._view.plot import pyplot, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from actstore._norms.profile import NormProfile


def heatmap(profile: "NormProfile", ax: "Axes | None") -> "Axes":
    """Means, a row a layer and a column a position, of one site kind; blank where no token counts."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    kinds = sorted(set(profile.table["site"].to_pylist()))
    if len(kinds) != 1:
        raise refused("a heat map is of one site kind", "sites", kinds, "run.norms('resid_post', by='position')")
    layers, positions = (np.array(profile.table[name].to_pylist()) for name in ("layer", "position"))
    means = np.full((layers.max() + 1, positions.max() + 1), np.nan)
    means[layers, positions] = profile.table["mean"].to_pylist()
    ax = pyplot().subplots(figsize=(8, 3.5), layout="constrained")[1] if ax is None else ax
    first = layers.min()
    extent = (-0.5, positions.max() + 0.5, first - 0.5, layers.max() + 0.5)
    scale = LogNorm() if np.nanmin(means) > 0 else None
    image = ax.imshow(means[first:], aspect="auto", origin="lower", extent=extent, norm=scale, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label=f"mean {profile.quantity}")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("position")
    ax.set_ylabel("layer")
    return _titled(ax, profile, kinds[0])


def histogram(profile: "NormProfile", bins: pa.Table, site: str, ax: "Axes | None") -> "Axes":
    rows = bins.filter(pc.equal(bins["site"], site))
    if not len(rows):
        raise refused(f"the histogram has no {site!r}", "site", site, sorted(set(bins["site"].to_pylist())))
    ax = pyplot().subplots(figsize=(7, 4.5), layout="constrained")[1] if ax is None else ax
    layers = sorted(set(rows["layer"].to_pylist()))
    for layer in layers:
        own = rows.filter(pc.equal(rows["layer"], layer)).to_pydict()
        shade = 0.9 * layers.index(layer) / max(1, len(layers) - 1)
        edges = [*own["low"], own["high"][-1]]
        ax.stairs(own["count"], edges, color=pyplot().cm.viridis(shade), label=f"layer {layer}")
    if pc.min(rows["low"]).as_py() > 0:
        ax.set_xscale("log")
    ax.set_xlabel(profile.quantity)
    ax.set_ylabel("tokens")
    ax.legend(fontsize=8)
    return _titled(ax, profile, site)


def _titled(ax: "Axes", profile: "NormProfile", site: str) -> "Axes":
    return titled(ax, f"{profile.quantity} of {site} ({profile.left_out})", profile.warnings)
