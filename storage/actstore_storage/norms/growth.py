"""Fits how fast norms grow: over the layers of one run, or over checkpoints of one model in several runs.

The growing value is the mean, over tokens that are not excluded, of L2 norms or another measure of size. It comes from
commits (without position 0, from the norms files); confidence intervals come from the norms files, sequence by
sequence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from actstore_storage.errors import BadRequest, check_limit
from actstore_storage.format.norm_columns import CENTRED_L2, L2, RMS, STANDARD_DEVIATION
from actstore_storage.format.sites import RESIDUAL_KINDS, Site, parse_site
from actstore_storage.norms.growth_shapes import STEPS_MIN, GrowthFit, fit_steps
from actstore_storage.norms.growth_steps import Curves, Resampled, Steps
from actstore_storage.norms.profile import (
    QUANTILE_TOKENS_MAX,
    ProfileQuestion,
    none_left,
    norm_profile,
    nothing_left,
)
from actstore_storage.norms.revisions import in_order, warnings_of
from actstore_storage.norms.rows import DEFAULT_KEPT, KeptTokens
from actstore_storage.norms.sequence_sums import (
    Measured,
    SequenceSums,
    evenly_spread,
    paired_sums,
    sequence_sums,
    sums_of_shards,
)
from actstore_storage.norms.sites import check_all_have, sites_with, unknown_site
from actstore_storage.registry.models import block_of
from actstore_storage.runs.snapshot import Snapshot

GROWTH_LAYERS_MIN = STEPS_MIN
# Measures of size: they are positive and have a logarithm. RMS is L2 over sqrt(d_model), so it has the same rate, but
# it can be compared between models of different widths. For the centered one, the mean over d_model is subtracted
# first.
SIZES = (L2, RMS, STANDARD_DEVIATION, CENTRED_L2)
LAYER, CHECKPOINT = "layer", "checkpoint"
DEFAULT_RESAMPLES, RESAMPLES_MAX = 1000, 10_000
# Resamples that are computed at a time.
_RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True)
class Bootstrap:
    """How confidence intervals are computed: `resamples` times, sequences are drawn with replacement, as many as there
    are.
    """

    resamples: int = DEFAULT_RESAMPLES
    seed: int = 0


@dataclass(frozen=True)
class Growth:
    """How fast a norm grows. `fit` is as in growth_shapes. `site` is a kind on the layer axis and a single site on the
    checkpoint axis.

    `points` has columns layer (or revision and step), mean, fitted, and those of StepRatios for the step that ends
    there. `block` is the registered model's: pre_ln, post_ln, parallel, or empty if unknown. `sequences` is the number
    of sequences behind the intervals. `warnings` are as in warnings_of, for several runs.
    """

    axis: str
    site: str
    first_layer: int
    last_layer: int
    quantity: str
    fit: GrowthFit
    points: pa.Table
    block: str
    bootstrap: Bootstrap
    sequences: int
    warnings: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        return self.fit.rate

    @property
    def r_squared(self) -> float:
        return self.fit.r_squared


def fit_growth(
    snapshot: Snapshot,
    *,
    site: str = "resid_post",
    layers: tuple[int, int] | None = None,
    kept: KeptTokens = DEFAULT_KEPT,
    bootstrap: Bootstrap = Bootstrap(),
    quantity: str = L2,
) -> Growth:
    """Fits the growth of norms over the layers of a site kind. `layers`: the first and the last one, both included; at
    least three. `quantity`: one of SIZES. Without position 0 every token's norm is read.
    """
    check_limit(bootstrap.resamples, RESAMPLES_MAX, "resamples", least=0)
    chosen = chosen_layers(snapshot, site, layers, quantity)
    numbers = [place.layer for place in chosen]
    measured = Measured(chosen, quantity, kept)
    means = mean_norms(snapshot, measured)
    sums = None
    if bootstrap.resamples:
        sums = sequence_sums(snapshot, evenly_spread(snapshot, snapshot.shards), measured)
    points = {"layer": pa.array(numbers, pa.int32())}
    steps = np.array(numbers, np.float64)
    fit, table, sequences = _fitted(steps, means, sums, points, bootstrap, snapshot.bucket.check)
    return Growth(
        LAYER,
        site,
        numbers[0],
        numbers[-1],
        quantity,
        fit,
        table,
        block_of(snapshot.bucket, snapshot.record.specification),
        bootstrap,
        sequences,
    )


def fit_growth_over_checkpoints(
    snapshots: Sequence[Snapshot],
    *,
    site: str = "",
    steps: Sequence[float] = (),
    kept: KeptTokens = DEFAULT_KEPT,
    bootstrap: Bootstrap = Bootstrap(),
    quantity: str = L2,
) -> Growth:
    """Fits the growth of norms over checkpoints of a model: at one site (empty: resid_post of the last layer), over
    runs of the same text at several revisions.

    `steps` are the runs' training steps, as in `in_order`. All runs use the same resampled sequences, because all saw
    the same text.
    """
    check_limit(bootstrap.resamples, RESAMPLES_MAX, "resamples", least=0)
    _check_size(quantity)
    ordered, at = in_order(snapshots, steps, least=STEPS_MIN)
    first = snapshots[0]
    place = parse_site(site or f"resid_post.{first.record.layer_count - 1}", RESIDUAL_KINDS, first.record.layer_count)
    check_all_have(snapshots, [place], quantity)
    measured = Measured([place], quantity, kept)
    means = np.concatenate([mean_norms(snapshot, measured) for snapshot in ordered])
    sums = paired_sums(ordered, measured) if bootstrap.resamples else None
    points = {
        "revision": pa.array([snapshot.record.specification.model_revision for snapshot in ordered]),
        "step": pa.array(at),
    }
    fit, table, sequences = _fitted(at, means, sums, points, bootstrap, first.bucket.check)
    where = CHECKPOINT, str(place), place.layer, place.layer, quantity
    return Growth(
        *where,
        fit,
        table,
        block_of(first.bucket, first.record.specification),
        bootstrap,
        sequences,
        warnings_of(ordered, sinks="sink" in kept.exclude),
    )


def _fitted(
    steps: Steps,
    means: Steps,
    sums: SequenceSums | None,
    points: dict[str, pa.Array],
    bootstrap: Bootstrap,
    check: Callable[[], None],
) -> tuple[GrowthFit, pa.Table, int]:
    """The fit, its points, and the number of sequences behind the intervals."""
    resampled = None if sums is None or len(sums) < 2 else resample_means(sums, means, bootstrap, check)
    fit = fit_steps(steps, means, resampled)
    points |= {"mean": pa.array(means), "fitted": pa.array(fit.fitted), **fit.ratios.columns()}
    return fit, pa.table(points), 0 if resampled is None else resampled.sequences


def resample_means(
    sums: SequenceSums, means: Steps, bootstrap: Bootstrap, check: Callable[[], None] = lambda: None
) -> Resampled:
    """Computes the mean norms over the tokens of resampled sequences. `check` raises once nobody waits for them.

    If `sums` are of a part of the run, each curve is multiplied by the ratio of the run's means to that part's.
    """
    rng = np.random.default_rng(bootstrap.seed)
    found = []
    for first in range(0, bootstrap.resamples, _RESAMPLES_AT_ONCE):
        check()
        rows = min(_RESAMPLES_AT_ONCE, bootstrap.resamples - first)
        drawn = rng.integers(0, len(sums), (rows, len(sums)))
        weights = np.stack([np.bincount(row, minlength=len(sums)) for row in drawn]).astype(np.float64)
        with np.errstate(invalid="ignore"):  # 0 of 0 tokens
            found.append((weights @ sums.sums) / (weights @ sums.counts))
    with np.errstate(invalid="ignore"):
        part = sums.sums.sum(axis=0) / sums.counts.sum(axis=0)
    curves: Curves = np.concatenate(found) * (means / part)
    return Resampled(curves, len(sums))


def mean_norms(snapshot: Snapshot, measured: Measured) -> Steps:
    """Computes the mean at each site. Errors: BadRequest NOTHING_LEFT if all tokens are excluded, or the mean is 0 and
    has no logarithm.
    """
    names, kept = [str(site) for site in measured.sites], measured.kept
    if not kept.told_by_class:
        means = _means_of_rows(snapshot, measured)
    else:
        question = ProfileQuestion(names, measured.quantity, quantiles=(), kept=kept)
        means = norm_profile(snapshot, question)["mean"].to_numpy()
    if (means <= 0).any():
        name = names[int(np.argmin(means))]
        raise nothing_left(f"the mean {measured.quantity} of {name} is 0, which has no logarithm", kept)
    return means


def _means_of_rows(snapshot: Snapshot, measured: Measured) -> Steps:
    """[site]; each shard is read once for all sites, whereas a profile reads it for each."""
    check_limit(snapshot.tokens_committed, QUANTILE_TOKENS_MAX, "tokens", least=0)
    found = np.zeros((2, len(measured.sites)))
    for parts in sums_of_shards(snapshot, snapshot.commits, measured):
        found += [part.sum(axis=0) for part in parts]
    sums, counts = found
    if not counts.all():
        raise none_left(snapshot, [measured.sites[int(np.argmin(counts))]], measured.kept)
    means: Steps = sums / counts
    return means


def chosen_layers(
    snapshot: Snapshot,
    kind: str,
    layers: tuple[int, int] | None,
    quantity: str = L2,
    least: int = GROWTH_LAYERS_MIN,
) -> list[Site]:
    """Chooses the sites of a kind from the first to the last layer, which the run must have; None: all that it has.

    Errors: BadRequest SITE_UNKNOWN for a kind without norms, LAYER_OUT_OF_RANGE for a range that is empty, that the run
    does not have, or that has fewer than `least` layers.
    """
    _check_size(quantity)
    stored = sites_with(snapshot, quantity)
    of_kind = [site for site in stored if site.kind == kind]
    if not of_kind:
        raise unknown_site(snapshot, kind, sorted({site.kind for site in stored}), quantity)
    have = [site.layer for site in of_kind]
    first, last = layers or (have[0], have[-1])
    chosen = [site for site in of_kind if first <= site.layer <= last]
    if wrong := _wrong_range(snapshot.record.run, kind, (first, last), have, len(chosen), least):
        raise BadRequest(
            f"layers {first} to {last} of {kind} cannot be fitted: {wrong}",
            reason="LAYER_OUT_OF_RANGE",
            field="layers",
            value=f"{first} to {last}",
            allowed=f"at least {least} of {', '.join(map(str, have))}",
        )
    return chosen


def _wrong_range(
    run: str, kind: str, layers: tuple[int, int], have: Sequence[int], count: int, least: int
) -> str | None:
    first, last = layers
    if first > last:
        return f"the range is empty: its first layer, {first}, is above its last, {last}"
    for layer in layers:
        if layer not in have:
            return f"run {run} has no norms of {kind}.{layer}"
    if count < least:
        return f"the fit needs at least {least} layers, and run {run} has norms of {count} of these"
    return None


def _check_size(quantity: str) -> None:
    if quantity not in SIZES:
        message = f"growth can only be fitted to a measure of size, which {quantity!r} is not"
        raise BadRequest(message, field="quantity", value=quantity, allowed=SIZES)
