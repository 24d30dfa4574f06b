"""What must hold of patched runs whatever the weights, on every family and both ways of computing them."""

from collections.abc import Iterator
from itertools import product

import pytest
import torch

from actstore_api.records.patching import PromptPair, RunSweep
from actstore_api.records.terms import ModelReference
from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.kernels.full import Cell, FullForward, Kernel, Patch
from actstore_worker.patching.kernels.recording import Recording, record
from actstore_worker.patching.kernels.resumed import Resumed
from actstore_worker.patching.sweep import WholeSweep, run_sweep
from tests.made_models.small_models import DECODERS
from tests.worker.patching.recorded import every_site

# They differ at positions 2, 3 and 6 of 0 to 9: neither at the beginning nor at the end.
BASE, SOURCE = (5, 6, 7, 8, 9, 5, 11, 12, 13, 4), (5, 6, 17, 8, 9, 5, 21, 12, 13, 4)
LENGTH, FIRST_DIFFERENCE = len(BASE), 2
TOLERANCE = {"atol": 2e-5, "rtol": 0.0}


@pytest.fixture(scope="module", params=DECODERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("models")
    DECODERS[request.param](folder / request.param)
    return load_model(ModelCatalog((folder,)).find_model(request.param), device=torch.device("cpu"))


@pytest.fixture(scope="module")
def runs(model: LanguageModel) -> tuple[Recording, Recording]:
    base, source = (record(model, tokens, every_site(model)) for tokens in (BASE, SOURCE))
    return base, source


@pytest.fixture(params=[Resumed, FullForward], ids=["resumed", "full"])
def kernel(request: pytest.FixtureRequest, model: LanguageModel) -> Kernel:
    kernel: Kernel = request.param(model)
    return kernel


def every_cell(model: LanguageModel) -> Iterator[Cell]:
    for site, position in product(every_site(model), range(LENGTH)):
        heads = range(model.head_counts[site.kind]) if site.kind in HEAD_KINDS else [None]
        yield from (Cell(Site(site.layer, site.kind, head), position) for head in heads)


def everywhere(site: Site) -> tuple[Cell, ...]:
    return tuple(Cell(site, position) for position in range(LENGTH))


def test_the_runs_differ(runs: tuple[Recording, Recording]) -> None:
    """By far more than what the others allow."""
    base, source = runs
    assert float((base.logits - source.logits).abs().max()) > 0.05


def test_an_empty_patch_is_the_base_run(kernel: Kernel, runs: tuple[Recording, Recording]) -> None:
    base, source = runs
    torch.testing.assert_close(kernel.run([Patch(base, source, ())])[0], base.logits, **TOLERANCE)


def test_a_run_patched_with_itself_is_itself(
    model: LanguageModel, kernel: Kernel, runs: tuple[Recording, Recording]
) -> None:
    base, _ = runs
    found = kernel.run([Patch(base, base, (cell,)) for cell in every_cell(model)])
    torch.testing.assert_close(found, base.logits.expand_as(found), **TOLERANCE)


def test_before_the_first_difference_nothing_changes(
    model: LanguageModel, kernel: Kernel, runs: tuple[Recording, Recording]
) -> None:
    base, source = runs
    cells = [cell for cell in every_cell(model) if cell.position < FIRST_DIFFERENCE]
    found = kernel.run([Patch(base, source, (cell,)) for cell in cells])
    torch.testing.assert_close(found, base.logits.expand_as(found), **TOLERANCE)


def test_all_of_the_residual_is_the_source_run(
    model: LanguageModel, kernel: Kernel, runs: tuple[Recording, Recording]
) -> None:
    """At all positions: what goes into layer 0, or later, or comes out of any layer."""
    base, source = runs
    kinds = [kind for kind in ("resid_pre", "resid_mid", "resid_post") if kind in model.kinds]
    sites = [Site(layer, kind) for kind in kinds for layer in range(model.layer_count)]
    found = kernel.run([Patch(base, source, everywhere(site)) for site in sites])
    torch.testing.assert_close(found, source.logits.expand_as(found), **TOLERANCE)


def test_every_head_at_the_last_position_is_the_source_run(
    model: LanguageModel, kernel: Kernel, runs: tuple[Recording, Recording]
) -> None:
    """The last tokens are one: all that differs there is what heads bring, and an MLP reads nothing else. With those of
    the last layer alone it is not the source run yet.
    """
    base, source = runs
    heads = [Site(layer, "z", head) for layer in range(model.layer_count) for head in range(model.head_count)]
    cells = tuple(Cell(site, LENGTH - 1) for site in heads)
    whole, some = kernel.run([Patch(base, source, cells), Patch(base, source, cells[-model.head_count :])])
    torch.testing.assert_close(whole, source.logits, **TOLERANCE)
    assert float((some - source.logits).abs().max()) > 1e-3


def test_of_a_sweep_it_is_exact(model: LanguageModel) -> None:
    """Before the first difference to the bit; and the only token that differs is the whole effect, at layer 0."""
    pair = PromptPair("abcdefgh", "abXdefgh", "a", "b")
    sites = ("resid_pre", "attn_out", "z", "k")
    *_, result = run_sweep(model, RunSweep(ModelReference(model.name), (pair,), sites=sites), PatchingLimits())
    assert isinstance(result, WholeSweep)
    base = {"denoise": result.corrupt_logit_difference, "noise": result.clean_logit_difference}
    for row in result.cells.to_pylist():
        assert row["unchanged"] == (row["position"] < 3)
        if row["unchanged"]:
            assert (row["logit_difference"], row["normalized"]) == (base[row["direction"]], 0.0)
        if (row["site"], row["layer"], row["position"]) == ("resid_pre", 0, 3):
            assert row["normalized"] == pytest.approx(1, abs=1e-3)
