"""What changed when one activation was replaced: a row a cell."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from actstore import _arguments
from actstore._tables import Answer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_CELLS = 10


@dataclass(frozen=True, repr=False)
class Sweep(Answer):
    """Tidy: direction, site, layer, position, head (null unless z), token, logit_difference, normalised.

    denoise puts the clean activation into the corrupt run, noise the corrupt one into the clean run. The logit
    difference is logit(clean answer) - logit(corrupt answer) at the last position; `normalised` is 0 at the unpatched
    base run and 1 at the source run. `prompt_tokens` has position, clean, corrupt: the texts of the prompts' tokens.
    """

    prompt_tokens: pa.Table
    clean_logit_difference: float
    corrupt_logit_difference: float
    clean_answer: str = field(default="")
    corrupt_answer: str = field(default="")

    @property
    def tokens(self) -> dict[str, list[str]]:
        """The texts of the tokens of both prompts, by `clean` and `corrupt`."""
        return {name: self.prompt_tokens.column(name).to_pylist() for name in ("clean", "corrupt")}

    def top(self, n: int = SHOWN_CELLS, direction: str | None = None) -> Answer:
        """The n cells that move the answer furthest from the base run, by absolute normalised logit difference."""
        table = self.table
        if direction is not None:
            _arguments.choices(direction, "direction", _arguments.DIRECTIONS)
            table = table.filter(pc.equal(table["direction"], direction))
        order = pc.sort_indices(pc.negate(pc.abs(table["normalised"])))
        chosen = table.take(order[: _arguments.count(n, "n")])
        return Answer(table=chosen, provenance=self.provenance, excluded=self.excluded)

    def plot(self, z_position: int | None = None) -> "Figure":
        """Heat maps of `normalised`: a row a direction, a column a site; layer 0 on top, the base run's tokens across.

        z has heads across instead, and shows each head at the position where it moves the answer furthest (by absolute
        value, sign kept), or at `z_position`. All panels share limits symmetric about 0; colours run RdBu_r, red
        positive. Tick labels of positions where the prompts differ are bold.
        """
        from actstore import _sweep_plot

        return _sweep_plot.draw(self, z_position)

    def to_dict(self) -> dict[str, Any]:
        return {
            "clean_logit_difference": self.clean_logit_difference,
            "corrupt_logit_difference": self.corrupt_logit_difference,
            "tokens": self.tokens,
            "rows": self.table.to_pylist(),
            "excluded": list(self.excluded),
            "provenance": asdict(self.provenance),
        }

    def _title(self) -> str:
        return (
            f"Sweep of {len(self):,} cells; logit difference {self.clean_logit_difference:.4g} clean, "
            f"{self.corrupt_logit_difference:.4g} corrupt; the cells that move it furthest:"
        )

    def _shown(self) -> list[dict[str, Any]]:
        return self.top(SHOWN_CELLS)._shown()

    def _notes(self) -> list[str]:
        return super()._notes()[-1:]
