"""Growth of planted norms, on either axis: rate, interval, curvature and verdict, each against a slow twin."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_storage.norms import growth
from actstore_storage.norms.growth import (
    RESAMPLES_MAX,
    Bootstrap,
    Growth,
    fit_growth,
    fit_growth_over_checkpoints,
    resample_means,
)
from actstore_storage.norms.growth_shapes import EXPONENTIAL, FASTER, IRREGULAR, NONE, SLOWER, GrowthFit, fit_steps
from actstore_storage.norms.growth_steps import Resampled, student_bound
from actstore_storage.norms.rows import KeptTokens
from actstore_storage.norms.sequence_sums import SequenceSums
from actstore_storage.registry.models import ModelRecord, register_model
from actstore_storage.rows.reading import read_activations
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from tests.storage.random_run import RandomRun, make_run, write_run

RATE = 1.045


def stream(writes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[layer, token]: norms of a residual stream that starts as x [token, d] and adds writes [layer, token, d]."""
    norms = []
    for write in writes:
        x = x + write
        norms.append(np.linalg.norm(x, axis=-1))
    return np.array(norms)


def fit(norms: np.ndarray):
    """Of norms [layer, token], each token a sequence of its own."""
    means = norms.mean(axis=1)
    sums = SequenceSums(norms.T, np.ones(norms.T.shape))
    return fit_steps(np.arange(float(len(norms))), means, resample_means(sums, means, Bootstrap(300)))


def test_orthogonal_writes_grow_by_exactly_their_rate() -> None:
    """|u| = sqrt(g^2 - 1) |x| at a right angle: |x + u| = g |x|."""
    rng = np.random.default_rng(0)
    x, norms = rng.standard_normal((20, 64)), []
    for _ in range(30):
        norms.append(np.linalg.norm(x, axis=-1))
        u = rng.standard_normal(x.shape)
        u -= (u * x).sum(-1, keepdims=True) / (x * x).sum(-1, keepdims=True) * x
        x = x + u * np.sqrt(RATE**2 - 1) * np.linalg.norm(x, axis=-1, keepdims=True) / np.linalg.norm(
            u, axis=-1, keepdims=True
        )
    found = fit(np.array(norms))
    assert found.rate == pytest.approx(RATE, abs=1e-9)
    assert found.rate_interval == pytest.approx((RATE, RATE), abs=1e-9)
    assert found.curvature == pytest.approx(0, abs=1e-9)
    assert (found.verdict, found.shapes["shape"][0].as_py()) == (EXPONENTIAL, "exponential")


def test_isotropic_writes_grow_by_their_rate_within_the_interval() -> None:
    rng = np.random.default_rng(1)
    x, norms = rng.standard_normal((200, 256)), []
    for _ in range(100):
        norms.append(np.linalg.norm(x, axis=-1))
        u = rng.standard_normal(x.shape)
        x = x + u * np.sqrt(RATE**2 - 1) * np.linalg.norm(x, axis=-1, keepdims=True) / np.linalg.norm(
            u, axis=-1, keepdims=True
        )
    found = fit(np.array(norms))
    low, high = found.rate_interval
    assert low - (high - low) < RATE < high + (high - low)
    assert 0 < high - low < 1e-3
    assert found.r_squared > 0.9999
    assert found.verdict == EXPONENTIAL


@pytest.mark.parametrize("layers", [6, 12, 24, 48])
def test_independent_writes_of_one_size_are_slower_whatever_r_squared_says(layers: int) -> None:
    """What an untrained pre-LN model does: |x|^2 is linear in the layer."""
    rng = np.random.default_rng(2)
    norms = stream(0.3 * rng.standard_normal((layers, 100, 256)), rng.standard_normal((100, 256)))
    found = fit(norms)
    assert found.r_squared > 0.95
    assert found.verdict == SLOWER
    assert found.bend < 0
    best = found.shapes.to_pylist()[0]
    assert best["shape"] in ("square_root", "power_law")
    assert best["exponent"] == pytest.approx(0.5, abs=0.15)


def test_a_post_ln_stream_does_not_grow() -> None:
    rng = np.random.default_rng(3)
    norms = np.sqrt(64) * (1 + 1e-6 * rng.standard_normal((12, 30)))
    found = fit(norms)
    assert found.rate == pytest.approx(1, abs=1e-6)
    assert found.verdict == NONE


@pytest.mark.parametrize(
    ("logs", "verdict"),
    [
        (lambda at: 0.01 * at + 0.003 * at**2, FASTER),
        (lambda at: np.log(1 + at), SLOWER),
        (lambda at: 0.05 * at, EXPONENTIAL),
        (lambda at: 0.05 * at + 1e-4 * at**2, EXPONENTIAL),
        (lambda at: -0.05 * at, NONE),
        (lambda at: 0.0 * at, NONE),
        (lambda at: 0.1 * at + 2.0 * (at.astype(int) % 2), IRREGULAR),
    ],
)
def test_verdicts(logs, verdict: str) -> None:
    assert fit_steps(np.arange(20.0), np.exp(logs(np.arange(20.0)))).verdict == verdict


def noisy(factors: Sequence[float], noise: float = 0.1, *, sequences: int = 40, seed: int = 0) -> GrowthFit:
    """Norms whose step i has factors[i], over sequences with sizes, lengths, drifts and noise of their own."""
    rng = np.random.default_rng(seed)
    logs = np.concatenate([[0.0], np.log(factors).cumsum()])
    counts = rng.integers(50, 500, (sequences, 1)).astype(float)
    away = noise * rng.standard_normal((sequences, len(logs))) / np.sqrt(counts)
    own = rng.normal(0, 0.3, (sequences, 1)) + rng.normal(0, 0.003, (sequences, 1)) * np.arange(len(logs))
    sums = SequenceSums(np.exp(logs + own + away) * counts, np.repeat(counts, len(logs), axis=1))
    means = sums.sums.sum(axis=0) / sums.counts.sum(axis=0)
    return fit_steps(np.arange(float(len(logs))), means, resample_means(sums, means, Bootstrap(200)))


def thirds(steps: int, *factors: float) -> list[float]:
    return [factor for factor in factors for _ in range(steps // len(factors))]


# The table of planted shapes in docs/explanation/norms.md: its words, the factor of each step, the verdict, and how
# many steps depart.
SHAPES = [
    ("x1.045 a layer, 48 layers", [1.045] * 47, EXPONENTIAL, 0),
    ("x1.045 a layer, every other layer 0.1 % more", [1.045, 1.046] * 12, EXPONENTIAL, 0),
    ("x1.045, x1.05, x1.045 by thirds of 24 layers", thirds(24, 1.045, 1.05, 1.045), EXPONENTIAL, 0),
    ("x1.01, x1.12, x1.01 by thirds of 24 layers", thirds(24, 1.01, 1.12, 1.01), IRREGULAR, 8),
    ("x1.2, x1.0, x1.2 by thirds of 12 layers", thirds(12, 1.2, 1.0, 1.2), IRREGULAR, 4),
    ("x1.02 and x1.08 by turns, 24 layers", [1.02, 1.08] * 12, IRREGULAR, 24),
    ("x1.045 a layer and once x1.3, 24 layers", [1.045] * 12 + [1.3] + [1.045] * 11, IRREGULAR, 1),
    ("x1.05 for 12 layers, then x0.97 for 12", thirds(24, 1.05, 0.97), IRREGULAR, 24),
    ("x1.05 for 12 layers, then as far down", thirds(24, 1.05, 1 / 1.05), IRREGULAR, 24),
    ("x1.2 for 8 layers, then x0.99 for 16", [1.2] * 8 + [0.99] * 16, IRREGULAR, 8),
    ("x1.1 for 12 layers, then x1.02 for 12", thirds(24, 1.1, 1.02), SLOWER, 24),
    ("x1.02 for 12 layers, then x1.1 for 12", thirds(24, 1.02, 1.1), FASTER, 24),
    ("the norm is linear, 24 layers", [(2 + i) / (1 + i) for i in range(24)], SLOWER, 16),
    ("its square is linear, 24 layers", [np.sqrt((2 + i) / (1 + i)) for i in range(24)], SLOWER, 16),
    ("x0.97 a layer, 24 layers", [0.97] * 24, NONE, 0),
    ("x1.001 a layer, 24 layers", [1.001] * 24, NONE, 0),
]


@pytest.mark.parametrize(("words", "factors", "verdict", "departing"), SHAPES, ids=[shape[0] for shape in SHAPES])
def test_shapes_that_are_told_apart(words: str, factors: list[float], verdict: str, departing: int) -> None:
    """As docs/explanation/norms.md has them."""
    found = noisy(factors)
    row = f"| {words} | {found.r_squared:.2f} | {found.ratios.departs.sum()} | {found.verdict} |"
    assert (found.verdict, found.ratios.departs.sum()) == (verdict, departing), row
    assert row in (Path(__file__).parents[3] / "docs/explanation/norms.md").read_text().splitlines(), row


def test_the_layers_that_depart_are_those_that_were_planted() -> None:
    found = noisy([1.045] * 11 + [1.2, 1.045, 1.0] + [1.045] * 10)
    assert np.flatnonzero(found.ratios.departs).tolist() == [11, 13]
    assert found.ratios.ratio[[11, 13]] == pytest.approx([1.2, 1.0], abs=0.02)
    assert found.ratios.intervals.departure_low[11] > 1 > found.ratios.intervals.departure_high[13]


@pytest.mark.parametrize(("layers", "sequences"), [(12, 60), (24, 5), (48, 60), (96, 5)])
def test_one_rate_is_seldom_called_another(layers: int, sequences: int) -> None:
    """Of 40 planted exponentials at a nominal 5 %, 2 are expected and more than 7 have a chance of 1 in 1000: at some
    step the interval of its departure leaves out 1, however many steps there are.
    """
    found = [noisy([RATE] * (layers - 1), 0.3, sequences=sequences, seed=seed) for seed in range(40)]
    ratios = [one.ratios for one in found]
    outside = [((one.intervals.departure_low > 1) | (one.intervals.departure_high < 1)).any() for one in ratios]
    alone = [((one.intervals.low > one.median) | (one.intervals.high < one.median)).any() for one in ratios]
    assert sum(outside) <= 7
    assert sum(alone) > 15  # step by step, they would
    assert sum(one.verdict == EXPONENTIAL for one in found) >= 33


def test_intervals_of_departures_are_those_of_a_slow_twin() -> None:
    """Bootstrap by rows of sequences, the bound by scipy."""
    rng = np.random.default_rng(6)
    counts = rng.integers(1, 9, (14, 1)).astype(float)
    norms = np.exp(0.1 * np.arange(7) + rng.normal(0, 0.1, (14, 7)))
    sums = SequenceSums(norms * counts, np.repeat(counts, 7, axis=1))
    at, means = np.array([0.0, 1, 2, 4, 5, 8, 9]), (norms * counts).sum(axis=0) / counts.sum()
    found = fit_steps(at, means, resample_means(sums, means, Bootstrap(200, seed=2)))

    def departures(values: np.ndarray) -> np.ndarray:
        logs = np.log(values)
        factors = (logs[1:] - logs[:-1]) / (at[1:] - at[:-1])
        return factors - np.median(factors)

    rng = np.random.default_rng(2)
    chosen = [rows for _ in range(2) for rows in rng.integers(0, 14, (100, 14))]
    drawn = [departures((norms * counts)[rows].sum(axis=0) / counts[rows].sum()) for rows in chosen]
    degrees = 12  # 1 / (1 / 13 + 1 / 199), rounded down
    margin = student.ppf((1 + 0.95 ** (1 / 6)) / 2, degrees) * np.std(drawn, axis=0, ddof=1) * np.sqrt(14 / 13)
    own = np.diff(np.log(means)) / np.diff(at)
    assert found.ratios.median == pytest.approx(np.exp(np.median(own)), rel=1e-9)
    assert found.ratios.ratio == pytest.approx(np.exp(own), rel=1e-9)
    assert found.ratios.intervals.departure_low == pytest.approx(np.exp(departures(means) - margin), rel=1e-9)
    assert found.ratios.intervals.departure_high == pytest.approx(np.exp(departures(means) + margin), rel=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 40, 999, 10_000])
def test_students_bound_is_that_of_scipy(degrees: int) -> None:
    for share in (0.5, 0.95, 0.95 ** (1 / 95)):
        assert student_bound(share, degrees) == pytest.approx(student.ppf((1 + share) / 2, degrees), rel=1e-6)


def test_lines_and_parabolas_are_those_of_numpy() -> None:
    rng = np.random.default_rng(4)
    at, logs = np.sort(rng.uniform(3, 90, 9)), rng.normal(size=9).cumsum()
    found = fit_steps(at, np.exp(logs))
    slope, intercept = np.polyfit(at, logs, 1)
    curvature, linear, _ = np.polyfit(at, logs, 2)
    assert found.rate == pytest.approx(np.exp(slope), rel=1e-10)
    assert np.log(found.fitted) == pytest.approx(intercept + slope * at, abs=1e-9)
    assert found.curvature == pytest.approx(curvature, rel=1e-8)
    ends = [linear + 2 * curvature * end for end in (at[0], at[-1])]
    assert found.bend == pytest.approx((ends[1] - ends[0]) / slope, rel=1e-8)
    assert found.r_squared == pytest.approx(np.corrcoef(at, logs)[0, 1] ** 2, rel=1e-9)


def test_shapes_are_those_that_scipy_fits() -> None:
    """Least squares of log(norm) by another optimiser; criterion by its definition."""
    from scipy.optimize import least_squares

    rng = np.random.default_rng(5)
    at = np.arange(15.0)
    logs = np.log(2 * (1 + 0.4 * at) ** 0.7) + 0.01 * rng.normal(size=15)
    found = {row["shape"]: row for row in fit_steps(at, np.exp(logs)).shapes.to_pylist()}

    def residual(values, exponent=None):
        a, r, p = (*values, exponent) if exponent else values
        return a + p * np.log1p(np.exp(r) * at) - logs

    for shape, start, fixed in [("square_root", (0, 0), 0.5), ("linear", (0, 0), 1.0), ("power_law", (0, 0, 1), None)]:
        best = least_squares(residual, start, args=(fixed,), xtol=1e-14, ftol=1e-14, gtol=1e-14)
        aic = 15 * np.log((best.fun**2).mean()) + 2 * (len(start) + 1)
        assert found[shape]["aic"] == pytest.approx(aic, rel=1e-6)
        assert found[shape]["exponent"] == pytest.approx(fixed or best.x[2], rel=1e-3)
        assert found[shape]["r_squared"] == pytest.approx(1 - best.fun @ best.fun / (15 * logs.var()), rel=1e-6)


@pytest.mark.parametrize(("exponent", "r"), [(0.7, 0.3), (-1.5, -1 / 30), (2.5, 1.0), (0.3, 50.0), (-0.4, -0.05)])
def test_a_power_law_is_found_as_it_was_planted(exponent: float, r: float) -> None:
    """Of norms that rise later and later, too, whose exponent is below 0."""
    at = np.arange(20.0)
    (best,) = fit_steps(at, 3 * (1 + r * at) ** exponent).shapes.to_pylist()[:1]
    assert (best["shape"], best["parameters"]) == ("power_law", 3)
    assert best["exponent"] == pytest.approx(exponent, rel=1e-6)
    assert best["r_squared"] == pytest.approx(1, abs=1e-9)


def test_an_exponential_is_the_power_law_without_an_exponent() -> None:
    """Both criteria are those of float32's rounding, and differ by the one parameter more."""
    at = np.arange(20.0)
    first, second, *others = fit_steps(at, 3 * np.exp(0.05 * at)).shapes.to_pylist()
    assert [(row["shape"], row["parameters"], row["exponent"]) for row in (first, second)] == [
        ("exponential", 2, None),
        ("power_law", 3, None),
    ]
    least = 20 * np.log(1e-7**2)
    assert (first["aic"], second["aic"]) == pytest.approx((least + 2 * 3, least + 2 * 4), rel=1e-12)
    assert [(row["shape"], row["parameters"], row["exponent"]) for row in others] == [
        ("linear", 2, 1.0),
        ("square_root", 2, 0.5),
    ]


@pytest.mark.parametrize("first_step", [1.0, -1.0])
def test_a_shape_that_would_bend_without_end_bends_as_far_as_shapes_may(first_step: float) -> None:
    """Norms that change once and then stay: the best of all bends between -8 and 16 is at the end, or near it."""
    at, logs = np.arange(20.0), np.array([0.0] + [first_step] * 19)
    found = {row["shape"]: row for row in fit_steps(at, np.exp(logs)).shapes.to_pylist()}
    bends = np.linspace(-8, 16, 4801)
    for shape, exponent in (("square_root", 0.5), ("linear", 1.0)):
        along = exponent * np.log1p(np.expm1(bends)[:, None] * at / at[-1])
        least = min(((logs - curve) - (logs - curve).mean()).var() for curve in along)
        assert found[shape]["r_squared"] == pytest.approx(1 - least / logs.var(), abs=1e-5)


@pytest.mark.parametrize("norm", [1.0, 7.3, 1e-3])
def test_equal_norms_have_no_slope_and_no_bend(norm: float) -> None:
    norms = np.full(20, norm)
    found = fit_steps(np.arange(20.0), norms, Resampled(np.repeat(norms[None], 50, axis=0), 50))
    assert (found.rate, found.rate_interval) == (1, (1, 1))
    assert (found.curvature, found.curvature_interval) == (0, (0, 0))
    assert (found.bend, found.r_squared, found.verdict) == (0, 1, NONE)


def planted(run: str = "run", rate: float = RATE, revision: str = "", scale: float = 1.0, seed: int = 5) -> RandomRun:
    made = make_run(seed, layers=12, sequences=40, longest=20, sequences_per_shard=8)
    position = made.tokens.position
    base = np.random.default_rng(0).lognormal(size=len(position))
    for layer in range(12):
        made.norms[f"resid_post.{layer}"][:] = scale * base * rate**layer * np.where(position == 0, 100.0, 1.0)
    asked = replace(made.record.specification, model_revision=revision)
    return replace(made, record=replace(made.record, run=run, specification=asked, specification_sha256=asked.sha256))


def written(bucket: Bucket, made: RandomRun) -> Snapshot:
    if not bucket.keys(f"runs/{made.record.run}"):
        write_run(bucket, made)
    return open_run(bucket, made.record.run)


def test_a_planted_rate_of_a_run_whose_bos_is_a_hundred_times_as_large(local_bucket: Bucket) -> None:
    made = planted()
    growth = fit_growth(written(local_bucket, made))
    assert growth.rate == pytest.approx(RATE, abs=1e-6)
    assert growth.fit.rate_interval == pytest.approx((RATE, RATE), abs=1e-6)
    assert (growth.fit.verdict, growth.block, growth.axis, growth.sequences) == (EXPONENTIAL, "", "layer", 40)
    louder = make_run(5, layers=12, sequences=40, longest=20, sequences_per_shard=8)
    for site, norms in made.norms.items():
        louder.norms[site][:] = norms * np.where(made.tokens.position == 0, 100.0, 1.0)
    again = fit_growth(written(local_bucket, replace(louder, record=replace(louder.record, run="louder"))))
    assert (again.rate, again.fit.rate_interval) == (growth.rate, growth.fit.rate_interval)
    assert again.points.equals(growth.points)


@pytest.mark.parametrize("position_0", ["bos", "a word"])
def test_fits_and_intervals_are_those_of_a_slow_bootstrap(position_0: str, local_bucket: Bucket) -> None:
    """Of a tokenizer without BOS, each sequence begins with a word, which is left out by its position alone."""
    made = make_run(9, layers=5, sequences=30)
    if position_0 == "bos":
        kept, left_out = made.kept(frozenset({"bos"})), {}
    else:
        made.tokens.flags[made.tokens.position == 0] = 0
        kept, left_out = made.tokens.position > 0, {"kept": KeptTokens(frozenset(), True)}
    options = {"site": "resid_pre", "bootstrap": Bootstrap(resamples=700, seed=3), **left_out}
    growth = fit_growth(written(local_bucket, made), **options)
    rng, rates, curvatures, ratios = np.random.default_rng(3), [], [], []
    sites = [made.norms[f"resid_pre.{layer}"].astype(np.float64) for layer in range(5)]
    assert growth.points["mean"].to_pylist() == pytest.approx([norms[kept].mean() for norms in sites], rel=1e-12)
    rows = [np.flatnonzero(kept & (made.tokens.sequence == number)) for number in range(30)]
    for _ in range(7):
        for drawn in rng.integers(0, 30, (100, 30)):
            chosen = np.concatenate([rows[number] for number in drawn])
            means = [norms[chosen].mean() for norms in sites]
            rates.append(np.exp(np.polyfit(range(5), np.log(means), 1)[0]))
            curvatures.append(np.polyfit(range(5), np.log(means), 2)[0])
            ratios.append(means[2] / means[1])
    assert growth.fit.rate_interval == pytest.approx(np.quantile(rates, (0.025, 0.975)), rel=1e-9)
    assert growth.fit.curvature_interval == pytest.approx(np.quantile(curvatures, (0.025, 0.975)), rel=1e-7)
    third = growth.points.to_pylist()[2]
    assert (third["ratio_low"], third["ratio_high"]) == pytest.approx(np.quantile(ratios, (0.025, 0.975)), rel=1e-9)


def test_without_resamples_there_are_no_intervals(local_bucket: Bucket) -> None:
    growth = fit_growth(written(local_bucket, planted()), bootstrap=Bootstrap(0))
    assert (growth.fit.rate_interval, growth.fit.curvature_interval, growth.sequences) == (None, None, 0)
    assert growth.points["ratio_low"].null_count == 12
    assert growth.fit.verdict == EXPONENTIAL


def over_training(bucket: Bucket, **options) -> Growth:
    """n[step, layer] = 0.01 step x rate^layer: both axes at once, kept apart."""
    runs = [planted(f"run{step}", revision=f"step{step}", scale=0.01 * step) for step in (400, 100, 200, 50)]
    return fit_growth_over_checkpoints([written(bucket, made) for made in runs], **options)


def test_the_checkpoint_axis_orders_by_step_and_knows_nothing_of_depth(local_bucket: Bucket) -> None:
    for site in ("resid_post.3", ""):
        growth = over_training(local_bucket, site=site)
        assert growth.points["step"].to_pylist() == [50, 100, 200, 400]
        assert growth.points["revision"].to_pylist() == ["step50", "step100", "step200", "step400"]
        slope = np.polyfit([50, 100, 200, 400], np.log([0.5, 1, 2, 4]), 1)[0]
        assert growth.rate == pytest.approx(np.exp(slope), rel=1e-6)
        assert growth.points["ratio"].to_pylist()[1:] == pytest.approx([2 ** (1 / 50), 2 ** (1 / 100), 2 ** (1 / 200)])
        assert growth.fit.verdict == SLOWER  # linear in the step
        assert (growth.axis, growth.site, growth.sequences) == ("checkpoint", site or "resid_post.11", 40)
        # The same sequences in all runs: what they share is no uncertainty.
        assert growth.fit.rate_interval == pytest.approx((growth.rate, growth.rate), rel=1e-9)
    evenly = over_training(local_bucket, steps=(3, 1, 2, 0))
    assert evenly.rate == pytest.approx(2, rel=1e-6)
    assert evenly.fit.verdict == EXPONENTIAL


def test_growth_over_training_without_position_0_is_of_the_other_tokens(local_bucket: Bucket) -> None:
    """Beginnings that grow at their own pace: tenfold from step to step, and the other tokens twofold."""
    runs = []
    for number, step in enumerate((1, 2, 3, 4)):
        made = planted(f"run{step}", revision=f"step{step}")
        position, base = made.tokens.position, np.random.default_rng(0).lognormal(size=len(made.tokens.position))
        made.tokens.flags[position == 0] = 0
        for norms in made.norms.values():
            norms[:] = base * np.where(position == 0, 10.0, 2.0) ** number
        runs.append(written(local_bucket, made))
    growth = fit_growth_over_checkpoints(runs, kept=KeptTokens(exclude_position_0=True), bootstrap=Bootstrap(50))
    assert growth.rate == pytest.approx(2, rel=1e-6)
    assert growth.fit.rate_interval == pytest.approx((2, 2), rel=1e-6)
    assert growth.fit.verdict == EXPONENTIAL
    assert fit_growth_over_checkpoints(runs, bootstrap=Bootstrap(0)).rate > 2.5


def test_without_position_0_nothing_may_be_left(local_bucket: Bucket) -> None:
    made = make_run(9, layers=5, sequences=6, longest=1)
    made.tokens.flags[:] = 0
    with pytest.raises(BadRequest, match="position_0 excluded") as caught:
        fit_growth(written(local_bucket, made), kept=KeptTokens(frozenset(), True))
    assert caught.value.reason == "NOTHING_LEFT"


def test_without_position_0_a_run_has_at_most_so_many_tokens(
    local_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = written(local_bucket, planted())
    monkeypatch.setattr(growth, "QUANTILE_TOKENS_MAX", snapshot.tokens_committed - 1)
    with pytest.raises(BadRequest) as caught:
        fit_growth(snapshot, kept=KeptTokens(exclude_position_0=True))
    assert (caught.value.reason, caught.value.details["field"]) == ("LIMIT_EXCEEDED", "tokens")
    assert fit_growth(snapshot).rate == pytest.approx(RATE, abs=1e-6)


def _runs(bucket: Bucket, **changed) -> list[Snapshot]:
    """The first is too old to say its configuration; the last has the changes."""
    runs = [planted(f"run{step}", revision=f"step{step}") for step in (1, 2, 3)]
    for place, change in ((1, {}), (2, changed)):
        asked = replace(runs[place].record.specification, **{"config_sha256": "c" * 64, **change})
        record = replace(runs[place].record, specification=asked, specification_sha256=asked.sha256)
        runs[place] = replace(runs[place], record=record)
    return [written(bucket, made) for made in runs]


@pytest.mark.parametrize(
    ("changed", "options", "reason", "field"),
    [
        ({"model": "another"}, {}, "RUNS_DIFFER", "model"),
        ({"dataset_sha256": "e" * 64}, {}, "RUNS_DIFFER", "dataset_sha256"),
        ({"config_sha256": "e" * 64}, {}, "RUNS_DIFFER", "config_sha256"),
        ({"model_revision": "main"}, {}, "ARGUMENT_INVALID", "steps"),
        ({"model_revision": "step2"}, {}, "ARGUMENT_INVALID", "steps"),
        ({}, {"steps": (1.0, 2.0)}, "ARGUMENT_INVALID", "steps"),
        ({}, {"site": "resid_mid.2"}, "SITE_UNKNOWN", "site"),
        ({}, {"bootstrap": Bootstrap(RESAMPLES_MAX + 1)}, "LIMIT_EXCEEDED", "resamples"),
    ],
)
def test_refusals(changed, options, reason: str, field: str, local_bucket: Bucket) -> None:
    with pytest.raises(BadRequest) as caught:
        fit_growth_over_checkpoints(_runs(local_bucket, **changed), **options)
    assert (caught.value.reason, caught.value.details["field"]) == (reason, field)


def test_norms_of_which_the_mean_is_0_have_no_rate(local_bucket: Bucket) -> None:
    made = planted()
    made.norms["resid_post.3"][:] = 0
    with pytest.raises(BadRequest, match=r"the mean l2 of resid_post\.3 is 0, which has no logarithm") as caught:
        fit_growth(written(local_bucket, made))
    assert (caught.value.reason, caught.value.details["field"]) == ("NOTHING_LEFT", "exclude")


def test_two_checkpoints_are_no_growth(local_bucket: Bucket) -> None:
    with pytest.raises(BadRequest) as caught:
        fit_growth_over_checkpoints(_runs(local_bucket)[:2])
    assert (caught.value.details["field"], caught.value.details["allowed"]) == ("runs", "3 to 256")


def test_a_site_that_a_parallel_model_lacks(local_bucket: Bucket) -> None:
    """Is told so at each door to what is stored, and not as something that this run happens to be without."""
    snapshot = written(local_bucket, planted())
    doors = [lambda: fit_growth(snapshot, site="resid_mid"), lambda: read_activations(snapshot, "resid_mid.1")]
    for block, told in (("pre_ln", False), ("parallel", True)):
        model = ModelRecord("model", "", "a" * 64, "b" * 64, "neox", 12, 8, 2, 50, 64, block=block)
        register_model(local_bucket, model, [])
        for door in doors:
            with pytest.raises(BadRequest) as caught:
                door()
            assert caught.value.reason == "SITE_UNKNOWN"
            assert ("attention and MLP both read resid_pre" in caught.value.message) == told


@pytest.mark.parametrize(
    ("steps", "norms", "field"),
    [
        ((0, 1), (1, 2), "steps"),
        ((0, 1, 1), (1, 2, 3), "steps"),
        ((0, 1, np.inf), (1, 2, 3), "steps"),
        ((0, 1, 2), (1, 0, 3), "norms"),
        ((0, 1, 2), (1, 2, np.inf), "norms"),
    ],
)
def test_curves_that_cannot_be_fitted(steps, norms, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        fit_steps(np.array(steps, float), np.array(norms, float))
    assert caught.value.details["field"] == field
