"""The page of one feature: all that is known of it, on one page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore._features import plots
from actstore._features.live import DirectionAblation, LogitLens, TextAblation
from actstore._features.stored import Examples, FeatureStatistics, FeatureTable, TokenR2
from actstore._view import glossary, markup
from actstore_api.records.terms import Provenance, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TINTS = "blue: falls; orange: rises; the title of a token says its numbers"


@dataclass(frozen=True, repr=False)
class FeaturePage:
    """All that is known of one feature, on one page.

    Attributes:
        statistics: How often it fires, and how strongly.
        token_r2: Share of the feature's variance that the token alone explains.
        top: Its strongest examples.
        uniform: Examples that are spread over the range of its activation.
        quantiles: Random examples from bins of equally many activations.
        cofiring: Features that fire on the same tokens.
        logit_lens: Tokens that its decoder direction raises and lowers; None if it is missing.
        neighbors: Features with the nearest decoder directions; None if they are missing.
        ablated_text: What taking tokens away from its strongest examples changes; empty if that is missing.
        ablated_direction: What the predictions of these examples lose without it; empty if that is missing.
        missing: Why parts are missing, by their names.
    """

    statistics: FeatureStatistics
    token_r2: TokenR2
    top: Examples
    uniform: Examples
    quantiles: Examples
    cofiring: FeatureTable
    logit_lens: LogitLens | None = None
    neighbors: FeatureTable | None = None
    ablated_text: tuple[TextAblation, ...] = ()
    ablated_direction: tuple[DirectionAblation, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def provenance(self) -> Provenance:
        """Where the stored parts come from; each live part has a provenance of its own."""
        return self.statistics.provenance

    @property
    def excluded(self) -> tuple[str, ...]:
        """Token classes that were left out."""
        return self.statistics.excluded

    @property
    def other_weights(self) -> bool:
        """Whether the live parts come from other weights or another configuration than the stored parts."""
        stored, sae = self.provenance, self.statistics.sae
        of_model = {part.provenance.weights_sha256 for part in self._live()} - {"", stored.weights_sha256}
        if stored.config_sha256:
            of_model |= {part.provenance.config_sha256 for part in self._live()} - {"", stored.config_sha256}
        of_sae = {part.provenance.sae_sha256.get(sae, "") for part in self._live()} - {"", stored.sae_sha256.get(sae)}
        return bool(of_model or of_sae)

    def numbers(self) -> dict[str, float]:
        """Return the feature's statistics and token_r2 by name."""
        return {**self.statistics.numbers(), "token_r2": self.token_r2.value}

    def plot(self) -> "Figure":
        """Draw the histogram, the logit lens as bars, and the ablated texts as strips. Missing parts are left out.

        Returns:
            A new figure.
        """
        lens = [] if self.logit_lens is None else [partial(self.logit_lens.plot, feature=self.statistics.feature)]
        texts = [part.plot for part in self.ablated_text]
        directions = [part.plot for part in self.ablated_direction]
        return plots.page([self.statistics.plot, *lens], [*texts, *directions])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        single = ("statistics", "token_r2", "top", "uniform", "quantiles", "cofiring", "logit_lens", "neighbors")
        parts = {name: getattr(self, name) for name in single}
        several = ("ablated_text", "ablated_direction")
        return {
            **{name: None if part is None else part.to_dict() for name, part in parts.items()},
            **{name: [part.to_dict() for part in getattr(self, name)] for name in several},
            "missing": dict(self.missing),
        }

    def to_html(self) -> str:
        """Return a whole page for a browser, which loads nothing."""
        return markup.document(f"feature {self.statistics.feature} of {self.statistics.sae}", self._repr_html_())

    def save_html(self, path: str | Path) -> None:
        """Write the page for a browser into a file.

        Args:
            path: The file; replaced if it exists.
        """
        Path(path).write_text(self.to_html(), encoding="utf-8")

    def __repr__(self) -> str:
        fires = (self.token_r2, *self._examples(), self.cofiring) if self.statistics.active_tokens else ()
        shown = [_without_notes(part) for part in (self.statistics, *fires, *self._live())]
        return "\n\n".join([*shown, *map(one_line, self._notes()), *self.statistics._notes()])

    def _repr_html_(self) -> str:
        statistics = self.statistics
        numbers = markup.numbers(self.numbers(), glossary.STATISTICS)
        parts = [markup.heading(f"Feature {statistics.feature} of {statistics.sae}")]
        parts.append(markup.beside([numbers, statistics._chart_html()]))
        parts += [markup.warning(note) for note in self._notes()]
        parts.append(
            markup.beside([self._lens_html(), self._related_html("cofiring"), self._related_html("neighbors")])
        )
        parts += self._examples_html() + self._ablations_html()
        return "".join([*parts, *map(markup.note, statistics._notes())])

    def _live(self) -> list[Any]:
        single = [part for part in (self.logit_lens, self.neighbors) if part is not None]
        return [*single, *self.ablated_text, *self.ablated_direction]

    def _examples(self) -> tuple[Examples, ...]:
        return self.top, self.uniform, self.quantiles

    def _notes(self) -> list[str]:
        notes = []
        if not self.statistics.active_tokens:
            notes.append(f"never active on {self.statistics.tokens:,} tokens: there are no examples")
        if self.other_weights:
            notes.append(
                "the live parts come from other weights than those that the run stored, or from another configuration "
                "of the model: see their provenance"
            )
        reasons: dict[str, list[str]] = {}
        for name, why in self.missing.items():
            reasons.setdefault(why, []).append(name)
        return [*notes, *(f"without {', '.join(names)}: {why}" for why, names in reasons.items())]

    def _lens_html(self) -> str:
        if self.logit_lens is None:
            return ""
        says = (
            "Tokens that it promotes, and suppresses"
            if self.logit_lens.side == "decoder"
            else "Tokens near what it reads"
        )
        return markup.heading(says) + self.logit_lens._ends_html(self.statistics.feature)

    def _related_html(self, name: str) -> str:
        table: FeatureTable | None = getattr(self, name)
        if table is None:
            return ""
        title = "Fires together with" if name == "cofiring" else "Nearest by decoder direction"
        return markup.heading(title) + table._rows_html()

    def _examples_html(self) -> list[str]:
        """All with one scale, so that a weak example looks weak."""
        scale = self.statistics.maximum
        return [
            markup.folded(f"Examples, {part.how}: {len(part)}", part._rows_html(scale), opened=part is self.top)
            for part in self._examples()
            if len(part)
        ]

    def _ablations_html(self) -> list[str]:
        parts: list[TextAblation | DirectionAblation] = [*self.ablated_text, *self.ablated_direction]
        return [markup.heading(part._title()) + part._strip_html() + markup.note(TINTS) for part in parts]


def _without_notes(part: Any) -> str:
    """A page says once where its numbers come from."""
    notes = set(part._notes())
    return "\n".join(line for line in repr(part).splitlines() if line not in notes)
