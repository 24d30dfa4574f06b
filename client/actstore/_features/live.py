"""What an SAE and its model answer live: a text encoded, directions unembedded, and what an ablation changes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from actstore import _checks
from actstore._answer import Answer, plain_rows
from actstore._features import plots
from actstore._view import glossary, markup
from actstore._view import text as _text
from actstore._view.plot import titled
from actstore_api.records.sae import FeatureSide
from actstore_api.records.sae import TextAblation as TokenAblation
from actstore_api.records.terms import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The two ends of a logit lens: what a direction raises, and what it lowers.
LensEnd = Literal["top", "bottom"]
SHOWN_PAIRS, SHOWN_STRONGEST = 10, 3
SIDE_WORDS = {"decoder": "decoder direction (what it writes)", "encoder": "encoder direction (what it reads)"}
ABLATION_WORDS = {
    "delete": "deleted",
    "zero_embedding": "embedding zeroed",
    "zero_residual": "residual zeroed",
    "mean_residual": "residual set to the mean",
}


@dataclass(frozen=True, repr=False)
class EncodedText(Answer):
    """Features that fire on the tokens of a text.

    Columns: position, feature and activation; only activations above 0 have a row.

    Attributes:
        sae: Name of the SAE.
        tokens: The text's tokens: position, token (its id), text and special (whether BOS or another special token).
    """

    sae: str
    tokens: pa.Table

    def on(self, feature: int) -> list[float]:
        """Return one feature's activation on each token, 0 where it does not fire.

        Args:
            feature: Index of the feature.
        """
        chosen = self.table.filter(pc.equal(self.table["feature"], _checks.count(feature, "feature")))
        values = dict(zip(chosen["position"].to_pylist(), chosen["activation"].to_pylist(), strict=True))
        return [values.get(position, 0.0) for position in self.tokens["position"].to_pylist()]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {"tokens": self.tokens.to_pylist(), **super().to_dict()}

    def _by_token(self) -> list[dict[str, Any]]:
        """One row for each token: text, number of features that fire, and the strongest (`feature (activation)`)."""
        firing: dict[int, list[tuple[float, int]]] = {}
        for row in self:
            firing.setdefault(row["position"], []).append((row["activation"], row["feature"]))
        rows = []
        for token in self.tokens.to_pylist():
            here = sorted(firing.get(token["position"], []), reverse=True)
            strongest = ", ".join(f"{feature} ({activation:.3g})" for activation, feature in here[:SHOWN_STRONGEST])
            text = _text.visible(token["text"])
            rows.append({"position": token["position"], "text": text, "features": len(here), "strongest": strongest})
        return rows

    def __repr__(self) -> str:
        columns = ["position", "text", "features", "strongest"]
        return "\n".join([self._title(), _text.grid(columns, self._by_token()), *self._notes()])

    def _repr_html_(self) -> str:
        definitions = {
            "features": "features above 0 on the token",
            "strongest": "index (activation) of the strongest features",
        }
        grid = markup.grid(["position", "text", "features", "strongest"], self._by_token(), definitions)
        return markup.heading(self._title()) + grid + "".join(map(markup.note, self._notes()))

    def _title(self) -> str:
        return f"{self.tokens.num_rows:,} tokens, on which {len(self):,} activations of {self.sae} are above 0"

    def _notes(self) -> list[str]:
        return super()._notes()[-1:]


@dataclass(frozen=True, repr=False)
class LogitLens(Answer):
    """Tokens whose logits features' directions raise and lower most.

    Columns: feature, end (top, bottom), rank (1 is furthest from 0), token (its id), text and logit.

    Attributes:
        sae: Name of the SAE.
        side: `decoder` or `encoder`: which directions.
        fold_norm: Whether the final norm's gain is folded in.
        masked_tokens: Number of tokens that were left out for the length of their unembedding vector.
    """

    sae: str
    side: FeatureSide
    fold_norm: bool
    masked_tokens: int

    @property
    def features(self) -> list[int]:
        """Indices of the features, in the order they were asked for."""
        return list(dict.fromkeys(self.table.column("feature").to_pylist()))

    def end(self, name: LensEnd, feature: int | None = None) -> list[dict[str, Any]]:
        """Return the rows of one end of a feature, furthest from 0 first.

        Args:
            name: `top` or `bottom`.
            feature: Index of the feature. None: the first.
        """
        _checks.one_of(name, "end", get_args(LensEnd))
        chosen = next(iter(self.features), None) if feature is None else feature
        return [row for row in self if row["end"] == name and row["feature"] == chosen]

    def plot(self, ax: "Axes | None" = None, feature: int | None = None) -> "Axes":
        """Draw a bar for each token of a feature.

        Args:
            ax: Axes to draw on. None: those of a new figure.
            feature: Index of the feature. None: the first.

        Returns:
            The axes.
        """
        rows = [*self.end("top", feature), *reversed(self.end("bottom", feature))]
        ax = plots.lens_bars(ax, [row["text"] for row in rows], [row["logit"] for row in rows])
        return titled(ax, f"logit lens of the {self.side} direction")

    def __repr__(self) -> str:
        parts = [self._title()]
        for feature in self.features:
            parts += [f"feature {feature}", _text.grid(["top", "logit", "bottom", "logit "], self._pairs(feature))]
        return "\n".join([*parts, *self._notes()])

    def _repr_html_(self) -> str:
        grids = "".join(markup.heading(f"feature {feature}") + self._ends_html(feature) for feature in self.features)
        return markup.heading(self._title()) + grids + "".join(map(markup.note, self._notes()))

    def _ends_html(self, feature: int) -> str:
        definitions = dict.fromkeys(("logit", "logit "), glossary.LENS["logit"])
        return markup.grid(["top", "logit", "bottom", "logit "], self._pairs(feature), definitions)

    def _pairs(self, feature: int) -> list[dict[str, Any]]:
        ends = (self.end("top", feature), self.end("bottom", feature))
        return [
            {
                "top": _text.visible(high["text"]),
                "logit": high["logit"],
                "bottom": _text.visible(low["text"]),
                "logit ": low["logit"],
            }
            for high, low in zip(*ends, strict=False)
        ]

    def _title(self) -> str:
        norm = "with the final norm's gain" if self.fold_norm else "without the final norm"
        masked = f", {self.masked_tokens:,} tokens masked" if self.masked_tokens else ""
        return f"Logit lens of the {SIDE_WORDS[self.side]} of {self.sae}, {norm}{masked}"

    def _notes(self) -> list[str]:
        return super()._notes()[-1:]


@dataclass(frozen=True, repr=False)
class TextAblation(Answer):
    """How a feature's activation changes if tokens of a text are taken away: a row for each token or pair of tokens.

    Columns: first and second (positions; second is null for a single token), first_text, second_text, activation (of
    the feature at the text's last token, after the ablation) and change (activation less that on the whole text).

    Attributes:
        sae: Name of the SAE.
        feature: Index of the feature.
        ablation: What happened to a token.
        tokens: The text as it is: position, token (its id), text, special and activation.
        position: Where the feature is looked at; the text ends there.
        activation: The feature's activation there on the whole text.
        first: Tokens from this position on were ablated, one at a time. Earlier tokens stayed.
    """

    sae: str
    feature: int
    ablation: TokenAblation
    tokens: pa.Table
    position: int
    activation: float
    first: int = 0

    def changes(self) -> list[float | None]:
        """Return what taking away each token alone changes, from `first` to `position`; None for those that stay."""
        singles = {row["first"]: row["change"] for row in self if row["second"] is None}
        return [singles.get(row["position"]) for row in self._seen()]

    def pairs(self) -> Answer:
        """Return the pairs, the smallest interaction first.

        interaction = change of the pair - change of the first - change of the second. If a feature reads "either of
        two", single ablations change nothing and the pair does: its interaction is well below 0.

        Returns:
            Columns as in `table`, and interaction.
        """
        singles = {row["first"]: row["change"] for row in self if row["second"] is None}
        table = self.table.filter(pc.is_valid(self.table["second"]))
        alone = [
            singles.get(first, 0.0) + singles.get(second, 0.0)
            for first, second in zip(table["first"].to_pylist(), table["second"].to_pylist(), strict=True)
        ]
        interaction = pc.subtract(table["change"], pa.array(alone, pa.float64()))
        table = table.append_column("interaction", interaction)
        return Answer(table=table.sort_by("interaction"), provenance=self.provenance, excluded=self.excluded)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the text as a strip, each token colored by its change; or as a square, if pairs were asked for.

        Args:
            ax: Axes to draw on. None: those of a new figure.

        Returns:
            The axes.
        """
        texts = [row["text"] for row in self._seen()]
        title = f"feature {self.feature} at the last token, {self.activation:.3g}: change with each token "
        title += ABLATION_WORDS[self.ablation]
        if not pc.any(pc.is_valid(self.table["second"])).as_py():
            return titled(plots.strip(ax, self.changes(), texts, self.scale), title)
        return titled(plots.pairs_square(ax, texts, self._by_pair(), self.scale), f"{title}, or each two of them")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        own = {"feature": self.feature, "ablation": self.ablation, "position": self.position}
        return {**own, "activation": self.activation, "tokens": plain_rows(self.tokens), **super().to_dict()}

    def _by_pair(self) -> dict[tuple[int, int], float]:
        """Changes by (first, second), as indices of shown tokens; a single token is a pair with itself."""
        place = {row["position"]: number for number, row in enumerate(self._seen())}
        found = {}
        for row in self:
            second = row["first"] if row["second"] is None else row["second"]
            found[place[row["first"]], place[second]] = row["change"]
        return found

    def _seen(self) -> list[dict[str, Any]]:
        return [row for row in self.tokens.to_pylist() if self.first <= row["position"] <= self.position]

    @property
    def scale(self) -> float:
        """The change that has the full color: the activation itself, or a larger change."""
        return max([abs(self.activation), *(abs(change) for change in self.changes() if change is not None)])

    def __repr__(self) -> str:
        rows = [
            {"position": row["position"], "text": _text.visible(row["text"]), "change": change}
            for row, change in zip(self._seen(), self.changes(), strict=True)
        ]
        parts = [self._title(), _text.grid(["position", "text", "change"], rows)]
        if pairs := self._shown_pairs():
            parts.append(_text.grid(list(pairs[0]), pairs))
        return "\n".join([*parts, *self._notes()])

    def _repr_html_(self) -> str:
        return markup.heading(self._title()) + self._strip_html() + "".join(map(markup.note, self._notes()))

    def _strip_html(self) -> str:
        done = ABLATION_WORDS[self.ablation]
        seen, changes = self._seen(), self.changes()
        titles = [
            f"{_text.visible(row['text'])} | " + (f"{done}: {change:+.4g}" if change is not None else "not ablated")
            for row, change in zip(seen, changes, strict=True)
        ]
        strip = markup.strip([row["text"] for row in seen], changes, titles, self.scale)
        pairs = self._shown_pairs()
        grid = markup.grid(list(pairs[0]), pairs, glossary.TEXT_ABLATION) if pairs else ""
        return f"<p>{strip}</p>{grid}"

    def _shown_pairs(self) -> list[dict[str, Any]]:
        return [
            {
                "pair": f"{_text.visible(row['first_text'])} {_text.visible(row['second_text'])}",
                "change": row["change"],
                "interaction": row["interaction"],
            }
            for row in self.pairs().table.slice(0, SHOWN_PAIRS).to_pylist()
        ]

    def _title(self) -> str:
        looked = _text.visible(next(row["text"] for row in self._seen() if row["position"] == self.position))
        return (
            f"Feature {self.feature} of {self.sae} at {looked!r}, position {self.position}: {self.activation:.4g} on "
            f"the whole text; how that changes with each token {ABLATION_WORDS[self.ablation]}"
        )

    def _notes(self) -> list[str]:
        return super()._notes()[-1:]


@dataclass(frozen=True, repr=False)
class DirectionAblation(Answer):
    """How predictions of a text change without what a feature writes: a row for each token but the last.

    Columns: position, token (its id), text, special, activation, next_text, log_probability (natural, of the true next
    token), ablated (the same without the feature) and change (ablated less log_probability; below 0 if the feature
    helps to predict the token).

    Attributes:
        sae: Name of the SAE.
        feature: Index of the feature.
    """

    sae: str
    feature: int

    @property
    def scale(self) -> float:
        """The change that has the full color: the largest one."""
        return max((abs(row["change"]) for row in self), default=0.0)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the next tokens as a strip, each colored by how its log-probability changes.

        Args:
            ax: Axes to draw on. None: those of a new figure.

        Returns:
            The axes.
        """
        rows = list(self)
        ax = plots.strip(ax, [row["change"] for row in rows], [row["next_text"] for row in rows], self.scale)
        title = f"log-probability of each token without what feature {self.feature} writes: change, nats"
        return titled(ax, title)

    def _repr_html_(self) -> str:
        return markup.heading(self._title()) + self._strip_html() + "".join(map(markup.note, self._notes()))

    def _strip_html(self) -> str:
        """The text from its second token on: each is tinted by the change of its own log-probability."""
        rows = list(self)
        titles = [
            f"{_text.visible(row['next_text'])} | log-probability {row['log_probability']:.4g}, without the feature "
            f"{row['ablated']:.4g}: {row['change']:+.4g} | the feature is {row['activation']:.4g} on the token before"
            for row in rows
        ]
        texts, changes = [row["next_text"] for row in rows], [row["change"] for row in rows]
        return f"<p>{markup.strip(texts, changes, titles, self.scale)}</p>"

    def _shown(self) -> list[dict[str, Any]]:
        shown = ("position", "text", "activation", "next_text", "log_probability", "ablated", "change")
        texts = ("text", "next_text")
        return [
            {name: _text.visible(row[name]) if name in texts else row[name] for name in shown}
            for row in self.table.to_pylist()
        ]

    def __repr__(self) -> str:
        rows = self._shown()
        return "\n".join([self._title(), _text.grid(list(rows[0]) if rows else [], rows), *self._notes()])

    def _title(self) -> str:
        return (
            f"Log-probability of the next token without what feature {self.feature} of {self.sae} writes; "
            f"in all {sum(row['change'] for row in self):+.4g} nats"
        )

    def _notes(self) -> list[str]:
        return super()._notes()[-1:]


@dataclass(frozen=True, repr=False)
class SaeCheck(Answer):
    """Whether an SAE is right for a model.

    Columns: quantity, value (null if it is no number) and claimed (what the SAE's files claim; null if nothing). The
    quantities are tokens (that were looked at, BOS and special ones apart), l0 (features above 0 on a token, in the
    mean), fvu (fraction of the variance about the mean that the reconstruction leaves unexplained), dead_share (of
    features that fire on none of the tokens), loss (mean cross-entropy of the model, nats), loss_reconstructed (with
    the reconstruction in place of the site), loss_zeroed (with zeros), and loss_recovered:
    (zeroed - reconstructed) / (zeroed - loss).

    Attributes:
        sae: Name of the SAE.
        warnings: What looks wrong, in words; empty if nothing does.
    """

    sae: str
    warnings: tuple[str, ...]

    @property
    def numbers(self) -> dict[str, float]:
        """The value of each quantity, by the quantity's name."""
        return {row["quantity"]: row["value"] for row in self}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {"sae": self.sae, "warnings": list(self.warnings), **super().to_dict()}

    def __repr__(self) -> str:
        table = _text.grid(self.table.column_names, self._shown())
        return "\n".join(
            [self._title(), *(f"  ! {one_line(warning)}" for warning in self.warnings), table, *self._notes()]
        )

    def _repr_html_(self) -> str:
        warnings = "".join(markup.warning(warning) for warning in self.warnings)
        rows = [{**row, "what it is": glossary.QUANTITIES.get(row["quantity"], "")} for row in self._shown()]
        grid = markup.grid([*self.table.column_names, "what it is"], rows)
        return markup.heading(self._title()) + warnings + grid + "".join(map(markup.note, self._notes()))

    def _title(self) -> str:
        state = "looks right" if not self.warnings else "DOES NOT LOOK RIGHT"
        return f"{self.sae} {state} for {self.provenance.model}"
