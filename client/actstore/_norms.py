"""L2 norms of the residual stream: their spread at each layer, and the rate at which they grow."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actstore import _arguments
from actstore._tables import Answer

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Growth(Answer):
    """A least-squares line through log(mean L2 norm) over the layer index.

    `rate` is the factor by which the mean norm grows in a layer; `r_squared` the share of the variance of
    log(mean norm) that the line explains; `layers` the first and last layer of the fit. The table is `points`: layer,
    mean, fitted, ratio (mean over the mean one layer before).
    """

    site: str
    layers: tuple[int, int]
    rate: float
    r_squared: float

    @property
    def points(self) -> pa.Table:
        return self.table

    @property
    def label(self) -> str:
        first, last = self.layers
        return f"{self.site}: x{self.rate:.4g} a layer (R² {self.r_squared:.3f}, layers {first} to {last})"

    def to_dict(self) -> dict[str, Any]:
        fit = {"site": self.site, "layers": list(self.layers), "rate": self.rate, "r_squared": self.r_squared}
        return {**fit, **super().to_dict()}

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Mean norms and the fitted line over layers, on a log axis."""
        from actstore import _plots

        return _plots.growth(self, ax)

    def _title(self) -> str:
        return f"Growth of {self.label}"


@dataclass(frozen=True, repr=False)
class NormProfile(Answer):
    """A row a site: site (kind), layer, tokens, non_finite, mean, standard_deviation, geometric_mean, minimum, maximum
    and a column `q0.5` for each quantile.

    `non_finite` counts tokens, excluded ones too, whose norm is infinite or no number; the others leave them out.
    """

    fit: Callable[[str, tuple[int, int] | None], Growth] = field(compare=False)

    def fit_growth(self, site: str = "resid_post", layers: tuple[int, int] | None = None) -> Growth:
        """Over the same run and tokens; `layers` is the first and last layer, both included."""
        return self.fit(_arguments.text(site, "site"), _arguments.layer_range(layers))

    @property
    def quantiles(self) -> tuple[str, ...]:
        """Names of the quantile columns, lowest first."""
        found = [name for name in self.table.column_names if name.startswith("q")]
        return tuple(sorted(found, key=lambda name: float(name[1:])))

    def plot(self, ax: "Axes | None" = None, fit: str | None = "resid_post") -> "Axes":
        """Norms over layers on a log axis: a line of means per site kind.

        `fit` names the kind that has a band between its outer quantiles, and its fitted growth drawn over it where the
        profile has at least three layers of it; None draws neither.
        """
        from actstore import _plots

        return _plots.norm_profile(self, ax, fit)

    def _title(self) -> str:
        return f"L2 norms of {len(self)} sites"
