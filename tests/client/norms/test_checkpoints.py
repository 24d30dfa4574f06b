"""Several revisions of one model as a researcher asks for them: captured by one request, told over both axes apart."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pytest

mpl.use("Agg")
from matplotlib import pyplot as plt

import actstore
from actstore import ActstoreError, Cancelled, Lab
from actstore._cli.main import main
from actstore_api.records.capture import DatasetReference
from actstore_service.server import Service
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.tokens import BOS
from tests import stored_run
from tests.client.conftest import RUNS, SERVICE_TOKEN, STEPS
from tests.client.workers.stand_in import StandInWorkers
from tests.storage.random_run import make_run, write_run

TEXT = ("bos", "special")


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(params=["far", "near"])
def both(request: pytest.FixtureRequest) -> Lab:
    found: Lab = request.getfixturevalue(request.param)
    return found


def test_norms_have_both_axes_and_are_averaged_over_neither(both: Lab) -> None:
    found = both.checkpoints(reversed(RUNS)).norms("resid_post", exclude=TEXT, quantiles=())
    assert found.table.column_names[:4] == ["revision", "step", "site", "layer"]
    places = [(row["layer"], row["step"], row["revision"]) for row in found]
    assert places == [(layer, step, f"step{step}") for layer in range(3) for step in STEPS]
    means = found.table["mean"].to_numpy().reshape(3, 3)
    assert means[:, 1:] / means[:, :-1] == pytest.approx(2)
    assert means[1:] / means[:-1] == pytest.approx(stored_run.GROWTH)
    own = both.run("at-200").norms("resid_post", exclude=TEXT, quantiles=())
    assert means[:, 1].tolist() == own.table["mean"].to_pylist()
    assert found.from_statistics
    assert "of 3 checkpoints by layer" in repr(found)
    by_position = both.checkpoints(RUNS, steps=(2, 1, 0)).norms("resid_post.1", by="position", quantity="rms")
    assert by_position.table["step"].to_pylist()[:3] == [0, 0, 0]
    alone = both.checkpoints("at-400").norms(histogram=3)
    assert set(alone.table["step"].to_pylist()) == set(alone.histogram["step"].to_pylist()) == {400}


def test_growth_is_along_one_axis_at_each_place_of_the_other(both: Lab) -> None:
    checkpoints = both.checkpoints(RUNS)
    over_depth = checkpoints.fit_growth(exclude=TEXT, resamples=20)
    assert [growth.provenance.model_revision for growth in over_depth] == [f"step{step}" for step in STEPS]
    assert [growth.rate for growth in over_depth] == pytest.approx([stored_run.GROWTH] * 3, rel=1e-6)
    over_training = checkpoints.fit_growth("checkpoint", exclude=TEXT, resamples=20)
    assert [growth.site for growth in over_training] == [f"resid_post.{layer}" for layer in range(3)]
    assert [growth.points["step"].to_pylist() for growth in over_training] == [STEPS] * 3
    assert len({round(growth.rate, 9) for growth in over_training}) == 1
    evenly = both.checkpoints(RUNS, steps=(0, 1, 2)).fit_growth("checkpoint", layers=(1, 2), exclude=TEXT)
    assert [growth.rate for growth in evenly] == pytest.approx([2, 2], rel=1e-6)


@pytest.mark.parametrize("quantity", ["rms", "standard_deviation", "centred_l2"])
def test_growth_of_other_measures_of_size(quantity: str, both: Lab) -> None:
    """Of one width, RMS grows as L2 does; the centred norm is planted at half of it."""
    scale = {"rms": 8**-0.5, "standard_deviation": 8**-0.5 / 2, "centred_l2": 0.5}[quantity]
    plain = both.run("at-100").fit_growth(exclude=TEXT, resamples=50)
    growth = both.run("at-100").fit_growth(exclude=TEXT, quantity=quantity, resamples=50)
    assert (growth.quantity, growth.rate) == (quantity, pytest.approx(plain.rate))
    assert growth.rate_interval == pytest.approx(plain.rate_interval)
    assert growth.points["mean"].to_numpy() == pytest.approx(scale * plain.points["mean"].to_numpy())
    assert f"{quantity} of resid_post: x1.5 a layer" in growth.label
    [over] = both.checkpoints(RUNS).fit_growth("checkpoint", layers=[2], quantity=quantity, exclude=TEXT, resamples=20)
    assert over.points["mean"].to_pylist()[2] == pytest.approx(4 * over.points["mean"].to_pylist()[0])


def test_separability_of_planted_growths(far: Lab, near: Lab) -> None:
    there, here = (lab.checkpoints(RUNS).separability(exclude=TEXT) for lab in (far, near))
    assert there == here
    assert (there.verdict, there.layers, there.explained) == ("separable", (0, 1, 2), pytest.approx(1))
    assert (there.miss, there.rank_one) == (pytest.approx(1), pytest.approx(1))
    assert there.layer_share + there.checkpoint_share == pytest.approx(1)
    assert "separable: growth along one axis is the same" in repr(there)
    assert repr(there) == repr(here)
    some = there.to_dict()
    assert (some["layers"], len(some["rows"])) == ((0, 1, 2), 9)
    centred = near.checkpoints(RUNS).separability("resid_post", layers=(1, 2), quantity="centred_l2", exclude=TEXT)
    assert centred.table["mean"].to_pylist() == pytest.approx(
        [cell["mean"] / 2 for cell in there.table.to_pylist()[3:]]
    )


QUESTIONS = {
    "norms": lambda found: found.norms(),
    "norms of a kind": lambda found: found.norms("resid_post", quantiles=()),
    "norms by site": lambda found: found.norms(exclude="position_0", by="site", quantity="rms"),
    "norms by document": lambda found: found.norms("resid_post.2", by="document"),
    "histograms": lambda found: found.norms(histogram=4),
    "separability": lambda found: found.separability(layers=(0, 1), quantity="standard_deviation", exclude=()),
    "over depth": lambda found: found.fit_growth(quantity="centred_l2", resamples=20)[1],
    "over training": lambda found: found.fit_growth("checkpoint", resamples=20, seed=3)[2],
    "separability without position 0": lambda found: found.separability(exclude=("position_0", "special")),
    "over depth without position 0": lambda found: found.fit_growth(exclude="position_0", resamples=20)[0],
    "over training without position 0": lambda found: found.fit_growth("checkpoint", exclude="position_0")[0],
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_both_doors_say_the_same(question: str, far: Lab, near: Lab) -> None:
    there, here = (QUESTIONS[question](lab.checkpoints(RUNS, steps=(5, 7, 6))) for lab in (far, near))
    assert there == here
    assert there.table.schema.equals(here.table.schema)
    assert (repr(there), there._repr_html_()) == (repr(here), here._repr_html_())


ROUNDED = (
    "the runs differ in dtype, so their numbers also differ by rounding: "
    "float32 in at-100 and 2 more, bfloat16 in coarse"
)
COMPARISONS = {
    "norms": lambda lab: lab.checkpoints([*RUNS, "coarse"]).norms(),
    "separability": lambda lab: lab.checkpoints([*RUNS, "coarse"]).separability(),
    "over training": lambda lab: lab.checkpoints([*RUNS, "coarse"]).fit_growth("checkpoint", resamples=20)[2],
}


@pytest.mark.parametrize("question", COMPARISONS)
def test_runs_of_several_dtypes_compare_and_the_answer_says_so(question: str, far: Lab, near: Lab) -> None:
    there, here = (COMPARISONS[question](lab) for lab in (far, near))
    assert there == here
    assert there.warnings == (ROUNDED,)
    assert f"\nwarning: {ROUNDED}\n" in repr(there)
    assert "bfloat16 in coarse" in there._repr_html_()
    assert there.to_dict()["warnings"] == [ROUNDED]
    title = there.plot().get_title()
    assert f"warning: {ROUNDED}" in title.replace("\n", " ")
    assert max(map(len, title.split("\n"))) <= 100


def test_growth_of_several_dtypes_on_one_plot_says_so(near: Lab) -> None:
    answers = near.checkpoints([*RUNS, "coarse"]).fit_growth(resamples=0)
    assert [answer.warnings for answer in answers] == [()] * 4
    assert "warning: dtype differs" in actstore.plot_growth(answers).get_title()
    assert "rounding as well: float32, bfloat16" in actstore.plot_growth(answers, ratios=True).get_title()
    assert "warning" not in actstore.plot_growth(answers[:3]).get_title()
    simulated = actstore.simulate_depth("scalar_chain").fit_growth("layer")
    assert "warning" not in actstore.plot_growth([simulated, answers[0]]).get_title()


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {name: table[name] for name in table.column_names}


def test_pictures_of_checkpoints(near: Lab) -> None:
    checkpoints = near.checkpoints(RUNS)
    profile = checkpoints.norms(exclude=TEXT, quantiles=())
    ax = profile.plot()
    assert [line.get_label() for line in ax.lines] == ["step 100", "step 200", "step 400"]
    assert ax.get_yscale() == "log"
    means = profile.table["mean"].to_numpy().reshape(3, 3)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), means[:, 1])
    image = profile.plot_heatmap().images[0].get_array()
    np.testing.assert_array_equal(image, means)
    factors = checkpoints.separability(exclude=TEXT).plot().images[0].get_array()
    np.testing.assert_allclose(factors, np.ones((3, 3)), rtol=1e-6)
    lines = actstore.plot_growth(checkpoints.fit_growth("checkpoint", resamples=0)).lines
    assert len(lines) == 9  # points, the fit and rings, of each layer
    other = replace(profile, table=pa.table({**_columns(profile.table), "site": ["mlp_out"] * len(profile)}))
    assert "of mlp_out" in other.plot().get_title()
    for wrong in (
        lambda: checkpoints.norms(by="position").plot(),
        lambda: profile.plot(site="mlp_out"),
        lambda: checkpoints.norms(by="site").plot_heatmap(),
    ):
        with pytest.raises(actstore.BadRequest):
            wrong()


REFUSALS = {
    "no runs": (lambda lab: lab.checkpoints([]), "ARGUMENT_INVALID", "runs", "one run or more"),
    "a gap": (
        lambda lab: lab.run("at-100").fit_growth(layers=(2, 0)), "ARGUMENT_INVALID", "layers", "leave out 1 in between",
    ),
    "a gap that no memory holds": (
        lambda lab: lab.run("at-100").fit_growth(layers=(0, 2, 2**32 - 1)),
        "ARGUMENT_INVALID", "layers", "leave out 1, 3 to 4294967294 in between",
    ),
    "out of range": (
        lambda lab: lab.run("at-100").fit_growth(layers=range(10)),
        "LAYER_OUT_OF_RANGE", "layers", "has no norms of resid_post.9",
    ),
    "too few layers": (
        lambda lab: lab.run("at-100").fit_growth(layers=(0, 1)),
        "LAYER_OUT_OF_RANGE", "layers", "at least 3 layers",
    ),
    "no layer": (lambda lab: lab.run("at-100").fit_growth(layers=[]), "ARGUMENT_INVALID", "layers", "layers is empty"),
    "no layer over training": (
        lambda lab: lab.checkpoints(RUNS).fit_growth("checkpoint", layers=()),
        "ARGUMENT_INVALID", "layers", "layers is empty",
    ),
    "out of range over training": (
        lambda lab: lab.checkpoints(RUNS).fit_growth("checkpoint", layers=(1, 3)),
        "LAYER_OUT_OF_RANGE", "layers", "has no norms at layer 3",
    ),
    "no such kind over training": (
        lambda lab: lab.checkpoints(RUNS).fit_growth("checkpoint", site="mlp_out"),
        "SITE_UNKNOWN", "site", "mlp_out",
    ),
    "two checkpoints": (
        lambda lab: lab.checkpoints(RUNS[:2]).fit_growth("checkpoint"),
        "ARGUMENT_INVALID", "runs", "smallest allowed value is 3",
    ),
    "one is none to separate": (
        lambda lab: lab.checkpoints(RUNS[:1]).separability(), "ARGUMENT_INVALID", "runs", "smallest allowed value is 2",
    ),
    "a gap to separate": (
        lambda lab: lab.checkpoints(RUNS).separability(layers=(0, 2)),
        "ARGUMENT_INVALID", "layers", "leave out 1 in between",
    ),
    "not a size": (
        lambda lab: lab.run("at-100").fit_growth(quantity="cosine_to_next"),
        "ARGUMENT_INVALID", "quantity", "cosine_to_next",
    ),
    "the same run twice": (
        lambda lab: lab.checkpoints(["at-100", "at-100"]).norms(), "ARGUMENT_INVALID", "steps", "a different step",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str, both: Lab) -> None:
    ask, reason, field, words = REFUSALS[case]
    with pytest.raises(ActstoreError, match=words) as caught:
        ask(both)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert caught.value.next_step


def write_random_run(bucket: Bucket, name: str, *, norms: bool = True, flags: int | None = None, model: str) -> None:
    made = make_run(5)
    if flags is not None:
        made.tokens.flags[:] = flags
    asked = replace(made.record.specification, model=model, **({} if norms else {"norm_sites": ()}))
    record = replace(made.record, run=name, specification=asked, specification_sha256=asked.sha256)
    write_run(bucket, replace(made, record=record, norms=made.norms if norms else {}))


def test_mixed_models_no_norms_and_no_tokens_are_refused(tmp_path: Path) -> None:
    bucket = open_bucket(str(tmp_path))
    write_random_run(bucket, "one", model="a-model")
    write_random_run(bucket, "other", model="another-model")
    write_random_run(bucket, "bare", norms=False, model="a-model")
    write_random_run(bucket, "of-bos", flags=BOS, model="a-model")
    with actstore.connect(tmp_path) as lab:
        with pytest.raises(ActstoreError, match="their model is a-model and another-model") as caught:
            lab.checkpoints(["one", "other"])
        assert (caught.value.reason, caught.value.field) == ("RUNS_DIFFER", "model")
        for ask in (lab.run("bare").norms, lab.run("bare").fit_growth):
            with pytest.raises(ActstoreError, match="has no norms") as caught:
                ask()
            assert (caught.value.reason, caught.value.field) == ("SITE_UNKNOWN", "site")
        for ask in (lab.run("of-bos").norms, lab.run("of-bos").fit_growth):
            with pytest.raises(ActstoreError, match="bos excluded") as caught:
                ask()
            assert (caught.value.reason, caught.value.field) == ("NOTHING_LEFT", "exclude")


def test_one_request_captures_all_revisions(remote: Lab, workers: StandInWorkers) -> None:
    for _ in range(2):  # the same request again is the same runs
        captures = remote.capture_revisions(
            "planted-model", ["step100", "refs/pr/1", ""], dataset="text", run="mine", steps=(1, 2, 3), max_tokens=9
        )
        assert captures.runs == ("mine-step100", "mine-refs-pr-1", "mine-main")
        asked = [request.specification for request in workers.requests[-3:]]
        assert [sent.model.revision for sent in asked] == ["step100", "refs/pr/1", ""]
        assert all(sent.dataset == DatasetReference(name="text", max_tokens=9) for sent in asked)
    unnamed = remote.capture_revisions("planted-model", ["a1"], dataset="text")
    assert workers.requests[-1].specification.run == ""
    checkpoints = unnamed.wait()
    assert checkpoints.names == ("planted",)
    assert "1 checkpoints of planted-model" in repr(checkpoints)
    assert [news.state for news in unnamed.progress()][-1] == "complete"


def test_each_revision_is_asked_for_alike_whatever_kind_of_collection_is_given(
    remote: Lab, workers: StandInWorkers
) -> None:
    """An iterator is empty the second time, and a filter that is lost would let rows in."""
    pages = actstore.Dataset("text", row_filters=iter([("lang", "in", iter(["en", "de"]))]))
    for _ in range(2):
        remote.capture_revisions(
            "planted-model", iter(["a1", "a2"]), dataset=pages, dense_sites=iter(["resid_post.0"]), saes=iter(["sae"]),
            norm_sites=iter(["mlp_out"]), steps=np.array([1.0, 2.0]),
        )  # fmt: skip
    asked = [request.specification for request in workers.requests]
    assert [sent.model.revision for sent in asked] == ["a1", "a2", "a1", "a2"]
    (filtered,) = asked[0].dataset.row_filters
    assert (filtered.column, filtered.comparison, len(filtered.values)) == ("lang", "in", 2)
    assert [list(asked[0].dense_sites), list(asked[0].saes), list(asked[0].norm_sites)] == [
        ["resid_post.0"], ["sae"], ["mlp_out"],
    ]  # fmt: skip
    assert all(replace(sent, model=asked[0].model) == asked[0] for sent in asked)


def test_a_capture_that_ends_badly_is_told_after_the_others(remote: Lab, workers: StandInWorkers) -> None:
    captures = actstore.Captures([remote.attach("cancelled"), remote.attach("planted")], (), remote._backend)
    with pytest.raises(Cancelled):
        captures.wait()
    assert [request.run for request in workers.requests if hasattr(request, "run")][-1] == "planted"


@pytest.mark.parametrize(
    ("revisions", "options", "field"),
    [([], {}, "revisions"), (["a", "a"], {}, "revisions"), (["a"], {"steps": (1, 2)}, "steps")],
)
def test_revisions_that_are_refused_before_anything_starts(revisions, options, field, remote, workers) -> None:
    with pytest.raises(ActstoreError) as caught:
        remote.capture_revisions("planted-model", revisions, dataset="text", **options)
    assert caught.value.field == field
    assert not workers.requests


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_asks_over_runs(training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("norms", *RUNS, "--address", str(training), "--exclude", *TEXT)
    found = said(capsys, *asked, "--by", "checkpoint")
    assert [row["step"] for row in found["profile"]["rows"]] == STEPS * 3
    assert found["separability"]["verdict"] == "separable"
    assert main([*asked, "--by", "layer", "--layers", "1:3", "--plot", str(tmp_path / "several.png")]) == 0
    assert "layers 1 to 2: separable" in capsys.readouterr().out
    assert (tmp_path / "several.png").read_bytes().startswith(b"\x89PNG")
    by_position = said(capsys, *asked, "--by", "position", "--sites", "resid_post.1", "--steps", "3", "2", "1")
    assert list(by_position) == ["profile"]
    assert by_position["profile"]["rows"][0]["step"] == 1
    over = said(capsys, *asked, "--fit", "resid_post.1", "--steps", "0", "1", "2", "--quantity", "rms")
    assert over["growth"][0]["rate"] == pytest.approx(2, rel=1e-6)
    for wrong, field in (
        (["--sites", "mlp_out"], "sites"),
        (["--steps", "1", "2", "3"], "steps"),
        (["--by", "checkpoint", "--steps", "1"], "steps"),
    ):
        assert main([*asked, *wrong]) == 1
        assert f"  {field}: " in capsys.readouterr().err
    assert main(["norms", "at-200", "--address", str(training), "--steps", "1"]) == 1
    assert "has no steps of training" in capsys.readouterr().err
    without = said(capsys, "norms", "at-200", "--address", str(training), "--exclude", "bos", "position_0")
    assert without["profile"]["excluded"] == ["bos", "position_0"]
    alone = said(capsys, "norms", "at-200", "--address", str(training), "--by", "checkpoint")
    assert {row["step"] for row in alone["profile"]["rows"]} == {200}
    for by in ("layer", "site", "position", "token_class", "document"):
        of_one = said(capsys, "norms", "at-200", "--address", str(training), "--by", by)
        assert of_one["profile"]["by"] == by


def test_the_command_captures_revisions(
    service: Service, workers: StandInWorkers, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTSTORE_TOKEN", SERVICE_TOKEN)
    asked = ("capture", "planted-model", "--dataset", "text", "--address", service.address)
    found = said(capsys, *asked, "--revisions", "step1", "step2", "--run", "mine", "--no-wait")
    assert found == {"runs": ["mine-step1", "mine-step2"]}
    assert [sent.specification.model.revision for sent in workers.requests] == ["step1", "step2"]
    assert said(capsys, *asked, "--revisions", "step1") == {"runs": ["planted"]}
    for wrong in (["--estimate"], ["--revision", "step3"]):
        assert main([*asked, "--revisions", "step1", *wrong]) == 1
        assert "is of one revision" in capsys.readouterr().err
