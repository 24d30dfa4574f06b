"""Answers about a changed model: the text that it writes when it is steered, and its loss without each part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from actstore import _checks
from actstore._answer import Answer, plain_rows
from actstore._models import plots
from actstore._view import glossary, markup
from actstore._view import text as _text
from actstore._view.plot import titled
from actstore_api.records.model import SiteAblation as AblationKind
from actstore_api.records.model import SteeringMode
from actstore_api.records.terms import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Which model wrote a text.
Writer = Literal["steered", "unsteered"]
SHOWN_TOP = 10


@dataclass(frozen=True, repr=False)
class SteeredText(Answer):
    """A text that a model wrote while it was steered, and the one that it wrote by itself.

    It has one row for each generated token.

    Columns are generated (steered, unsteered: which model wrote it), position, token, text, its natural log-probability
    under each model (steered, unsteered), and kl (nats, of the steered prediction from the unsteered one).

    Attributes:
        steered_text: What the steered model wrote.
        unsteered_text: What the model wrote by itself.
        mode: What was done along the direction: add, set or project_out.
        site: Where it was steered.
        strength: How far, in the units of the site's own vectors. None of project_out.
        mean_norm: The mean L2 norm at the site over the prompt's tokens.
        prompt: The prompt: position, token, text, special, steered (whether it was).
    """

    steered_text: str
    unsteered_text: str
    mode: SteeringMode
    site: str
    strength: float | None
    mean_norm: float
    prompt: pa.Table

    def written(self, by: Writer) -> Answer:
        """The rows of the tokens that one of the models wrote.

        Args:
            by: "steered" or "unsteered".
        """
        _checks.one_of(by, "by", get_args(Writer))
        rows = self.table.filter(pc.equal(self.table["generated"], by))
        return Answer(table=rows, provenance=self.provenance, excluded=self.excluded)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw how far the steered prediction is from the unsteered one, along both texts.

        Args:
            ax: Where to draw. None: a figure of its own.
        """
        ax = plots.steering(ax, {by: list(self.written(by)) for by in get_args(Writer)})
        return titled(ax, f"{self.provenance.model} steered at {self.site}")

    def to_dict(self) -> dict[str, Any]:
        """All of this as plain values, ready for JSON."""
        own = {name: getattr(self, name) for name in ("steered_text", "unsteered_text", "mode", "site")}
        numbers = {"strength": self.strength, "mean_norm": self.mean_norm}
        return {**own, **numbers, "prompt": self.prompt.to_pylist(), **super().to_dict()}

    def __repr__(self) -> str:
        texts = [f"  {by}: {one_line(text)}" for by, text in self._texts()]
        return "\n".join([self._title(), *texts, *self._notes()])

    def _repr_html_(self) -> str:
        """Both texts, each token tinted by how much likelier the steered model holds it."""
        strips = "".join(markup.heading(by) + f"<p>{self._strip(by)}</p>" for by, _ in self._texts())
        return markup.heading(self._title()) + strips + "".join(map(markup.note, self._notes()))

    def _strip(self, by: Writer) -> str:
        rows = list(self.written(by))
        changes = [row["steered"] - row["unsteered"] for row in rows]
        titles = [
            f"{_text.visible(row['text'])} | log-probability steered {row['steered']:.4g}, unsteered "
            f"{row['unsteered']:.4g} | kl {row['kl']:.3g}"
            for row in rows
        ]
        return markup.strip([row["text"] for row in rows], changes, titles, max(map(abs, changes), default=0.0))

    def _texts(self) -> list[tuple[Writer, str]]:
        return [("steered", self.steered_text), ("unsteered", self.unsteered_text)]

    def _title(self) -> str:
        if self.strength is None:
            how = "without what is along the direction"
        else:
            share = f", {self.strength / self.mean_norm:.3g} of its mean norm" if self.mean_norm else ""
            how = f"{self.mode} {self.strength:.4g} along the direction{share}"
        return f"{self.provenance.model} steered at {self.site}: {how}"

    def _notes(self) -> list[str]:
        return super()._notes()[-1:]


@dataclass(frozen=True, repr=False)
class SiteAblation(Answer):
    """What a model loses without each of its parts: one row for each part, taken away alone.

    Columns are site, kind, layer, head, loss (mean cross-entropy in nats) and change, the loss less that of the whole
    model: above 0, the part helps to predict these texts.

    Attributes:
        ablation: What took the parts' place: zero, mean or resample.
        loss: The whole model's loss.
        counted: Number of tokens that the losses are means over.
        by_text: The whole model's loss by text: text (its number), tokens, loss.
    """

    ablation: AblationKind
    loss: float
    counted: int
    by_text: pa.Table

    def top(self, k: int = SHOWN_TOP) -> Answer:
        """The parts without which the loss changes most, either way.

        Args:
            k: How many parts at most.
        """
        order = pc.sort_indices(pc.negate(pc.abs(self.table["change"])))
        chosen = self.table.take(order[: _checks.count(k, "k")])
        return Answer(table=chosen, provenance=self.provenance, excluded=self.excluded)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw layers by parts, coloured by the change of the loss.

        Args:
            ax: Where to draw. None: a figure of its own.
        """
        title = f"{self.provenance.model} without each part ({self.ablation}), loss {self.loss:.4g}"
        return titled(plots.ablation(ax, list(self)), title)

    def to_dict(self) -> dict[str, Any]:
        """All of this as plain values, ready for JSON."""
        own = {"ablation": self.ablation, "loss": self.loss, "counted": self.counted}
        return {**own, "by_text": plain_rows(self.by_text), **super().to_dict()}

    def _definitions(self) -> Mapping[str, str]:
        return glossary.SITE_ABLATION

    def _shown(self) -> list[dict[str, Any]]:
        return list(self.top(len(self)).table.slice(0, SHOWN_TOP * 2).to_pylist())

    def _title(self) -> str:
        return (
            f"{self.provenance.model} without each of {len(self):,} parts ({self.ablation}): loss {self.loss:.4g} over "
            f"{self.counted:,} tokens with all of them"
        )
