"""Patching through a real service to workers of the same contract."""

import pytest

from actstore import BadRequest, Fault, Lab, Sweep
from actstore_api.v1 import capture_pb2, patching_pb2
from tests.client import stand_in_workers as planted
from tests.client.stand_in_workers import StandInWorkers


def patch(lab: Lab, **how: object) -> Sweep:
    asked = {"clean": "When Mary gave to", "corrupt": "When John gave to", "answers": (" Mary", " John"), **how}
    return lab.patch("planted-model", **asked)


def test_a_sweep_is_tidy_and_has_its_baselines(remote: Lab) -> None:
    sweep = patch(remote)
    assert sweep.to_arrow().equals(planted.cells())
    assert list(sweep.to_pandas().columns) == [
        "direction", "site", "layer", "position", "head", "token", "logit_difference", "normalised",
    ]  # fmt: skip
    assert (sweep.clean_logit_difference, sweep.corrupt_logit_difference) == (3.0, -1.0)
    assert sweep.tokens == {"clean": planted.CLEAN, "corrupt": planted.CORRUPT}
    assert sweep.provenance.model == "planted-model"
    assert sweep.to_dict()["clean_logit_difference"] == 3.0


def test_the_request_is_what_was_asked(remote: Lab, workers: StandInWorkers) -> None:
    patch(remote, sites="z", layers=[2, 0], directions=("noise",), revision="step-9", bos=False)
    request = workers.requests[-1]
    assert request == patching_pb2.RunSweepRequest(
        model=capture_pb2.ModelReference(name="planted-model", revision="step-9"),
        clean="When Mary gave to",
        corrupt="When John gave to",
        clean_answer=" Mary",
        corrupt_answer=" John",
        sites=["z"],
        layers=[2, 0],
        directions=[patching_pb2.PATCH_DIRECTION_NOISE],
        bos=capture_pb2.BOS_POLICY_NONE,
    )


def test_top_is_by_distance_from_the_base_run(remote: Lab) -> None:
    sweep = patch(remote)
    frame = sweep.to_pandas()
    expected = frame.loc[frame["normalised"].abs().sort_values(ascending=False).index, "normalised"].head(5).tolist()
    assert [row["normalised"] for row in sweep.top(5)] == expected
    assert {row["direction"] for row in sweep.top(5, direction="noise")} == {"noise"}
    assert "logit difference 3 clean, -1 corrupt" in repr(sweep)
    with pytest.raises(BadRequest, match="direction"):
        sweep.top(5, direction="up")


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"answers": " Mary"}, "answers"),
        ({"answers": (" Mary", 3)}, "answers"),
        ({"directions": ["backwards"]}, "directions"),
        ({"layers": [-1]}, "layers"),
        ({"bos": "yes"}, "bos"),
        ({"clean": None}, "clean"),
    ],
)
def test_what_could_not_be_sent_is_refused_here(how: dict[str, object], field: str, remote: Lab) -> None:
    with pytest.raises(BadRequest) as caught:
        patch(remote, **how)
    assert caught.value.field == field
    assert caught.value.allowed


def test_the_workers_refusal_arrives_whole(remote: Lab) -> None:
    with pytest.raises(BadRequest, match="reword one prompt") as caught:
        patch(remote, corrupt="When John gave")
    error = caught.value
    assert (error.reason, error.field, error.value, error.allowed) == ("PROMPT_LENGTHS_DIFFER", "corrupt", "5", "4")


def test_a_sweep_without_a_result_is_a_fault(remote: Lab) -> None:
    with pytest.raises(Fault, match="without a result"):
        remote.patch("no-result", clean="a", corrupt="b", answers=(" a", " b"))
