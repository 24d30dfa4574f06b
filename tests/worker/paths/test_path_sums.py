"""Without a final norm logits are a sum of what is written into the residual, so that paths must sum to it too."""

from collections.abc import Sequence

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from actstore_api.records.patching import RunSweep
from actstore_api.records.terms import ModelReference
from actstore_storage.format.sites import Site
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.receivers import find_receivers
from actstore_worker.patching.kernels.frozen_paths import FrozenPaths
from actstore_worker.patching.kernels.full import Cell, FullForward, Patch
from actstore_worker.patching.kernels.paths import Paths
from actstore_worker.patching.kernels.recording import Recording
from actstore_worker.patching.kernels.resumed import Resumed
from tests.made_models.small_models import DECODERS
from tests.worker.patching.recorded import two_runs

LENGTH = 9
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module", params=DECODERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Without a final norm and without a soft cap of logits."""
    folder = tmp_path_factory.mktemp("models")
    DECODERS[request.param](folder / request.param)
    model = load_model(ModelCatalog((folder,)).find_model(request.param), device=torch.device("cpu"))
    if model.family.final_norm:
        model.module.set_submodule(model.family.final_norm, nn.Identity())
    for config in (model.config, model.module.config):  # transformers has a copy of its own
        if getattr(config, "final_logit_softcapping", None):
            config.final_logit_softcapping = None
    return model


@pytest.fixture(scope="module")
def runs(model: LanguageModel) -> tuple[Recording, Recording]:
    return two_runs(model, LENGTH)


def paths(kernel: type[FrozenPaths] | type[Paths], model: LanguageModel, asked: tuple[str, ...]) -> FrozenPaths | Paths:
    receivers = find_receivers(model, RunSweep(ModelReference(""), (), receivers=asked, path_mlps="frozen"))
    assert receivers is not None
    return Paths(model, receivers, Resumed(model)) if kernel is Paths else FrozenPaths(model, receivers)


@pytest.mark.parametrize("kernel", [Paths, FrozenPaths])
def test_direct_paths_sum_to_all_of_the_difference(
    model: LanguageModel, runs: tuple[Recording, Recording], kernel: type[FrozenPaths] | type[Paths]
) -> None:
    """Of the embedding and of every sublayer; and of the heads to their attention, whose bias cancels."""
    base, source = runs
    to_logits = paths(kernel, model, ("logits",))

    def direct(sites: Sequence[Site]) -> Float[Tensor, " vocabulary"]:
        patches = [Patch(base, source, (Cell(site, LENGTH - 1),)) for site in sites]
        return (to_logits.run(patches) - base.logits).sum(0)

    kinds = [kind for kind in ("attn_out", "mlp_out") if kind in model.kinds]
    sublayers = [Site(layer, kind) for layer in range(model.layer_count) for kind in kinds]
    torch.testing.assert_close(direct([Site(0, "resid_pre"), *sublayers]), source.logits - base.logits, **TOLERANCE)
    if len(model.family.from_z) == 1:  # no norm between what heads write and the residual
        heads = [Site(1, "z", head) for head in range(model.head_count)]
        torch.testing.assert_close(direct(heads), direct([Site(1, "attn_out")]), **TOLERANCE)


@pytest.mark.parametrize("kernel", [Paths, FrozenPaths])
def test_a_patch_is_the_paths_through_what_reads_it_and_the_direct_one(
    model: LanguageModel, runs: tuple[Recording, Recording], kernel: type[FrozenPaths] | type[Paths]
) -> None:
    """Where all that reads it reads it at once: an MLP, or whatever is in a last layer that is parallel."""
    base, source = runs
    last, is_sequential = model.layer_count - 1, "resid_mid" in model.kinds
    sender = Site(last, "attn_out" if is_sequential else "resid_pre")
    readers = [*(() if is_sequential else ("q", "k", "v")), *(("mlp_in",) if "mlp_out" in model.kinds else ())]
    patch = Patch(base, source, (Cell(sender, LENGTH - 1),))
    (direct,) = paths(kernel, model, ("logits",)).run([patch]) - base.logits
    (through,) = paths(kernel, model, tuple(f"{kind}.{last}" for kind in readers)).run([patch]) - base.logits
    (whole,) = FullForward(model).run([patch]) - base.logits
    torch.testing.assert_close(through + direct, whole, **TOLERANCE)
    assert through.abs().max() > 10 * TOLERANCE["atol"]
