"""Norms of several checkpoints in pictures: a line each over layers, and layers over checkpoints as heat maps."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actstore._errors import refused
from actstore._view.plot import log_ticks, pyplot, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from actstore._norms.profile import NormProfile
    from actstore._norms.separability import Separability


def lines(profile: "NormProfile", ax: "Axes | None", site: str) -> "Axes":
    rows = _of_site(profile, site)
    ax = pyplot().subplots(figsize=(7, 4.5), layout="constrained")[1] if ax is None else ax
    steps = list(dict.fromkeys(rows.sort_by("step")["step"].to_pylist()))
    for number, step in enumerate(steps):
        own = rows.filter(pc.equal(rows["step"], step))
        colour = pyplot().cm.viridis(0.9 * number / max(1, len(steps) - 1))
        ax.plot(own["layer"].to_pylist(), own["mean"].to_pylist(), "o-", color=colour, label=f"step {step:g}")
    if pc.min(rows["mean"]).as_py() > 0:
        ax.set_yscale("log")
        log_ticks(ax, integers=True)
    ax.set_xlabel("layer")
    ax.set_ylabel(f"mean {profile.quantity}")
    ax.legend(fontsize=8)
    return _titled(ax, f"{profile.quantity} of {site}", profile)


def heatmap(profile: "NormProfile", ax: "Axes | None", site: str) -> "Axes":
    from matplotlib.colors import LogNorm

    rows = _of_site(profile, site)
    scale = LogNorm() if pc.min(rows["mean"]).as_py() > 0 else None
    ax = _cells(rows, "mean", ax, scale, "viridis", f"mean {profile.quantity}")
    return _titled(ax, f"{profile.quantity} of {site}", profile)


def interaction(answer: "Separability", ax: "Axes | None") -> "Axes":
    """Colours are of log(factor), as far below 1 as above."""
    from matplotlib.colors import LogNorm

    far = max(1.01, float(np.exp(np.abs(np.log(answer.table["factor"].to_numpy())).max())))
    ax = _cells(answer.table, "factor", ax, LogNorm(1 / far, far), "RdBu_r", "mean over product")
    bar = ax.images[0].colorbar
    if bar is not None:
        bar.set_ticks([1 / far, 1, far], labels=[f"{tick:.3g}" for tick in (1 / far, 1, far)], minor=False)
        bar.minorticks_off()
    return _titled(ax, f"{answer.site} over layer times checkpoint", answer)


def _cells(rows: pa.Table, column: str, ax: "Axes | None", scale: Any, colours: str, label: str) -> "Axes":
    """Checkpoints stand side by side, whatever lies between their steps; blank where there is no number."""
    layers, steps = (sorted(set(rows[name].to_pylist())) for name in ("layer", "step"))
    values = np.full((len(layers), len(steps)), np.nan)
    for row in rows.to_pylist():
        values[layers.index(row["layer"]), steps.index(row["step"])] = row[column]
    ax = pyplot().subplots(figsize=(7, 3.8), layout="constrained")[1] if ax is None else ax
    image = ax.imshow(values, aspect="auto", origin="lower", norm=scale, cmap=colours, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label=label)
    ax.set_xticks(range(len(steps)), [f"{step:g}" for step in steps])
    ax.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    ax.set_xlabel("step of training")
    ax.set_ylabel("layer")
    return ax


def _of_site(profile: "NormProfile", site: str) -> pa.Table:
    if "layer" not in profile.table.column_names or profile.by not in ("layer", "checkpoint"):
        raise refused(f"norms by {profile.by} of checkpoints have no plot", "by", profile.by, "layer, checkpoint")
    rows = profile.table.filter(pc.equal(profile.table["site"], site))
    if not len(rows):
        raise refused(f"there are no norms of {site!r}", "site", site, sorted(set(profile.table["site"].to_pylist())))
    return rows


def _titled(ax: "Axes", what: str, answer: "NormProfile | Separability") -> "Axes":
    return titled(ax, f"{what} ({answer.left_out})", answer.warnings)
