"""A model is what its family says, or it is refused; what its sites show is what transformers itself says is there."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention

from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import observe
from actstore_worker.models.wiring import check_wiring
from tests.made_models.small_models import BERT, SAVERS, save_llama

CPU = torch.device("cpu")


def load(folder: Path, name: str, **options: object) -> LanguageModel:
    {**SAVERS, **BERT}[name](folder / name)
    return load_model(ModelCatalog((folder,)).find_model(name), device=CPU, **options)


@pytest.mark.parametrize("name", [*SAVERS, *BERT])
def test_sites_are_where_transformers_says(name: str, tmp_path: Path) -> None:
    """Its `hidden_states` are the inputs of the layers; its `attentions` are the weights of eager attention."""
    model = load(tmp_path, name, attention="eager")
    ids = torch.tensor([[0, 5, 6, 7, 5, 9, 11, 2], [0, 3, 2, 8, 8, 1, 4, 100]])
    kinds = ("resid_pre", "pattern", "q", "k", "v", "z")
    seen = observe(model, ids, None, [Site(layer, kind) for layer in range(model.layer_count) for kind in kinds])
    with torch.inference_mode():
        said = model.module(input_ids=ids, output_hidden_states=True, output_attentions=True)
    for layer in range(model.layer_count):
        torch.testing.assert_close(seen[Site(layer, "resid_pre")], said.hidden_states[layer])
        pattern = seen[Site(layer, "pattern")].unflatten(-1, (model.head_count, -1)).transpose(1, 2)
        torch.testing.assert_close(pattern, said.attentions[layer])
        for kind in kinds[1:]:
            tensor = seen[Site(layer, kind)]
            assert tensor.shape == (2, 8, model.site_width(Site(layer, kind), context_length=8))
            heads = [observe(model, ids, None, [Site(layer, kind, head)]) for head in range(model.head_counts[kind])]
            parts = [tensor for found in heads for tensor in found.values()]
            torch.testing.assert_close(torch.cat(parts, dim=-1), tensor)


@pytest.mark.parametrize("name", [*SAVERS, *BERT])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_check_of_the_wiring_leaves_a_model_as_it_was(name: str, dtype: str, tmp_path: Path) -> None:
    model = load(tmp_path, name, dtype=dtype)
    assert model.module.config._attn_implementation == model.attention == model.attention_implementation


def _scale_output(module: nn.Module) -> None:
    def scale(_module: nn.Module, _arguments: object, output: Tensor) -> Tensor:
        return output * 1.01

    module.register_forward_hook(scale)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (lambda model: model.layers[1], "resid_post.1"),
        (lambda model: model.layers[1].self_attn.v_proj, None),
        (lambda model: model.layers[0].self_attn.o_proj, None),
        (lambda model: model.module.lm_head, None),
    ],
)
def test_what_is_added_on_the_way_is_noticed(
    part: Callable[[LanguageModel], nn.Module], named: str | None, tmp_path: Path
) -> None:
    """Scaling a module's output changes the model, but not whether its sites add up; scaling a sum does."""
    model = load(tmp_path, "llama")
    _scale_output(part(model))
    if named is None:
        check_wiring(model)
        return
    with pytest.raises(BadRequest, match=named) as refused:
        check_wiring(model)
    assert refused.value.reason == "MODEL_UNSUPPORTED"
    assert refused.value.details["value"] == "llama"


def test_logits_that_are_scaled_after_the_unembedding_are_noticed(tmp_path: Path) -> None:
    model = load(tmp_path, "llama")

    def scale(_module: nn.Module, _arguments: object, output: object) -> object:
        output.logits = output.logits / 8  # as models do that were trained with a multiplier there
        return output

    model.module.register_forward_hook(scale)
    with pytest.raises(BadRequest, match="logits differs"):
        check_wiring(model)


def test_attention_that_is_not_what_its_weights_say_is_noticed(tmp_path: Path) -> None:
    model = load(tmp_path, "llama")

    def keep_less(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * 0.9,)

    model.layers[2].self_attn.o_proj.register_forward_pre_hook(keep_less)
    with pytest.raises(BadRequest, match=r"z\.2 differs"):
        check_wiring(model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(value: float, dtype: str, tmp_path: Path) -> None:
    """Also where no token of the check meets it, as of an embedding."""
    refusal = refused_with(tmp_path, "model.embed_tokens.weight", value, dtype)
    assert "model.embed_tokens.weight" in refusal.message
    # Of float16, an infinity may be a number that was too large for it: in another dtype it is looked at again.
    assert refusal.details["field"] == ("dtype" if (value, dtype) == (float("inf"), "float16") else "model")


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("model.layers.1.mlp.down_proj.weight", 1e5, r"model\.layers\.1\.mlp\.down_proj\.weight"),  # no float16 itself
        ("model.layers.1.mlp.up_proj.weight", 6e4, r"resid_post\.1"),
        ("model.layers.1.self_attn.v_proj.weight", 6e4, r"v\.1|z\.1|attn_out\.1|resid_mid\.1"),
        ("lm_head.weight", 6e4, "logits"),
    ],
)
def test_what_overflows_float16_is_told_the_way_out(name: str, value: float, where: str, tmp_path: Path) -> None:
    refusal = refused_with(tmp_path, name, value, "float16")
    assert re.search(rf"overflows float16: ({where}) has values above 65504", refusal.message)
    assert "run the model in bfloat16, or in float32" in refusal.message
    assert refusal.details == {"field": "dtype", "value": "float16", "allowed": "bfloat16 or float32"}
    for dtype in ("bfloat16", "float32"):
        load_model(ModelCatalog((tmp_path,)).find_model("llama"), device=CPU, dtype=dtype)


def refused_with(folder: Path, name: str, value: float, dtype: str) -> BadRequest:
    """A model with that value in the last column of one of its weights."""
    path = save_llama(folder / "llama") / "model.safetensors"
    tensors = load_file(path)
    tensors[name][:, -1] = value
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(BadRequest) as refused:
        load_model(ModelCatalog((folder,)).find_model("llama"), device=CPU, dtype=dtype)
    assert refused.value.reason == "MODEL_UNSUPPORTED"
    return refused.value


def test_activations_that_are_no_numbers_are_told_where(tmp_path: Path) -> None:
    model = load(tmp_path, "llama")
    model.layers[0].mlp.down_proj.register_forward_hook(lambda *call: call[-1] * float("inf"))
    with pytest.raises(BadRequest, match=r"resid_post\.0 is not finite in float32, although all weights are"):
        check_wiring(model)


def test_a_model_in_parts_shows_the_same(tmp_path: Path) -> None:
    """Spread by accelerate, here over memory and disk as it would be over GPUs."""
    whole = load(tmp_path, "llama")
    source = ModelCatalog((tmp_path,)).find_model("llama")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    parts = load_model(source, device=CPU, device_map=places)
    assert parts.layers[1].mlp.down_proj.weight.is_meta
    ids = torch.tensor([[0, 5, 6, 7]])
    sites = [Site(layer, kind) for layer in range(3) for kind in ("q", "z", "resid_mid", "resid_post")]
    expected = observe(whole, ids, None, sites)
    for site, tensor in observe(parts, ids, None, sites).items():
        torch.testing.assert_close(tensor, expected[site])


def test_what_transformers_cannot_run_is_refused_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for an option that nobody here thought of; what a device does is no matter of the model's."""
    save_llama(tmp_path / "llama")

    def failing(error: Exception) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(LlamaAttention, "forward", fail)
        load_model(ModelCatalog((tmp_path,)).find_model("llama"), device=CPU)

    with pytest.raises(BadRequest, match=r"cannot run it with its config\.json: ValueError: no window") as refused:
        failing(ValueError("no window"))
    assert refused.value.reason == "MODEL_UNSUPPORTED"
    for error in (MemoryError("full"), torch.OutOfMemoryError("full")):
        with pytest.raises(type(error), match="full"):
            failing(error)


def test_sizes_of_rows(tmp_path: Path) -> None:
    model = load(tmp_path, "qwen3")
    kinds = ("resid_pre", "q", "k", "z", "pattern")
    widths = {kind: model.site_width(Site(0, kind), context_length=10) for kind in kinds}
    assert widths == {"resid_pre": 16, "q": 24, "k": 12, "z": 24, "pattern": 40}
    assert model.site_width(Site(0, "pattern", 1), context_length=10) == 10
