"""Compares runs of several revisions of one model over the same text: whether they are comparable, and their training
steps.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_api.records.terms import Provenance
from actstore_storage.errors import BadRequest, check_limit
from actstore_storage.norms.profile import (
    LAYER,
    PROFILE_ROWS_MAX,
    TOKEN,
    TOKEN_CLASS,
    ProfileQuestion,
    norm_histogram,
    norm_profile,
)
from actstore_storage.norms.sketches import lost_sketches
from actstore_storage.runs.snapshot import Snapshot

REVISIONS_MAX = 256
# A grouping that does not exist for a single run: by layer, with the run's revision and step.
CHECKPOINT = "checkpoint"
_NUMBER_AT_END = re.compile(r"(\d+(?:\.\d+)?)(\D*)$")
# A commit's hash, full or abbreviated: its digits say nothing about training.
_COMMIT = re.compile(r"(?=.*[a-f])[0-9a-f]{7,40}")
# Fields that must be equal in all runs, in addition to the model, so that differences come from training.
# `dataset_sha256` is the hash of the token ids, whichever columns, rows and documents they came from; `marked_special`
# affects token classes.
_ALIKE = (
    "model", "dataset_sha256", "tokenizer_sha256", "context_length", "prepend_bos", "max_tokens", "config_sha256",
    "marked_special",
)  # fmt: skip
# Fields of provenance that may differ: norms are still comparable, and the answer warns.
_COMPUTED_WITH = ("dtype", "attention_implementation", "device")


def in_order(
    snapshots: Sequence[Snapshot], steps: Sequence[float], least: int
) -> tuple[list[Snapshot], npt.NDArray[np.float64]]:
    """Returns runs in order of training step, and those steps.

    `steps` are the runs' training steps, one each; or the numbers at the ends of their revisions' names, which must not
    be hashes of commits and must have the same suffix.

    Errors: BadRequest for fewer than `least` or too many runs, RUNS_DIFFER as check_comparable, and for a wrong number
    of steps, repeated steps, or names without numbers.
    """
    check_limit(len(snapshots), REVISIONS_MAX, "runs", least=least)
    check_comparable(snapshots)
    at = _training_steps(snapshots, steps)
    order = np.argsort(at)
    return [snapshots[index] for index in order], at[order]


def check_comparable(snapshots: Sequence[Snapshot]) -> None:
    """Errors: BadRequest RUNS_DIFFER if they do not have the same model name, configuration and tokens."""
    for field in _ALIKE:
        # Runs of early versions do not record the configuration.
        records = [found.record for found in snapshots if getattr(found.record.specification, field) != ""]
        for other in records[1:]:
            expected, found = (getattr(record.specification, field) for record in (records[0], other))
            if found != expected:
                keys = f" ({'; '.join(records[0].config_differences(other))})" if field == "config_sha256" else ""
                raise BadRequest(
                    f"runs {records[0].run} and {other.run} cannot be compared: their {field} is {expected} and "
                    f"{found}{keys}",
                    reason="RUNS_DIFFER",
                    field=field,
                    value=found,
                    allowed=expected,
                )


def warnings_of(snapshots: Sequence[Snapshot], *, sinks: bool) -> tuple[str, ...]:
    """Sentences about differences between these runs other than training: how they were computed and, if `sinks` are
    excluded, how sinks were defined. None for a single run.
    """
    found = [(name, "their numbers also differ by rounding") for name in _COMPUTED_WITH]
    found += [("sink_ratio", "different tokens count as sinks")] if sinks else []
    runs = [snapshot.provenance() for snapshot in snapshots]
    told = [(name, consequence, _runs_by_value(runs, name)) for name, consequence in found]
    return tuple(
        f"the runs differ in {name}, so {consequence}: {', '.join(values)}"
        for name, consequence, values in told
        if len(values) > 1
    )


def _runs_by_value(runs: Sequence[Provenance], name: str) -> list[str]:
    """Each value, with the first run that has it."""
    by_value: dict[str | float, list[str]] = {}
    for provenance in runs:
        by_value.setdefault(getattr(provenance, name), []).append(provenance.run)
    return [
        f"{value if isinstance(value, str) else f'{value:g}'} in {first}" + (f" and {len(more)} more" if more else "")
        for value, (first, *more) in by_value.items()
    ]


@dataclass(frozen=True)
class NormsOfRuns:
    """`histogram`: None if none was requested. `from_statistics`: no norm of a single token was read. `warnings` as
    warnings_of, and about sketches that are missing.
    """

    profile: pa.Table
    histogram: pa.Table | None
    from_statistics: bool
    warnings: tuple[str, ...]


def norms_of_runs(
    snapshots: Sequence[Snapshot],
    question: ProfileQuestion,
    *,
    steps: Sequence[float] = (),
    bins: int = 0,
    edges: Sequence[float] = (),
) -> NormsOfRuns:
    """The norms of one run, or of each of several with its columns revision and step in front, by site, layer and step.

    Runs are never pooled, because a mean over training and a mean over depth are different things. `steps` as in
    `in_order`. By checkpoint, rows are by layer, and a single run has the two columns as well.
    """
    several = len(snapshots) > 1 or question.by == CHECKPOINT
    if several and question.by == TOKEN:
        raise BadRequest(
            "norms by token can be read from one run at a time",
            field="by",
            value=TOKEN,
            allowed="one run; ask once for each run",
        )
    asked = replace(question, by=LAYER) if question.by == CHECKPOINT else question
    at = in_order(snapshots, steps, least=1) if several else None

    def found(ask: Callable[[Snapshot], pa.Table]) -> pa.Table:
        return ask(snapshots[0]) if at is None else _side_by_side(*at, ask)

    profile, histogram = found(lambda snapshot: norm_profile(snapshot, asked)), None
    if bins or len(edges):
        histogram = found(lambda snapshot: norm_histogram(snapshot, asked, bins=bins, edges=edges))
    only_statistics = asked.from_statistics and not asked.quantiles and histogram is None
    sinks = "sink" in asked.kept.exclude or asked.by == TOKEN_CLASS
    warnings = warnings_of(snapshots if at is None else at[0], sinks=sinks)
    warnings += _of_lost_sketches(snapshots, asked, [profile] if histogram is None else [profile, histogram])
    return NormsOfRuns(profile, histogram, only_statistics, warnings)


def _of_lost_sketches(
    snapshots: Sequence[Snapshot], asked: ProfileQuestion, answers: Sequence[pa.Table]
) -> tuple[str, ...]:
    """Sentences about missing sketches, because of which stored norms were read; none if there never were sketches. It
    checks nothing if sketches were used.
    """
    exact = any("rank_error" in answer.column_names and 0 in answer["rank_error"].to_pylist() for answer in answers)
    if not asked.from_sketches or not exact:
        return ()
    found = (lost_sketches(snapshot) for snapshot in snapshots)
    return tuple(
        f"quantiles and histograms were computed exactly, from every token's stored norm, which is slow: {one}"
        for one in found
        if one
    )


def _side_by_side(
    snapshots: Sequence[Snapshot], steps: npt.NDArray[np.float64], ask: Callable[[Snapshot], pa.Table]
) -> pa.Table:
    parts = []
    for snapshot, step in zip(snapshots, steps, strict=True):
        own = ask(snapshot)
        check_limit(own.num_rows * len(snapshots), PROFILE_ROWS_MAX, "rows", least=0)
        revision = pa.array([snapshot.record.specification.model_revision] * own.num_rows, pa.string())
        place = {"revision": revision, "step": pa.array([step] * own.num_rows, pa.float64())}
        parts.append(pa.table(place | {name: own[name] for name in own.column_names}))
    return _by_place(pa.concat_tables(parts))


def _by_place(table: pa.Table) -> pa.Table:
    """Sites in the order of the first run; stable, so that rows of one site in one run keep their order."""
    kinds = {kind: number for number, kind in enumerate(dict.fromkeys(table["site"].to_pylist()))}
    site = np.array([kinds[kind] for kind in table["site"].to_pylist()])
    layer = table["layer"].to_numpy() if "layer" in table.column_names else np.zeros(len(site))
    return table.take(pa.array(np.lexsort((table["step"].to_numpy(), layer, site))))


def _training_steps(snapshots: Sequence[Snapshot], given: Sequence[float]) -> npt.NDArray[np.float64]:
    names = [snapshot.record.specification.model_revision for snapshot in snapshots]
    found = [None if _COMMIT.fullmatch(name) else _NUMBER_AT_END.search(name) for name in names]
    units = {match[2] for match in found if match}  # 512 and 1k cannot be compared as numbers
    if not given and (not all(found) or len(units) > 1):
        raise BadRequest(
            f"revisions {', '.join(map(repr, names))} do not all end in a training step",
            field="steps",
            value=", ".join(names),
            allowed="a number for each run, or revisions that all end in one in the same form, such as step1000",
        )
    steps = np.array(given or [float(match[1]) for match in found if match], np.float64)
    if len(steps) != len(snapshots) or len(np.unique(steps)) < len(steps) or not np.isfinite(steps).all():
        raise BadRequest(
            f"{len(steps)} steps were given for {len(snapshots)} runs; each run needs a different step",
            field="steps",
            value=steps.tolist(),
            allowed=f"{len(snapshots)} different numbers",
        )
    return steps
