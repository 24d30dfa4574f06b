"""Quantiles and histograms of sketches, and exact ones where they are asked for: both as NumPy has them, or nearly."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import actstore
from actstore import BadRequest, Lab, LimitExceeded
from actstore._cli.main import main
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.keys import checkpoint_sketches_key, run_key
from actstore_storage.format.sketches import RANK_ERROR
from actstore_storage.norms import profile as norms
from actstore_storage.runs.opening import open_run
from actstore_storage.upkeep.folding import fold_commits
from tests.client.lab.doors import served
from tests.storage.random_run import RandomRun, make_run, without_sketches, write_run

SITES = tuple(f"resid_post.{layer}" for layer in range(4))
BOS_KEPT = frozenset({"bos"})


@pytest.fixture(scope="module")
def run() -> RandomRun:
    """So many tokens a shard that sketches hold a part of them."""
    return make_run(3, sequences=480, longest=60, sequences_per_shard=60)


@pytest.fixture(scope="module")
def folder(run: RandomRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crowded")
    write_run(open_bucket(str(folder)), run, batch_sequences=60)
    return folder


@pytest.fixture(scope="module")
def doors(folder: Path) -> Iterator[tuple[Lab, Lab]]:
    with served(folder) as far, actstore.connect(folder) as near:
        yield far, near


def values(run: RandomRun, site: str) -> NDArray[np.float64]:
    return run.norms[site][run.kept(BOS_KEPT)].astype(np.float64)


@pytest.mark.parametrize("quantity", ["l2", "rms"])
def test_exact_quantiles_are_numpys(quantity: str, run: RandomRun, doors: tuple[Lab, Lab]) -> None:
    places = (0.05, 0.3, 0.5, 0.95)
    scale = 1 if quantity == "l2" else run.record.d_model**0.5
    for lab in doors:
        found = lab.run("run").norms("resid_post", quantiles=places, quantity=quantity, exact=True)
        assert set(found.table["rank_error"].to_pylist()) == {0.0}
        assert not found.from_statistics
        for row, site in zip(found, SITES, strict=True):
            expected = np.quantile(values(run, site), places) / scale
            assert [row[name] for name in found.quantile_columns] == pytest.approx(expected.tolist(), rel=1e-7)


def test_sketched_quantiles_are_within_what_they_state(run: RandomRun, doors: tuple[Lab, Lab]) -> None:
    found = doors[0].run("run").norms("resid_post")
    assert found.table["rank_error"].to_pylist() == [RANK_ERROR] * len(SITES)
    assert not found.table.equals(doors[0].run("run").norms("resid_post", exact=True).table)
    for row, site in zip(found, SITES, strict=True):
        ordered = np.sort(values(run, site))
        for name in found.quantile_columns:
            assert abs(np.searchsorted(ordered, row[name]) / len(ordered) - float(name[1:])) <= RANK_ERROR


def test_exact_histograms_are_numpys(run: RandomRun, doors: tuple[Lab, Lab]) -> None:
    edges = [0.1, 0.5, 1.0, 2.0, 9.0]
    for lab in doors:
        exact, sketched = (
            lab.run("run").norms("resid_post", quantiles=(), histogram=edges, exact=way).histogram
            for way in (True, False)
        )
        assert set(exact["rank_error"].to_pylist()) == {0.0}
        assert set(sketched["rank_error"].to_pylist()) == {RANK_ERROR}
        for number, site in enumerate(SITES):
            own = values(run, site)
            expected, _ = np.histogram(own, edges)
            of_site = slice(4 * number, 4 * number + 4)
            assert exact["count"].to_pylist()[of_site] == expected.tolist()
            far_off = np.abs(np.array(sketched["count"].to_pylist()[of_site]) - expected) / len(own)
            assert far_off.max() <= RANK_ERROR


ASKED = {
    "profile": {"exact": True},
    "by class": {"exact": True, "by": "token_class", "exclude": ()},
    "by checkpoint": {"exact": True, "quantiles": (0.5,)},
    "histogram": {"exact": True, "histogram": 7, "quantity": "rms"},
    "without quantiles": {"exact": True, "quantiles": ()},
}


@pytest.mark.parametrize("asked", ASKED)
def test_both_doors_say_the_same(asked: str, doors: tuple[Lab, Lab]) -> None:
    far, near = (lab.checkpoints(["run"], steps=[3]).norms(**ASKED[asked]) for lab in doors)
    assert far == near
    assert (repr(far), far.to_dict()) == (repr(near), near.to_dict())


@pytest.fixture
def lost(tmp_path: Path) -> tuple[Path, str]:
    """A folded run whose merged sketches are gone, and one of as old shards as have none; the key of what is gone."""
    bucket = open_bucket(str(tmp_path))
    for seed, name in ((3, "run"), (4, "old")):
        made = make_run(seed)
        write_run(bucket, replace(made, record=replace(made.record, run=name)))
    for shard in range(len(open_run(bucket, "old").commits)):
        without_sketches(bucket, shard, "old")
    for name in ("run", "old"):
        fold_commits(open_run(bucket, name))
    [part] = open_run(bucket, "run").commits.checkpoints
    key = checkpoint_sketches_key("run", part.shards)
    bucket.delete(key)
    return tmp_path, key


WARNED: dict[str, dict[str, Any]] = {
    "profile": {},
    "by class": {"by": "token_class"},
    "a site": {"sites": "resid_post", "by": "site", "quantity": "rms"},
    "by layer again": {"by": "layer"},
    "histogram": {"quantiles": (), "histogram": 5},
}
SILENT: dict[str, dict[str, Any]] = {
    "exact": {"exact": True},
    "without quantiles": {"quantiles": ()},
    "by position": {"by": "position"},
    "without position 0": {"exclude": ("position_0",)},
}


@pytest.mark.parametrize("asked", WARNED | SILENT)
def test_sketches_that_are_gone_are_told_of(asked: str, lost: tuple[Path, str]) -> None:
    folder, key = lost
    options = (WARNED | SILENT)[asked]
    with served(folder) as far, actstore.connect(folder) as near:
        answers = [lab.checkpoints(["run"], steps=[3]).norms(**options) for lab in (far, near)]
        old = [lab.checkpoints(["old"], steps=[3]).norms(**options) for lab in (far, near)]
        exact = near.checkpoints(["run"], steps=[3]).norms(**options | {"exact": True})
        assert [lab.run("run").fit_growth().warnings for lab in (far, near)] == [(), ()]
    assert answers[0] == answers[1]
    assert [answer.warnings for answer in old] == [(), ()]
    for answer in answers:
        assert (answer.table, answer.histogram) == (exact.table, exact.histogram)
        if asked in SILENT:
            assert answer.warnings == ()
            continue
        [warning] = answer.warnings
        for part in (key, "every token's stored norm", "`actstore check run`", "Capturing the run again"):
            assert part in warning
        assert f"warning: {warning}" in repr(answer)
        assert answer.to_dict()["warnings"] == [warning]


def test_sketches_that_are_written_again_are_read_by_who_has_missed_them(lost: tuple[Path, str]) -> None:
    folder, key = lost
    os.utime(folder / run_key("run"), (1, 1))  # old enough to be kept
    with served(folder) as far, actstore.connect(folder) as near:
        for _ in range(2):
            assert all(lab.run("run").norms().warnings for lab in (far, near))
        bucket = open_bucket(str(folder))
        fold_commits(open_run(bucket, "run"))
        assert bucket.exists(key)
        for lab in (far, near):
            found = lab.run("run").norms()
            assert (found.warnings, set(found.table["rank_error"].to_pylist())) == ((), {RANK_ERROR})


def test_of_several_runs_the_one_whose_sketches_are_gone_is_named(lost: tuple[Path, str]) -> None:
    folder, key = lost
    bucket = open_bucket(str(folder))
    made = make_run(3)
    asked = replace(made.record.specification, model_revision="step2")
    record = replace(made.record, run="whole", specification=asked, specification_sha256=asked.sha256)
    write_run(bucket, replace(made, record=record))
    with served(folder) as far, actstore.connect(folder) as near:
        for lab in (far, near):
            found = lab.checkpoints(["whole", "run"], steps=[2, 1]).norms()
            assert set(found.table["rank_error"].to_pylist()) == {0.0, RANK_ERROR}
            [warning] = found.warnings
            assert f"run run are missing: {key}. " in warning
    fold_commits(open_run(bucket, "run"))
    with served(folder) as far, actstore.connect(folder) as near:
        for lab in (far, near):
            found = lab.checkpoints(["whole", "run"], steps=[2, 1]).norms()
            assert found.warnings == ()
            assert set(found.table["rank_error"].to_pylist()) == {RANK_ERROR}


def test_a_run_that_is_too_large_without_its_sketches_says_that_they_are_gone(
    lost: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, key = lost
    monkeypatch.setattr(norms, "QUANTILE_TOKENS_MAX", 3)
    with served(folder) as far, actstore.connect(folder) as near:
        for lab in (far, near):
            with pytest.raises(LimitExceeded, match=r"tokens is \d+; the limit is 3: merged sketches") as refused:
                lab.run("run").norms()
            assert refused.value.reason == "LIMIT_EXCEEDED"
            assert key in str(refused.value)
            for name, options in (("old", {}), ("run", {"exact": True})):
                with pytest.raises(LimitExceeded, match="the limit is 3") as refused:
                    lab.run(name).norms(**options)
                assert "gone" not in str(refused.value)


def test_exact_is_true_or_false(doors: tuple[Lab, Lab]) -> None:
    for lab in doors:
        with pytest.raises(BadRequest) as refused:
            lab.run("run").norms(exact="yes")
        assert refused.value.field == "exact"


def test_the_command_asks_for_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["norms", "run", "--sites", "resid_post.0", "--address", str(folder)]
    assert main(arguments) == main([*arguments, "--exact", "--json"]) == 0
    shown = capsys.readouterr().out
    assert '"rank_error": 0.0' in shown
    assert f"{RANK_ERROR:.3g}" in shown.partition("{")[0]
    assert main(["norms", "run", "run", "--exact", "--address", str(folder)]) == 1
    assert "growth is fitted to means, which are always exact" in capsys.readouterr().err
