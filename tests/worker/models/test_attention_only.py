"""Folders in TransformerLens's form: what is read, and what is refused by its field."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.models.loading import load_model, weight_shapes
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import observe
from tests.capture_requests import capture_request
from tests.made_models.lens_folders import D_HEAD, save_lens_folder
from tests.made_models.small_models import D_MODEL, HEADS, LAYERS, save_sae

CPU = torch.device("cpu")
IDS = torch.tensor([[0, 5, 6, 7, 5, 9, 11, 2]])


def load(folder: Path, **options: Any) -> LanguageModel:
    return load_model(ModelCatalog((folder.parent,)).find_model(folder.name), device=CPU, **options)


def change(**fields: Any) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))

    return changed


def test_what_it_has_is_attention_alone(tmp_path: Path) -> None:
    model = load(save_lens_folder(tmp_path / "small"))
    assert (model.family.name, model.layer_count, model.context_length) == ("attention_only", 3, 32)
    assert model.kinds == ("resid_pre", "attn_out", "resid_post")
    assert model.written_kinds == ("attn_out",)
    assert model.head_counts == dict.fromkeys(HEAD_KINDS, 4)
    assert (model.attention, model.bos_id) == ("sdpa", 0)


@pytest.mark.parametrize("name", ["blocks.1.ln1.w", "ln_final.b"])
def test_a_norm_that_is_lost_is_not_taken_for_a_folded_one(tmp_path: Path, name: str) -> None:
    folder = save_lens_folder(tmp_path / "small")
    weights = torch.load(folder / "model_final.pth", weights_only=True)
    del weights[name]
    torch.save(weights, folder / "model_final.pth")
    with pytest.raises(BadRequest, match=r"norm\.(weight|bias)") as refusal:
        load(folder)
    assert refusal.value.reason == "MODEL_UNSUPPORTED"


def test_weights_are_the_same_from_either_file(tmp_path: Path) -> None:
    folder = save_lens_folder(tmp_path / "small")
    first = load(folder)
    state = torch.load(folder / "model_final.pth", weights_only=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "model_final.pth").unlink()
    second = load(folder)
    assert first.weights_sha256 != second.weights_sha256
    sites = [Site(2, "resid_post")]
    torch.testing.assert_close(observe(first, IDS, None, sites), observe(second, IDS, None, sites), atol=0, rtol=0)


def test_it_can_be_saved_and_loaded_as_transformers_does(tmp_path: Path) -> None:
    folder = save_lens_folder(tmp_path / "small", shortformer=True)
    model, other = load(folder), tmp_path / "other"
    model.module.save_pretrained(other)
    model.tokenizer.save_pretrained(other)
    again = load(other)
    assert (
        load_file(other / "model.safetensors").keys()
        == dict(weight_shapes(ModelCatalog((tmp_path,)).find_model("small"), model.config)).keys()
    )
    torch.testing.assert_close(model.module(IDS).logits, again.module(IDS).logits, atol=0, rtol=0)


def test_what_a_capture_of_it_computes_is_counted(tmp_path: Path) -> None:
    """Four matrices of each layer that runs, and the scores, of which each token has half of its sequence's."""
    save_lens_folder(tmp_path / "small")
    (tmp_path / "text.txt").write_text("x" * 31)  # of the context of 32, with BOS
    request = capture_request("small", "text.txt")  # norms of every layer
    plan = plan_capture(request, ModelCatalog((tmp_path,)), PlanSettings(DatasetPlaces((tmp_path,))))
    matrices = 4 * D_MODEL * HEADS * D_HEAD
    assert plan.flops_per_token == LAYERS * (2 * matrices + 2 * 32 * D_MODEL)


def test_of_a_capture_with_saes_their_encoders_are_counted_too(tmp_path: Path) -> None:
    """Beside the layers up to the last site, which is an SAE's here, and none behind it."""
    save_lens_folder(tmp_path / "small")
    save_sae(tmp_path / "first", "topk", d_in=D_MODEL, d_sae=96, site="blocks.0.hook_resid_post")
    save_sae(tmp_path / "second", "topk", d_in=D_MODEL, d_sae=40)
    texts = ("x" * 31, "x" * 15)  # and BOS
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    request = capture_request("small", "text.jsonl", norm_sites=("resid_post.0",), saes=("first", "second"))
    plan = plan_capture(request, ModelCatalog((tmp_path,)), PlanSettings(DatasetPlaces((tmp_path,))))
    matrices = 4 * D_MODEL * HEADS * D_HEAD
    expected = 2 * (2 * matrices + 2 * 24 * D_MODEL) + 2 * D_MODEL * (96 + 40)
    assert plan.flops_per_token == expected


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (change(attn_only=False), "attn_only is False"),
        (change(normalization="RMS"), "normalization is 'RMS'; .*'LN' and 'LNPre'"),
        (change(final_rms=True), "final_rms is True"),
        (change(positional_embedding_type="rotary"), "positional_embedding_type is 'rotary'"),
        (change(attention_dir="bidirectional"), "attention_dir is 'bidirectional'"),
        (change(attn_scale=1.0), "attn_scale is 1.0"),
        (change(n_ctx=...), "n_ctx"),
        (change(n_layers=4), "weight files lack model.layers.3"),
        (lambda folder: (folder / "model_final.pth").unlink(), "none of model.safetensors, model_final.pth"),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "its folder must also contain its tokenizer, 'small-tokenizer'",
        ),
    ],
)
def test_refusals_name_the_field(tmp_path: Path, spoil: Callable[[Path], None], why: str) -> None:
    folder = save_lens_folder(tmp_path / "small")
    spoil(folder)
    with pytest.raises(BadRequest, match=why) as refused:
        load(folder)
    assert refused.value.reason == "MODEL_UNSUPPORTED"


class _Runs:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (pytest.fail, ("code of a weight file was run",))


def test_code_in_a_weight_file_is_not_run(tmp_path: Path) -> None:
    folder = save_lens_folder(tmp_path / "small")
    torch.save({"embed.W_E": _Runs()}, folder / "model_final.pth", pickle_module=pickle)
    with pytest.raises(BadRequest, match="weights cannot be loaded"):
        load(folder)
