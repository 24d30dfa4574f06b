"""What a model answers live of a text: where it attends, what its layers would predict, how it goes on when steered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from actstore_api.records.terms import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURES = (
    "entropy",
    "distance",
    "previous_token",
    "first_token",
    "current_token",
    "duplicate_token",
    "induction",
)
SCORES = ("induction", "duplicate_token", "previous_token")
WRITERS = ("steered", "unsteered")
SHOWN_TOP = 10


@dataclass(frozen=True, repr=False)
class TextTokens(Answer):
    """A row a token: position, token (its id), text, special (BOS, too)."""

    @property
    def ids(self) -> list[int]:
        """What every live question takes in place of a text."""
        found: list[int] = self.table["token"].to_pylist()
        return found

    def _title(self) -> str:
        return f"{len(self):,} tokens of {self.provenance.model}"


@dataclass(frozen=True, repr=False)
class Attention(Answer):
    """A row a head: layer, head, entropy (nats) and distance (tokens), means over queries; and shares of all its
    attention: previous_token, first_token, current_token, duplicate_token (earlier occurrences of the query's own
    token), induction (the tokens after those).

    `tokens` has position, token, text, special. `patterns` has layer, head, query, key, weight where they were asked
    for, and no rows otherwise.
    """

    tokens: pa.Table
    patterns: pa.Table

    def pattern(self, layer: int, head: int) -> NDArray[np.float32]:
        """Weights [query, key] of one head; each row adds up to 1."""
        if not self.patterns.num_rows:
            raise refused("patterns were not asked for", "patterns", "False", "True, in the question")
        there = pc.and_(pc.equal(self.patterns["layer"], layer), pc.equal(self.patterns["head"], head))
        rows = self.patterns.filter(there)
        if not rows.num_rows:
            heads = sorted({(row["layer"], row["head"]) for row in self})
            raise refused(f"no pattern of layer {layer}, head {head}", "head", f"({layer}, {head})", heads)
        found = np.zeros((len(self.tokens), len(self.tokens)), np.float32)
        found[rows["query"].to_numpy(), rows["key"].to_numpy()] = rows["weight"].to_numpy()
        return found

    def top(self, measure: str, n: int = SHOWN_TOP) -> Answer:
        """The heads with most of a measure."""
        return _largest(self, _checks.one_of(measure, "measure", MEASURES), n)

    def plot(self, ax: "Axes | None" = None, measure: str = "entropy") -> "Axes":
        """Layers by heads, coloured by a measure."""
        _checks.one_of(measure, "measure", MEASURES)
        return titled(plots.heads(ax, list(self), measure), f"{self.provenance.model}: {measure}")

    def plot_pattern(self, layer: int, head: int, ax: "Axes | None" = None) -> "Axes":
        """Queries by keys, under their tokens."""
        ax = plots.pattern(ax, self.pattern(layer, head), self.tokens["text"].to_pylist())
        return titled(ax, f"{self.provenance.model}: attention of head {layer}.{head}")

    def to_dict(self) -> dict[str, Any]:
        more = {"patterns": plain_rows(self.patterns)} if self.patterns.num_rows else {}
        return {"tokens": self.tokens.to_pylist(), **more, **super().to_dict()}

    def _definitions(self) -> Mapping[str, str]:
        return glossary.ATTENTION

    def _title(self) -> str:
        return f"Attention of {len(self):,} heads of {self.provenance.model} over {len(self.tokens):,} tokens"


@dataclass(frozen=True, repr=False)
class InductionScores(Answer):
    """A row a head: layer, head, and mean weights of the queries of random `repeated` tokens that come a second time:
    induction (on the token after the first occurrence of their own), duplicate_token (on that occurrence),
    previous_token.

    `loss_first` and `loss_second` are the model's mean cross-entropy in nats of those tokens, but for the first, each
    time: a model that does induction has much less the second time.
    """

    repeated: int
    loss_first: float
    loss_second: float

    def top(self, score: str = "induction", n: int = SHOWN_TOP) -> Answer:
        """The heads with most of a score."""
        return _largest(self, _checks.one_of(score, "score", SCORES), n)

    def plot(self, ax: "Axes | None" = None, score: str = "induction") -> "Axes":
        """Layers by heads, coloured by a score."""
        _checks.one_of(score, "score", SCORES)
        return titled(plots.heads(ax, list(self), score), f"{self.provenance.model}: {score}")

    def to_dict(self) -> dict[str, Any]:
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
    """A row a layer and position: layer, position, target (the true next token, or the one that was named),
    target_text, target_rank (from 1), target_log_probability, entropy and kl (nats, of the model's output from the
    layer's).

    `tops` has layer, position, rank, token, text, logit, probability: the likeliest tokens. `tokens` is the text.
    """

    site: str
    tops: pa.Table
    tokens: pa.Table

    def top(self, position: int, layer: int | None = None) -> list[dict[str, Any]]:
        """The likeliest tokens after a position, likeliest first; of the last layer unless one is named."""
        chosen = self.layers[-1] if layer is None else layer
        return [row for row in self.tops.to_pylist() if (row["layer"], row["position"]) == (chosen, position)]

    @property
    def layers(self) -> list[int]:
        return list(dict.fromkeys(self.table.column("layer").to_pylist()))

    def grid(self, column: str) -> NDArray[Any]:
        """A column as [layer, position]; of `tops` (token, text, logit, probability) the likeliest token's."""
        if column in self.table.column_names:
            values = self.table[column].to_pylist()
        else:
            _checks.one_of(column, "column", ("token", "text", "logit", "probability"))
            values = self.tops.filter(pc.equal(self.tops["rank"], 1))[column].to_pylist()
        return np.array(values, object if column.endswith("text") else None).reshape(len(self.layers), -1)

    def plot(self, ax: "Axes | None" = None, column: str = "probability") -> "Axes":
        """Layers over tokens: each cell has its likeliest next token, in the colour of a column (probability, kl)."""
        _checks.one_of(column, "column", ("probability", "entropy", "kl", "target_log_probability"))
        label = column if column == "probability" else f"{column}, nats"
        values, texts = self.grid(column).astype(np.float64), self.tokens["text"].to_pylist()
        ax = plots.lens(ax, values, self.grid("text"), self.layers, texts, label)
        return titled(ax, f"{self.provenance.model}: likeliest next token by layer, at {self.site}")

    def to_dict(self) -> dict[str, Any]:
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
        """A row a token, a column a layer: the likeliest next token."""
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


@dataclass(frozen=True, repr=False)
class SteeredText(Answer):
    """A row a generated token: generated (steered, unsteered: which model wrote it), position, token, text, its natural
    log-probability under each model (steered, unsteered), kl (nats, of the steered prediction from the unsteered one).

    `strength` is in the units of the site's own vectors, whose mean norm over the prompt's tokens is `mean_norm`; None
    where the direction was taken away. `prompt` has position, token, text, special, steered.
    """

    steered_text: str
    unsteered_text: str
    mode: str
    site: str
    strength: float | None
    mean_norm: float
    prompt: pa.Table

    def written(self, by: str) -> Answer:
        """The rows that the `steered` or the `unsteered` model wrote."""
        _checks.one_of(by, "by", WRITERS)
        rows = self.table.filter(pc.equal(self.table["generated"], by))
        return Answer(table=rows, provenance=self.provenance, excluded=self.excluded)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """How far the steered prediction is from the unsteered one, along both texts."""
        ax = plots.steering(ax, {by: list(self.written(by)) for by in WRITERS})
        return titled(ax, f"{self.provenance.model} steered at {self.site}")

    def to_dict(self) -> dict[str, Any]:
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

    def _strip(self, by: str) -> str:
        rows = list(self.written(by))
        changes = [row["steered"] - row["unsteered"] for row in rows]
        titles = [
            f"{_text.visible(row['text'])} | log-probability steered {row['steered']:.4g}, unsteered "
            f"{row['unsteered']:.4g} | kl {row['kl']:.3g}"
            for row in rows
        ]
        return markup.strip([row["text"] for row in rows], changes, titles, max(map(abs, changes), default=0.0))

    def _texts(self) -> list[tuple[str, str]]:
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
    """A row a part, taken away alone: site, kind, layer, head, loss (mean cross-entropy in nats) and change, the loss
    less that of the whole model: above 0, the part helps to predict these texts.

    `loss` and `counted` are the whole model's and over how many tokens; `by_text` has text, tokens, loss.
    """

    ablation: str
    loss: float
    counted: int
    by_text: pa.Table

    def top(self, n: int = SHOWN_TOP) -> Answer:
        """The parts whose loss changes the loss most, either way."""
        order = pc.sort_indices(pc.negate(pc.abs(self.table["change"])))
        chosen = self.table.take(order[: _checks.count(n, "n")])
        return Answer(table=chosen, provenance=self.provenance, excluded=self.excluded)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Layers by parts, coloured by the change of the loss."""
        title = f"{self.provenance.model} without each part ({self.ablation}), loss {self.loss:.4g}"
        return titled(plots.ablation(ax, list(self)), title)

    def to_dict(self) -> dict[str, Any]:
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


def _largest(answer: Answer, column: str, n: int) -> Answer:
    order: Sequence[int] = pc.sort_indices(answer.table, [(column, "descending")])[: _checks.count(n, "n")]
    return Answer(table=answer.table.take(order), provenance=answer.provenance, excluded=answer.excluded)
