"""Attention-only models against TransformerLens's own, of the same folder: logits, every site, every patch."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import observe
from actstore_worker.patching.kernels.full import Cell, FullForward, Patch
from actstore_worker.patching.kernels.recording import record
from actstore_worker.patching.kernels.resumed import Resumed
from tests.made_models.lens_folders import save_lens_folder
from tests.worker.patching.recorded import every_site

CLEAN, CORRUPT = ([0, 5, 6, 7, 5, 9, 11, 2], [0, 5, 6, 8, 5, 9, 3, 2])
TOLERANCE = {"atol": 2e-5, "rtol": 0.0}

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")


def theirs(folder: Path) -> HookedTransformer:
    config = json.loads((folder / "config.json").read_text())
    sizes = {name: config[name] for name in ("d_model", "n_layers", "d_head", "n_heads", "n_ctx", "d_vocab")}
    model = HookedTransformer(
        HookedTransformerConfig(
            **sizes, attn_only=True, normalization_type=config["normalization"], device="cpu",
            positional_embedding_type="shortformer" if config["shortformer_pos"] else "standard",
        )
    )  # fmt: skip
    model.load_state_dict(torch.load(folder / "model_final.pth", weights_only=True))
    return model.eval().requires_grad_(False)


@pytest.fixture(params=[(False, False), (True, False), (False, True)], ids=["standard", "shortformer", "folded"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shortformer, folded = request.param
    return save_lens_folder(tmp_path / "small", shortformer=shortformer, folded=folded)


def load(folder: Path, attention: str = "") -> LanguageModel:
    source = ModelCatalog((folder.parent,)).find_model(folder.name)
    return load_model(source, device=torch.device("cpu"), attention=attention)


def test_logits_and_sites(folder: Path) -> None:
    ours, lens = load(folder, "eager"), theirs(folder)
    ids = torch.tensor([CLEAN, CORRUPT])
    logits, cache = lens.run_with_cache(ids)
    with torch.inference_mode():
        torch.testing.assert_close(ours.module(ids).logits, logits, **TOLERANCE)
    kinds = (*ours.kinds, *HEAD_KINDS)
    sites = [Site(layer, kind) for layer in range(ours.layer_count) for kind in kinds]
    for site, found in observe(ours, ids, None, sites).items():
        expected = cache[site.long_name]
        expected = expected.transpose(1, 2) if site.kind == "pattern" else expected
        torch.testing.assert_close(found, expected.flatten(2), **TOLERANCE, msg=str(site))


def test_transformer_lens_own_configuration_is_read_too(folder: Path) -> None:
    """With all that it says beside the published one's fields, as JSON writes it."""
    ours, lens = load(folder), theirs(folder)
    said = {name: value.item() if hasattr(value, "item") else value for name, value in lens.cfg.to_dict().items()}
    (folder / "config.json").write_text(json.dumps(said, default=str))
    again = load(folder)
    assert again.config.to_dict() == ours.config.to_dict()


def test_every_patch(folder: Path) -> None:
    ours, lens = load(folder), theirs(folder)
    base, source = (record(ours, tokens, every_site(ours)) for tokens in (CORRUPT, CLEAN))
    _, cache = lens.run_with_cache(torch.tensor([CLEAN]))
    cells = [
        Cell(Site(site.layer, site.kind, head), position)
        for site in every_site(ours)
        for head in (range(ours.head_count) if site.kind in HEAD_KINDS else [None])
        for position in (3, 6, 7)
    ]
    expected = torch.stack([_patched(lens, cache, cell) for cell in cells])
    patches = [Patch(base, source, (cell,)) for cell in cells]
    for kernel in (Resumed(ours), FullForward(ours)):
        torch.testing.assert_close(kernel.run(patches), expected, **TOLERANCE)


def _patched(lens: HookedTransformer, cache: dict[str, Tensor], cell: Cell) -> Tensor:
    name, head = cell.site.whole.long_name, cell.site.head
    place: tuple[int, ...] = (0, cell.position) if head is None else (0, cell.position, head)
    if cell.site.kind == "pattern":  # [batch, head, query, key]
        place = (0, head or 0, cell.position)

    def patch(activation: Tensor, hook: object) -> Tensor:
        activation[place] = cache[name][place]
        return activation

    with torch.inference_mode():
        logits: Tensor = lens.run_with_hooks(torch.tensor([CORRUPT]), fwd_hooks=[(name, patch)])
    return logits[0, -1]
