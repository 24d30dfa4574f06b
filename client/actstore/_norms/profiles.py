"""Profiles of norms: their spread at each site, of one run or of several checkpoints side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from actstore import _checks
from actstore._answer import plain_rows
from actstore._errors import refused
from actstore._norms import heat_maps, line_plots
from actstore._norms.answer import TITLES, NormAnswer, origin
from actstore._norms.asking import NormGrouping
from actstore._norms.growth import Growth
from actstore._transport.base import Backend
from actstore_api.records.norm import GetNormProfile, GetNormProfileAnswer, NormQuantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class NormProfile(NormAnswer):
    """Norms over the tokens of a run: a row for each site, or for each of its groups, as `by` says.

    Columns: site (its kind), layer, the group (token_class, position or document) if rows are by one, tokens
    (that count), non_finite (tokens whose norm is infinite or NaN, excluded ones too; the other columns leave them
    out), mean, standard_deviation, geometric_mean, minimum, maximum, `q0.5` and the like (a column for each quantile),
    and rank_error (by how much the rank of a quantile, or the share of a bin, may be off; 0: exact, else the error of
    sketches). With relative_increase also bound: the mean share of the stream, which by the triangle inequality no
    increase exceeds.

    Attributes:
        run: Name of the run.
        quantity: What was measured of each token, such as `l2`.
        by: What a row is of.
        histogram: Columns site, layer, low, high, count and rank_error; None if none was asked for.
        from_statistics: Whether the statistics that are stored with each commit were enough. If not, sketches or the
            norms of single tokens were read.
    """

    run: str
    quantity: NormQuantity
    by: NormGrouping
    histogram: pa.Table | None
    from_statistics: bool

    @property
    def quantile_columns(self) -> tuple[str, ...]:
        """Names of the quantile columns, the lowest quantile first."""
        found = [name for name in self.table.column_names if name.startswith("q")]
        return tuple(sorted(found, key=lambda name: float(name[1:])))

    def plot(self, ax: "Axes | None" = None, *, site: str | None = None, growth: Growth | None = None) -> "Axes":
        """Draw norms over layers: a line of means for each site kind; by position, a heat map of means.

        Nothing is asked of the store for it.

        Args:
            ax: Axes to draw on. None: those of a new figure.
            site: The site kind to draw with a band between its lowest and highest quantile. None: `resid_post`.
            growth: A fit to draw over the means, as `run.fit_growth()` gives it. None: none.

        Returns:
            The axes.

        Raises:
            BadRequest: The rows are by site, token class or document.
        """
        if self.by == "position":
            ax = heat_maps.by_position(ax, self.table, self.quantity)
            return self._titled(ax, f"{self.quantity} of {self.table['site'][0]}")
        if self.by != "layer":
            raise refused(f"a profile by {self.by} has no plot", "by", self.by, "layer, position")
        fitted = None if growth is None else growth._curve()
        ax = line_plots.by_layer(ax, self.table, self.quantity, self.quantile_columns, site or "resid_post", fitted)
        return self._titled(ax, "norm of activations by layer")

    def plot_histogram(self, ax: "Axes | None" = None, *, site: str = "resid_post") -> "Axes":
        """Draw how the tokens' norms spread: a line for each layer, on a log axis if all values are above 0.

        Args:
            ax: Axes to draw on. None: those of a new figure.
            site: The site kind to draw.

        Returns:
            The axes.

        Raises:
            BadRequest: The profile was made without `histogram`, or the histogram has no such site.
        """
        if self.histogram is None:
            raise refused("this profile has no histogram", "histogram", "None", "run.norms(..., histogram=50)")
        bins = _of_kind(self.histogram, _checks.text(site, "site"), "the histogram has no")
        return self._titled(line_plots.histogram(ax, bins, self.quantity), f"{self.quantity} of {site}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        own = {"quantity": self.quantity, "by": self.by, "from_statistics": self.from_statistics}
        bins = {} if self.histogram is None else {"histogram": plain_rows(self.histogram)}
        return {**own, **super().to_dict(), **bins}

    def _title(self) -> str:
        what = TITLES.get(self.quantity, self.quantity)
        return f"{what} of {len(self)} sites" if self.by == "layer" else f"{what} by {self.by}, {len(self):,} rows"


@dataclass(frozen=True, repr=False)
class CheckpointNorms(NormProfile):
    """Norms of several checkpoints side by side: the rows of each one's profile, with its revision and step.

    The first columns are revision and step; then those of `NormProfile`. `run` is the first run.

    Attributes:
        more_runs: Names of the other runs.
    """

    more_runs: tuple[str, ...] = ()

    def plot(self, ax: "Axes | None" = None, *, site: str | None = None, growth: Growth | None = None) -> "Axes":
        """Draw norms of one site kind over layers: a line for each checkpoint, from dark to light over training.

        Args:
            ax: Axes to draw on. None: those of a new figure.
            site: The site kind to draw. None: `resid_post`, or else the first one.
            growth: A fit of one checkpoint's growth over layers, drawn over the means. None: none.

        Returns:
            The axes.

        Raises:
            BadRequest: The rows are not by layer, or there are none of the site.
        """
        kind = drawn_kind(self.table["site"].to_pylist(), site)
        fitted = None if growth is None else growth._curve()
        ax = line_plots.by_checkpoint(ax, self._rows_of(kind), self.quantity, fitted)
        return self._titled(ax, f"{self.quantity} of {kind}")

    def plot_heatmap(self, ax: "Axes | None" = None, *, site: str | None = None) -> "Axes":
        """Draw the means of one site kind, a row for each layer and a column for each checkpoint.

        Args:
            ax: Axes to draw on. None: those of a new figure.
            site: The site kind to draw. None: `resid_post`, or else the first one.

        Returns:
            The axes.

        Raises:
            BadRequest: The rows are not by layer, or there are none of the site.
        """
        kind = drawn_kind(self.table["site"].to_pylist(), site)
        ax = heat_maps.by_checkpoint(ax, self._rows_of(kind), self.quantity)
        return self._titled(ax, f"{self.quantity} of {kind}")

    def _rows_of(self, kind: str) -> pa.Table:
        if self.by != "layer":
            raise refused(f"norms by {self.by} of checkpoints have no plot", "by", self.by, "layer")
        return _of_kind(self.table, _checks.text(kind, "site"), "there are no norms of")

    def _title(self) -> str:
        what = TITLES.get(self.quantity, self.quantity)
        return f"{what} of {1 + len(self.more_runs)} checkpoints by {self.by}, {len(self):,} rows"


def ask_profile(backend: Backend, question: GetNormProfile, by: NormGrouping) -> NormProfile:
    """Asks for the profile of one run."""
    found: GetNormProfileAnswer = backend.ask(question)
    return NormProfile(
        table=found.profile,
        run=question.runs[0],
        quantity=question.quantity,
        by=by,
        histogram=found.histogram,
        from_statistics=found.from_statistics,
        **origin(found),
    )


def ask_checkpoints(backend: Backend, question: GetNormProfile, by: NormGrouping) -> CheckpointNorms:
    """Asks for the profiles of several runs, with a place in training even if there is only one."""
    asked = replace(question, by="checkpoint") if by == "layer" else question
    found = ask_profile(backend, asked, by)
    own = {item.name: getattr(found, item.name) for item in fields(found)}
    return CheckpointNorms(**own, more_runs=question.runs[1:])


def _of_kind(table: pa.Table, kind: str, refusal: str) -> pa.Table:
    """The rows of a site kind; an error if there are none."""
    rows = table.filter(pc.equal(table["site"], kind))
    if not len(rows):
        raise refused(f"{refusal} {kind!r}", "site", kind, sorted(set(table["site"].to_pylist())))
    return rows


def drawn_kind(kinds: Sequence[str], site: str | None) -> str:
    """Chooses the site kind to draw: the one that is named, or resid_post, or else the first."""
    if site is None:
        return "resid_post" if "resid_post" in kinds else kinds[0]
    return site
