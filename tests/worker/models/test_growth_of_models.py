"""What the fit of growth says of models with random weights, whose answer theory gives."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from actstore_storage.format.sites import Site
from actstore_storage.norms.growth import Bootstrap, resample_means
from actstore_storage.norms.growth_shapes import GrowthFit, fit_steps
from actstore_storage.norms.sequence_sums import SequenceSums
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.taps import observe
from tests.made_models.small_models import VOCABULARY_SIZE, save_tokenizer

LAYERS, D_MODEL, SEQUENCES, TOKENS = 24, 64, 12, 16
# Weights of this size write, in a layer, about as much as the embeddings are large at first.
WEIGHTS = 0.05
_SIZES = {"vocab_size": VOCABULARY_SIZE, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": WEIGHTS}


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**_SIZES, n_embd=D_MODEL, n_layer=LAYERS, n_head=4, n_positions=TOKENS))


def neox() -> GPTNeoXForCausalLM:
    sizes = {"hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 256}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZES, **sizes, max_position_embeddings=TOKENS))


def bert() -> BertModel:
    sizes = {"hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 256}
    return BertModel(BertConfig(**_SIZES, **sizes, max_position_embeddings=TOKENS))


def growth(build: Callable[[], torch.nn.Module], folder: Path, kind: str) -> tuple[GrowthFit, str]:
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_in" in name or "wte" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    loaded = load_model(ModelCatalog((folder.parent,)).find_model(folder.name), device=torch.device("cpu"))
    ids = torch.randint(1, VOCABULARY_SIZE, (SEQUENCES, TOKENS), generator=torch.Generator().manual_seed(1))
    seen = observe(loaded, ids, None, [Site(layer, kind) for layer in range(LAYERS)])
    norms = torch.stack([seen[Site(layer, kind)].norm(dim=-1) for layer in range(LAYERS)], dim=-1).double().numpy()
    sums = SequenceSums(norms.sum(axis=1), np.full((SEQUENCES, LAYERS), TOKENS))
    means = norms.mean(axis=(0, 1))
    fit = fit_steps(np.arange(float(LAYERS)), means, resample_means(sums, means, Bootstrap(200)))
    return fit, loaded.family.block(loaded.config)


def gpt2_unscaled() -> GPT2LMHeadModel:
    """GPT-2 starts with writes that are smaller the more layers there are; these are not."""
    model = gpt2()
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            torch.nn.init.normal_(parameter, std=WEIGHTS)
    return model


@pytest.mark.parametrize(
    ("build", "block", "verdict"),
    [(gpt2_unscaled, "pre_ln", "slower"), (neox, "parallel", "slower"), (gpt2, "pre_ln", "none")],
)
def test_an_untrained_pre_ln_model_is_not_called_exponential(build, block: str, verdict: str, tmp_path: Path) -> None:
    """Though it grows, and a line through log(norm) explains most of it. As GPT-2 starts, it grows by 9 % in all 24
    layers, of which no shape stands out.
    """
    found, wired = growth(build, tmp_path / "model", "resid_post")
    assert wired == block
    assert found.rate_interval[0] > 1
    assert found.r_squared > 0.85
    assert found.verdict == verdict
    shapes = {row["shape"]: row["aic"] for row in found.shapes.to_pylist()}
    assert shapes["square_root"] < shapes["exponential"]


def test_a_post_ln_stream_has_one_norm(tmp_path: Path) -> None:
    """sqrt(d) behind each norm, as long as gains are 1."""
    found, wired = growth(bert, tmp_path / "model", "normalized_resid_post")
    assert (wired, found.verdict) == ("post_ln", "none")
    assert found.rate == pytest.approx(1, abs=1e-6)
