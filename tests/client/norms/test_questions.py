"""Growth on both axes, weights and their plots, as a researcher asks for them; and one fit for models that are real."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pytest

mpl.use("Agg")
from matplotlib import pyplot as plt

import actstore
from actstore import BadRequest, Lab, StoredText, plot_growth
from actstore._norms.growth import factor
from actstore_api.records.model import GetWeightNorms
from actstore_api.records.terms import ModelReference, StoredSample
from tests import stored_run
from tests.client.conftest import RUNS
from tests.client.workers.stand_in import StandInWorkers
from tests.client.workers.weights import HEADS, LAYERS, RATE


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def over_training(lab: Lab, *, steps: tuple[int, ...] | None = None, **options: Any) -> actstore.Growth:
    """Of the last layer."""
    [found] = lab.checkpoints(RUNS, steps).fit_growth("checkpoint", layers=[2], **options)
    return found


def test_growth_says_how_sure_it_is(lab: Lab) -> None:
    growth = lab.run("planted").fit_growth(exclude=("bos", "special"))
    low, high = growth.rate_interval
    assert low <= growth.rate <= high
    assert growth.rate == pytest.approx(stored_run.GROWTH, rel=1e-6)
    assert (growth.verdict, growth.axis, growth.resampled_sequences, growth.resamples) == (
        "exponential",
        "layer",
        7,
        1000,
    )
    text = repr(growth)
    assert "Growth of resid_post: x1.5 a layer (R² 1.000, layers 0 to 2): exponential" in text
    assert "1,000 resamples of 7 sequences" in text
    found = growth.to_dict()
    assert found["rate_interval"] == pytest.approx([low, high])
    assert {row["shape"] for row in found["shapes"]} == {"exponential", "square_root", "linear", "power_law"}
    assert lab.run("planted").fit_growth(exclude=("bos", "special"), resamples=0).rate_interval is None


@pytest.mark.parametrize("door", ["far", "near"])
def test_growth_over_training_is_kept_apart_from_growth_over_depth(door: str, request: pytest.FixtureRequest) -> None:
    lab: Lab = request.getfixturevalue(door)
    [over] = lab.checkpoints(reversed(RUNS)).fit_growth("checkpoint", layers=[1], exclude=("bos", "special"))
    assert over.points["step"].to_pylist() == [100, 200, 400]
    assert over.points["ratio"].to_pylist()[1:] == pytest.approx([2 ** (1 / 100), 2 ** (1 / 200)])
    assert (over.axis, over.site, over.layers) == ("checkpoint", "resid_post.1", (1,))
    evenly = over_training(lab, steps=(0, 1, 2), exclude=("bos", "special"))
    assert (evenly.rate, evenly.site) == (pytest.approx(2, rel=1e-6), "resid_post.2")
    for run in RUNS:
        assert lab.run(run).fit_growth(exclude=("bos", "special")).rate == pytest.approx(stored_run.GROWTH, rel=1e-6)
    assert "a step of training" in repr(over)


def test_steps_that_depart_are_named(far: Lab, near: Lab) -> None:
    """Norms of 100, 400 and 200 times the same: up by 4, down by 2, and growth by sqrt(2) a step of a line."""
    there, here = (over_training(lab, steps=(0, 2, 1), exclude=("bos", "special")) for lab in (far, near))
    assert there == here
    assert there.departures.equals(here.departures)
    assert (there.verdict, there.rate) == ("irregular", pytest.approx(2**0.5))
    assert there.median_ratio == pytest.approx(2**0.5)
    rows = there.departures.to_pylist()
    assert [(row["revision"], row["step"], row["ratio"]) for row in rows] == [
        ("step400", 1, pytest.approx(4)),
        ("step200", 2, pytest.approx(0.5)),
    ]
    assert "irregular, not at one rate" in repr(there)
    assert "departing from x1.414: to step 1 (x4), 2 (x0.5)" in repr(there)
    assert [row["step"] for row in there.to_dict()["departures"]] == [1, 2]
    rings = [line for line in plot_growth([there, there], ratios=True).lines if line.get_markerfacecolor() == "none"]
    assert [line.get_ydata().tolist() for line in rings] == [pytest.approx([4, 0.5])] * 2
    assert [line.get_label() == "departs from the median step" for line in rings] == [True, False]
    evenly = over_training(near, steps=(0, 1, 2), exclude=("bos", "special"))
    assert (len(evenly.departures), "departing" in repr(evenly)) == (0, False)


def test_both_doors_say_the_same_of_checkpoints(far: Lab, near: Lab) -> None:
    there, here = (over_training(lab, resamples=50, seed=4) for lab in (far, near))
    assert there == here
    assert repr(there) == repr(here)
    assert there._repr_html_() == here._repr_html_()


@pytest.mark.parametrize(
    ("ask", "reason", "field"),
    [
        (lambda lab: lab.checkpoints(["planted"]).fit_growth("depth"), "ARGUMENT_INVALID", "axis"),
        (lambda lab: lab.checkpoints(["planted"] * 2).fit_growth("checkpoint"), "ARGUMENT_INVALID", "runs"),
        (lambda lab: lab.checkpoints(["planted"] * 3).fit_growth("checkpoint"), "ARGUMENT_INVALID", "steps"),
        (lambda lab: lab.checkpoints(["planted"] * 3, (1, 1, 2)).fit_growth("checkpoint"), "ARGUMENT_INVALID", "steps"),
        (lambda lab: lab.checkpoints(["planted"], steps=()), "ARGUMENT_INVALID", "steps"),
        (lambda lab: lab.run("planted").fit_growth(layers=(0, 1)), "LAYER_OUT_OF_RANGE", "layers"),
        (lambda lab: lab.run("planted").fit_growth(resamples=10_001), "LIMIT_EXCEEDED", "resamples"),
        (lambda lab: lab.run("planted").fit_growth(seed=2**32), "ARGUMENT_INVALID", "seed"),
        (lambda lab: lab.checkpoints(["planted", "nowhere"]), "RUN_NOT_FOUND", "run"),
    ],
)
def test_refusals(ask: Callable[[Lab], object], reason: str, field: str, lab: Lab) -> None:
    with pytest.raises(actstore.ActstoreError) as caught:
        ask(lab)
    assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize("door", ["far", "near"])
def test_growth_without_position_0_is_of_the_profile_without_it(door: str, request: pytest.FixtureRequest) -> None:
    """Where BOS stands at position 0 it is the same to leave out either."""
    lab: Lab = request.getfixturevalue(door)
    profile = lab.run("at-100").norms(exclude=("position_0", "special"))
    growth = lab.run("at-100").fit_growth(exclude=("position_0", "special"), resamples=50)
    assert growth.excluded == profile.excluded == ("position_0", "special")
    assert growth.points["mean"].to_pylist() == pytest.approx(profile.table["mean"].to_pylist(), rel=1e-12)
    by_class = lab.run("at-100").fit_growth(exclude=("bos", "special"), resamples=50)
    assert growth.rate == pytest.approx(by_class.rate, rel=1e-12)
    assert growth.rate_interval == pytest.approx(by_class.rate_interval, rel=1e-12)
    assert "excluded: position_0, special · " in repr(growth)
    assert "(excluded: position_0, special)" in profile.plot().get_title()
    over = over_training(lab, exclude=("position_0", "special"), steps=(0, 1, 2))
    assert (over.rate, over.excluded) == (pytest.approx(2, rel=1e-6), ("position_0", "special"))


def test_growth_of_several_on_one_log_axis(near: Lab) -> None:
    answers = [near.run(run).fit_growth() for run in RUNS]
    ax = plot_growth(answers)
    assert ax.get_yscale() == "log"
    drawn = [line.get_ydata() for line in ax.lines]
    assert len(drawn) == 6
    np.testing.assert_array_equal(drawn[4], answers[2].points["mean"].to_pylist())
    assert ax.get_legend_handles_labels()[1][2].startswith("planted-model@step400, resid_post: x1.163")
    ax = plot_growth(answers, ratios=True)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, 1])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), answers[0].points["ratio"].to_pylist()[1:])
    assert answers[0].plot_ratios().get_ylabel() == "factor of a step"
    over = over_training(near)
    np.testing.assert_array_equal(over.plot().lines[0].get_xdata(), [100, 200, 400])
    for wrong in ([], [over, answers[0]]):
        with pytest.raises(BadRequest) as caught:
            plot_growth(wrong)
        assert caught.value.field == "answers"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1.5, "1.5"),
        (2.003, "2.003"),
        (1.0453, "1.0453"),
        (1.00154, "1.00154"),
        (1.000121, "1.000121"),
        (0.99988, "0.99988"),
        (1.0, "1"),
        (26.31, "26.31"),
        (0.01234, "0.01234"),
    ],
)
def test_a_factor_near_1_shows_how_near(value: float, words: str) -> None:
    assert factor(value) == words


def test_weights_are_asked_for_as_they_were_wanted(remote: Lab, workers: StandInWorkers) -> None:
    found = remote.weights("tiny", layers=[0, 2], text="words", samples=9, seed=3, revision="r1", prepend_bos=False)
    assert workers.requests[-1] == GetWeightNorms(
        model=ModelReference("tiny", "r1"),
        layers=(0, 2),
        samples=9,
        seed=3,
        text="words",
        prepend_bos=False,
    )
    assert found.of("W_OV")["layer"].to_pylist() == [0, 0, 2, 2]
    remote.weights("tiny", stored=StoredText(remote.run("planted"), 500))
    assert workers.requests[-1].stored == StoredSample("planted", 500)
    assert found.excluded == ("bos", "special")
    assert "excluded: bos, special" in repr(found)
    assert remote.weights("tiny").excluded == ()
    many = replace(found, sublayers=pa.concat_tables([found.sublayers] * 3))
    assert "… 12 more rows in .sublayers" in repr(many)
    assert "… 12 more rows in .sublayers" in many._repr_html_()
    assert {row["input"] for row in found.sublayers.to_pylist()} == {"gaussian", "normalized", "text"}
    assert "Norms of 7 weights of tiny" in repr(found)
    assert "What sublayers write" in found._repr_html_()
    assert len(found.to_dict()["sublayers"]) == 12


def test_weights_are_drawn_by_layer(remote: Lab) -> None:
    found = remote.weights("tiny")
    heads, together = found.plot().lines
    assert len(heads.get_xdata()) == LAYERS * HEADS
    np.testing.assert_allclose(together.get_ydata(), [2 * 2**0.5 * RATE**layer for layer in range(LAYERS)])
    (line,) = found.plot(component="W_in", folded=True).lines
    np.testing.assert_allclose(line.get_ydata(), [4 * RATE**layer for layer in range(LAYERS)])
    ax = found.plot_sublayers(sublayer="attn")
    assert (len(ax.lines), ax.get_yscale()) == (4, "log")
    for ask in (
        lambda: found.of("W_X"),
        lambda: found.plot(component="W_E"),
        lambda: found.plot_sublayers(sublayer="x"),
    ):
        with pytest.raises(BadRequest):
            ask()


def test_weights_need_a_service(direct: Lab) -> None:
    with pytest.raises(BadRequest) as caught:
        direct.weights("tiny")
    assert caught.value.reason == "NEEDS_SERVICE"
