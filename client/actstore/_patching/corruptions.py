"""One clean prompt, several corrupt ones: which components does each of them show, and which does it hide?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actstore import _checks
from actstore._answer import Answer
from actstore._errors import refused
from actstore._patching.replaced_tokens import TokenComparison
from actstore._patching.sweep import LARGE_EFFECT, PLACE, Sweep
from actstore_api.records.terms import Prompt

# A corruption that moves the answer by less than this share of what another does is told to be weak.
WEAK_CORRUPTION = 0.1
CORRUPTIONS_MIN = 2
NAMED_CELLS = 3
CELL = ("direction", *(name for name in PLACE if name != "token"))
# Of k and v a head may be shared by several queries', and has another number.
HEAD_SITES = ("q", "z", "pattern")
SUMMARY = ("token", "least", "greatest", "spread")

# By cell, whose parts are those of CELL.
Effects = dict[tuple[Any, ...], float]


@dataclass(frozen=True, repr=False)
class CorruptionComparison(Answer):
    """How the effects of components differ between corruptions.

    It has one row for each direction and cell, the widest spread first.

    There is a column for each corruption, with its effect: the mean over pairs of the normalized logit difference, 0 at
    the base run and 1 at the source run. least, greatest and spread = greatest - least are over the corruptions.
    `token` is the first clean prompt's.

    Why: what a patch can show is what the corruption changed. One that replaces the answer leaves the tokens that point
    to it as they were, so the heads that find the place do the same in both runs and patching them changes nothing:
    routing heads stay hidden (Heimersheim & Nanda 2024, "How to use and interpret activation patching").

    Attributes:
        names: The corruptions.
        threshold: The least effect that counts as shown.
        gaps: For each corruption, the mean absolute change that it makes to the logit difference. Effects are shares of
            this change.
        replacing: The corruptions that replace the answer, by the first pair's tokens: the clean answer is one of the
            clean prompt's and none of the corrupt prompt's.
        token_comparison: The result of `lab.compare_tokens` that was given, if any.
    """

    names: tuple[str, ...]
    threshold: float
    gaps: dict[str, float]
    replacing: tuple[str, ...]
    token_comparison: TokenComparison | None = None

    def hidden(self) -> Answer:
        """The cells that a corruption hides because it replaces the answer, one row for each.

        `corruption` hides the cell, with its `effect` there (below half of the threshold). `shown_by` is the other
        corruption that shows it most, with `effect_there` (at least the threshold).
        """
        rows = [found for name in self.replacing for found in self._hidden_by(name)]
        kinds = [self.table.schema.field(name) for name in self.table.column_names if name in {*CELL, "token"}]
        text, number = pa.string(), pa.float64()
        more = {"corruption": text, "effect": number, "shown_by": text, "effect_there": number}
        table = pa.Table.from_pylist(rows, pa.schema([*kinds, *(pa.field(*each) for each in more.items())]))
        return Answer(table=table, provenance=self.provenance, excluded=self.excluded)

    @property
    def weak(self) -> tuple[str, ...]:
        """The corruptions that move the logit difference by less than a tenth of what another does.

        Their effects are shares of a very small change, so no other corruption is said to hide what they show.
        """
        largest = max(self.gaps.values())
        return tuple(name for name, gap in self.gaps.items() if gap < WEAK_CORRUPTION * largest)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may mislead, one sentence each: cells that a corruption hides, weak corruptions, odd tokens."""
        return (*self._warnings_of_hiding(), *self._warnings_of_weakness(), *self._warnings_of_tokens())

    def to_dict(self) -> dict[str, Any]:
        """All of this as plain values, ready for JSON."""
        found = {"gaps": self.gaps, "replacing": list(self.replacing), "warnings": list(self.warnings)}
        return {**super().to_dict(), **found}

    def _hidden_by(self, name: str) -> Iterator[dict[str, Any]]:
        others = [other for other in self.names if other not in {*self.replacing, *self.weak}]
        for row in self.table.to_pylist() if others else []:
            shown_by = max(others, key=lambda other: abs(row[other]))
            if abs(row[name]) < self.threshold / 2 and abs(row[shown_by]) >= self.threshold:
                place = {key: row[key] for key in (*CELL, "token") if key in row}
                effects = {"effect": row[name], "effect_there": row[shown_by]}
                yield {**place, "corruption": name, "shown_by": shown_by, **effects}

    def _warnings_of_hiding(self) -> Iterator[str]:
        for name in self.replacing:
            rows = list(self._hidden_by(name))
            if rows:
                cells = list(dict.fromkeys(_cell_name(row) for row in rows))
                more = f" and {len(cells) - NAMED_CELLS:,} more" if len(cells) > NAMED_CELLS else ""
                others = ", ".join(dict.fromkeys(row["shown_by"] for row in rows))
                shown = "; ".join(cells[:NAMED_CELLS]) + more
                yield (
                    f"{name} replaces the answer and hides what {others} shows: {shown}. "
                    "These may be routing heads, which find the place of the answer and do not carry it"
                )
        if len(self.replacing) == len(self.names):
            yield (
                "every corruption replaces the answer, so heads that find its place may be hidden in all of them: add "
                "one that changes what points to the answer and keeps the answer"
            )

    def _warnings_of_weakness(self) -> Iterator[str]:
        for name in self.weak:
            yield (
                f"{name} moves the logit difference by {self.gaps[name]:.3g}, and another corruption by "
                f"{max(self.gaps.values()):.3g}: its effects are shares of very little"
            )

    def _warnings_of_tokens(self) -> Iterator[str]:
        """Warnings of heads that a corruption shows, and that treat one of its tokens unlike others."""
        for name in self.names if self.token_comparison else ():
            reacting = self.token_comparison.reacting(name) if self.token_comparison else {}
            for (layer, head), text in sorted(reacting.items()):
                cells = [row for row in self.table.to_pylist() if _is_of(row, layer, head)]
                shown = [row for row in cells if abs(row[name]) >= self.threshold]
                if shown:
                    places = "; ".join(dict.fromkeys(map(_cell_name, shown)))
                    yield (
                        f"{name} shows {places}: head {layer}.{head} treats the token {text!r} unlike other tokens, "
                        "and this effect may be of that and not of the task"
                    )

    def _title(self) -> str:
        return f"{len(self):,} effects under {len(self.names)} corruptions, the widest spread first"

    def _notes(self) -> list[str]:
        return [*(f"warning: {text}" for text in self.warnings), *super()._notes()]


def compare_corruptions(
    sweeps: Mapping[str, Sweep], threshold: float = LARGE_EFFECT, token_comparison: TokenComparison | None = None
) -> CorruptionComparison:
    """Compare the effect of each component under several corrupt prompts for the same clean prompts.

        sweeps = {name: lab.patch(model, clean=clean, corrupt=text, ...) for name, text in candidates.items()}
        print(actstore.compare_corruptions(sweeps))

    Args:
        sweeps: A sweep for each corruption, by its name: two at least, of one model, clean prompt and grid.
        threshold: The least effect, as a share of the whole, with which a corruption shows a cell. It hides a cell
            with an effect below half of that.
        token_comparison: What `lab.compare_tokens` says of the same corruptions, by the same names. Heads that treat a
            replaced token unlike others, and that its corruption shows, are then warned of.

    Returns:
        One row for each direction and cell, the widest spread first.

    Raises:
        BadRequest: For fewer than two sweeps, for sweeps of other models, clean prompts or cells than the first, and
            for screens, whose cells are not all computed.
    """
    _check_names(sweeps)
    _checks.number(threshold, "threshold", least=0.0)
    _check_same(sweeps)
    _check_computed(sweeps)
    _check_tokens(sweeps, token_comparison)
    first = next(iter(sweeps.values()))
    return CorruptionComparison(
        table=_table(first, {name: _effects(sweep) for name, sweep in sweeps.items()}),
        provenance=first.provenance,
        excluded=first.excluded,
        names=tuple(sweeps),
        threshold=threshold,
        gaps={name: _gap(sweep) for name, sweep in sweeps.items()},
        replacing=tuple(name for name, sweep in sweeps.items() if _replaces_answer(sweep)),
        token_comparison=token_comparison,
    )


def _check_names(sweeps: Mapping[str, object]) -> None:
    if not isinstance(sweeps, Mapping) or len(sweeps) < CORRUPTIONS_MIN:
        message = "comparing corruptions needs several sweeps, by the names of their corruptions"
        raise refused(message, "sweeps", repr(type(sweeps).__name__), f"a dict of {CORRUPTIONS_MIN} or more")
    for name, sweep in sweeps.items():
        if not isinstance(sweep, Sweep):
            raise refused(f"{name!r} is not a sweep", "sweeps", repr(type(sweep).__name__), "results of `lab.patch`")
        if _checks.words(name, "sweeps") in {*CELL, *SUMMARY}:
            raise refused(f"{name!r} is a column of the answer", "sweeps", name, "another name for the corruption")


def _check_tokens(sweeps: Mapping[str, Sweep], comparison: object) -> None:
    if not isinstance(comparison, TokenComparison | None):
        allowed = "a result of `lab.compare_tokens`"
        message = "token_comparison must be a TokenComparison"
        raise refused(message, "token_comparison", repr(type(comparison).__name__), allowed)
    if comparison is not None and set(comparison.names) != set(sweeps):
        message = "token_comparison and the sweeps have different corruptions"
        raise refused(message, "token_comparison", sorted(comparison.names), f"a comparison of {', '.join(sweeps)}")


def _check_computed(sweeps: Mapping[str, Sweep]) -> None:
    """A screen computes some cells, and not the same ones of each corruption."""
    for name, sweep in sweeps.items():
        left_out = sum(effect is None for effect in _effects(sweep).values())
        if left_out:
            message = f"{left_out:,} cells of the sweep {name!r} have no computed effect"
            raise refused(message, "sweeps", name, "sweeps without `screen`")


def _check_same(sweeps: Mapping[str, Sweep]) -> None:
    (_, first), *others = sweeps.items()
    for name, sweep in others:
        for what, one, other in (
            ("model", _model(first), _model(sweep)),
            ("clean prompts", _clean_prompts(first), _clean_prompts(sweep)),
            ("source, SAE error or receivers", _manner(first), _manner(sweep)),
            ("cells or directions", set(_effects(first)), set(_effects(sweep))),
        ):
            if one != other:
                message = f"the sweep {name!r} has other {what} than the first sweep"
                raise refused(message, "sweeps", name, f"sweeps with the same {what}")


def _model(sweep: Sweep) -> tuple[str, ...]:
    found = sweep.provenance
    return found.model, found.weights_sha256, found.config_sha256


def _manner(sweep: Sweep) -> tuple[object, ...]:
    return sweep.source, sweep.sae_error, sweep.receivers, sweep.path_mlps


def _clean_prompts(sweep: Sweep) -> list[Prompt]:
    return [pair.clean for pair in sweep.pairs]


def _effects(sweep: Sweep) -> Effects:
    return {tuple(row.get(name) for name in CELL): row["normalized"] for row in sweep.mean()}


def _gap(sweep: Sweep) -> float:
    clean, corrupt = (
        sweep.baseline_table.filter(pc.equal(sweep.baseline_table["prompt"], prompt)).sort_by("pair")
        for prompt in ("clean", "corrupt")
    )
    return float(pc.mean(pc.abs(pc.subtract(clean["logit_difference"], corrupt["logit_difference"]))).as_py())


def _replaces_answer(sweep: Sweep) -> bool:
    answer = next(iter(sweep.answer_texts or (sweep.pairs[0].clean_answer,)), None) if sweep.pairs else None
    return answer in sweep.tokens["clean"] and answer not in sweep.tokens["corrupt"]


def _table(sweep: Sweep, effects: Mapping[str, Effects]) -> pa.Table:
    """`sweep` is the first. Columns of the place that say nothing of any cell are left out."""
    cells = list(next(iter(effects.values())))
    values = np.array([[found[cell] for found in effects.values()] for cell in cells])
    columns: dict[str, Any] = {}
    for name, column in zip(CELL, zip(*cells, strict=True), strict=True):
        if any(value is not None for value in column):
            columns[name] = list(column)
    if "position" in columns:
        texts = sweep.tokens["clean"]
        columns["token"] = [None if position is None else texts[position] for position in columns["position"]]
    columns.update(zip(effects, values.T, strict=True))
    least, greatest = values.min(axis=1), values.max(axis=1)
    table = pa.table({**columns, "least": least, "greatest": greatest, "spread": greatest - least})
    return table.sort_by([("spread", "descending")])


def _is_of(row: Mapping[str, Any], layer: int, head: int) -> bool:
    return row["site"] in HEAD_SITES and (row.get("layer"), row.get("head")) == (layer, head)


def _cell_name(row: Mapping[str, Any]) -> str:
    if row.get("name") is not None:
        return str(row["name"])
    parts = (row["site"], row.get("layer"), row.get("head"))
    place = ".".join(str(part) for part in parts if part is not None)
    position = row.get("position")
    return place if position is None else f"{place} at {position} {row['token']!r}"
