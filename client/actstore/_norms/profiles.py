"""Norms of the residual stream: their spread at each layer, and how they grow over layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from actstore import _checks
from actstore._answer import plain_rows
from actstore._errors import refused
from actstore._norms import heat_maps, line_plots
from actstore._norms.answer import SIZES, TOKEN, NormAnswer, origin
from actstore._norms.asking import growth_question
from actstore._norms.growth import Growth, ask_growth
from actstore._transport.base import Backend
from actstore_api.records.norm import FitGrowth, GetNormProfile, GetNormProfileAnswer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FITTED_LAYERS_MIN = 3  # what a fit needs
TITLES = {"l2": "L2 norms", "rms": "RMS", "centred_l2": "centred L2 norms"}


@dataclass(frozen=True, repr=False)
class NormProfile(NormAnswer):
    """A row a site, or a row for each of its groups: site (kind), layer, the group where rows are `by` one, tokens,
    non_finite, mean, standard_deviation, geometric_mean, minimum, maximum, a column `q0.5` for each quantile, and
    rank_error: by how much the rank of a quantile, or the share of a bin, may be off (0: exact, else that of sketches).

    `non_finite` counts tokens, excluded ones too, whose norm is infinite or no number; the others leave them out. A
    relative_increase stands beside its `bound`, the mean share of the stream: by the triangle inequality no write adds
    more to the stream's norm than its own. `histogram` (None where none was asked for): site, layer, low, high, count,
    rank_error. `from_statistics`: this is from the commits' statistics alone; neither sketches nor tokens' own norms
    were read. Of several runs, and by checkpoint, the first columns are revision and step, and each row is of one run.
    """

    run: str
    quantity: str
    by: str
    histogram: pa.Table | None
    from_statistics: bool
    fit: Callable[[FitGrowth], Growth] = field(compare=False)
    more_runs: tuple[str, ...] = ()

    def fit_growth(
        self,
        site: str = "resid_post",
        layers: tuple[int, int] | None = None,
        *,
        resamples: int = FitGrowth.resamples,
        seed: int = FitGrowth.seed,
    ) -> Growth:
        """Over the same run, tokens and quantity; `layers` is the first and last layer, both included.

        The interval of the rate is of `resamples` bootstrap resamples of sequences; 0: none.
        """
        if self.by == TOKEN:
            message = "growth is of means over a run, and not of single tokens"
            raise refused(message, "by", self.by, "run.norms().fit_growth()")
        if self.more_runs:
            allowed = "lab.checkpoints(runs).fit_growth(axis): an answer a checkpoint, or an answer a layer"
            raise refused(
                "growth of several runs is along one axis", "runs", f"{1 + len(self.more_runs)} runs", allowed
            )
        if self.quantity not in SIZES:
            raise refused("growth is of a measure of size", "quantity", self.quantity, ", ".join(SIZES))
        question = growth_question(
            (self.run,), FitGrowth.axis, site, layers, self.excluded, self.quantity, resamples, seed
        )
        return self.fit(question)

    @property
    def quantiles(self) -> tuple[str, ...]:
        """Names of the quantile columns, lowest first."""
        found = [name for name in self.table.column_names if name.startswith("q")]
        return tuple(sorted(found, key=lambda name: float(name[1:])))

    def plot(self, ax: "Axes | None" = None, fit: str | None = "resid_post") -> "Axes":
        """Norms over layers on a log axis: a line of means per site kind. By position, a heat map of means instead; of
        several checkpoints, a line each, of the kind that `fit` names.

        `fit` names the kind that has a band between its outer quantiles, and its fitted growth drawn over it where the
        profile has at least three layers of it; None draws neither.
        """
        if "step" in self.table.column_names:
            kind = drawn_kind(self.table["site"].to_pylist(), fit)
            ax = line_plots.by_checkpoint(ax, self._of_checkpoints(kind), self.quantity)
            return self._titled(ax, f"{self.quantity} of {kind}")
        if self.by == "position":
            ax = heat_maps.by_position(ax, self.table, self.quantity)
            return self._titled(ax, f"{self.quantity} of {self.table['site'][0]}")
        if self.by != "layer":
            raise refused(f"a profile by {self.by} has no plot", "by", self.by, "layer, position, token, checkpoint")
        fitted = self._fitted(fit) if fit is not None and self.quantity == "l2" else None
        ax = line_plots.by_layer(ax, self.table, self.quantity, self.quantiles, fit, fitted)
        return self._titled(ax, "norm of activations by layer")

    def plot_heatmap(self, ax: "Axes | None" = None, site: str = "resid_post") -> "Axes":
        """Of several checkpoints: means of a site kind, a row a layer and a column a checkpoint."""
        if "step" not in self.table.column_names:
            raise refused("this profile is of one checkpoint", "runs", self.run, "lab.checkpoints(runs).norms()")
        ax = heat_maps.by_checkpoint(ax, self._of_checkpoints(_checks.text(site, "site")), self.quantity)
        return self._titled(ax, f"{self.quantity} of {site}")

    def plot_histogram(self, ax: "Axes | None" = None, site: str = "resid_post") -> "Axes":
        """How the tokens of a site kind spread: a line a layer, on a log axis where all values are above 0."""
        if self.histogram is None:
            raise refused("this profile has no histogram", "histogram", "None", "run.norms(..., histogram=50)")
        bins = _of_kind(self.histogram, _checks.text(site, "site"), "the histogram has no")
        return self._titled(line_plots.histogram(ax, bins, self.quantity), f"{self.quantity} of {site}")

    def _of_checkpoints(self, kind: str) -> pa.Table:
        if "layer" not in self.table.column_names or self.by not in ("layer", "checkpoint"):
            raise refused(f"norms by {self.by} of checkpoints have no plot", "by", self.by, "layer, checkpoint")
        return _of_kind(self.table, kind, "there are no norms of")

    def _fitted(self, kind: str) -> line_plots.Curve | None:
        """The growth of a kind over all of its layers; None where these are too few for a fit."""
        layers = self.table.filter(pc.equal(self.table["site"], kind))["layer"]
        if len(layers) < FITTED_LAYERS_MIN:
            return None
        return self.fit_growth(kind, (pc.min(layers).as_py(), pc.max(layers).as_py()))._curve()

    def to_dict(self) -> dict[str, Any]:
        own = {"quantity": self.quantity, "by": self.by, "from_statistics": self.from_statistics}
        bins = {} if self.histogram is None else {"histogram": plain_rows(self.histogram)}
        return {**own, **super().to_dict(), **bins}

    def _title(self) -> str:
        what = TITLES.get(self.quantity, self.quantity)
        if self.more_runs:
            return f"{what} of {1 + len(self.more_runs)} checkpoints by {self.by}, {len(self):,} rows"
        return f"{what} of {len(self)} sites" if self.by == "layer" else f"{what} by {self.by}, {len(self):,} rows"


def ask_profile(backend: Backend, question: GetNormProfile) -> NormProfile:
    """Asks for a profile of norms, of one run or several."""
    found: GetNormProfileAnswer = backend.ask(question)
    run, *more_runs = question.runs
    return NormProfile(
        table=found.profile,
        run=run,
        quantity=question.quantity,
        by=question.by,
        histogram=found.histogram,
        from_statistics=found.from_statistics,
        fit=partial(ask_growth, backend),
        more_runs=tuple(more_runs),
        **origin(found),
    )


def _of_kind(table: pa.Table, kind: str, refusal: str) -> pa.Table:
    """The rows of a site kind, of which there have to be some."""
    rows = table.filter(pc.equal(table["site"], kind))
    if not len(rows):
        raise refused(f"{refusal} {kind!r}", "site", kind, sorted(set(table["site"].to_pylist())))
    return rows


def drawn_kind(kinds: Sequence[str], fit: str | None) -> str:
    """Chooses the site kind to draw: the one that is named, which has to be there, or resid_post, or else the first."""
    if fit is None or fit == "resid_post":
        return "resid_post" if "resid_post" in kinds else kinds[0]
    return fit
