"""How fast norms grow in runs: from layer to layer of one, or from checkpoint to checkpoint of one model in several.

What grows is the mean L2 norm over the tokens that count, which the commits carry; how sure the rate is comes from the
norms files, sequence by sequence.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.commit import Commit
from actstore_storage.errors import BadRequest
from actstore_storage.exclusion import DEFAULT_EXCLUSION, check_limit, kept_rows
from actstore_storage.growth_shapes import CONFIDENCE, STEPS_MIN, Curves, GrowthFit, Steps, fit_steps
from actstore_storage.norms import merged_moments, nothing_left, stored_sites, unknown_site
from actstore_storage.products import NORMS, TOKENS
from actstore_storage.reading import open_product
from actstore_storage.registry import find_registered_model
from actstore_storage.sites import RESIDUAL_KINDS, Site, parse_site
from actstore_storage.snapshot import Snapshot

GROWTH_LAYERS_MIN = STEPS_MIN
LAYER, CHECKPOINT = "layer", "checkpoint"
DEFAULT_RESAMPLES, RESAMPLES_MAX = 1000, 10_000
CHECKPOINTS_MAX = 256
# What the interval is computed from, evenly spread over the run where that has more. It is then the (wider) one of so
# much text.
INTERVAL_TOKENS, INTERVAL_SEQUENCES = 1_000_000, 20_000
# Resamples that are counted at a time.
_RESAMPLES_AT_ONCE = 100
_NUMBER_AT_END = re.compile(r"(\d+(?:\.\d+)?)\D*$")


@dataclass(frozen=True)
class Bootstrap:
    """Sequences are drawn with replacement, as many as there are, `resamples` times. 0: no intervals."""

    resamples: int = DEFAULT_RESAMPLES
    seed: int = 0


@dataclass(frozen=True)
class Growth:
    """`fit` as in growth_shapes. `site` is a kind on the layer axis and a single site on the checkpoint axis.

    `points` has columns layer (or revision and step), mean, fitted, ratio, ratio_low, ratio_high. `ratio` is the factor
    of one step since the point before, null for the first; low and high bound its interval, null without one. `block`
    is the registered model's: pre_ln, post_ln, parallel, or empty where it is not known. `sequences` is how many the
    intervals are from.
    """

    axis: str
    site: str
    first_layer: int
    last_layer: int
    fit: GrowthFit
    points: pa.Table
    block: str
    bootstrap: Bootstrap
    sequences: int

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
    exclude: frozenset[str] = DEFAULT_EXCLUSION,
    bootstrap: Bootstrap = Bootstrap(),
) -> Growth:
    """Over the layers of a site kind. `layers`: the first and the last of the fit, both included; three at least."""
    check_limit(bootstrap.resamples, RESAMPLES_MAX, "resamples", least=0)
    chosen = _growth_layers(snapshot, site, layers)
    numbers = [place.layer for place in chosen]
    means = _means([(snapshot, place) for place in chosen], exclude)
    sums = (
        _sequence_sums(snapshot, _spread(snapshot, snapshot.shards), chosen, exclude) if bootstrap.resamples else None
    )
    points = {"layer": pa.array(numbers, pa.int32())}
    fit, table, sequences = _fitted(np.array(numbers, np.float64), means, sums, points, bootstrap)
    return Growth(LAYER, site, numbers[0], numbers[-1], fit, table, _block(snapshot), bootstrap, sequences)


def fit_growth_over_checkpoints(
    snapshots: Sequence[Snapshot],
    *,
    site: str = "",
    steps: Sequence[float] = (),
    exclude: frozenset[str] = DEFAULT_EXCLUSION,
    bootstrap: Bootstrap = Bootstrap(),
) -> Growth:
    """At one site (empty: resid_post of the last layer), over runs of the same text at several revisions of a model.

    `steps` are the runs' places in training, one each, or the numbers at the ends of their revisions' names. Sequences
    are resampled in all runs together, since all of them saw the same.
    """
    check_limit(bootstrap.resamples, RESAMPLES_MAX, "resamples", least=0)
    check_limit(len(snapshots), CHECKPOINTS_MAX, "runs", least=STEPS_MIN)
    check_comparable(snapshots)
    first = snapshots[0]
    place = parse_site(site or f"resid_post.{first.record.layer_count - 1}", RESIDUAL_KINDS, first.record.layer_count)
    for snapshot in snapshots:
        if place not in stored_sites(snapshot):
            raise unknown_site(snapshot, str(place), [str(stored) for stored in stored_sites(snapshot)])
    at = _training_steps(snapshots, steps)
    order = np.argsort(at)
    ordered = [snapshots[index] for index in order]
    means = _means([(snapshot, place) for snapshot in ordered], exclude)
    sums = _paired_sums(ordered, place, exclude) if bootstrap.resamples else None
    points = {
        "revision": pa.array([snapshot.record.specification.model_revision for snapshot in ordered]),
        "step": pa.array(at[order]),
    }
    fit, table, sequences = _fitted(at[order], means, sums, points, bootstrap)
    return Growth(CHECKPOINT, str(place), place.layer, place.layer, fit, table, _block(first), bootstrap, sequences)


def check_comparable(snapshots: Sequence[Snapshot]) -> None:
    """Errors: BadRequest RUNS_DIFFER where they are not of one model name, or not over the same tokens."""
    first = snapshots[0].record
    for snapshot in snapshots[1:]:
        other = snapshot.record
        for field in ("model", "dataset_sha256", "tokenizer_sha256", "context_length", "prepend_bos", "max_tokens"):
            expected, found = getattr(first.specification, field), getattr(other.specification, field)
            if found != expected:
                raise BadRequest(
                    f"runs {first.run} and {other.run} cannot be compared: their {field} is {expected} and {found}",
                    reason="RUNS_DIFFER",
                    field=field,
                    value=found,
                    allowed=expected,
                )


def _fitted(
    steps: Steps, means: Steps, sums: "SequenceSums | None", points: dict[str, pa.Array], bootstrap: Bootstrap
) -> tuple[GrowthFit, pa.Table, int]:
    """The fit, its points, and how many sequences the intervals are from."""
    resampled = None if sums is None or len(sums) < 2 else resample_means(sums, means, bootstrap)
    fit = fit_steps(steps, means, resampled)
    points |= {"mean": pa.array(means), "fitted": pa.array(fit.fitted), **_ratios(steps, means, resampled)}
    return fit, pa.table(points), 0 if resampled is None or sums is None else len(sums)


def _ratios(steps: Steps, means: Steps, resampled: Curves | None) -> dict[str, pa.Array]:
    def columns(values: list[Steps]) -> list[pa.Array]:
        return [pa.array([None, *value.tolist()], pa.float64()) for value in values]

    gaps = np.diff(steps)
    ratio = (means[1:] / means[:-1]) ** (1 / gaps)
    there = resampled is not None
    if resampled is not None:
        drawn = (resampled[:, 1:] / resampled[:, :-1]) ** (1 / gaps)
        low, high = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    else:
        low = high = ratio
    found = dict(zip(("ratio", "ratio_low", "ratio_high"), columns([ratio, low, high]), strict=True))
    empty = pa.nulls(len(means), pa.float64())
    return found if there else found | {"ratio_low": empty, "ratio_high": empty}


@dataclass(frozen=True)
class SequenceSums:
    """Of each sequence at each step: the sum of the norms of tokens that count, and how many those are."""

    sums: npt.NDArray[np.float64]  # [sequence, step]
    counts: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.sums)


def resample_means(sums: SequenceSums, means: Steps, bootstrap: Bootstrap) -> Curves:
    """[resample, step]: mean norms over tokens of resampled sequences.

    Where `sums` are of a part of the run, each curve is moved by the ratio of the run's means to that part's. NaN where
    a resample has no token that counts.
    """
    rng = np.random.default_rng(bootstrap.seed)
    found = []
    for first in range(0, bootstrap.resamples, _RESAMPLES_AT_ONCE):
        rows = min(_RESAMPLES_AT_ONCE, bootstrap.resamples - first)
        drawn = rng.integers(0, len(sums), (rows, len(sums)))
        weights = np.stack([np.bincount(row, minlength=len(sums)) for row in drawn]).astype(np.float64)
        with np.errstate(invalid="ignore"):  # 0 of 0 tokens
            found.append((weights @ sums.sums) / (weights @ sums.counts))
    with np.errstate(invalid="ignore"):
        part = sums.sums.sum(axis=0) / sums.counts.sum(axis=0)
    curves: Curves = np.concatenate(found) * (means / part)
    return curves


def _means(places: Sequence[tuple[Snapshot, Site]], exclude: frozenset[str]) -> Steps:
    means = np.array([merged_moments(snapshot, place, exclude).mean for snapshot, place in places])
    if (means <= 0).any():
        place = places[int(np.argmin(means))][1]
        raise nothing_left(f"the mean norm of {place} is 0, which has no logarithm", exclude)
    return means


def _spread(snapshot: Snapshot, shards: npt.NDArray[np.int64]) -> list[int]:
    """Shards, evenly spaced, that hold at most about INTERVAL_TOKENS and INTERVAL_SEQUENCES; at least one."""
    if not len(shards):
        return []
    record = snapshot.record
    per_shard = record.specification.sequences_per_shard
    tokens = max(1.0, record.tokens_total / record.sequences_total * per_shard)
    wanted = min(len(shards), max(1, int(min(INTERVAL_TOKENS / tokens, INTERVAL_SEQUENCES / per_shard))))
    chosen: list[int] = shards[(np.arange(wanted) * len(shards)) // wanted].tolist()
    return chosen


def _sequence_sums(
    snapshot: Snapshot, shards: Sequence[int], sites: Sequence[Site], exclude: frozenset[str]
) -> SequenceSums:
    parts = []
    for shard in shards:
        (commit,) = snapshot.commits.of_shards(range(shard, shard + 1))
        parts.append(_shard_sums(snapshot, commit, sites, exclude))
    return SequenceSums(np.concatenate([sums for sums, _ in parts]), np.concatenate([counts for _, counts in parts]))


def _shard_sums(
    snapshot: Snapshot, commit: Commit, sites: Sequence[Site], exclude: frozenset[str]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """[sequence, site], for all sequences of the shard; as in the commits' statistics, norms that are infinite or no
    number do not count.
    """
    held = snapshot.record.shard_sequences(commit.shard)
    with open_product(snapshot.bucket, commit, TOKENS) as file:
        tokens = file.read(columns=["sequence", "flags"])
    kept = kept_rows(tokens["flags"].to_numpy(), exclude)
    number = tokens["sequence"].to_numpy() - held.start
    with open_product(snapshot.bucket, commit, NORMS) as file:
        norms = file.read(columns=[str(site) for site in sites])
    sums, counts = (np.zeros((len(held), len(sites))) for _ in range(2))
    for column, site in enumerate(sites):
        values = norms[str(site)].to_numpy()
        counted = kept & np.isfinite(values)
        counts[:, column] = np.bincount(number[counted], minlength=len(held))
        sums[:, column] = np.bincount(number[counted], values[counted].astype(np.float64), len(held))
    return sums, counts


def _paired_sums(snapshots: Sequence[Snapshot], place: Site, exclude: frozenset[str]) -> SequenceSums:
    """A column a run, of the sequences that all of them have."""
    shards = snapshots[0].shards
    same = len({snapshot.record.specification.sequences_per_shard for snapshot in snapshots}) == 1
    for snapshot in snapshots[1:]:
        shards = np.intersect1d(shards, snapshot.shards)
    if not same or not len(shards):
        nothing = np.zeros((0, len(snapshots)))
        return SequenceSums(nothing, nothing)
    chosen = _spread(snapshots[0], shards)
    parts = [_sequence_sums(snapshot, chosen, [place], exclude) for snapshot in snapshots]
    return SequenceSums(
        np.concatenate([part.sums for part in parts], axis=1), np.concatenate([part.counts for part in parts], axis=1)
    )


def _training_steps(snapshots: Sequence[Snapshot], given: Sequence[float]) -> Steps:
    """Errors: BadRequest for another number of steps than runs, steps that are alike, or names without numbers."""
    names = [snapshot.record.specification.model_revision for snapshot in snapshots]
    found = [_NUMBER_AT_END.search(name) for name in names]
    if not given and not all(found):
        raise BadRequest(
            f"revisions {', '.join(map(repr, names))} do not all say their step",
            field="steps",
            value=", ".join(names),
            allowed="a number for each run, or revisions that end in one: step1000",
        )
    steps = np.array(given or [float(match[1]) for match in found if match], np.float64)
    if len(steps) != len(snapshots) or len(np.unique(steps)) < len(steps) or not np.isfinite(steps).all():
        raise BadRequest(
            f"{len(steps)} steps for {len(snapshots)} runs, and all must differ",
            field="steps",
            value=steps.tolist(),
            allowed=f"{len(snapshots)} different numbers",
        )
    return steps


def _growth_layers(snapshot: Snapshot, kind: str, layers: tuple[int, int] | None) -> list[Site]:
    stored = stored_sites(snapshot)
    of_kind = [site for site in stored if site.kind == kind]
    if not of_kind:
        raise unknown_site(snapshot, kind, sorted({site.kind for site in stored}))
    have = [site.layer for site in of_kind]
    first, last = layers or (have[0], have[-1])
    chosen = [site for site in of_kind if first <= site.layer <= last]
    if first not in have or last not in have or len(chosen) < GROWTH_LAYERS_MIN:
        raise BadRequest(
            f"layers {first} to {last} of {kind} cannot be fitted: a line needs at least {GROWTH_LAYERS_MIN} layers "
            f"that run {snapshot.record.run} has norms of",
            reason="LAYER_OUT_OF_RANGE",
            field="layers",
            value=f"{first} to {last}",
            allowed=f"at least {GROWTH_LAYERS_MIN} of {', '.join(map(str, have))}",
        )
    return chosen


def _block(snapshot: Snapshot) -> str:
    asked = snapshot.record.specification
    model = find_registered_model(snapshot.bucket, asked.model, asked.model_revision)
    # A name may mean other weights by now, and with them another architecture.
    return model.block if model is not None and model.weights_sha256 == asked.weights_sha256 else ""
