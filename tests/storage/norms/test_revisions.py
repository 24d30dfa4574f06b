"""Which runs compare over training, in which order, and how they differ; of runs of which nothing is captured yet."""

from dataclasses import replace
from typing import Any

import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_storage.norms.profile import ProfileQuestion
from actstore_storage.norms.revisions import CHECKPOINT, REVISIONS_MAX, in_order, norms_of_runs, warnings_of
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.snapshot import Snapshot
from tests.storage.random_run import make_run

PLAIN = make_run(0).record


def empty(bucket: Bucket, run: str, revision: str = "", **changed: Any) -> Snapshot:
    """`changed`: fields of the specification, or of the run's record."""
    own = {name: value for name, value in changed.items() if hasattr(PLAIN.specification, name)}
    asked = replace(PLAIN.specification, model_revision=revision, **own)
    others = {name: value for name, value in changed.items() if name not in own}
    create_run(bucket, replace(PLAIN, run=run, specification=asked, specification_sha256=asked.sha256, **others))
    return open_run(bucket, run)


def test_steps_that_are_given_need_no_names(local_bucket: Bucket) -> None:
    runs = [empty(local_bucket, run, run) for run in ("main", "step7", "abc")]
    ordered, at = in_order(runs, (2.5, -1.0, 0.0), least=2)
    assert [snapshot.record.run for snapshot in ordered] == ["step7", "abc", "main"]
    assert at.tolist() == [-1, 0, 2.5]


@pytest.mark.parametrize(
    "steps", [(1.0, 2.0), (1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 2.0), (1.0, 2.0, float("nan")), (1.0, 2.0, float("inf"))]
)
def test_steps_that_do_not_order_the_runs_are_refused(steps: tuple[float, ...], local_bucket: Bucket) -> None:
    runs = [empty(local_bucket, f"run{step}", f"step{step}") for step in (1, 2, 3)]
    with pytest.raises(
        BadRequest, match=f"{len(steps)} steps were given for 3 runs; each run needs a different step"
    ) as caught:
        in_order(runs, steps, least=2)
    assert caught.value.details["field"] == "steps"


@pytest.mark.parametrize(
    ("revisions", "told"),
    [
        (("step10", "step9"), [9, 10]),  # as numbers, not as words
        (("10", "9.5"), [9.5, 10]),
        (("2k", "1k"), [1, 2]),
        (("1234567", "7654321"), [1_234_567, 7_654_321]),  # digits alone are no commit
        (("1k", "900"), None),
        (("step1", "step1"), None),
        (("step1", "step"), None),
        (("abcdef0", "abcdef1"), None),
    ],
)
def test_steps_by_name(revisions: tuple[str, str], told: list[float] | None, local_bucket: Bucket) -> None:
    runs = [empty(local_bucket, f"run{number}", name) for number, name in enumerate(revisions)]
    if told is None:
        with pytest.raises(BadRequest) as caught:
            in_order(runs, (), least=2)
        assert caught.value.details["field"] == "steps"
    else:
        assert in_order(runs, (), least=2)[1].tolist() == told


def test_how_many_runs_compare(local_bucket: Bucket) -> None:
    run = empty(local_bucket, "run", "step1")
    for count, reason in ((1, "ARGUMENT_INVALID"), (REVISIONS_MAX + 1, "LIMIT_EXCEEDED")):
        with pytest.raises(BadRequest) as caught:
            in_order([run] * count, tuple(range(count)), least=2)
        assert (caught.value.reason, caught.value.details["field"]) == (reason, "runs")
    assert len(in_order([run] * REVISIONS_MAX, tuple(range(REVISIONS_MAX)), least=2)[0]) == REVISIONS_MAX


@pytest.mark.parametrize(
    ("field", "first", "other"),
    [
        ("model", "model", "another"),
        ("dataset_sha256", "c" * 64, "e" * 64),
        ("tokenizer_sha256", "b" * 64, "e" * 64),
        ("context_length", 14, 15),
        ("prepend_bos", True, False),
        ("max_tokens", None, 10),
        ("config_sha256", "1" * 64, "2" * 64),
    ],
)
def test_runs_of_something_else_do_not_compare(field: str, first: Any, other: Any, local_bucket: Bucket) -> None:
    runs = [empty(local_bucket, f"run{n}", f"step{n}", **{field: value}) for n, value in enumerate((first, other))]
    with pytest.raises(BadRequest, match=f"run0 and run1 cannot be compared: their {field} is") as caught:
        in_order(runs, (), least=2)
    told = caught.value.details
    assert (caught.value.reason, told["field"]) == ("RUNS_DIFFER", field)
    assert (told.get("allowed", "None"), told.get("value", "None")) == (str(first), str(other))


def test_a_run_that_does_not_say_its_configuration_compares(local_bucket: Bucket) -> None:
    """Being too old to; of those that say it, the first and any other must agree."""
    runs = [
        empty(local_bucket, f"run{number}", f"step{number}", config_sha256=said)
        for number, said in enumerate(("", "1" * 64, "", "1" * 64, "2" * 64))
    ]
    assert len(in_order(runs[:4], (), least=2)[0]) == 4
    with pytest.raises(BadRequest, match="runs run1 and run4 cannot be compared"):
        in_order(runs, (), least=2)


def test_what_runs_were_computed_with_is_told_by_value_and_first_run(local_bucket: Bucket) -> None:
    runs = [
        empty(local_bucket, run, device=device)
        for run, device in (("a", "cpu"), ("b", "cuda"), ("c", "cpu"), ("d", "cpu"))
    ]
    assert warnings_of(runs, sinks=True) == (
        "the runs differ in device, so their numbers also differ by rounding: cpu in a and 2 more, cuda in b",
    )
    assert warnings_of([runs[0], runs[2]], sinks=True) == ()
    assert warnings_of(runs[:1], sinks=True) == ()


def test_other_sinks_are_told_where_sinks_count_apart(local_bucket: Bucket) -> None:
    runs = [empty(local_bucket, "a"), empty(local_bucket, "b", sink_ratio=7.5)]
    [told] = warnings_of(runs, sinks=True)
    assert told.startswith("the runs differ in sink_ratio, so different tokens count as sinks: ")
    assert told.endswith("7.5 in b")
    assert warnings_of(runs, sinks=False) == ()


def test_norms_by_token_are_of_one_run(local_bucket: Bucket) -> None:
    runs = [empty(local_bucket, f"run{step}", f"step{step}") for step in (1, 2)]
    with pytest.raises(BadRequest, match="norms by token can be read from one run at a time") as caught:
        norms_of_runs(runs, ProfileQuestion(by="token", sequences=(0, None)))
    assert caught.value.details["field"] == "by"


def test_norms_by_checkpoint_of_one_run_ask_for_its_step(local_bucket: Bucket) -> None:
    with pytest.raises(BadRequest, match="do not all end in a training step"):
        norms_of_runs([empty(local_bucket, "run", "main")], ProfileQuestion(by=CHECKPOINT))
