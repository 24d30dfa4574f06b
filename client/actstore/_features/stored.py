"""What a run's stored features answer: examples, statistics, and tables of features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from actstore._answer import Answer, plain
from actstore._errors import refused
from actstore._features import plots
from actstore._view import glossary, markup
from actstore._view import text as _text
from actstore._view.plot import titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Examples(Answer):
    """Examples of a feature: a row for each window of tokens around an activation.

    Columns: rank (from 1), activation, sequence, position, document, source and row (the document's file in the dataset
    and its row there, or what the dataset's `source_field` says; None if the run does not know), first_position (of the
    window), and the lists tokens (ids), texts and activations (the feature on each token of the window).

    Attributes:
        sae: Name of the SAE.
        feature: Index of the feature.
        how: How the examples were chosen, in words.
    """

    sae: str
    feature: int
    how: str = "top"

    def __repr__(self) -> str:
        lines = [self._title()]
        for row in self:
            peak = row["position"] - row["first_position"]
            source = _text.source(row)
            place = f"{source + ', ' if source else ''}sequence {row['sequence']}, position {row['position']}"
            window = _text.window(row["texts"], peak)
            lines.append(f"{row['rank']:>3}  {row['activation']:>8.4g}  {window}  ({place})")
        return "\n".join([*lines, *self._notes()])

    def _repr_html_(self) -> str:
        notes = "".join(map(markup.note, self._notes()))
        return markup.heading(self._title()) + self._rows_html() + notes

    def _rows_html(self, scale: float | None = None) -> str:
        """The windows alone, tinted by activation over `scale`; None: over the strongest one here."""
        if scale is None:
            scale = max((row["activation"] for row in self), default=0.0)
        rows = "".join(_example_html(row, scale) for row in self)
        return f"<table><tbody>{rows}</tbody></table>"

    def _title(self) -> str:
        return f"Feature {self.feature} of {self.sae}: {self.how}, {len(self)} examples"

    def _notes(self) -> list[str]:
        return super()._notes()[-1:]


def _example_html(row: dict[str, Any], scale: float) -> str:
    positions = range(row["first_position"], row["first_position"] + len(row["texts"]))
    window = markup.tokens(row["texts"], row["activations"], positions, scale)
    source = _text.source(row)
    document = f"document {row['document']}{f' ({source})' if source else ''}"
    place = f"{document}, sequence {row['sequence']}, position {row['position']}"
    return (
        f"<tr>{markup.cell(_text.number(row['activation']), glossary.EXAMPLES['activation'])}"
        f'<td style="text-align:left">{window}</td>{markup.cell(place, "where the marked token lies in the run")}</tr>'
    )


@dataclass(frozen=True, repr=False)
class ManyExamples(Answer):
    """Examples of several features: a column feature, then those of `Examples`.

    Attributes:
        sae: Name of the SAE.
        features: Indices of the features, in the order they were asked for.
        how: How the examples were chosen, in words.
    """

    sae: str
    features: tuple[int, ...]
    how: str = "top"

    def of(self, feature: int) -> Examples:
        """Return the examples of one feature.

        Args:
            feature: One of `features`.
        """
        if feature not in self.features:
            raise refused(f"there are no examples of feature {feature} here", "feature", feature, self.features)
        rows = self.table.filter(pc.equal(self.table["feature"], feature)).drop_columns(["feature"])
        return Examples(
            table=rows,
            sae=self.sae,
            feature=feature,
            how=self.how,
            provenance=self.provenance,
            excluded=self.excluded,
        )

    def __repr__(self) -> str:
        return "\n\n".join(repr(self.of(feature)) for feature in self.features)

    def _repr_html_(self) -> str:
        return "".join(self.of(feature)._repr_html_() for feature in self.features)


@dataclass(frozen=True, repr=False)
class FeatureStatistics(Answer):
    """How often a feature fires and how strongly, with a histogram of its activations.

    Columns: low, high and count; a bin holds low < activation <= high.

    Attributes:
        sae: Name of the SAE.
        feature: Index of the feature.
        tokens: Number of tokens that count.
        active_tokens: Number of them on which the feature is above 0.
        density: active_tokens over tokens.
        maximum: Largest activation; 0 if the feature never fires.
        mean_when_active: Mean activation over active tokens; 0 if there are none.
    """

    sae: str
    feature: int
    tokens: int
    active_tokens: int
    density: float
    maximum: float
    mean_when_active: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**self.numbers(), **super().to_dict()}

    def numbers(self) -> dict[str, float]:
        """Return the single numbers by their names."""
        names = ("tokens", "active_tokens", "density", "maximum", "mean_when_active")
        return {name: getattr(self, name) for name in names}

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the histogram of activations above 0, with counts on a log axis.

        Args:
            ax: Axes to draw on. None: those of a new figure.

        Returns:
            The axes.
        """
        active = f"active on {self.density:.3%} of {self.tokens:,} tokens"
        return titled(plots.histogram(ax, self.table.to_pydict()), f"feature {self.feature} of {self.sae}\n{active}")

    def __repr__(self) -> str:
        chart = f"  0 |{_text.spark(self.table.column('count').to_pylist())}| {self.maximum:.4g}"
        return "\n".join([self._title(), *([chart] if self.active_tokens else []), *self._notes()])

    def _repr_html_(self) -> str:
        return markup.heading(self._title()) + self._chart_html() + "".join(map(markup.note, self._notes()))

    def _chart_html(self) -> str:
        columns = self.table.to_pydict()
        if not self.active_tokens:
            return ""
        scale = f"activations above 0, up to {self.maximum:.4g}; heights on a square-root scale"
        return markup.histogram(columns["count"], columns["low"], columns["high"]) + markup.note(scale)

    def _title(self) -> str:
        if not self.active_tokens:
            return f"Feature {self.feature} of {self.sae}: never active on {self.tokens:,} tokens"
        return (
            f"Feature {self.feature} of {self.sae}: active on {self.active_tokens:,} of {self.tokens:,} tokens "
            f"({self.density:.3%}), maximum {self.maximum:.4g}, mean when active {self.mean_when_active:.4g}"
        )

    def _notes(self) -> list[str]:
        return super()._notes()[-1:]


@dataclass(frozen=True, repr=False)
class FeatureRows(Answer):
    """Activations of a feature: a row for each, strongest first.

    Columns: activation, sequence, position, document, token (its id) and flags (1 BOS, 2 special, 4 sink).

    Attributes:
        sae: Name of the SAE.
        feature: Index of the feature.
        threshold: All are above this.
    """

    sae: str
    feature: int
    threshold: float

    def _title(self) -> str:
        return f"Feature {self.feature} of {self.sae}: {len(self):,} activations above {self.threshold:.4g}"

    def _definitions(self) -> Mapping[str, str]:
        return {"activation": "the feature's activation on the token"}


@dataclass(frozen=True, repr=False)
class FeatureTable(Answer):
    """A row for each feature. The call that returned it says what the columns are, and `definitions` in short.

    Attributes:
        sae: Name of the SAE.
        title: What the features have in common.
        definitions: What the numbers of each column are.
    """

    sae: str
    title: str
    definitions: Mapping[str, str]

    @property
    def features(self) -> list[int]:
        """The indices, in the order of the rows."""
        found: list[int] = self.table.column("feature").to_pylist()
        return found

    def _title(self) -> str:
        return f"{self.title}: {len(self):,} features of {self.sae}"

    def _definitions(self) -> Mapping[str, str]:
        return self.definitions

    def _rows_html(self) -> str:
        return markup.grid(self.table.column_names, self._shown(), self.definitions)

    def _shown(self) -> list[dict[str, Any]]:
        """An index is a name, not an amount."""
        return [{**row, "feature": str(row["feature"])} for row in super()._shown()]


@dataclass(frozen=True, repr=False)
class TokenR2(Answer):
    """How much of a feature's activation the token alone explains. `float(answer)` is the number.

    Attributes:
        sae: Name of the SAE.
        feature: Index of the feature.
    """

    sae: str
    feature: int

    @property
    def value(self) -> float:
        """The number: 1 for a lookup of the token, near 0 if the token does not matter, NaN if nothing varies."""
        return float(self.table.column("token_r2")[0].as_py())

    def __float__(self) -> float:
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {"token_r2": plain(self.value), **super().to_dict()}

    def _title(self) -> str:
        if self.value != self.value:
            return f"Feature {self.feature} of {self.sae}: token_r2 is not defined, for the feature does not vary"
        return f"Feature {self.feature} of {self.sae}: the token alone explains {self.value:.1%} of its variance"

    def _definitions(self) -> Mapping[str, str]:
        return glossary.STATISTICS
