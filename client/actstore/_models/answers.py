"""A model's live answers about a text: its tokens, its attention, and what its layers would predict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from actstore import _checks
from actstore._answer import Answer, plain_rows
from actstore._errors import refused
from actstore._models import plots
from actstore._view import glossary, markup
from actstore._view import text as _text
from actstore._view.plot import titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is measured of a head's attention in a text.
AttentionMeasure = Literal[
    "entropy", "distance", "previous_token", "first_token", "current_token", "duplicate_token", "induction"
]
# What a head is scored by on random tokens that come twice.
InductionScore = Literal["induction", "duplicate_token", "previous_token"]
# What a lens can be coloured by.
LensMeasure = Literal["probability", "entropy", "kl", "target_log_probability"]
# The columns of the likeliest tokens that make a grid.
TopColumn = Literal["token", "text", "logit", "probability"]
SHOWN_TOP = 10


@dataclass(frozen=True, repr=False)
class TextTokens(Answer):
    """The tokens that a model reads: one row each, with position, token (its id), text, special (BOS, too)."""

    @property
    def ids(self) -> list[int]:
        """The ids of all tokens, which every live question takes in place of the text."""
        found: list[int] = self.table["token"].to_pylist()
        return found

    def _title(self) -> str:
        return f"{len(self):,} tokens of {self.provenance.model}"


@dataclass(frozen=True, repr=False)
class Attention(Answer):
    """Where heads attend in a text: one row for each head, with layer, head and what is measured of its attention.

    entropy (nats) and distance (tokens) are means over queries. The others are shares of all the head's attention:
    previous_token, first_token, current_token, duplicate_token (earlier occurrences of the query's own token) and
    induction (the tokens after those).

    Attributes:
        tokens: The text: position, token (its id), text, special.
        patterns: Every weight: layer, head, query, key, weight. No rows unless they were asked for.
    """

    tokens: pa.Table
    patterns: pa.Table

    def pattern(self, layer: int, head: int) -> NDArray[np.float32]:
        """The attention weights of one head.

        Args:
            layer: The head's layer.
            head: The head's number in it.

        Returns:
            Weights [query, key]; each row adds up to 1.

        Raises:
            BadRequest: Where patterns were not asked for, or not of this head.
        """
        if not self.patterns.num_rows:
            raise refused("patterns were not asked for", "patterns", "False", "True, in the question")
        layer, head = _checks.count(layer, "layer"), _checks.count(head, "head")
        there = pc.and_(pc.equal(self.patterns["layer"], layer), pc.equal(self.patterns["head"], head))
        rows = self.patterns.filter(there)
        if not rows.num_rows:
            heads = sorted({(row["layer"], row["head"]) for row in self})
            raise refused(f"no pattern of layer {layer}, head {head}", "head", f"({layer}, {head})", heads)
        found = np.zeros((len(self.tokens), len(self.tokens)), np.float32)
        found[rows["query"].to_numpy(), rows["key"].to_numpy()] = rows["weight"].to_numpy()
        return found

    def top(self, measure: AttentionMeasure, k: int = SHOWN_TOP) -> Answer:
        """The heads with most of a measure.

        Args:
            measure: Which column.
            k: How many heads at most.
        """
        return _largest(self, _checks.one_of(measure, "measure", get_args(AttentionMeasure)), k)

    def plot(self, ax: "Axes | None" = None, measure: AttentionMeasure = "entropy") -> "Axes":
        """Draw layers by heads, coloured by a measure.

        Args:
            ax: Where to draw. None: a figure of its own.
            measure: Which column.
        """
        _checks.one_of(measure, "measure", get_args(AttentionMeasure))
        return titled(plots.heads(ax, list(self), measure), f"{self.provenance.model}: {measure}")

    def plot_pattern(self, layer: int, head: int, ax: "Axes | None" = None) -> "Axes":
        """Draw the attention weights of one head, queries by keys, under their tokens.

        Args:
            layer: The head's layer.
            head: The head's number in it.
            ax: Where to draw. None: a figure of its own.
        """
        ax = plots.pattern(ax, self.pattern(layer, head), self.tokens["text"].to_pylist())
        return titled(ax, f"{self.provenance.model}: attention of head {layer}.{head}")

    def to_dict(self) -> dict[str, Any]:
        """All of this as plain values, ready for JSON."""
        more = {"patterns": plain_rows(self.patterns)} if self.patterns.num_rows else {}
        return {"tokens": self.tokens.to_pylist(), **more, **super().to_dict()}

    def _definitions(self) -> Mapping[str, str]:
        return glossary.ATTENTION

    def _title(self) -> str:
        return f"Attention of {len(self):,} heads of {self.provenance.model} over {len(self.tokens):,} tokens"


@dataclass(frozen=True, repr=False)
class InductionScores(Answer):
    """Which heads do induction on random tokens that come twice.

    It has one row for each head, with layer, head and its scores.

    A score is the mean weight of the second occurrence's queries: on the token after the first occurrence (induction),
    on the first occurrence (duplicate_token), or on the token before the query (previous_token).

    Attributes:
        repeated: How many tokens came twice.
        loss_first: The model's mean cross-entropy of these tokens but the first, in nats, the first time.
        loss_second: The same for the second time: much less, if the model does induction.
    """

    repeated: int
    loss_first: float
    loss_second: float

    def top(self, score: InductionScore = "induction", k: int = SHOWN_TOP) -> Answer:
        """The heads with most of a score.

        Args:
            score: Which column.
            k: How many heads at most.
        """
        return _largest(self, _checks.one_of(score, "score", get_args(InductionScore)), k)

    def plot(self, ax: "Axes | None" = None, score: InductionScore = "induction") -> "Axes":
        """Draw layers by heads, coloured by a score.

        Args:
            ax: Where to draw. None: a figure of its own.
            score: Which column.
        """
        _checks.one_of(score, "score", get_args(InductionScore))
        return titled(plots.heads(ax, list(self), score), f"{self.provenance.model}: {score}")

    def to_dict(self) -> dict[str, Any]:
        """All of this as plain values, ready for JSON."""
        own = {"repeated": self.repeated, "loss_first": self.loss_first, "loss_second": self.loss_second}
        return {**own, **super().to_dict()}

    def _definitions(self) -> Mapping[str, str]:
        return glossary.INDUCTION

    def _title(self) -> str:
        return (
            f"{self.provenance.model} on {self.repeated} random tokens that come twice: loss {self.loss_first:.4g} the "
            f"first time, {self.loss_second:.4g} the second"
        )


@dataclass(frozen=True, repr=False)
class TextLens(Answer):
    """What each layer would predict at each position of a text: one row for each layer and position.

    Columns are layer, position, target (the true next token, or the one that was named), target_text, target_rank
    (from 1), target_log_probability (natural), entropy and kl (nats, of the model's output from the layer's).

    Attributes:
        site: The residual stream that was read.
        tops: The likeliest tokens: layer, position, rank (from 1), token, text, logit, probability.
        tokens: The text: position, token (its id), text, special.
    """

    site: str
    tops: pa.Table
    tokens: pa.Table

    def top(self, position: int, layer: int | None = None) -> list[dict[str, Any]]:
        """The likeliest tokens after a position, likeliest first.

        Args:
            position: A position of the text, from 0 with BOS counted.
            layer: Whose prediction. None: the last layer's.

        Raises:
            BadRequest: For a layer or position that the lens does not have.
        """
        chosen = self.layers[-1] if layer is None else layer
        if chosen not in self.layers:
            raise refused(f"the lens has no layer {layer!r}", "layer", repr(layer), self.layers)
        if position not in range(len(self.tokens)):
            raise refused(
                f"the text has no position {position!r}", "position", repr(position), f"0..{len(self.tokens) - 1}"
            )
        return [row for row in self.tops.to_pylist() if (row["layer"], row["position"]) == (chosen, position)]

    @property
    def layers(self) -> list[int]:
        """The layers that predict, in order."""
        return list(dict.fromkeys(self.table.column("layer").to_pylist()))

    def grid(self, column: str) -> NDArray[Any]:
        """A column as an array [layer, position].

        Args:
            column: A column of the table; or of `tops` (token, text, logit, probability), and then the likeliest
                token's.
        """
        if column in self.table.column_names:
            values = self.table[column].to_pylist()
        else:
            _checks.one_of(column, "column", get_args(TopColumn))
            values = self.tops.filter(pc.equal(self.tops["rank"], 1))[column].to_pylist()
        return np.array(values, object if column.endswith("text") else None).reshape(len(self.layers), -1)

    def plot(self, ax: "Axes | None" = None, column: LensMeasure = "probability") -> "Axes":
        """Draw layers over tokens: each cell has its likeliest next token, in the colour of a column.

        Args:
            ax: Where to draw. None: a figure of its own.
            column: What the colour says.
        """
        _checks.one_of(column, "column", get_args(LensMeasure))
        label = column if column == "probability" else f"{column}, nats"
        values, texts = self.grid(column).astype(np.float64), self.tokens["text"].to_pylist()
        ax = plots.lens(ax, values, self.grid("text"), self.layers, texts, label)
        return titled(ax, f"{self.provenance.model}: likeliest next token by layer, at {self.site}")

    def to_dict(self) -> dict[str, Any]:
        """All of this as plain values, ready for JSON."""
        more = {"tops": plain_rows(self.tops), "tokens": self.tokens.to_pylist()}
        return {"site": self.site, **more, **super().to_dict()}

    def __repr__(self) -> str:
        return "\n".join([self._title(), _text.grid(self._columns(), self._by_token()), *self._notes()])

    def _repr_html_(self) -> str:
        """The likeliest token of each layer, tinted by its probability; the last layer on top, as in plots."""
        head = "".join(f"<th>{text}</th>" for text in ["layer", *map(markup.shown, self.tokens["text"].to_pylist())])
        rows = "".join(self._row_html(number) for number in reversed(range(len(self.layers))))
        return markup.heading(self._title()) + f"<table><tr>{head}</tr>{rows}</table>" + markup.note(self._notes()[-1])

    def _row_html(self, number: int) -> str:
        texts, shares, kls = (self.grid(name)[number] for name in ("text", "probability", "kl"))
        cells = "".join(
            markup.tinted_cell(text, float(share), f"probability {share:.3g} | kl {kl:.3g} nats")
            for text, share, kl in zip(texts, shares, kls, strict=True)
        )
        return f"<tr><td>{self.layers[number]}</td>{cells}</tr>"

    def _columns(self) -> list[str]:
        return ["position", "text", *map(str, self.layers)]

    def _by_token(self) -> list[dict[str, Any]]:
        """One row for each token, one column for each layer: the likeliest next token."""
        found = self.grid("text")
        return [
            {
                "position": token["position"],
                "text": _text.visible(token["text"]),
                **{str(layer): _text.visible(found[row, place]) for row, layer in enumerate(self.layers)},
            }
            for place, token in enumerate(self.tokens.to_pylist())
        ]

    def _title(self) -> str:
        return f"Logit lens of {self.provenance.model} at {self.site}: the likeliest next token by layer"

    def _notes(self) -> list[str]:
        return super()._notes()[-1:]


def _largest(answer: Answer, column: str, k: int) -> Answer:
    order: Sequence[int] = pc.sort_indices(answer.table, [(column, "descending")])[: _checks.count(k, "k")]
    return Answer(table=answer.table.take(order), provenance=answer.provenance, excluded=answer.excluded)
