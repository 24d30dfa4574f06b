"""Answers questions about norms: how large activations are, and how they grow."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actstore_api.records.norm import (
    FitGrowth,
    FitGrowthAnswer,
    GetNormProfile,
    GetNormProfileAnswer,
    GetSeparability,
    GetSeparabilityAnswer,
    Interval,
)
from actstore_api.records.terms import Range
from actstore_storage.answers.store import Store
from actstore_storage.errors import BadRequest, check_limit
from actstore_storage.norms.growth import CHECKPOINT, Bootstrap, Growth, fit_growth, fit_growth_over_checkpoints
from actstore_storage.norms.profile import ProfileQuestion
from actstore_storage.norms.revisions import REVISIONS_MAX, norms_of_runs
from actstore_storage.norms.rows import KeptTokens
from actstore_storage.norms.separability import separability as separability_of
from actstore_storage.runs.snapshot import Snapshot


def profile(store: Store, question: GetNormProfile) -> GetNormProfileAnswer:
    """Statistics of norms in one run or in several."""
    snapshots = _snapshots(store, question.runs)
    asked = ProfileQuestion(
        sites=question.sites,
        quantity=question.quantity,
        by=question.by,
        quantiles=question.quantiles,
        kept=KeptTokens.of(question),
        exact=question.exact,
        sequences=_first_and_count(question.sequences),
    )
    found = norms_of_runs(snapshots, asked, steps=question.steps, bins=question.bins, edges=question.edges)
    return GetNormProfileAnswer(
        profile=found.profile,
        histogram=found.histogram,
        from_statistics=found.from_statistics,
        **_origin(snapshots, question, found.warnings),
    )


def growth(store: Store, question: FitGrowth) -> FitGrowthAnswer:
    """The rate at which norms grow over layers or over training."""
    _check_axis(question)
    snapshots = _snapshots(store, question.runs)
    found = _fitted(snapshots, question)
    fit = found.fit
    words: dict[str, Any] = {"axis": found.axis, "quantity": found.quantity, "verdict": fit.verdict}
    return FitGrowthAnswer(
        site=found.site,
        layers=Range(found.first_layer, found.last_layer + 1),
        block=_block(found),
        rate=fit.rate,
        rate_interval=_interval(fit.rate_interval),
        r_squared=fit.r_squared,
        curvature=fit.curvature,
        curvature_interval=_interval(fit.curvature_interval),
        bend=fit.bend,
        median_ratio=fit.ratios.median,
        points=found.points,
        shapes=fit.shapes,
        resamples=found.bootstrap.resamples,
        seed=found.bootstrap.seed,
        sequences=found.sequences,
        **words,
        **_origin(snapshots, question, found.warnings),
    )


def separability(store: Store, question: GetSeparability) -> GetSeparabilityAnswer:
    """Whether layer and training step affect the norm independently."""
    snapshots = _snapshots(store, question.runs)
    found = separability_of(
        snapshots, layers=_first_and_last(question.layers), steps=question.steps, **_means(question)
    )
    shares, numbers = found.shares, found.cells["layer"]
    words: dict[str, Any] = {"quantity": found.quantity, "verdict": shares.verdict}
    return GetSeparabilityAnswer(
        site=found.site,
        layers=Range(numbers[0].as_py(), numbers[-1].as_py() + 1),
        layer_share=shares.layer,
        checkpoint_share=shares.checkpoint,
        interaction_share=shares.interaction,
        explained=shares.explained,
        rank_one=shares.rank_one,
        miss=shares.miss,
        cells=found.cells,
        **words,
        **_origin(snapshots, question, found.warnings),
    )


ANSWERS: Mapping[type, Callable[[Store, Any], Any]] = {
    GetNormProfile: profile,
    FitGrowth: growth,
    GetSeparability: separability,
}


def _snapshots(store: Store, runs: Sequence[str]) -> list[Snapshot]:
    """Opens no run before their number is known to be allowed."""
    if not runs:
        raise BadRequest("no run was given", field="runs", value="none", allowed="one run or more")
    check_limit(len(runs), REVISIONS_MAX, "runs")
    return store.snapshots(runs)


def _fitted(snapshots: Sequence[Snapshot], question: FitGrowth) -> Growth:
    asked = {"bootstrap": Bootstrap(question.resamples, question.seed), **_means(question)}
    if question.axis == CHECKPOINT:
        return fit_growth_over_checkpoints(snapshots, steps=question.steps, **asked)
    return fit_growth(snapshots[0], layers=_first_and_last(question.layers), **asked)


def _check_axis(question: FitGrowth) -> None:
    """Errors: BadRequest for what is not used with the question's axis."""
    if question.axis == CHECKPOINT:
        _check_unsaid(question, "layers", "none: growth over checkpoints is fitted at one site")
        return
    _check_unsaid(question, "steps", "none: growth over layers uses the layers as steps")
    runs = len(question.runs)
    if runs > 1:
        message = f"{runs} runs were given, but growth over layers is fitted in one run"
        raise BadRequest(message, field="runs", value=runs, allowed="one run, or several with axis checkpoint")


def _check_unsaid(question: FitGrowth, field: str, allowed: str) -> None:
    """Errors: BadRequest for a field that is not used with the question's axis."""
    said = getattr(question, field)
    if said:
        raise BadRequest(f"{field} cannot be given with axis {question.axis}", field=field, value=said, allowed=allowed)


def _means(question: FitGrowth | GetSeparability) -> dict[str, Any]:
    """The arguments of the fit; an empty site means its default."""
    return {
        "kept": KeptTokens.of(question),
        "quantity": question.quantity,
        **({"site": question.site} if question.site else {}),
    }


def _first_and_count(sequences: Range | None) -> tuple[int, int | None] | None:
    if sequences is None:
        return None
    return sequences.first, None if sequences.end is None else sequences.end - sequences.first


def _first_and_last(layers: Range | None) -> tuple[int, int] | None:
    if layers is None:
        return None
    if layers.end is None:
        raise BadRequest(
            "the range of layers has no end", field="layers.end", value="none", allowed="a layer above the first"
        )
    return layers.first, layers.end - 1


def _interval(found: tuple[float, float] | None) -> Interval | None:
    return None if found is None else Interval(*found)


def _block(found: Growth) -> Any:
    return found.block or None


def _origin(snapshots: Sequence[Snapshot], question: Any, warnings: tuple[str, ...]) -> dict[str, Any]:
    """The provenance is the first run's."""
    return {
        **KeptTokens.of(question).answered,
        "warnings": warnings,
        "provenance": snapshots[0].provenance(),
    }
