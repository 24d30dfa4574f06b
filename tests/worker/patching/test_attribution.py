"""Estimates of patches against finite differences of patched runs, on every family, and on circuits built by hand."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actstore_api.records.patching import Screen
from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import changing
from actstore_worker.patching.estimates.attribution import estimate_effects
from actstore_worker.patching.kernels.full import Cell, FullForward, Patch
from actstore_worker.patching.kernels.recording import Recording, record
from tests.made_models.small_models import DECODERS, save_family
from tests.worker.models.hand_built import gate
from tests.worker.patching.recorded import every_site, two_runs

LENGTH, ANSWERS, TOKENS_AT_ONCE = 7, (3, 200), 8192
PLAIN = Screen(1, qk_correction=False)
# Of the way from base to source, either side; what a float32 logit's noise makes of that, and what is left of the third
# derivative.
STEP = 3e-3
TOLERANCE = {"abs": 2e-4, "rel": 2e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, save in DECODERS.items():
        save(folder / name)
    return folder


@pytest.fixture(scope="module", params=DECODERS)
def model(request: pytest.FixtureRequest, folder: Path) -> LanguageModel:
    return load_model(ModelCatalog((folder,)).find_model(request.param), device=torch.device("cpu"))


@pytest.fixture(scope="module")
def runs(model: LanguageModel) -> tuple[Recording, Recording]:
    return two_runs(model, LENGTH)


def every_cell(model: LanguageModel) -> list[Cell]:
    """At positions that are neither first nor last, and at both of these."""
    return [
        Cell(Site(site.layer, site.kind, head), position)
        for site in every_site(model)
        for position in (0, 3, LENGTH - 1)
        for head in (range(model.head_counts[site.kind]) if site.kind in HEAD_KINDS else [None])
    ]


def estimates(
    model: LanguageModel, runs: tuple[Recording, Recording], cells: Sequence[Cell], screen: Screen = PLAIN
) -> list[float]:
    patches = [(cell,) for cell in cells]
    return estimate_effects(model, *runs, ANSWERS, patches, screen, TOKENS_AT_ONCE).tolist()


def moved(base: Recording, towards: dict[Site, Tensor], step: float) -> Recording:
    """A source that lies a step from the base."""
    sites = {
        site: there + step * (towards[site] - there) for site, there in base.activations.items() if site in towards
    }
    return replace(base, activations=sites)


def difference(logits: Tensor) -> Tensor:
    return logits[:, ANSWERS[0]].double() - logits[:, ANSWERS[1]].double()


def slopes(model: LanguageModel, base: Recording, towards: dict[Site, Tensor], cells: list[list[Cell]]) -> list[float]:
    """By patched runs, a step either side."""
    ahead, behind = (
        difference(FullForward(model).run([Patch(base, moved(base, towards, step), tuple(some)) for some in cells]))
        for step in (STEP, -STEP)
    )
    return ((ahead - behind) / (2 * STEP)).tolist()


def test_estimates_are_the_slopes_of_patched_runs(model: LanguageModel, runs: tuple[Recording, Recording]) -> None:
    base, source = runs
    cells = every_cell(model)
    expected = slopes(model, base, dict(source.activations), [[cell] for cell in cells])
    assert estimates(model, runs, cells) == pytest.approx(expected, **TOLERANCE)


def test_positions_and_heads_together_are_their_sum(model: LanguageModel, runs: tuple[Recording, Recording]) -> None:
    base, source = runs
    patches = [[Cell(site, position) for position in range(LENGTH)] for site in every_site(model)]
    found = estimate_effects(model, *runs, ANSWERS, patches, PLAIN, TOKENS_AT_ONCE).tolist()
    assert found == pytest.approx(slopes(model, base, dict(source.activations), patches), **TOLERANCE)


def test_of_q_and_k_attention_is_computed_and_the_rest_is_linear(
    model: LanguageModel, runs: tuple[Recording, Recording]
) -> None:
    """The slow twin: one patched run a cell shows what becomes of z, and patched runs have the slope along that."""
    base, source = runs
    cells = [cell for cell in every_cell(model) if cell.site.kind in ("q", "k")]
    found = estimates(model, runs, cells, replace(PLAIN, qk_correction=True))
    plain = estimates(model, runs, cells)
    for cell, estimate in list(zip(cells, found, strict=True))[::3]:
        z = Site(cell.site.layer, "z")
        there = {z: z_of(model, Patch(base, source, (cell,)), z)}
        (expected,) = slopes(model, base, there, [[Cell(z, position) for position in range(LENGTH)]])
        assert estimate == pytest.approx(expected, **TOLERANCE), cell
    assert found != pytest.approx(plain, rel=0.1)  # it does correct something


def z_of(model: LanguageModel, patch: Patch, z: Site) -> Tensor:
    """Seen where the patched run has it. Of a whole run: what its own patch is written before."""
    seen = []

    def see(found: Tensor) -> Tensor:
        seen.append(found[0].flatten(1).clone())
        return found

    with changing(model, {z: see}, (1, LENGTH)):
        FullForward(model).run([patch])
    return seen[0]


def test_gradients_are_dropped_one_layer_at_a_time(model: LanguageModel, runs: tuple[Recording, Recording]) -> None:
    """The slow twin: runs in which a layer adds to the residual what it added in the base run."""
    base, source = runs
    cells = [cell for cell in every_cell(model) if cell.position != 0][::3]
    found = estimates(model, runs, cells, replace(PLAIN, grad_drop=True))
    expected = [0.0] * len(cells)
    for frozen in range(model.layer_count):
        with changing(model, adding_the_same(base, frozen), (len(cells), LENGTH)):
            of_layer = slopes(model, base, dict(source.activations), [[cell] for cell in cells])
        for number, slope in enumerate(of_layer):
            expected[number] += abs(slope) * (cells[number].site.layer != frozen) / (model.layer_count - 1)
    assert found == pytest.approx(expected, **TOLERANCE)


def adding_the_same(base: Recording, layer: int) -> dict[Site, object]:
    incoming: list[Tensor] = []

    def see(found: Tensor) -> Tensor:
        incoming[:] = [found]
        return found

    def add(_: Tensor) -> Tensor:
        return incoming[0] + (base.residuals[layer + 1] - base.residuals[layer])

    return {Site(layer, "resid_pre"): see, Site(layer, "resid_post"): add}


def test_of_one_layer_there_is_nothing_to_drop(tmp_path: Path) -> None:
    save_family("mistral", tmp_path / "short", num_hidden_layers=1)
    model = load_model(ModelCatalog((tmp_path,)).find_model("short"), device=torch.device("cpu"))
    base, source = (record(model, prompt, every_site(model)) for prompt in (range(1, 8), range(7, 0, -1)))
    plain, dropped = (
        estimates(model, (base, source), every_cell(model), screen)
        for screen in (PLAIN, Screen(1, qk_correction=False, grad_drop=True))
    )
    assert dropped == [abs(estimate) for estimate in plain]


def test_of_two_layers_each_is_left_out_for_the_other(tmp_path: Path) -> None:
    """Nothing comes back to the last layer through the first. Past the last one nothing gets from position to position,
    so that what comes out of the first matters at the last position alone.
    """
    save_family("qwen2", tmp_path / "short", num_hidden_layers=2)
    model = load_model(ModelCatalog((tmp_path,)).find_model("short"), device=torch.device("cpu"))
    runs, cells = two_runs(model, LENGTH), every_cell(model)
    plain, dropped = (estimates(model, runs, cells, replace(PLAIN, grad_drop=drop)) for drop in (False, True))
    of_last = [number for number, cell in enumerate(cells) if cell.site.layer == 1]
    assert [dropped[number] for number in of_last] == pytest.approx([abs(plain[number]) for number in of_last])
    for cell, estimate, without in zip(cells, plain, dropped, strict=True):
        if str(cell.site) == "resid_post.0":
            assert estimate != 0
            assert (without != 0) == (cell.position == LENGTH - 1)


def test_batches_do_not_change_the_estimates(model: LanguageModel, runs: tuple[Recording, Recording]) -> None:
    patches = [(cell,) for cell in every_cell(model)]
    screen = Screen(1, qk_correction=True, grad_drop=True)
    at_once, few, one_by_one = (
        estimate_effects(model, *runs, ANSWERS, patches, screen, tokens).tolist() for tokens in (10_000, 2 * LENGTH, 1)
    )
    assert few == pytest.approx(at_once, abs=1e-4)
    assert one_by_one == pytest.approx(at_once, abs=1e-4)


@pytest.mark.parametrize(
    ("tokens", "with_gradients", "without"),
    [(8 * LENGTH, [2, 1], [8]), (4 * LENGTH, [1], [4, 4, 2]), (2 * LENGTH, [1], [2]), (1, [1], [2])],
)
def test_batches_hold_as_many_tokens_as_they_may(
    folder: Path, tokens: int, with_gradients: list[int], without: list[int]
) -> None:
    """Prompts whose gradient is wanted take four times their tokens. The others hold one replaced position each, beside
    the run in which nothing is replaced.
    """
    model = load_model(ModelCatalog((folder,)).find_model("gpt2"), device=torch.device("cpu"))
    both, batches = two_runs(model, LENGTH), defaultdict[bool, list[int]](list)
    patches = [(Cell(Site(1, "k", 1), position),) for position in range(LENGTH)]
    handle = model.module.register_forward_pre_hook(
        lambda _, __, told: batches[torch.is_grad_enabled()].append(len(told["input_ids"])), with_kwargs=True
    )
    screen = Screen(1, qk_correction=True, grad_drop=True)
    estimate_effects(model, *both, ANSWERS, patches, screen, tokens)
    handle.remove()
    assert batches[True] == (with_gradients * model.layer_count)[: len(batches[True])]
    assert sum(batches[True]) == model.layer_count  # a layer's gradient is dropped in each
    replaced = LENGTH if without == [2] else 1
    assert batches[False] == without * replaced * len(batches[True])


def test_a_run_moves_nothing_towards_itself_and_leaves_no_hook(
    model: LanguageModel, runs: tuple[Recording, Recording]
) -> None:
    base, _ = runs
    for screen in (PLAIN, Screen(1, qk_correction=True, grad_drop=True)):
        assert max(map(abs, estimates(model, (base, base), every_cell(model), screen))) < 1e-5
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.module.modules())


# By hand: the gradient of relu(A + B - 1) is 0 at A = B = 0 and 1 at A = B = 1; that of 1 - relu(1 - A - B) the other
# way round. So estimates inherit the asymmetry of single patches, and miss that both halves of an AND bring it back.
@pytest.mark.parametrize(("kind", "at_corrupt", "at_clean"), [("and", 0, 1), ("or", 1, 0)])
def test_gates_have_the_asymmetry_of_their_gradient(tmp_path: Path, kind: str, at_corrupt: int, at_clean: int) -> None:
    gate(tmp_path / kind, kind)
    model = load_model(ModelCatalog((tmp_path,)).find_model(kind), device=torch.device("cpu"))
    a, b, c = (Cell(site, 2) for site in (Site(0, "z", 0), Site(0, "z", 1), Site(1, "mlp_out")))
    texts, answers = ("a1 b1 end", "a0 b0 end"), model.tokenizer.convert_tokens_to_ids(["yes", "no"])
    sites = [cell.site.whole for cell in (a, b, c)]
    clean, corrupt = (record(model, model.tokenizer(text)["input_ids"], sites) for text in texts)
    patches = [(a,), (b,), (a, b), (c,)]
    for base, source, slope, sign in ((corrupt, clean, at_corrupt, 1), (clean, corrupt, at_clean, -1)):
        found = estimate_effects(model, base, source, tuple(answers), patches, PLAIN, TOKENS_AT_ONCE)
        assert (sign * found).tolist() == pytest.approx([slope, slope, 2 * slope, 1], abs=1e-2)
