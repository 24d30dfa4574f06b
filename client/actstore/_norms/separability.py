"""Whether layer and step of training change a norm apart from each other."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from actstore._norms import heat_maps
from actstore._norms.answer import NormAnswer, origin
from actstore._norms.layers import first_and_last
from actstore._transport.base import Backend
from actstore_api.records.norm import GetSeparability, GetSeparabilityAnswer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VERDICTS = {
    "separable": "separable: growth along one axis is the same at every place on the other",
    "partly": "separable in part: growth along one axis depends somewhat on the place on the other",
    "inseparable": "not separable: growth along one axis depends on the place on the other",
}


@dataclass(frozen=True, repr=False)
class Separability(NormAnswer):
    """Of log(mean norm) = mean + layer + checkpoint + what is left, a two-way analysis of variance without repeats.

    `layer_share`, `checkpoint_share` and `interaction_share` are of the squares about the mean and add up to 1;
    `explained` is the first two. `rank_one` is the first singular value's share of the squared singular values of the
    norms themselves, and 1 for a product of two factors, as `miss` is: the factor by which that product is typically
    off. Shares do not tell alone: growth by much over one axis explains nearly all of any table. So the `verdict` is
    separable where the product misses by less than 5 %, inseparable where it leaves a quarter or more of the squares
    that the lesser axis explains, and partly else.

    The table is its cells: layer, revision, step, mean, fitted (the product) and factor (mean over fitted).
    """

    site: str
    layers: tuple[int, int]
    quantity: str
    layer_share: float
    checkpoint_share: float
    interaction_share: float
    explained: float
    rank_one: float
    miss: float
    verdict: str

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Where the product of the two factors is off: layers over checkpoints, centred at 1."""
        return self._titled(heat_maps.interaction(ax, self.table), f"{self.site} over layer times checkpoint")

    def to_dict(self) -> dict[str, Any]:
        own = [item.name for item in fields(self) if item.name not in ("table", "provenance", "excluded")]
        return {**{name: getattr(self, name) for name in own}, **super().to_dict()}

    def _title(self) -> str:
        return f"{self.site}, layers {self.layers[0]} to {self.layers[1]}: {VERDICTS[self.verdict]}"

    def _notes(self) -> list[str]:
        shares = (
            f"of log {self.quantity} the layer explains {self.layer_share:.1%}, the checkpoint "
            f"{self.checkpoint_share:.1%}, both together {self.explained:.1%}; rank one {self.rank_one:.2%}; a product "
            f"of the two is typically off by x{self.miss:.3g}"
        )
        return [shares, *super()._notes()]


def ask_separability(backend: Backend, question: GetSeparability) -> Separability:
    """Asks for an analysis of separability. Its layers are the first and the last one, both included."""
    found: GetSeparabilityAnswer = backend.ask(question)
    return Separability(
        table=found.cells,
        site=found.site,
        layers=first_and_last(found.layers),
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
