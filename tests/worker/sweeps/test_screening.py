"""Screened sweeps against whole ones, and ranks against pandas'."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from actstore_api.records.patching import CellReference, JointCells, PromptPair, RunSweep, Screen, SweepProgress
from actstore_api.records.terms import ModelReference
from actstore_storage.errors import ActstoreError
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.estimates.attribution import estimate_effects
from actstore_worker.patching.estimates.screening import choose_cells, exact_count, rank_agreement
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.kernels.recording import record
from actstore_worker.patching.plan import plan_sweep
from actstore_worker.patching.sweep import WholeSweep, run_sweep
from tests.made_models.small_models import SAVERS
from tests.worker.models.hand_built import gate

PAIRS = (PromptPair("abcdefgh", "abXdefgh", "a", "b"), PromptPair("stuvwxyz", "stuQwxyz", "c", "d"))
REQUEST = RunSweep(ModelReference("gpt2"), PAIRS, sites=("resid_pre", "attn_out", "q", "k", "z"), layers=(0, 2))
LIMITS = PatchingLimits(tokens_per_slice=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("models")
    SAVERS["gpt2"](folder / "gpt2")
    return load_model(ModelCatalog((folder,)).find_model("gpt2"), device=torch.device("cpu"))


def updates_of(model: LanguageModel, request: RunSweep) -> tuple[list[SweepProgress], WholeSweep]:
    *progress, result = run_sweep(model, request, LIMITS)
    assert isinstance(result, WholeSweep)
    return [update for update in progress if isinstance(update, SweepProgress)], result


@pytest.mark.parametrize("source", ["prompt", "zero"])
def test_what_was_chosen_is_computed_as_ever_and_the_rest_is_null(model: LanguageModel, source: str) -> None:
    request = replace(REQUEST, source=source)
    _, everything = updates_of(model, request)
    _, result = updates_of(model, replace(request, screen=Screen(10)))
    assert result.cells.column_names == [*everything.cells.column_names, "estimate"]
    computed = 0
    for expected, row in zip(everything.cells.to_pylist(), result.cells.to_pylist(), strict=True):
        estimate = row.pop("estimate")
        assert estimate is not None
        if row["rank"] is None:
            place = {"pair", "direction", "site", "layer", "position", "head", "name", "token", "unchanged"}
            assert row == {name: expected[name] if name in place else None for name in expected}
            continue
        computed += 1
        assert row == pytest.approx(expected, abs=1e-4, nan_ok=True)
        assert not row["unchanged"] or estimate == 0
    # Both prompts of a pair begin with BOS and two letters: three positions of two layers, of 3 x 4 heads and 2 others.
    unchanged = 3 * 2 * (3 * 4 + 2) if source == "prompt" else 0
    assert computed == 2 * 2 * (10 + unchanged)
    assert not result.cells["estimate"].null_count


def test_the_chosen_are_those_of_the_largest_mean_estimate_in_both_pairs(model: LanguageModel) -> None:
    _, result = updates_of(model, replace(REQUEST, screen=Screen(10, qk_correction=True)))
    plan = plan_sweep(model, REQUEST, LIMITS)
    for direction in ("denoise", "noise"):
        sizes = []
        for tokens in plan.pairs:
            clean, corrupt = (record(model, prompt, plan.sites) for prompt in (tokens.clean, tokens.corrupt))
            base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
            answers, patches = (tokens.clean_answer, tokens.corrupt_answer), [entry.cells for entry in plan.grid]
            sizes.append(np.abs(estimate_effects(model, base, source, answers, patches, Screen(1, True), 10_000)))
        expected = set(np.argsort(-np.mean(sizes, axis=0))[:10].tolist())
        for pair in (0, 1):
            rows = [row for row in result.cells.to_pylist() if (row["direction"], row["pair"]) == (direction, pair)]
            assert {i for i, row in enumerate(rows) if row["rank"] is not None and row["position"] > 2} >= expected


def test_estimates_are_of_the_normalized_effect(tmp_path: Path) -> None:
    """The AND: at the corrupt prompt neither half has a gradient, at the clean one each is the whole effect; and so C
    comes first, and is what is computed.
    """
    gate(tmp_path / "and", "and")
    model = load_model(ModelCatalog((tmp_path,)).find_model("and"), device=torch.device("cpu"))
    pair = PromptPair("a1 b1 end", "a0 b0 end", "yes", "no")
    request = RunSweep(ModelReference("and"), (pair,), sites=("z", "mlp_out"), positions="last", screen=Screen(1))
    _, result = updates_of(model, request)
    rows = result.cells.to_pylist()
    found = {(row["direction"], row["site"], row["layer"], row["head"]): row for row in rows}
    for direction, half in (("denoise", 0), ("noise", 1)):
        for head in (0, 1):
            assert found[direction, "z", 0, head]["estimate"] == pytest.approx(half, abs=1e-2)
        assert found[direction, "mlp_out", 1, None]["estimate"] == pytest.approx(1, abs=1e-2)
    computed = [(row["direction"], row["site"], row["layer"]) for row in rows if row["normalized"] is not None]
    assert ("denoise", "mlp_out", 1) in computed
    assert len(computed) == 2


def spearman(estimates: Sequence[float], effects: Sequence[float]) -> float:
    ranks = [pd.Series(values).abs().rank() for values in (estimates, effects)]
    return float(ranks[0].corr(ranks[1]))


def test_rank_agreement_is_spearmans(model: LanguageModel) -> None:
    _, result = updates_of(model, replace(REQUEST, screen=Screen(40)))
    found = []
    for pair in (0, 1):
        for direction in ("denoise", "noise"):
            rows = [
                row
                for row in result.cells.to_pylist()
                if (row["pair"], row["direction"], row["unchanged"]) == (pair, direction, False)
                and row["normalized"] is not None
            ]
            found.append(spearman([row["estimate"] for row in rows], [row["normalized"] for row in rows]))
    assert result.audit.rank_agreement == pytest.approx(np.mean(found), abs=1e-6)
    assert updates_of(model, REQUEST)[1].audit.rank_agreement is None


def test_ranks_of_equals_are_their_mean_and_of_one_number_there_are_none() -> None:
    estimate, effect = np.array([1.0, -2, 2, 0, 0, 5]), np.array([0.0, 1, 1, -1, 0.5, 3])
    expected = spearman(estimate, effect)
    constant = (np.ones(3), np.arange(3.0))
    assert rank_agreement([(estimate, effect), constant]) == pytest.approx(expected)
    assert rank_agreement([(np.array([0.1, 0.2]), np.array([-3.0, 1.0]))]) == pytest.approx(-1)
    assert rank_agreement([constant, (np.zeros(0), np.zeros(0))]) is None


def test_more_cells_than_there_are_is_all_of_them() -> None:
    estimates = np.array([[0.0, -3, 1], [0, 0, 1]])
    unchanged = np.array([[True, True, False], [True, False, False]])
    for count, expected in ((1, [0, 1]), (2, [0, 1, 2]), (9, [0, 1, 2])):
        assert choose_cells(estimates, unchanged, count).exact.tolist() == expected
        assert exact_count(unchanged, count) == len(expected)


def test_progress_ends_where_it_said(model: LanguageModel) -> None:
    progress, _ = updates_of(model, replace(REQUEST, screen=Screen(10)))
    totals = {update.cells_total for update in progress}
    assert len(totals) == 1
    assert progress[-1].cells_done == totals.pop()
    assert [update.cells_done for update in progress[:4]] == [0, 0, 0, 0]  # a slice a pair and direction


@pytest.mark.parametrize(
    ("change", "reason", "field", "value", "allowed"),
    [
        ({"screen": Screen(0)}, "ARGUMENT_INVALID", "screen.exact_cells", "0", "1..200000"),
        ({"screen": Screen(200_001)}, "LIMIT_EXCEEDED", "screen.exact_cells", "200001", "1..200000"),
        ({"window_layers": 2}, "ARGUMENT_INVALID", "window_layers", "2", "1, if there is a screen"),
        (
            {"joint": (JointCells("both", (CellReference("z.0.0", 1),)),)},
            "ARGUMENT_INVALID",
            "joint",
            "both",
            "none, if there is a screen",
        ),
    ],
)
def test_refusals(
    model: LanguageModel, change: dict[str, object], reason: str, field: str, value: str, allowed: str
) -> None:
    with pytest.raises(ActstoreError) as refusal:
        plan_sweep(model, replace(REQUEST, **{"screen": Screen(3), **change}), LIMITS)
    assert refusal.value.reason == reason
    assert refusal.value.details == {"field": field, "value": value, "allowed": allowed}
