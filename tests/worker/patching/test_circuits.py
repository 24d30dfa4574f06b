"""Sweeps over circuits that were built by hand find what was built, and nothing else."""

from pathlib import Path

import pytest
import torch

from actstore_api.records.patching import CellReference, JointCells, PromptPair, RunSweep
from actstore_api.records.terms import ModelReference
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.sweep import WholeSweep, run_sweep
from tests.worker.models.hand_built import gate, induction

END, A, B, C = 2, "z.0.0", "z.0.1", "mlp_out.1"


def sweep(model: LanguageModel, request: RunSweep) -> list[dict[str, object]]:
    *_, result = run_sweep(model, request, PatchingLimits())
    assert isinstance(result, WholeSweep)
    rows: list[dict[str, object]] = result.cells.to_pylist()
    return rows


def load(folder: Path) -> LanguageModel:
    return load_model(ModelCatalog((folder.parent,)).find_model(folder.name), device=torch.device("cpu"))


# Heimersheim & Nanda 2024, section 2, and by hand for two at once.
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("and", {"denoise": {"A": 0, "B": 0, "C": 1, "A, B": 1}, "noise": {"A": 1, "B": 1, "C": 1, "A, B": 1}}),
        ("or", {"denoise": {"A": 1, "B": 1, "C": 1, "A, B": 1}, "noise": {"A": 0, "B": 0, "C": 1, "A, B": 1}}),
    ],
)
def test_gates_have_their_table(tmp_path: Path, kind: str, expected: dict[str, dict[str, float]]) -> None:
    model = load(gate(tmp_path / kind, kind))
    cells = {"A": (A,), "B": (B,), "C": (C,), "A, B": (A, B)}
    joint = tuple(JointCells(name, tuple(CellReference(site, END) for site in sites)) for name, sites in cells.items())
    rows = sweep(
        model, RunSweep(ModelReference(kind), (PromptPair("a1 b1 end", "a0 b0 end", "yes", "no"),), joint=joint)
    )
    found: dict[str, dict[str, object]] = {"denoise": {}, "noise": {}}
    for row in rows:
        found[str(row["direction"])][str(row["name"])] = row["normalized"]
    for direction, table in expected.items():
        assert found[direction] == pytest.approx(table, abs=1e-2), direction


@pytest.mark.parametrize(
    ("corrupt", "wrong", "where"),
    [
        # The answer is replaced: who moves it is found, who points to it is not.
        (". a x . a", "x", {("z", 1, 0, 4)}),
        # The pointer is replaced: the previous-token head at the answer, and the mover, who then attends to all.
        (". x b . a", "y", {("z", 0, 0, 2), ("z", 1, 0, 4)}),
    ],
)
def test_the_induction_head_is_where_it_was_put(
    tmp_path: Path, corrupt: str, wrong: str, where: set[tuple[object, ...]]
) -> None:
    model = load(induction(tmp_path / "induction"))
    request = RunSweep(ModelReference("induction"), (PromptPair(". a b . a", corrupt, "b", wrong),), sites=("z",))
    rows = sweep(model, request)
    assert len(rows) == 2 * 5 * 4  # directions, positions, heads
    for row in rows:
        place = (row["site"], row["layer"], row["head"], row["position"])
        assert row["normalized"] == pytest.approx(float(place in where), abs=1e-4), row


def test_all_heads_of_a_model_without_mlps_are_the_source_run(tmp_path: Path) -> None:
    """The prompts end in the same token, and what else its logits are made of is heads."""
    model = load(induction(tmp_path / "induction"))
    heads = tuple(CellReference(f"z.{layer}.{head}", 4) for layer in range(2) for head in range(2))
    request = RunSweep(
        ModelReference("induction"),
        (PromptPair(". a b . a", ". x y . a", "b", "y"),),
        joint=(JointCells("all heads", heads),),
    )
    rows = sweep(model, request)
    assert [row["direction"] for row in rows] == ["denoise", "noise"]
    for row in rows:
        assert row["normalized"] == pytest.approx(1, abs=1e-5)
        assert row["kl"] == pytest.approx(0, abs=1e-6)
