"""Whether norms are a factor of the layer times one of the checkpoint: of planted tables, and of runs."""

from dataclasses import replace

import numpy as np
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_storage.norms import revisions
from actstore_storage.norms.growth import Bootstrap, fit_growth, fit_growth_over_checkpoints
from actstore_storage.norms.profile import ProfileQuestion, norm_histogram, norm_profile
from actstore_storage.norms.revisions import CHECKPOINT, in_order, norms_of_runs
from actstore_storage.norms.rows import KeptTokens
from actstore_storage.norms.separability import INSEPARABLE, PARTLY, SEPARABLE, axis_shares, separability
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from tests.storage.random_run import RandomRun, make_run, write_run

RATE, LAYERS, STEPS = 1.045, 6, (50, 100, 200, 400)
DEPTH, TRAINING = np.arange(LAYERS)[:, None], np.array(STEPS)[None, :]


def slow_shares(norms: np.ndarray) -> tuple[float, float, float]:
    """Two-way analysis of variance cell by cell: layer, checkpoint and what is left."""
    logs = np.log(norms)
    layers, checkpoints = logs.shape
    squares = [0.0, 0.0, 0.0]
    for layer in range(layers):
        for checkpoint in range(checkpoints):
            of_layer = sum(logs[layer, other] for other in range(checkpoints)) / checkpoints
            of_checkpoint = sum(logs[other, checkpoint] for other in range(layers)) / layers
            grand = sum(map(sum, logs.tolist())) / logs.size
            squares[0] += (of_layer - grand) ** 2
            squares[1] += (of_checkpoint - grand) ** 2
            squares[2] += (logs[layer, checkpoint] - of_layer - of_checkpoint + grand) ** 2
    first, second, third = (square / sum(squares) for square in squares)
    return first, second, third


def test_a_product_of_two_growths_is_separable() -> None:
    """n[t, l] = a (1 + b t) g^l: at every step the same growth over layers, at every layer the same over steps."""
    norms = 3.0 * (1 + 0.01 * TRAINING) * RATE**DEPTH
    found = axis_shares(norms)
    assert (found.explained, found.rank_one, found.miss) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert found.interaction == pytest.approx(0, abs=1e-20)
    assert found.layer + found.checkpoint == pytest.approx(1)
    assert found.verdict == SEPARABLE
    assert found.fitted == pytest.approx(norms)


def test_a_growth_over_depth_that_training_changes_is_not() -> None:
    """The logarithm is a l + b c + k (l - mean l)(c - mean c), of which each part's squares are known."""
    a, b, k, layers, checkpoints = 0.05, 0.3, 0.1, np.arange(6.0), np.arange(4.0)
    from_middle = (layers - 2.5)[:, None] * (checkpoints - 1.5)[None, :]
    norms = np.exp(a * layers[:, None] + b * checkpoints[None, :] + k * from_middle)
    of_layer, of_checkpoint = a**2 * 17.5 * 4, b**2 * 5.0 * 6  # sums of (l - 2.5)^2 and (c - 1.5)^2: 17.5 and 5
    left = k**2 * 17.5 * 5.0
    total = of_layer + of_checkpoint + left
    found = axis_shares(norms)
    shares = (found.layer, found.checkpoint, found.interaction)
    assert shares == pytest.approx((of_layer / total, of_checkpoint / total, left / total))
    assert found.explained == pytest.approx(1 - left / total)
    assert found.miss == pytest.approx(np.exp(np.sqrt(left / 24)))
    assert found.verdict == INSEPARABLE
    assert found.rank_one < 1


def test_shares_are_those_of_a_slow_analysis_of_variance() -> None:
    norms = np.random.default_rng(0).lognormal(size=(5, 7))
    found = axis_shares(norms)
    assert (found.layer, found.checkpoint, found.interaction) == pytest.approx(slow_shares(norms))
    gram = np.linalg.eigvalsh(norms @ norms.T)
    assert found.rank_one == pytest.approx(gram[-1] / gram.sum())
    logs, fitted = np.log(norms), np.log(found.fitted)
    assert (logs - fitted).sum(axis=0) == pytest.approx(0, abs=1e-12)
    assert (logs - fitted).sum(axis=1) == pytest.approx(0, abs=1e-12)
    assert np.log(found.miss) == pytest.approx((logs - fitted).std())


def test_a_large_growth_over_training_hides_no_change_of_shape() -> None:
    """Nearly all is explained, and yet the profile over depth turns around."""
    norms = np.array([1.0, 60.0])[None, :] * np.array([[1.0, 1.4], [1.2, 1.2], [1.4, 1.0]])
    found = axis_shares(norms)
    assert found.explained > 0.98
    assert found.verdict == INSEPARABLE
    mild = axis_shares(np.array([1.0, 60.0])[None, :] * np.array([[1.0, 1.0], [2.0, 2.2], [4.0, 6.0]]))
    assert mild.verdict == PARTLY


def square(layer: float, checkpoint: float, both: float, scale: float = 1.0) -> np.ndarray:
    """Two layers and two checkpoints, of which log(norm) goes up and down by so much over each, and over both."""
    up = np.array([-1.0, 1.0])
    return scale * np.exp(layer * up[:, None] + checkpoint * up + both * up[:, None] * up)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_shares_are_of_squares_whatever_the_unit(scale: float) -> None:
    """Of four norms that hardly differ, each effect's square is its share, and `miss` is what the last is off by."""
    norms = square(0.05, 0.02, 0.01, scale)
    found = axis_shares(norms)
    assert found == axis_shares(norms)
    assert (found.layer, found.checkpoint, found.interaction) == pytest.approx((25 / 30, 4 / 30, 1 / 30), rel=1e-9)
    assert found.miss == pytest.approx(np.exp(0.01), rel=1e-12)
    singular = np.linalg.eigvalsh(square(0.05, 0.02, 0.01) @ square(0.05, 0.02, 0.01).T)
    assert found.rank_one == pytest.approx(singular[-1] / singular.sum(), rel=1e-9)


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ((1.0, 0.01, np.log(1.0499)), SEPARABLE),
        ((1.0, 0.01, np.log(1.0501)), INSEPARABLE),
        ((1.0, 0.4, 0.1999), PARTLY),
        ((1.0, 0.4, 0.2001), INSEPARABLE),
        ((0.4, 1.0, 0.1999), PARTLY),
        ((0.4, 1.0, 0.2001), INSEPARABLE),
    ],
)
def test_verdicts_change_where_the_documentation_says(effects: tuple[float, float, float], verdict: str) -> None:
    """Off by 1.05, and by a quarter of the lesser axis's square."""
    assert axis_shares(square(*effects)).verdict == verdict


def test_norms_that_do_not_vary_are_separable() -> None:
    found = axis_shares(np.full((3, 4), 0.1))
    assert (found.layer, found.checkpoint, found.interaction, found.explained) == (0, 0, 0, 1)
    assert (found.verdict, found.miss) == (SEPARABLE, pytest.approx(1))


@pytest.mark.parametrize(
    ("norms", "field"),
    [(np.ones((1, 3)), "layers"), (np.ones((3, 1)), "runs"), (np.array([[1.0, 0.0], [1.0, 1.0]]), "norms")],
)
def test_tables_that_tell_nothing(norms: np.ndarray, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        axis_shares(norms)
    assert caught.value.details["field"] == field


def planted(step: int, layers: int = LAYERS, **changed: object) -> RandomRun:
    made = make_run(5, layers=layers, sequences=12, longest=9, sequences_per_shard=4)
    position, base = made.tokens.position, np.random.default_rng(0).lognormal(size=len(made.tokens.position))
    for layer in range(layers):
        bos = np.where(position == 0, 100.0, 1.0)
        made.norms[f"resid_post.{layer}"][:] = (1 + 0.01 * step) * base * RATE**layer * bos
    asked = replace(made.record.specification, model_revision=f"step{step}", **changed)
    record = replace(made.record, run=f"at-{step}", specification=asked, specification_sha256=asked.sha256)
    return replace(made, record=record)


@pytest.fixture
def training(local_bucket: Bucket) -> list[Snapshot]:
    """Not in the order of their steps."""
    for step in STEPS:
        write_run(local_bucket, planted(step))
    return [open_run(local_bucket, f"at-{step}") for step in (200, 50, 400, 100)]


def test_separability_of_runs(training: list[Snapshot]) -> None:
    found = separability(training)
    assert found.shares.verdict == SEPARABLE
    assert found.shares.explained == pytest.approx(1, abs=1e-9)
    cells = found.cells.to_pylist()
    assert [(row["layer"], row["step"]) for row in cells] == [(layer, step) for layer in range(6) for step in STEPS]
    assert {row["revision"] for row in cells} == {f"step{step}" for step in STEPS}
    means = np.array([row["mean"] for row in cells]).reshape(6, 4)
    assert means[:, 0] == pytest.approx(norm_profile(training[1], _by_layer())["mean"].to_pylist())
    assert [row["factor"] for row in cells] == pytest.approx([1] * 24, rel=1e-6)
    # Kept apart: each axis has its own rate wherever the other stands.
    assert {round(fit_growth(snapshot).rate, 6) for snapshot in training} == {RATE}
    some = separability(training[:2], layers=(1, 3), steps=(1, 0), quantity="l2")
    assert [row["layer"] for row in some.cells.to_pylist()] == [1, 1, 2, 2, 3, 3]
    assert some.cells["revision"].to_pylist()[:2] == ["step50", "step200"]


def _by_layer() -> ProfileQuestion:
    return ProfileQuestion(("resid_post",), quantiles=())


@pytest.mark.parametrize("by", ["layer", "site", "position"])
def test_profiles_of_several_revisions_are_each_runs_own(by: str, training: list[Snapshot]) -> None:
    question = ProfileQuestion(("resid_post",), by=by, quantiles=(0.5,))
    table = norms_of_runs(training, question).profile
    assert table.column_names[:2] == ["revision", "step"]
    rows = table.to_pylist()
    for snapshot, step in zip(training, (200, 50, 400, 100), strict=True):
        own = [
            {name: row[name] for name in row if name not in ("revision", "step")} for row in rows if row["step"] == step
        ]
        assert own == norm_profile(snapshot, question).to_pylist()
    order = [(row.get("layer", 0), row["step"]) for row in rows]
    assert order == sorted(order)


def test_one_run_by_checkpoint_is_its_profile_and_its_place(training: list[Snapshot]) -> None:
    question = ProfileQuestion(("resid_post",), quantiles=())
    found = norms_of_runs(training[:1], replace(question, by=CHECKPOINT))
    assert found.from_statistics
    assert set(found.profile["step"].to_pylist()) == {200.0}
    assert found.profile.drop_columns(["revision", "step"]).equals(norm_profile(training[0], question))
    assert norms_of_runs(training[:1], question).profile.equals(norm_profile(training[0], question))
    assert norms_of_runs(training, replace(question, by=CHECKPOINT)) == norms_of_runs(training, question)


def test_histograms_of_several_revisions_have_one_runs_bins_each(training: list[Snapshot]) -> None:
    found = norms_of_runs(training, ProfileQuestion(("resid_post.2",), quantiles=()), bins=3)
    assert not found.from_statistics
    assert found.histogram["step"].to_pylist() == [step for step in STEPS for _ in range(3)]
    own = norm_histogram(training[1], ProfileQuestion(("resid_post.2",)), bins=3)
    assert found.histogram.slice(0, 3).drop_columns(["revision", "step"]).equals(own)


def test_too_many_rows_of_all_runs(training: list[Snapshot], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revisions, "PROFILE_ROWS_MAX", 23)
    with pytest.raises(BadRequest) as caught:
        norms_of_runs(training, _by_layer())
    assert (caught.value.reason, caught.value.details["field"]) == ("LIMIT_EXCEEDED", "rows")


@pytest.mark.parametrize(
    ("options", "reason", "field", "words"),
    [
        ({"layers": (4, 2)}, "LAYER_OUT_OF_RANGE", "layers", "its first layer, 4, is above its last, 2"),
        ({"layers": (3, 9)}, "LAYER_OUT_OF_RANGE", "layers", "has no norms of resid_post.9"),
        ({"layers": (2, 2)}, "LAYER_OUT_OF_RANGE", "layers", "at least 2 layers"),
        ({"site": "mlp_out"}, "SITE_UNKNOWN", "site", "has no norms of 'mlp_out'"),
        ({"quantity": "centred_l2"}, "SITE_UNKNOWN", "site", "captured by an early version"),
        ({"quantity": "cosine_to_next"}, "ARGUMENT_INVALID", "quantity", "no"),
        ({"steps": (1.0,)}, "ARGUMENT_INVALID", "steps", "1 steps were given for 4 runs"),
        ({"kept": KeptTokens(frozenset({"bos", "text"}))}, "ARGUMENT_INVALID", "exclude", "cannot exclude"),
    ],
)
def test_refusals(options: dict, reason: str, field: str, words: str, training: list[Snapshot]) -> None:
    with pytest.raises(BadRequest) as caught:
        separability(training, **options)
    assert (caught.value.reason, caught.value.details["field"]) == (reason, field)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (("step64", "step512"), [64, 512]),
        (("step1000-tokens4B", "stage2-step2000-tokens8B"), [4, 8]),
        (("v0.5", "v1.5"), [0.5, 1.5]),
        (("step512", "step1k"), None),
        (("step64", "main"), None),
        (("ed215891", "caa10397"), None),
        (("0" * 39 + "a", "1" * 39 + "b"), None),
    ],
)
def test_steps_are_told_by_names_that_say_them(
    names: tuple[str, str], steps: list[float] | None, training: list[Snapshot]
) -> None:
    """512 and 1k do not, nor do hashes of commits, whose digits would be a step as good as any."""
    runs = [
        replace(
            run,
            record=replace(run.record, specification=replace(run.record.specification, model_revision=name)),
        )
        for run, name in zip(training, names, strict=False)
    ]
    if steps is not None:
        assert in_order(runs, (), least=2)[1].tolist() == steps
        return
    with pytest.raises(BadRequest) as caught:
        in_order(runs, (), least=2)
    assert caught.value.details["field"] == "steps"
    assert in_order(runs, (1.0, 2.0), least=2)[1].tolist() == [1, 2]


def test_runs_that_cannot_be_compared(training: list[Snapshot], local_bucket: Bucket) -> None:
    write_run(local_bucket, planted(800, model="another"))
    write_run(local_bucket, planted(900, layers=2))
    with pytest.raises(BadRequest) as caught:
        separability([*training, open_run(local_bucket, "at-800")])
    assert (caught.value.reason, caught.value.details["field"]) == ("RUNS_DIFFER", "model")
    with pytest.raises(BadRequest) as caught:
        separability([*training, open_run(local_bucket, "at-900")])
    assert (caught.value.reason, caught.value.details["value"]) == ("SITE_UNKNOWN", "resid_post.2")
    with pytest.raises(BadRequest) as caught:
        separability(training[:1])
    assert (caught.value.details["field"], caught.value.details["allowed"]) == ("runs", "2 to 256")


def test_runs_computed_in_other_ways_compare_and_the_answer_says_so(
    training: list[Snapshot], local_bucket: Bucket
) -> None:
    eager = planted(800, sink_ratio=20.0)
    write_run(local_bucket, replace(eager, record=replace(eager.record, attention_implementation="eager")))
    coarse = [_in_bfloat16(run) if run.record.run in ("at-50", "at-400") else run for run in training]
    runs = [*coarse, open_run(local_bucket, "at-800")]
    assert norms_of_runs(training, _by_layer()).warnings == separability(training).warnings == ()
    assert norms_of_runs(runs[1:2], _by_layer()).warnings == fit_growth(runs[1]).warnings == ()
    told = (
        "the runs differ in dtype, so their numbers also differ by rounding: "
        "bfloat16 in at-50 and 1 more, float32 in at-100 and 2 more",
        "the runs differ in attention_implementation, so their numbers also differ by rounding: "
        "sdpa in at-50 and 3 more, eager in at-800",
    )
    sinks = "the runs differ in sink_ratio, so different tokens count as sinks: 0 in at-50 and 3 more, 20 in at-800"
    for exclude, expected in ((frozenset(), told), (frozenset({"sink"}), (*told, sinks))):
        profile = norms_of_runs(runs, replace(_by_layer(), kept=KeptTokens(exclude)))
        growth = fit_growth_over_checkpoints(runs, kept=KeptTokens(exclude), bootstrap=Bootstrap(0))
        assert profile.warnings == growth.warnings == separability(runs, kept=KeptTokens(exclude)).warnings == expected
    assert norms_of_runs(runs, replace(_by_layer(), by="token_class")).warnings == (*told, sinks)


def _in_bfloat16(run: Snapshot) -> Snapshot:
    return replace(run, record=replace(run.record, specification=replace(run.record.specification, dtype="bfloat16")))


def test_separability_without_position_0_is_of_the_other_tokens(local_bucket: Bucket) -> None:
    """Each sequence begins with a word, whose norms know nothing of layer and checkpoint."""
    runs = []
    for step in STEPS:
        made = planted(step)
        first = made.tokens.position == 0
        made.tokens.flags[first] = 0
        for number, norms in enumerate(made.norms.values()):
            norms[first] = 1 + 100 * ((7 * number + step) % 5)
        write_run(local_bucket, made)
        runs.append(open_run(local_bucket, made.record.run))
    found = separability(runs, kept=KeptTokens(exclude_position_0=True))
    assert found.shares.miss == pytest.approx(1, rel=1e-6)
    kept = ~first
    expected = [norms[kept].mean() for site, norms in made.norms.items() if site.startswith("resid_post")]
    assert found.cells["mean"].to_pylist()[3::4] == pytest.approx(expected)
    assert separability(runs).shares.miss > 1.05
