"""Whether layer and step of training change a norm apart from each other."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from actstore._norms import heat_maps
from actstore._norms.answer import NormAnswer, origin
from actstore._norms.layers import layers_of
from actstore._transport.base import Backend
from actstore_api.records.norm import GetSeparability, GetSeparabilityAnswer, NormQuantity, SeparabilityVerdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VERDICTS = {
    "separable": "separable: growth along one axis is the same at every place on the other",
    "partly": "separable in part: growth along one axis depends somewhat on the place on the other",
    "inseparable": "not separable: growth along one axis depends on the place on the other",
}


@dataclass(frozen=True, repr=False)
class Separability(NormAnswer):
    """Whether the mean norm is a factor of the layer times a factor of the checkpoint.

    It is a two-way analysis of variance without repeats: log(mean norm) = mean + layer + checkpoint + rest. A high
    explained share is not enough: if norms grow a lot along one axis, that axis alone explains almost everything.

    ============  ====================================================================================================
    verdict       condition
    ============  ====================================================================================================
    separable     The product of the two factors is typically off by less than 5 %.
    partly        It is off by more, and leaves less than a quarter of the squares that the lesser axis explains.
    inseparable   It is off by more, and leaves a quarter or more.
    ============  ====================================================================================================

    Columns: layer, revision, step, mean, fitted (the product) and factor (mean over fitted).

    Attributes:
        site: The site kind.
        layers: The layers that were compared.
        quantity: What was measured of each token, such as `l2`.
        layer_share: Share of the squares about the mean that the layer explains.
        checkpoint_share: Share that the checkpoint explains.
        interaction_share: Share that is left. The three shares add up to 1.
        explained: Share that layer and checkpoint explain together.
        rank_one: Share of the first singular value in the squared singular values of the norms; 1 for a product.
        miss: Factor by which the product is typically off; 1 for a product.
        verdict: See above.
    """

    site: str
    layers: tuple[int, ...]
    quantity: NormQuantity
    layer_share: float
    checkpoint_share: float
    interaction_share: float
    explained: float
    rank_one: float
    miss: float
    verdict: SeparabilityVerdict

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw where the product of the two factors is off: layers over checkpoints, in colors centered at 1.

        Args:
            ax: Axes to draw on. None: those of a new figure.

        Returns:
            The axes.
        """
        return self._titled(heat_maps.interaction(ax, self.table), f"{self.site} over layer times checkpoint")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        own = [item.name for item in fields(self) if item.name not in ("table", "provenance", "excluded")]
        return {**{name: getattr(self, name) for name in own}, **super().to_dict()}

    def _title(self) -> str:
        return f"{self.site}, layers {self.layers[0]} to {self.layers[-1]}: {VERDICTS[self.verdict]}"

    def _notes(self) -> list[str]:
        shares = (
            f"of log {self.quantity} the layer explains {self.layer_share:.1%}, the checkpoint "
            f"{self.checkpoint_share:.1%}, both together {self.explained:.1%}; rank one {self.rank_one:.2%}; a product "
            f"of the two is typically off by x{self.miss:.3g}"
        )
        return [shares, *super()._notes()]


def ask_separability(backend: Backend, question: GetSeparability) -> Separability:
    """Asks for an analysis of separability."""
    found: GetSeparabilityAnswer = backend.ask(question)
    return Separability(
        table=found.cells,
        site=found.site,
        layers=layers_of(found.layers),
        quantity=found.quantity,
        layer_share=found.layer_share,
        checkpoint_share=found.checkpoint_share,
        interaction_share=found.interaction_share,
        explained=found.explained,
        rank_one=found.rank_one,
        miss=found.miss,
        verdict=found.verdict,
        **origin(found),
    )
