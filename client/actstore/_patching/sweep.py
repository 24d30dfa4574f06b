"""What changed when activations were replaced: one row for each cell."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from actstore import _checks
from actstore._answer import Answer, Table, excluded_words, plain_rows
from actstore._errors import refused
from actstore._patching import plots
from actstore._view.text import visible
from actstore_api.records.patching import (
    PatchDirection,
    PatchSource,
    PathMlps,
    PromptPair,
    RunSweep,
    SaeError,
    SweepAudit,
    SweepResult,
    TakenRows,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_CELLS = 10
# An effect of at least this share of the whole is told as one, of less than half of it as none.
LARGE_EFFECT = 0.5
PLACE = ("site", "layer", "position", "head", "feature", "name", "token")


@dataclass(frozen=True, repr=False)
class SweptCells(Table):
    """Some cells of a sweep that is still running: rows like those of `Sweep`, in the same order."""


@dataclass(frozen=True, repr=False)
class Sweep(Answer):
    """What replaced activations did to a model's answer: one row for each cell, one column for each metric.

    denoise puts the clean activation into the corrupt run, noise the corrupt one into the clean run. A row has pair,
    direction, site, layer, position, head and token of its cell. All metrics are at the last position:
    logit_difference = logit(clean answer) - logit(corrupt answer); log_probability (natural), probability, loss and
    rank (from 0) of the clean answer; kl = D(source run || patched run) in nats. `normalized` is the logit difference
    on a scale where the unpatched base run is 0 and the source run 1; normalized_log_probability and so on likewise.

    `unchanged` rows lie before the prompts' first difference: both runs are one there, so nothing can change. With
    `screen` every cell has an `estimate` of `normalized`, and cells that were not computed have no metrics. With `sae`
    there is a row for each `feature`, one named "together" and one named "error". With `spans`, `name` is the span's.

    Attributes:
        prompt_tokens: The texts of the first pair's tokens: position, clean, corrupt.
        clean_logit_difference: Logit difference of the first pair's clean prompt, unpatched.
        corrupt_logit_difference: Logit difference of the first pair's corrupt prompt, unpatched.
        audit: How far patched runs were from what the whole model makes of the same prompts.
        pairs: The prompts and answers of the request.
        source: The `source` of the request: what was put in place of activations.
        sae_error: The `sae_error` of the request: "kept", "dropped" or "patched". Empty without an SAE.
        receivers: Where paths end, in path patching; the cells are then the senders. Empty: no path patching.
        path_mlps: What MLPs on the paths did, in path patching. Empty without receivers.
        baseline_table: The rows of `baselines`.
        direct_table: The rows of `direct`.
        stored_rows: The rows that were read from a stored run. None: no run was read.
        answer_texts: The first pair's answers, as texts.
    """

    prompt_tokens: pa.Table
    clean_logit_difference: float
    corrupt_logit_difference: float
    audit: SweepAudit
    pairs: tuple[PromptPair, ...] = ()
    source: PatchSource = "prompt"
    sae_error: SaeError | Literal[""] = ""
    receivers: tuple[str, ...] = ()
    path_mlps: PathMlps | Literal[""] = ""
    baseline_table: pa.Table = field(default_factory=lambda: pa.table({}))
    direct_table: pa.Table = field(default_factory=lambda: pa.table({}))
    stored_rows: TakenRows | None = None
    answer_texts: tuple[str, ...] = ()

    @property
    def tokens(self) -> dict[str, list[str]]:
        """The texts of the tokens of both prompts of the first pair, by `clean` and `corrupt`."""
        return {name: self.prompt_tokens.column(name).drop_null().to_pylist() for name in ("clean", "corrupt")}

    @property
    def baselines(self) -> Answer:
        """The unpatched runs: one row for each pair and prompt, one column for each metric."""
        return Answer(table=self.baseline_table, provenance=self.provenance, excluded=self.excluded)

    @property
    def direct(self) -> Answer:
        """Direct logit attribution of the unpatched runs: what each part writes straight into the logit difference.

        There is a row for each pair, prompt and part, with its share. Parts are embedding (what goes into layer 0),
        attn_out, mlp_out, z (a head of attn_out) and bias (of final norm and unembedding). All but z add up to the
        logit difference, before a soft cap of logits.
        """
        return Answer(table=self.direct_table, provenance=self.provenance, excluded=self.excluded)

    def top(self, k: int = SHOWN_CELLS, direction: PatchDirection | None = None) -> Answer:
        """The cells that move the answer furthest from the base run, by absolute normalized logit difference.

        Args:
            k: How many cells at most.
            direction: "denoise" or "noise" alone. None: both.
        """
        table = self.table
        if direction is not None:
            _checks.one_of(direction, "direction", get_args(PatchDirection))
            table = table.filter(pc.equal(table["direction"], direction))
        if "estimate" in table.column_names:
            table = table.filter(pc.is_valid(table["logit_difference"]))
        order = pc.sort_indices(pc.negate(pc.abs(table["normalized"])))
        chosen = table.take(order[: _checks.count(k, "k")])
        return Answer(table=chosen, provenance=self.provenance, excluded=self.excluded)

    def mean(self) -> Answer:
        """The mean over pairs: one row for each direction and cell; of `normalized` also the least and the greatest."""
        place = ["direction", *(name for name in PLACE if name in self.table.column_names)]
        metrics = [name for name in self.table.column_names if name not in {*place, "pair", "unchanged"}]
        extremes = [("normalized", "min"), ("normalized", "max")]
        grouped = self.table.group_by([name for name in place if name != "token"], use_threads=False)
        found = grouped.aggregate([*((name, "mean") for name in metrics), *extremes])
        names = {f"{name}_mean": name for name in metrics}
        renamed = found.rename_columns([names.get(name, name) for name in found.column_names])
        return Answer(table=renamed, provenance=self.provenance, excluded=self.excluded)

    def directions(self, threshold: float = LARGE_EFFECT) -> Answer:
        """Compare denoise and noise: for each cell, their mean normalized logit differences over pairs, and `looks`.

        "AND": noise breaks it and denoise does not bring it back, as for one of several parts that are all needed.
        "OR": denoise brings it back and noise does not break it, as for one of several parts that are each enough.
        "both": it does either. "neither": no effect is as large as `threshold`. An effect counts as none below half of
        `threshold`; in between a cell is "unclear". (Heimersheim & Nanda 2024, "How to use and interpret activation
        patching", section 2.) Joint cells are rows like the others: two halves of an AND are "both" together. With
        `screen`, a cell that was not computed in both directions has None.

        Args:
            threshold: The least effect, as a share of the whole, that counts as one.

        Raises:
            BadRequest: For a sweep in one direction, and a threshold below 0.
        """
        _checks.number(threshold, "threshold", least=0.0)
        asked = set(self.table["direction"].to_pylist())
        if asked != set(get_args(PatchDirection)):
            message = "comparing denoise and noise needs a sweep in both directions"
            raise refused(message, "directions", ", ".join(sorted(asked)), "both: leave `directions` out")
        rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in self.mean():
            place = {name: row[name] for name in PLACE if name in row}
            kept = rows.setdefault(tuple(place.values()), place)
            kept[row["direction"]] = row["normalized"]
        for row in rows.values():
            computed = None not in (row["denoise"], row["noise"])
            row["looks"] = _looks(row["denoise"], row["noise"], threshold) if computed else None
        table = pa.Table.from_pylist(list(rows.values()))
        return Answer(table=table, provenance=self.provenance, excluded=self.excluded)

    def plot(self, z_position: int | None = None) -> "Figure":
        """Draw heat maps of `normalized`: one row for each direction, one column for each site.

        Layer 0 is on top, and the base run's tokens are across, or the heads for sites that have heads. All panels
        share limits symmetric about 0, and red is positive (RdBu_r). Labels of positions where the prompts differ are
        bold. Several pairs are drawn as their mean. Joint cells, spans, embeddings and features are not drawn.

        Args:
            z_position: The position at which each head is shown. None: the one at which the head moves the answer most,
                by absolute value.
        """
        position = None if z_position is None else _checks.count(z_position, "z_position")
        several = "pair" in self.table.column_names and len(pc.unique(self.table["pair"])) > 1
        cells = self.mean().table if several else self.table
        return plots.heat_maps(cells, self.tokens, position, self._plot_title())

    def to_dict(self) -> dict[str, Any]:
        """All of this as plain values, ready for JSON."""
        return {
            "clean_logit_difference": self.clean_logit_difference,
            "corrupt_logit_difference": self.corrupt_logit_difference,
            "tokens": self.tokens,
            "source": self.source,
            "sae_error": self.sae_error,
            "receivers": list(self.receivers),
            "path_mlps": self.path_mlps,
            "rows": plain_rows(self.table),
            "baselines": plain_rows(self.baseline_table),
            "direct": plain_rows(self.direct_table),
            "audit": asdict(self.audit),
            "stored_rows": self._stored_rows(),
            "excluded": list(self.excluded),
            "provenance": asdict(self.provenance),
        }

    def _stored_rows(self) -> dict[str, Any] | None:
        return None if self.stored_rows is None else asdict(self.stored_rows) | {"excluded": list(self.excluded)}

    def _plot_title(self) -> str:
        model = self.provenance.model
        if len(self.pairs) > 1:
            return f"{model}: mean over {len(self.pairs)} pairs of prompts"
        answers = ""
        if self.pairs:
            clean, corrupt = self.answer_texts or map(str, (self.pairs[0].clean_answer, self.pairs[0].corrupt_answer))
            answers = f" of {visible(clean)!r} over {visible(corrupt)!r}"
        return (
            f"{model}: logit difference{answers}, {self.clean_logit_difference:.3g} on the clean prompt, "
            f"{self.corrupt_logit_difference:.3g} on the corrupt one"
        )

    def _title(self) -> str:
        return (
            f"Sweep of {len(self):,} cells; logit difference {self.clean_logit_difference:.4g} clean, "
            f"{self.corrupt_logit_difference:.4g} corrupt; the cells that move it furthest:"
        )

    def _shown(self) -> list[dict[str, Any]]:
        """Without columns that say the same of every cell, and without the metrics beside the logit difference."""
        shown = self.top(SHOWN_CELLS)
        hidden = {*self._same_everywhere(), *_OTHER_METRICS}
        names = [name for name in shown.table.column_names if name not in hidden]
        return [{name: row[name] for name in names} for row in shown._shown()]

    def _shown_columns(self) -> list[str]:
        rows = self._shown()
        return list(rows[0]) if rows else super()._shown_columns()

    def _same_everywhere(self) -> Iterator[str]:
        for name in ("pair", "feature", "name", "unchanged"):
            if name in self.table.column_names and len(pc.unique(self.table[name])) < 2:
                yield name

    def _notes(self) -> list[str]:
        found = super()._notes()[-1:]
        if self.source != "prompt":
            found.append(f"in place of activations: {self.source}")
        if self.receivers:
            found.append(f"sent along paths to {', '.join(self.receivers)}; MLPs on the way are {self.path_mlps}")
        if self.audit.cached:
            found.append("kept from an earlier request for the same; fresh=True computes it again")
        if self.audit.audited_cells:
            found.append(
                f"audit: {self.audit.audited_cells:,} cells by the whole model, largest error "
                f"{self.audit.largest_error:.2g} in a logit, noise floor {self.audit.noise_floor:.2g}"
            )
        if self.stored_rows is not None:
            taken = self.stored_rows
            told = f"{taken.used:,} used of {taken.read:,} that were looked at of {taken.stored:,}"
            found.append(f"rows of run {taken.run}: {told}; {excluded_words(self.excluded, taken.sink_ratio)}")
        if "estimate" in self.table.column_names:
            agreement = self.audit.rank_agreement
            computed = len(self) - self.table["logit_difference"].null_count
            told = "" if agreement is None else f"; the ranks of estimates and effects agree by {agreement:.2f}"
            found.append(f"screen: {computed:,} of {len(self):,} cells computed, the others estimated{told}")
        return found


_OTHER_METRICS = (
    "log_probability", "probability", "loss", "rank", "kl", "normalized_log_probability", "normalized_probability",
    "normalized_loss", "normalized_kl",
)  # fmt: skip


def _looks(denoise: float, noise: float, threshold: float) -> str:
    large = [abs(effect) >= threshold for effect in (denoise, noise)]
    none = [abs(effect) < threshold / 2 for effect in (denoise, noise)]
    if all(large):
        return "both"
    if not any(large):
        return "neither"
    if not any(none):
        return "unclear"
    return "AND" if large[1] else "OR"


def sweep_of(result: SweepResult, question: RunSweep, parts: Sequence[pa.Table]) -> Sweep:
    """Makes the answer to a sweep from its result and from `parts`, the rows that came before."""
    taken = result.stored_rows
    return Sweep(
        table=pa.concat_tables(parts),
        prompt_tokens=result.tokens,
        clean_logit_difference=result.clean_logit_difference,
        corrupt_logit_difference=result.corrupt_logit_difference,
        provenance=result.provenance,
        pairs=question.pairs,
        source=question.source,
        sae_error=question.sae_error if question.sae else "",
        receivers=question.receivers,
        path_mlps=question.path_mlps if question.receivers else "",
        baseline_table=result.baselines,
        direct_table=result.direct,
        audit=result.audit,
        answer_texts=(result.clean_answer, result.corrupt_answer),
        stored_rows=taken,
        excluded=() if taken is None else tuple(sorted(taken.excluded)),
    )
