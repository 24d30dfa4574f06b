"""How large a model's weights are, and what they make of random input."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from actstore import _checks
from actstore._answer import Answer, plain_rows
from actstore._errors import refused
from actstore._norms import line_plots
from actstore._transport.base import Backend
from actstore._view import glossary, markup
from actstore._view import text as _text
from actstore._view.plot import titled
from actstore_api.records.model import GetWeightNorms, GetWeightNormsAnswer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_SUBLAYERS = 24
Sublayer = Literal["attn", "mlp"]
# Of a text and of a run, by the contract.
LEFT_OUT = ("bos", "special")
_WRITTEN = "What sublayers write (root mean square)"


@dataclass(frozen=True, repr=False)
class WeightNorms(Answer):
    """Norms of a model's weights: a row for each matrix or vector, and for each head of it.

    Columns: layer (null for weights of the whole model), component (TransformerLens's name: W_Q, W_OV, W_in, ln1.w,
    ...), head, rows, columns, frobenius, spectral, frobenius_folded and spectral_folded (with the norm that the matrix
    reads through folded in; null if it reads through none).

    Attributes:
        sublayers: What attention and MLP write: layer, sublayer (attn, mlp), input (gaussian, normalized, text, run),
            expected (root mean square by formula; null if there is none), sampled, standard_error, and of MLPs
            active_expected and active_sampled, the share of active units. The formula assumes that every
            attention head attends to one token.
            The formula for an MLP behind a norm takes its input for Gaussian, which is right to the order of
            1 / d_model.
    """

    sublayers: pa.Table

    def of(self, component: str) -> pa.Table:
        """Return the rows of one component.

        Args:
            component: TransformerLens's name, such as `W_OV`.

        Raises:
            BadRequest: The model has no such component.
        """
        known = dict.fromkeys(self.table["component"].to_pylist())
        if component not in known:
            raise refused(f"there is no component {component!r}", "component", str(component), ", ".join(known))
        return self.table.filter(pc.equal(self.table["component"], component))

    def plot(self, ax: "Axes | None" = None, component: str = "W_OV", *, folded: bool = False) -> "Axes":
        """Draw Frobenius norms of a component over layers on a log axis: each head, and their root sum of squares.

        Args:
            ax: Axes to draw on. None: those of a new figure.
            component: TransformerLens's name, such as `W_OV`.
            folded: Draw the norms with the norm that the matrix reads through folded in.

        Returns:
            The axes.
        """
        column = "frobenius_folded" if _checks.switch(folded, "folded") else "frobenius"
        rows = self.of(component).to_pylist()
        title = f"{component} of {self.provenance.model}" + (", norm folded" if folded else "")
        return titled(line_plots.weights(ax, rows, column, component), title)

    def plot_sublayers(self, ax: "Axes | None" = None, sublayer: Sublayer = "mlp") -> "Axes":
        """Draw what a sublayer writes over layers on a log axis: sampled points, and the formula as a line.

        Args:
            ax: Axes to draw on. None: those of a new figure.
            sublayer: `attn` or `mlp`.

        Returns:
            The axes.
        """
        chosen = _checks.one_of(sublayer, "sublayer", get_args(Sublayer))
        rows = self.sublayers.filter(pc.equal(self.sublayers["sublayer"], chosen)).to_pylist()
        return titled(line_plots.sublayers(ax, rows), f"what {chosen} writes in {self.provenance.model}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**super().to_dict(), "sublayers": plain_rows(self.sublayers)}

    def __repr__(self) -> str:
        shown = self.sublayers.slice(0, SHOWN_SUBLAYERS)
        written = _text.grid(shown.column_names, shown.to_pylist())
        return "\n".join([super().__repr__(), "", _WRITTEN, written, *self._hidden()])

    def _repr_html_(self) -> str:
        shown = self.sublayers.slice(0, SHOWN_SUBLAYERS)
        grid = markup.grid(shown.column_names, shown.to_pylist(), glossary.SUBLAYERS)
        return super()._repr_html_() + markup.heading(_WRITTEN) + grid + "".join(map(markup.note, self._hidden()))

    def _hidden(self) -> list[str]:
        hidden = self.sublayers.num_rows - SHOWN_SUBLAYERS
        return [f"… {hidden:,} more rows in .sublayers"] if hidden > 0 else []

    def _title(self) -> str:
        return f"Norms of {len(self):,} weights of {self.provenance.model}"


def ask_weights(backend: Backend, question: GetWeightNorms) -> WeightNorms:
    """Asks for norms of weights. Where real input is read, its special tokens count nowhere."""
    found: GetWeightNormsAnswer = backend.ask(question)
    return WeightNorms(
        table=found.weights,
        sublayers=found.sublayers,
        provenance=found.provenance,
        excluded=LEFT_OUT if question.text is not None or question.stored is not None else (),
    )
