"""What is refused of each format, by field and by value, and what `actstore.json` may say about it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import describe_model, load_model
from actstore_worker.models.taps import observe
from actstore_worker.sae.fit import check_fit
from actstore_worker.sae.formats.loading import load_sae
from tests.made_models.sae_formats import (
    D_SAE,
    save_dictionary,
    save_gemma_scope,
    save_gemma_scope_2,
    save_llama_scope,
    save_openai,
    save_sparsify,
    weights,
)
from tests.made_models.small_models import D_MODEL, SAVERS, save_gpt2, save_sae


def refused(path: Path) -> tuple[str, str, str]:
    with pytest.raises(BadRequest) as error:
        load_sae(path, "small")
    assert error.value.details["allowed"]
    return error.value.reason, error.value.details["field"], error.value.details.get("value", "None")


def say(folder: Path, **said: Any) -> None:
    (folder / "actstore.json").write_text(json.dumps(said))


def saelens(folder: Path, **changes: Any) -> Path:
    config = json.loads((save_sae(folder, "standard") / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def retyped(folder: Path, dtype: torch.dtype) -> Path:
    weights = load_file(save_sae(folder, "standard") / "sae_weights.safetensors")
    save_file(weights | {"W_enc": weights["W_enc"].to(dtype)}, folder / "sae_weights.safetensors")
    return folder


def save_transcoder(folder: Path, architecture: str = "transcoder", **options: Any) -> Path:
    hooks = {"hook_name": "blocks.1.hook_mlp_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    return saelens(folder, architecture=architecture, d_out=D_MODEL, metadata=hooks, **options)


def saying(folder: Path, file: str, **changes: Any) -> Path:
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))
    return folder


def without_activation(path: Path) -> Path:
    state = torch.load(path, weights_only=True)
    del state["activation"]
    torch.save(state, path)
    return path


def gemma(folder: Path, place: str, **changes: Any) -> Path:
    return save_gemma_scope(folder / place, weights() | changes)


NOT_NUMBERS = np.full_like(weights()["threshold"], np.nan)
REFUSED: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "groupmax": (lambda folder: save_sparsify(folder, activation="groupmax"), "activation", "groupmax"),
    "signed": (lambda folder: save_sparsify(folder, signed=True), "signed", "True"),
    "k of sparsify": (lambda folder: save_sparsify(folder, k=D_SAE + 1), "k", str(D_SAE + 1)),
    "an attention transcoder": (
        lambda folder: save_sparsify(folder, "layers.1.attention", transcode=True), "hookpoint", "layers.1.attention",
    ),
    "another module": (lambda folder: save_sparsify(folder, "layers.1.mlp.up_proj"), "site", "None"),
    "width of sparsify": (lambda folder: save_sparsify(folder, num_latents=0), "cfg.json", "None"),
    "untrained": (lambda folder: save_dictionary(folder / "ae", threshold=-1.0), "threshold", "-1.0"),
    "another class": (lambda folder: save_dictionary(folder / "ae", "IdentityDict"), "dict_class", "IdentityDict"),
    "no submodule": (lambda folder: save_dictionary(folder / "ae", submodule_name=None), "site", "None"),
    "a submodule's input": (lambda folder: save_dictionary(folder / "ae", io="in"), "site", "None"),
    "k of TopK": (lambda folder: save_openai(folder / "resid_post_mlp_v5_32k/autoencoders/1.pt", k=49), "k", "49"),
    "the hidden layer": (
        lambda folder: save_openai(folder / "mlp_post_act/autoencoders/1.pt"), "location", "mlp_post_act",
    ),
    "no location": (lambda folder: save_openai(folder / "a/b/1.pt"), "site", "None"),
    "no path": (lambda folder: gemma(folder, "somewhere"), "site", "None"),
    "embedding": (lambda folder: gemma(folder, "gemma-scope-2b-pt-res/embedding/width_4k"), "params.npz", "embedding"),
    "transcoder": (
        lambda folder: gemma(folder, "gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_5"), "params.npz",
        "transcoder",
    ),
    "NaN": (
        lambda folder: gemma(folder, "gemma-scope-2b-pt-res/layer_3/width_16k/x", threshold=NOT_NUMBERS), "threshold",
        "NaN or infinite",
    ),
    "a point": (
        lambda folder: save_gemma_scope_2(folder, weights(), "model.layers.3.mlp.act_fn.output"), "hf_hook_point_in",
        "model.layers.3.mlp.act_fn.output",
    ),
    "another activation": (lambda folder: save_llama_scope(folder, weights(), act_fn="topk"), "act_fn", "topk"),
    "by token": (
        lambda folder: save_llama_scope(folder, weights(), norm_activation="token-wise"), "norm_activation",
        "token-wise",
    ),
    "no norm": (
        lambda folder: save_llama_scope(folder, weights(), dataset_average_activation_norm=None),
        "dataset_average_activation_norm", "None",
    ),
    "before the gain": (
        lambda folder: save_llama_scope(folder, weights(), hook_point_in="blocks.8.ln2.hook_normalized"),
        "hook_point_in", "blocks.8.ln2.hook_normalized",
    ),
    "no width": (lambda folder: save_llama_scope(folder, weights(), d_sae=None), "hyperparams.json", "None"),
    "batches": (
        lambda folder: saelens(folder, architecture="matryoshka_batchtopk"), "architecture",
        "matryoshka_batchtopk",
    ),
    "LayerNorm folded": (
        lambda folder: save_sae(folder, "standard", metadata={
            "hook_name": "resid_post.1", "model_from_pretrained_kwargs": {"fold_ln": True}}), "fold_ln", "True",
    ),
    "a word for a flag": (lambda folder: save_sparsify(folder, transcode="no"), "transcode", "'no'"),
    "a word for a sign": (lambda folder: save_sparsify(folder, signed=None), "signed", "None"),
    "a word for a norm": (
        lambda folder: save_llama_scope(folder, weights(), sparsity_include_decoder_norm="false"),
        "sparsity_include_decoder_norm", "'false'",
    ),
    "integers": (lambda folder: retyped(folder, torch.int8), "W_enc", "torch.int8"),
    "float8": (lambda folder: retyped(folder, torch.float8_e4m3fn), "W_enc", "torch.float8_e4m3fn"),
    "a transcoder that takes its output's bias from its input": (
        lambda folder: save_transcoder(folder, apply_b_dec_to_input=True), "output_site", "mlp_out.1",
    ),
    "a skip that is not there": (
        lambda folder: save_sparsify(folder, transcode=True, skip_connection=True), "W_skip",
        "W_dec, W_enc, b_dec, b_enc",
    ),
    "a skip of SAELens that is not there": (
        lambda folder: save_transcoder(folder, architecture="skip_transcoder"), "W_skip",
        "W_dec, W_enc, b_dec, b_enc",
    ),
    "TopK without its name": (
        lambda folder: without_activation(save_openai(folder / "resid_post_mlp_v5_32k/autoencoders/1.pt")), "k", "5",
    ),
    "half a feature": (
        lambda folder: save_dictionary(folder / "ae", "AutoEncoderTopK", k=torch.tensor(4.5)), "k", "4.5",
    ),
    "true features": (lambda folder: save_sae(folder, "topk", k=True), "k", "True"),
    "two k": (lambda folder: save_sae(folder, "topk", activation_fn_kwargs={"k": 5}), "k", "8, 5"),
    "two hooks": (
        lambda folder: saelens(folder, hook_name="blocks.2.hook_resid_post"), "hook_name",
        "blocks.1.hook_resid_post, blocks.2.hook_resid_post",
    ),
    "a head of the residual": (
        lambda folder: saelens(folder, metadata={"hook_name": "resid_post.1", "hook_head_index": 1}), "hook_head_index",
        "1",
    ),
    "a layer below the first": (
        lambda folder: save_dictionary(folder / "ae", submodule_name="resid_post", layer=-1), "site", "None",
    ),
    "metadata that are a list": (lambda folder: saelens(folder, metadata=["x"]), "format", "sae_lens"),
    "an architecture that is a list": (lambda folder: saelens(folder, architecture=["x"]), "format", "sae_lens"),
    "no trainer": (
        lambda folder: saying(save_dictionary(folder / "ae"), "config.json", buffer=None), "format",
        "dictionary_learning",
    ),
    "no hook": (lambda folder: save_sae(folder, "standard", metadata={"model_name": "m"}), "site", "None"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_silently_wrong_is_refused(case: str, tmp_path: Path) -> None:
    make, field, value = REFUSED[case]
    reason, *found = refused(make(tmp_path))
    assert found == [field, value]
    assert reason in ("SAE_UNSUPPORTED", "SAE_MISMATCH")


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("sae_weights.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("cfg.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("cfg.json", "[" * 100_000 + "]" * 100_000, "recursion"),
    ],
)
def test_files_that_are_no_sae_are_named(file: str, text: str, why: str, tmp_path: Path) -> None:
    (save_sae(tmp_path / "sae", "standard") / file).write_text(text)
    with pytest.raises(BadRequest, match=why) as found:
        load_sae(tmp_path / "sae", "small")
    assert (found.value.reason, found.value.details["field"]) == ("SAE_UNSUPPORTED", file)


def test_what_a_file_has_twice_is_refused(tmp_path: Path) -> None:
    """Whichever came last would count, and no reader need agree."""
    folder = save_sae(tmp_path / "key", "standard")
    text = (folder / "cfg.json").read_text()
    (folder / "cfg.json").write_text(text[:-1] + ', "apply_b_dec_to_input": false}')
    with pytest.raises(BadRequest, match="'apply_b_dec_to_input' more than once"):
        load_sae(folder, "small")
    folder = save_sae(tmp_path / "threshold", "jumprelu")
    weights_file = folder / "sae_weights.safetensors"
    save_file(load_file(weights_file) | {"log_threshold": torch.ones(64)}, weights_file)
    with pytest.raises(BadRequest, match=r"threshold is .* under two names"):
        load_sae(folder, "small")
    folder = gemma(tmp_path, "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_5")
    np.savez(folder / "params.npz", **weights(), w_enc=weights()["W_enc"])
    with pytest.raises(BadRequest, match=r"W_enc is .* under two names"):
        load_sae(folder, "small")


def test_two_formats_in_a_folder_are_ambiguous(tmp_path: Path) -> None:
    save_gemma_scope(save_sae(tmp_path, "standard"))
    assert refused(tmp_path)[:2] == ("SAE_UNSUPPORTED", "format")
    assert load_sae(tmp_path / "sae_weights.safetensors", "small").format == "sae_lens"


def test_wrong_shapes_are_a_mismatch(tmp_path: Path) -> None:
    folder = gemma(tmp_path, "gemma-scope-2b-pt-res/layer_3/width_16k/x", b_dec=np.zeros(D_MODEL + 1, np.float32))
    assert refused(folder)[:2] == ("SAE_MISMATCH", "b_dec")
    folder = save_dictionary(tmp_path / "ae", activation_dim=D_MODEL, dict_size=D_SAE + 1)
    assert refused(folder)[:2] == ("SAE_MISMATCH", "W_enc")


def test_a_sidecar_says_what_the_files_do_not(tmp_path: Path) -> None:
    folder = gemma(tmp_path, "somewhere")
    alone = folder / "actstore.json"
    say(folder, site="blocks.2.hook_resid_pre", model="gemma-2-2b")
    sae = load_sae(folder, "small")
    assert (sae.site, sae.output_site, sae.model) == (Site(2, "resid_pre"), Site(2, "resid_pre"), "gemma-2-2b")
    said = sae.sha256
    say(folder, site="mlp_input.2", output_site="mlp_out.2")
    sae = load_sae(folder, "small")
    assert (sae.site, sae.output_site, sae.is_transcoder) == (Site(2, "mlp_input"), Site(2, "mlp_out"), True)
    assert sae.sha256 != said  # another answer, another SAE
    for layer in (1, 2):  # beside files that lie side by side, each has its own
        path = save_openai(tmp_path / "many" / f"{layer}.pt")
        path.with_name(f"{path.name}.actstore.json").write_text(json.dumps({"site": f"resid_post.{layer + 5}"}))
        assert load_sae(path, "small").site == Site(layer + 5, "resid_post")
    assert alone.exists()


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"sites": ["resid_post.1"]}, "actstore.json: sites"),
        ({"site": "q.1"}, "site"),
        ({"adapt": ["center_unembed"]}, "adapt"),
        ({"adapt": "fold_ln"}, "adapt"),
        ({"norm_scaling_factor": 0}, "norm_scaling_factor"),
        ({"norm_scaling_factor": 2.0}, "norm_scaling_factor"),  # SAELens's configuration says that there is none
        ({"output_site": "mlp_out.1"}, "output_site"),  # it takes b_dec from its input
        ([], "actstore.json"),
    ],
    ids=str,
)
def test_a_sidecar_that_cannot_be_right_is_refused(said: Any, field: str, tmp_path: Path) -> None:
    save_sae(tmp_path, "standard")
    (tmp_path / "actstore.json").write_text(json.dumps(said))
    with pytest.raises(BadRequest) as error:
        load_sae(tmp_path, "small")
    assert error.value.details["field"] == field


def test_folding_is_adapted_where_it_changes_nothing(tmp_path: Path) -> None:
    loading = {"model_from_pretrained_kwargs": {"fold_ln": True, "fold_value_biases": True}}
    for site, allowed in (("resid_post.1", True), ("blocks.1.attn.hook_z", False), ("blocks.1.mlp.hook_in", False)):
        folder = save_sae(tmp_path / site, "standard", metadata={"hook_name": site, **loading})
        say(folder, adapt=["fold_ln", "fold_value_biases"])
        if allowed:
            plain = load_sae(save_sae(tmp_path / "plain", "standard"), "plain")
            x = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(load_sae(folder, "small").encode(x), plain.encode(x))
        else:
            assert refused(folder)[0] == "SAE_UNSUPPORTED"


@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
@pytest.mark.parametrize("kind", ["resid_post", "attn_out"])
def test_an_sae_of_a_centred_model_is_adapted(kind: str, normalisation: str, tmp_path: Path) -> None:
    """Against that model: GPT-2 with the mean over d_model taken out of every weight that writes, else as it is. Its
    residuals are then those of the plain model less their means, and so are what the SAE makes of them.
    """
    save_gpt2(tmp_path / "gpt2")
    source = ModelCatalog((tmp_path,)).find_model("gpt2")
    plain, centred = (load_model(source, device=torch.device("cpu")) for _ in range(2))
    with torch.no_grad():
        for name, parameter in centred.module.named_parameters():
            if name.endswith(("wte.weight", "wpe.weight", "c_proj.weight", "c_proj.bias")):
                parameter.copy_(parameter - parameter.mean(dim=-1, keepdim=True))
    ids = torch.tensor([[0, 5, 6, 7, 5, 9]])
    site = Site(1, kind)
    x, z = (observe(model, ids, None, [site])[site][0] for model in (plain, centred))
    torch.testing.assert_close(z, x - x.mean(dim=-1, keepdim=True), rtol=1e-4, atol=1e-4)
    options = {"normalize_activations": normalisation}
    metadata = {"hook_name": str(site), "model_from_pretrained_kwargs": {"center_writing_weights": True}}
    theirs = load_sae(save_sae(tmp_path / "theirs", "standard", site=str(site), **options), "theirs")
    folder = save_sae(tmp_path / "ours", "standard", metadata=metadata, **options)
    assert refused(folder)[1] == "center_writing_weights"
    say(folder, adapt=["center_writing_weights"])
    ours = load_sae(folder, "ours")
    check_fit(ours, plain)
    features = ours.encode(x)
    torch.testing.assert_close(features, theirs.encode(z), rtol=1e-4, atol=1e-4)
    decoded = ours.decode(features, x) - x.mean(dim=-1, keepdim=True)
    torch.testing.assert_close(decoded, theirs.decode(features, z), rtol=1e-3, atol=1e-3)


def test_centring_is_refused_where_it_cannot_be_right(tmp_path: Path) -> None:
    folder = save_sae(tmp_path / "rescaled", "standard", normalize_activations="constant_norm_rescale")
    say(folder, adapt=["center_writing_weights"])
    assert refused(folder)[1] == "center_writing_weights"
    folder = save_sae(tmp_path / "plain", "standard")
    say(folder, adapt=["center_writing_weights"])
    SAVERS["llama"](tmp_path / "llama")
    with pytest.raises(BadRequest, match="cannot be centered"):  # RMSNorm reads the mean
        check_fit(load_sae(folder, "small"), describe_model(ModelCatalog((tmp_path,)).find_model("llama")))


def test_heads_have_widths_of_their_own(tmp_path: Path) -> None:
    SAVERS["gemma2"](tmp_path / "gemma2")
    model = describe_model(ModelCatalog((tmp_path,)).find_model("gemma2"))
    assert (model.d_model, model.site_width(Site(1, "z"), 1)) == (16, 24)
    z = "blocks.1.attn.hook_z"
    check_fit(load_sae(save_sae(tmp_path / "wide", "standard", d_in=24, site=z), "wide"), model)
    one = {"model_name": "m", "hook_name": z, "hook_head_index": 3}
    check_fit(load_sae(save_sae(tmp_path / "one", "standard", d_in=6, metadata=one), "one"), model)
    for d_in, metadata, field in (
        (16, one | {"hook_head_index": None}, "d_in"),
        (6, one | {"hook_head_index": 4}, "site"),
    ):
        wrong = load_sae(save_sae(tmp_path / "wrong", "standard", d_in=d_in, metadata=metadata), "wrong")
        with pytest.raises(BadRequest) as error:
            check_fit(wrong, model)
        assert (error.value.reason, error.value.details["field"]) == ("SAE_MISMATCH", field)
    # sparsify reads the MLP's module, and Gemma 2 norms what that gives.
    with pytest.raises(BadRequest, match="before the norm that follows"):
        check_fit(load_sae(save_sparsify(tmp_path / "x", "layers.1.mlp"), "small"), model)
