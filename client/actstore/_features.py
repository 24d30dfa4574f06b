"""One SAE feature of a run: the text that makes it fire hardest, and how often it fires at all."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actstore import _arguments, _html, _text
from actstore._records import Provenance
from actstore._tables import Answer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from actstore._backend import Backend

DEFAULT_EXAMPLES, DEFAULT_BINS = 20, 40
DEFAULT_TOKENS_BEFORE, DEFAULT_TOKENS_AFTER = 12, 6


@dataclass(frozen=True, repr=False)
class Examples(Answer):
    """A row a window of tokens, strongest first, at most one from a sequence.

    Columns: rank, activation, sequence, position, document, first_position (of the window), and the lists tokens (ids),
    texts and activations (the feature on each token of the window).
    """

    sae: str
    feature: int

    def __repr__(self) -> str:
        lines = [self._title()]
        for row in self:
            peak = row["position"] - row["first_position"]
            place = f"sequence {row['sequence']}, position {row['position']}"
            window = _text.window(row["texts"], peak)
            lines.append(f"{row['rank']:>3}  {row['activation']:>8.4g}  {window}  ({place})")
        return "\n".join([*lines, *self._notes()])

    def _repr_html_(self) -> str:
        scale = max((row["activation"] for row in self), default=0.0)
        rows = "".join(_example_html(row, scale) for row in self)
        notes = "".join(map(_html.note, self._notes()))
        return _html.heading(self._title()) + f"<table><tbody>{rows}</tbody></table>" + notes

    def _title(self) -> str:
        return f"Feature {self.feature} of {self.sae}: top {len(self)} examples"

    def _notes(self) -> list[str]:
        return super()._notes()[-1:]


def _example_html(row: dict[str, Any], scale: float) -> str:
    positions = range(row["first_position"], row["first_position"] + len(row["texts"]))
    window = _html.tokens(row["texts"], row["activations"], positions, scale)
    return (
        f'<tr><td>{row["activation"]:.4g}</td><td style="text-align:left">{window}</td>'
        f"<td>sequence {row['sequence']}, position {row['position']}</td></tr>"
    )


@dataclass(frozen=True, repr=False)
class FeatureStatistics(Answer):
    """Density and strength; the table is the histogram: low, high, count; bin i holds low < activation <= high.

    `tokens` is how many count, `active_tokens` those on which the feature is above 0, `density` their ratio; `maximum`
    and `mean_when_active` are over active tokens, 0 when there is none.
    """

    sae: str
    feature: int
    tokens: int
    active_tokens: int
    density: float
    maximum: float
    mean_when_active: float

    def to_dict(self) -> dict[str, Any]:
        return {**self.numbers(), **super().to_dict()}

    def numbers(self) -> dict[str, float]:
        names = ("tokens", "active_tokens", "density", "maximum", "mean_when_active")
        return {name: getattr(self, name) for name in names}

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The histogram of activations above 0, counts on a log axis."""
        from actstore import _plots

        return _plots.feature_histogram(self, ax)

    def __repr__(self) -> str:
        chart = f"  0 |{_text.spark(self.table.column('count').to_pylist())}| {self.maximum:.4g}"
        return "\n".join([self._title(), *([chart] if self.active_tokens else []), *self._notes()])

    def _repr_html_(self) -> str:
        columns = self.table.to_pydict()
        chart = _html.histogram(columns["count"], columns["low"], columns["high"])
        return _html.heading(self._title()) + chart + "".join(map(_html.note, self._notes()))

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
class FeaturePage:
    """Statistics and top examples of one feature, to look at together."""

    statistics: FeatureStatistics
    examples: Examples

    @property
    def provenance(self) -> Provenance:
        return self.examples.provenance

    @property
    def excluded(self) -> tuple[str, ...]:
        return self.examples.excluded

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The histogram; the examples are text, printed by this page itself."""
        return self.statistics.plot(ax)

    def to_dict(self) -> dict[str, Any]:
        return {"statistics": self.statistics.to_dict(), "examples": self.examples.to_dict()}

    def __repr__(self) -> str:
        return f"{self.statistics!r}\n\n{self.examples!r}"

    def _repr_html_(self) -> str:
        return self.statistics._repr_html_() + self.examples._repr_html_()


@dataclass(frozen=True)
class Feature:
    """Asks only when a method is called; `exclude` names token classes whose activations do not count.

    None is the default, BOS; () leaves nothing out.
    """

    run: str
    sae: str
    index: int
    backend: "Backend" = field(repr=False)

    def top(
        self,
        k: int = DEFAULT_EXAMPLES,
        tokens_before: int = DEFAULT_TOKENS_BEFORE,
        tokens_after: int = DEFAULT_TOKENS_AFTER,
        exclude: Iterable[str] | str | None = None,
    ) -> Examples:
        """The k strongest examples, each with so many tokens before and after its strongest one."""
        return self.backend.top_examples(
            self.run,
            self.sae,
            self.index,
            _arguments.exclusion(exclude),
            _arguments.count(k, "k"),
            _arguments.count(tokens_before, "tokens_before"),
            _arguments.count(tokens_after, "tokens_after"),
        )

    def statistics(self, bins: int = DEFAULT_BINS, exclude: Iterable[str] | str | None = None) -> FeatureStatistics:
        """Density and strength, and a histogram in so many bins of equal width between 0 and the maximum."""
        bins = _arguments.count(bins, "bins")
        return self.backend.feature_statistics(self.run, self.sae, self.index, _arguments.exclusion(exclude), bins)

    def page(self, k: int = DEFAULT_EXAMPLES, exclude: Iterable[str] | str | None = None) -> FeaturePage:
        classes = tuple(_arguments.exclusion(exclude))
        return FeaturePage(self.statistics(exclude=classes), self.top(k, exclude=classes))
