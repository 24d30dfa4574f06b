"""Runs that are resumed against runs of the whole model, on every family, and what must hold whatever the weights."""

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actstore_api.records.patching import PromptPair, RunSweep
from actstore_api.records.terms import ModelReference
from actstore_storage.errors import ActstoreError
from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.kernels import layer_calls, resumed
from actstore_worker.patching.kernels.full import Cell, FullForward, Patch
from actstore_worker.patching.kernels.layer_calls import Unresumable
from actstore_worker.patching.kernels.ragged import Ragged, Run
from actstore_worker.patching.kernels.recording import Recording, record, zeroed
from actstore_worker.patching.kernels.resumed import Resumed
from actstore_worker.patching.sweep import WholeSweep, fastest_kernel, run_sweep
from tests.made_models.small_models import BERT, DECODERS
from tests.worker.patching.recorded import every_site, two_runs

LENGTH = 13
TOLERANCE = {"atol": 2e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, save in {**DECODERS, **BERT}.items():
        save(folder / name)
    return folder


@pytest.fixture(scope="module", params=DECODERS)
def model(request: pytest.FixtureRequest, folder: Path) -> LanguageModel:
    return load_model(ModelCatalog((folder,)).find_model(request.param), device=torch.device("cpu"))


@pytest.fixture(scope="module")
def runs(model: LanguageModel) -> tuple[Recording, Recording]:
    return two_runs(model, LENGTH)


def every_cell(model: LanguageModel) -> Iterator[Cell]:
    for site, position in product(every_site(model), range(LENGTH)):
        heads = range(model.head_counts[site.kind]) if site.kind in HEAD_KINDS else [None]
        yield from (Cell(Site(site.layer, site.kind, head), position) for head in heads)


def test_every_cell_is_that_of_the_whole_model(model: LanguageModel, runs: tuple[Recording, Recording]) -> None:
    base, source = runs
    patches = [Patch(base, source, (cell,)) for cell in every_cell(model)]
    torch.testing.assert_close(Resumed(model).run(patches), FullForward(model).run(patches), **TOLERANCE)


@pytest.mark.parametrize("group_positions", [1, 5, 64])
def test_cells_together_are_those_of_the_whole_model(
    model: LanguageModel, runs: tuple[Recording, Recording], group_positions: int
) -> None:
    """Two to six at once, of any site, in any group of positions, from bases in both directions; at the price said."""
    rng, cells = random.Random(group_positions), list(every_cell(model))
    patches = [
        Patch(*(runs if number % 2 else runs[::-1]), tuple(rng.sample(cells, 2 + number % 5))) for number in range(60)
    ]
    kernel = Resumed(model, group_positions)
    torch.testing.assert_close(kernel.run(patches), FullForward(model).run(patches), **TOLERANCE)
    assert kernel.count.computed == pytest.approx(sum(kernel.price(patch.cells, LENGTH) for patch in patches))
    assert kernel.count.full == len(patches) * LENGTH * model.layer_count


def test_whole_sites_are_those_of_the_whole_model(model: LanguageModel, runs: tuple[Recording, Recording]) -> None:
    """A site with heads, patched in all of them."""
    base, source = runs
    patches = [Patch(base, source, (Cell(site, position),)) for site in every_site(model) for position in (0, 7, 12)]
    torch.testing.assert_close(Resumed(model).run(patches), FullForward(model).run(patches), **TOLERANCE)


def test_what_makes_z_makes_the_same_of_it(model: LanguageModel, runs: tuple[Recording, Recording]) -> None:
    """q, k and v of every head at every position are what z of every head is."""
    base, source = runs
    both = []
    for kinds in (("q", "k", "v"), ("pattern", "v"), ("z",)):
        for layer in range(model.layer_count):
            cells = tuple(Cell(Site(layer, kind), position) for kind, position in product(kinds, range(LENGTH)))
            both.append(Patch(base, source, cells))
    found = Resumed(model).run(both).view(3, model.layer_count, -1)
    torch.testing.assert_close(found[0], found[2], **TOLERANCE)
    torch.testing.assert_close(found[1], found[2], **TOLERANCE)


def test_weights_are_used_on_the_values_of_the_patched_run(
    model: LanguageModel, runs: tuple[Recording, Recording]
) -> None:
    """What a head's weights make of the base run's values is its z, and no other head's: written out, and written as z
    into all heads and into each.
    """
    base, source = runs
    position, shared = LENGTH - 3, model.head_count // model.head_counts["v"]
    for layer in range(model.layer_count):
        weights = source.activations[Site(layer, "pattern")][position].view(model.head_count, LENGTH)
        values = base.values[layer].repeat_interleave(shared, dim=0)
        z = base.activations[Site(layer, "z")].clone()
        z[position] = torch.einsum("hk,hkw->hw", weights, values).flatten()
        mixed = replace(base, activations={Site(layer, "z"): z})
        heads = (None, *range(model.head_count))
        patches = [Patch(base, source, (Cell(Site(layer, "pattern", head), position),)) for head in heads]
        patches += [Patch(base, mixed, (Cell(Site(layer, "z", head), position),)) for head in heads]
        as_weights, as_z = FullForward(model).run(patches).view(2, len(heads), -1)
        torch.testing.assert_close(as_weights, as_z, **TOLERANCE)


@pytest.mark.parametrize("kernel", [Resumed, FullForward])
def test_what_comes_later_in_a_layer_is_written_last(
    model: LanguageModel, runs: tuple[Recording, Recording], kernel: type[Resumed] | type[FullForward]
) -> None:
    """In whatever order they are named: z is what the weights make, and the residual what resid_mid says."""
    base, source = runs
    pairs = [(Site(1, "z", 2), Site(1, "pattern", 2))]
    if "resid_mid" in model.kinds:
        pairs.append((Site(1, "attn_out"), Site(1, "resid_mid")))
    for pair in pairs:
        earlier, later = (Cell(site, LENGTH - 2) for site in pair)
        orders = [(later,), (earlier, later), (later, earlier)]
        alone, *together = kernel(model).run([Patch(base, source, cells) for cells in orders])
        for found in together:
            torch.testing.assert_close(found, alone, **TOLERANCE)


@pytest.mark.parametrize("kernel", [Resumed, FullForward])
def test_a_run_leaves_no_hook(
    model: LanguageModel, runs: tuple[Recording, Recording], kernel: type[Resumed] | type[FullForward]
) -> None:
    kernel(model).run([Patch(*runs, (cell,)) for cell in list(every_cell(model))[::7]])
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.module.modules())


def test_zeros_are_zeros(model: LanguageModel, runs: tuple[Recording, Recording]) -> None:
    base, _ = runs
    patches = [Patch(base, zeroed(base), (cell,)) for cell in list(every_cell(model))[::7]]
    torch.testing.assert_close(Resumed(model).run(patches), FullForward(model).run(patches), **TOLERANCE)


def test_it_computes_what_can_change_and_nothing_else(model: LanguageModel, runs: tuple[Recording, Recording]) -> None:
    """In groups of one position: all of a layer at the patched position, and of the others there what comes after
    attention (the output projection is a twelfth of a layer, the MLP two thirds, where it sees the change); then whole
    layers; of the last one the last position, and keys and values, which come with queries: a quarter of a layer.
    """
    base, source = runs
    kernel, after, last = Resumed(model, group_positions=1), LENGTH - 9, model.layer_count - 1
    share = 1 / 12 + (2 / 3 if "resid_mid" in model.kinds else 0)
    of_last = 1 + 0.25 * (after - 1)
    expected: dict[tuple[Cell, ...], float] = {
        (Cell(Site(0, "resid_pre"), 9),): 1 + share * (after - 1) + (last - 1) * after + of_last,
        (Cell(Site(0, "attn_out"), 9),): 1 + share * (after - 1) + (last - 2) * after + of_last,
        (Cell(Site(1, "resid_pre"), 9),): 1 + share * (after - 1) + (last - 2) * after + of_last,
        (Cell(Site(last, "resid_pre"), 9),): 1 + share,
        (Cell(Site(last, "resid_pre"), LENGTH - 1),): 1,
        (Cell(Site(last, "z", 0), LENGTH - 2),): 0,  # nothing is left that it could change
        (Cell(Site(last, "resid_post"), LENGTH - 1),): 0,
        # Whole layers, for those change more than their own position; in the last layer at all positions from there on.
        (Cell(Site(0, "k", 0), 9),): last * after + of_last,
        (Cell(Site(0, "q", 0), LENGTH - 2),): last * 2 + 1.25,
        (Cell(Site(0, "q", 0), LENGTH - 1),): last + 1,
        (Cell(Site(last, "k", 0), 9),): after,
        (Cell(Site(last, "resid_pre"), 9), Cell(Site(last, "resid_pre"), 10)): of_last,
        # Of no cells: as of what goes into the first layer.
        (): 1 + share * (LENGTH - 1) + (last - 1) * LENGTH + 1 + 0.25 * (LENGTH - 1),
    }
    for cells, token_layers in expected.items():
        before = kernel.count.computed
        kernel.run([Patch(base, source, cells)])
        assert kernel.count.computed - before == pytest.approx(token_layers)
        assert kernel.price(cells, LENGTH) == pytest.approx(token_layers)
    assert kernel.count.full == len(expected) * LENGTH * model.layer_count


@pytest.mark.parametrize("name", ["gpt2", "neox_parallel", "llama"])
def test_in_the_last_layer_no_mlp_computes_what_nobody_reads(folder: Path, name: str) -> None:
    """Only at the last position, in runs with one position changed and in runs of a group alike."""
    model, tokens = load_model(ModelCatalog((folder,)).find_model(name), device=torch.device("cpu")), list[int]()
    base, source = two_runs(model, LENGTH)
    patches = [
        Patch(base, source, (Cell(Site(0, kind, 1), position),))
        for kind, position in product(("z", "q"), range(LENGTH))
    ]
    mlp: Any = model.layers[-1].mlp
    handle = mlp.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].numel() // model.d_model))
    Resumed(model).run(patches)
    handle.remove()
    assert sum(tokens) == len(patches)


def test_attention_that_is_no_function_by_name_is_not_looked_into(folder: Path, tmp_path: Path) -> None:
    """Nor the layer after a patch told apart; GPT-2's upcast attention is such a one."""
    described = ModelCatalog((folder,)).find_model("gpt2")
    config = json.loads((described.folder / "config.json").read_text())
    upcast = tmp_path / "gpt2-upcast"
    shutil.copytree(described.folder, upcast)
    (upcast / "config.json").write_text(json.dumps(config | {"reorder_and_upcast_attn": True}))
    model = load_model(ModelCatalog((tmp_path,)).find_model("gpt2-upcast"), device=torch.device("cpu"))
    base, source = two_runs(model, LENGTH)
    assert not base.queries
    patches = [Patch(base, source, (cell,)) for cell in list(every_cell(model))[::3]]
    kernel = Resumed(model)
    torch.testing.assert_close(kernel.run(patches), FullForward(model).run(patches), **TOLERANCE)
    assert kernel.count.computed == pytest.approx(sum(kernel.price(patch.cells, LENGTH) for patch in patches))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_eager_attention_is_joined_too(folder: Path, name: str) -> None:
    model = load_model(ModelCatalog((folder,)).find_model(name), device=torch.device("cpu"), attention="eager")
    base, source = two_runs(model, LENGTH)
    patches = [Patch(base, source, (cell,)) for cell in list(every_cell(model))[::3]]
    kernel = Resumed(model)
    torch.testing.assert_close(kernel.run(patches), FullForward(model).run(patches), **TOLERANCE)
    assert base.queries


def test_the_model_is_told_of_its_attention_once_a_run(folder: Path) -> None:
    """However many layers run: to be told is to walk all of its modules. Of a new length, masks are watched before."""
    model, names = gpt2(folder), list[str]()
    base, source = two_runs(model, LENGTH)
    kernel, honest = Resumed(model), model.module.set_attn_implementation

    def told(name: str) -> None:
        names.append(name)
        honest(name)

    model.module.set_attn_implementation = told
    patches = [Patch(base, source, (Cell(Site(layer, "z", 1), 3),)) for layer in range(model.layer_count)]
    for expected in (["eager", "sdpa", "actstore_sdpa", "sdpa"], ["actstore_sdpa", "sdpa"]):
        names.clear()
        kernel.run(patches)
        assert names == expected


def test_slices_of_many_bases_share_a_batch(model: LanguageModel, runs: tuple[Recording, Recording]) -> None:
    cells = list(every_cell(model))[::11]
    patches = [Patch(*order, (cell,)) for cell in cells for order in (runs, runs[::-1])]
    together = Resumed(model).run(patches)
    alone = torch.cat([Resumed(model).run([patch]) for patch in patches[:12]])
    torch.testing.assert_close(together[:12], alone, **TOLERANCE)


def test_batches_hold_as_many_tokens_as_they_may(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of more tokens has one of its own, and none is begun where the last one has room; those that are as long
    share one, for attention takes all of a batch to be as long as the longest.
    """
    limit, batches, honest = 10, list[list[int]](), Ragged.last_residuals

    def watched(ragged: Ragged, runs: Sequence[Run]) -> Tensor:
        batches.append([LENGTH - run.position for run in runs])
        return honest(ragged, runs)

    monkeypatch.setattr(resumed, "BATCH_TOKENS", limit)
    monkeypatch.setattr(Ragged, "last_residuals", watched)
    model = gpt2(folder)
    base, source = two_runs(model, LENGTH)
    patches = [Patch(base, source, (Cell(Site(0, "z", 1), position),)) for position in range(LENGTH)] * 2
    found = Resumed(model).run(patches)
    torch.testing.assert_close(found, FullForward(model).run(patches), **TOLERANCE)
    assert [tokens for batch in batches for tokens in batch] == sorted([*range(1, LENGTH + 1)] * 2, reverse=True)
    assert all(sum(batch) <= limit or len(batch) == 1 for batch in batches)
    assert all(sum(batch) + after[0] > limit for batch, after in pairwise(batches))


def test_a_recording_is_one_pass_and_one_more_for_attention_weights(folder: Path) -> None:
    model, passes = gpt2(folder), []
    handle = model.module.register_forward_pre_hook(lambda *_: passes.append(1))
    for sites, expected in (([Site(1, "z"), Site(0, "k")], 1), ([Site(1, "z"), Site(0, "pattern")], 2)):
        passes.clear()
        record(model, range(1, LENGTH), sites)
        assert len(passes) == expected
    handle.remove()


def test_what_was_set_on_a_layer_is_set_on_it_afterwards(folder: Path) -> None:
    """As accelerate sets what moves weights to where they are wanted."""
    model, calls = gpt2(folder), []
    layer = model.layers[1]
    honest = layer.forward

    def forward(*inputs: Any, **keywords: Any) -> Any:
        calls.append(1)
        return honest(*inputs, **keywords)

    layer.forward = forward
    base, source = two_runs(model, LENGTH)
    patches = [Patch(base, source, (Cell(Site(0, "z", 1), 3),))]
    calls.clear()
    found = Resumed(model).run(patches)
    assert layer.forward is forward
    assert calls
    assert all("forward" not in vars(other) for other in (model.layers[0], model.layers[2]))
    torch.testing.assert_close(found, FullForward(model).run(patches), **TOLERANCE)


def test_encoders_are_not_resumed(folder: Path) -> None:
    encoder = load_model(ModelCatalog((folder,)).find_model("bert"), device=torch.device("cpu"))
    with pytest.raises(Unresumable, match="not causal"):
        Resumed(encoder)


REQUEST = RunSweep(ModelReference("gpt2"), (PromptPair("abcdefgh", "abXdefgh", "a", "b"),), sites=("resid_pre", "z"))


def gpt2(folder: Path) -> LanguageModel:
    return load_model(ModelCatalog((folder,)).find_model("gpt2"), device=torch.device("cpu"))


def result_of(model: LanguageModel, request: RunSweep = REQUEST) -> WholeSweep:
    *_, result = run_sweep(model, request, PatchingLimits())
    assert isinstance(result, WholeSweep)
    return result


def test_a_layer_that_is_told_the_unknown_runs_whole_and_the_answer_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = result_of(gpt2(folder))
    assert (expected.audit.kernel, expected.audit.token_layers < expected.audit.token_layers_full) == ("resumed", True)
    monkeypatch.setattr(layer_calls, "CACHES", ("another name",))
    found = result_of(gpt2(folder))
    assert found.audit.kernel == "full"
    assert found.audit.token_layers == found.audit.token_layers_full
    for name in ("logit_difference", "kl", "rank"):
        assert found.cells[name].to_pylist() == pytest.approx(expected.cells[name].to_pylist(), abs=1e-5)


def test_a_layer_that_is_told_of_positions_otherwise_runs_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a bias for each of them: what that is in the middle of a prompt is not known."""
    honest = layer_calls.watch_layers

    def told(bias: object) -> str:
        with monkeypatch.context() as patched:
            patched.setattr(resumed, "watch_layers", lambda *asked: [{**call, "b": bias} for call in honest(*asked)])
            return fastest_kernel(gpt2(folder)).name

    assert (told(torch.zeros(1)), told(0.5)) == ("full", "resumed")


@pytest.mark.parametrize(
    ("of_cells", "place"),
    [(True, r"(resid_pre\.\d|z\.\d\.\d)@\d"), (False, "a run with nothing patched")],
    ids=["cells", "nothing"],
)
def test_a_sweep_whose_numbers_are_wrong_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, of_cells: bool, place: str
) -> None:
    """It says which cell is, or that a run is in which nothing was replaced."""
    honest = Resumed.run

    def wrong(kernel: Resumed, patches: Sequence[Patch]) -> Tensor:
        replaced = torch.tensor([patch.source is not patch.base for patch in patches])
        return honest(kernel, patches) + 0.1 * (replaced == of_cells)[:, None]

    monkeypatch.setattr(Resumed, "run", wrong)
    with pytest.raises(ActstoreError, match=rf"differs from .* by 0\.1.*checked: {place}\)$") as refusal:
        result_of(gpt2(folder))
    assert refusal.value.reason == "AUDIT_FAILED"
    assert refusal.value.details["allowed"].startswith("at most")
