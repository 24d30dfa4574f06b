"""What the names in each format's files and folders mean: where an SAE reads, of which model, and what it cannot be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actstore_storage.errors import BadRequest
from actstore_worker.sae.autoencoder import SparseAutoencoder
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
from tests.made_models.small_models import D_MODEL, save_sae


def places(sae: SparseAutoencoder) -> tuple[str, str]:
    return str(sae.site), str(sae.output_site)


@pytest.mark.parametrize(
    ("submodule", "site"),
    [
        ("resid_post_layer_3", "resid_post.3"),
        ("resid_out_layer3", "resid_post.3"),
        ("resid_pre_layer_0", "resid_pre.0"),
        ("mlp_out_layer12", "mlp_out.12"),
        ("attn_out_layer_2", "attn_out.2"),
        ("attention_out_layer_2", "attn_out.2"),
        ("mlp_out", "mlp_out.1"),  # whose layer the trainer says
    ],
)
def test_a_dictionary_reads_what_its_submodule_gives(submodule: str, site: str, tmp_path: Path) -> None:
    folder = save_dictionary(tmp_path / "ae", submodule_name=submodule, layer=1)
    assert places(load_sae(folder, "small")) == (site, site)


@pytest.mark.parametrize(
    ("folders", "site"),
    [
        ("resid_post_layer_2", "resid_post.2"),
        ("resid_post_layer_2/trainer_0", "resid_post.2"),
        ("resid_post_layer_2/mlp_out_layer_4/trainer_0", "mlp_out.4"),  # the nearest
    ],
)
def test_a_dictionary_without_a_submodule_reads_where_its_folders_say(folders: str, site: str, tmp_path: Path) -> None:
    folder = save_dictionary(tmp_path / folders, submodule_name=None)
    assert places(load_sae(folder, "small")) == (site, site)


def test_folders_far_above_a_dictionary_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="name its site"):
        load_sae(save_dictionary(tmp_path / "resid_post_layer_2/a/b/c", submodule_name=None), "small")


def test_a_dictionary_names_its_model_without_who_published_it(tmp_path: Path) -> None:
    for name, model in (("EleutherAI/pythia-70m", "pythia-70m"), ("gpt2", "gpt2"), (None, "")):
        folder = save_dictionary(tmp_path / str(name), lm_name=name)
        assert load_sae(folder, "small").model == model


def test_how_many_features_a_dictionary_keeps_is_said_by_its_weights_before_its_trainer(tmp_path: Path) -> None:
    x, encoder = torch.randn(50, D_MODEL), torch.randn(D_SAE, D_MODEL)
    folder = save_dictionary(tmp_path / "ae", "AutoEncoderTopK")
    state = torch.load(folder / "ae.pt", weights_only=True) | {"encoder.weight": encoder}
    config = json.loads((folder / "config.json").read_text())
    config["trainer"]["k"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    for said, kept in ((2, 2), (None, 7)):
        k = {} if said is None else {"k": torch.tensor(said)}
        torch.save({key: value for key, value in state.items() if key != "k"} | k, folder / "ae.pt")
        assert int((load_sae(folder, "small").encode(x) != 0).sum(dim=1).max()) == kept


@pytest.mark.parametrize(
    ("hook_point", "encodes", "transcodes"),
    [
        ("layers.1", "resid_post.1", "resid_pre.1"),
        ("h.3", "resid_post.3", "resid_pre.3"),
        ("layers.1.mlp", "mlp_out.1", "mlp_input.1"),
        ("transformer.h.3.mlp", "mlp_out.3", "mlp_input.3"),
        ("model.layers.12.self_attn", "attn_out.12", None),
        ("layers.1.attention", "attn_out.1", None),
        ("encoder.layer.2.attn", "attn_out.2", None),
    ],
)
def test_a_hook_point_of_sparsify(hook_point: str, encodes: str, transcodes: str | None, tmp_path: Path) -> None:
    """An SAE reads what the module gives; a transcoder predicts that from what goes in, which attention has none of."""
    assert places(load_sae(save_sparsify(tmp_path / "sae", hook_point), "small")) == (encodes, encodes)
    folder = save_sparsify(tmp_path / "transcoder", hook_point, transcode=True)
    if transcodes is None:
        with pytest.raises(BadRequest, match="the input of that module is not captured"):
            load_sae(folder, "small")
    else:
        assert places(load_sae(folder, "small")) == (transcodes, encodes)


def test_a_module_that_is_not_captured_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="the output of that module is not captured") as caught:
        load_sae(save_sparsify(tmp_path, "layers.1.input_layernorm"), "small")
    assert (caught.value.reason, caught.value.details["field"]) == ("SAE_MISMATCH", "hookpoint")


def test_sparsify_says_its_width_or_by_what_it_expands(tmp_path: Path) -> None:
    expanded = save_sparsify(tmp_path / "expanded", num_latents=0, expansion_factor=D_SAE // D_MODEL)
    assert load_sae(expanded, "small").d_sae == D_SAE
    with pytest.raises(BadRequest) as caught:
        load_sae(save_sparsify(tmp_path / "other", num_latents=33), "small")
    assert (caught.value.reason, caught.value.details["field"]) == ("SAE_MISMATCH", "W_enc")


def test_sparsify_names_its_model_above_its_hook_points(tmp_path: Path) -> None:
    folder = save_sparsify(tmp_path)
    assert load_sae(folder, "small").model == ""
    (tmp_path / "config.json").write_text(json.dumps({"model": "org/model"}))
    assert load_sae(folder, "small").model == "org/model"


@pytest.mark.parametrize(
    ("folders", "site"),
    [
        ("resid_post/layer_9_width_16k_l0_small", "resid_post.9"),
        ("mlp_out/layer_12_width_16k_l0_big", "mlp_out.12"),
        ("attn_out/layer_3_width_16k_l0_small", "z.3"),
    ],
)
def test_gemma_scope_2_without_a_configuration_reads_where_its_folders_say(
    folders: str, site: str, tmp_path: Path
) -> None:
    folder = save_gemma_scope_2(tmp_path / folders, weights(), "model.layers.7.output")
    (folder / "config.json").unlink()
    sae = load_sae(folder, "small")
    assert (places(sae), sae.format, sae.model) == ((site, site), "gemma_scope_2", "")


def test_gemma_scope_outside_of_its_repositories_says_neither_site_nor_model(tmp_path: Path) -> None:
    for folders in ("layer_3/width_16k/average_l0_5", "gemma-scope-2b-pt-res/width_16k/average_l0_5"):
        with pytest.raises(BadRequest, match="name its site"):
            load_sae(save_gemma_scope(tmp_path / folders), "small")
    plain = save_gemma_scope(tmp_path / "gemma-scope-2b-pt-res/layer_3/width_16k/canonical")
    assert load_sae(plain, "small").claims == {}


def test_gemma_scope_in_the_hubs_cache_reads_where_its_repository_says(tmp_path: Path) -> None:
    """And not where folders above that would."""
    repository, within = "models--google--gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82"
    sae = load_sae(save_gemma_scope(tmp_path / repository / "snapshots/0123abc" / within), "small")
    assert (*places(sae), sae.model) == ("resid_post.12", "resid_post.12", "gemma-2-2b")
    with pytest.raises(BadRequest, match="name its site"):
        load_sae(save_gemma_scope(tmp_path / repository / "a/b/c" / within), "small")


def test_openai_reads_what_the_nearest_location_names(tmp_path: Path) -> None:
    near = load_sae(save_openai(tmp_path / "resid_post_attn_v5/resid_post_mlp_v5_32k/11.pt"), "small")
    assert places(near) == ("resid_post.11", "resid_post.11")
    sae = load_sae(save_openai(tmp_path / "resid_delta_attn_v5_32k/autoencoders/11.pt"), "small")
    assert (*places(sae), sae.model) == ("attn_out.11", "attn_out.11", "gpt2")


@pytest.mark.parametrize(
    ("folders", "model"),
    [
        ("Llama3_1-8B-Base-L1R-8x", "Llama-3.1-8B"),
        ("Llama-Scope-R1-Distill/L1R", "Llama-3.1-8B"),
        ("elsewhere", ""),
    ],
)
def test_llama_scope_is_of_the_model_that_its_folders_name(folders: str, model: str, tmp_path: Path) -> None:
    folder = save_llama_scope(tmp_path / folders, weights(), hook_point_out=None)
    sae = load_sae(folder, "small")
    assert (sae.model, *places(sae)) == (model, "resid_post.1", "resid_post.1")


def test_llama_scope_that_goes_out_elsewhere_is_a_transcoder(tmp_path: Path) -> None:
    hooks = {"hook_point_in": "blocks.1.mlp.hook_in", "hook_point_out": "blocks.1.hook_mlp_out"}
    sae = load_sae(save_llama_scope(tmp_path, weights(), **hooks), "small")
    assert (*places(sae), sae.is_transcoder) == ("mlp_input.1", "mlp_out.1", True)


def scaled_by(folder: Path, factor: float) -> SparseAutoencoder:
    (folder / "actstore.json").write_text(json.dumps({"norm_scaling_factor": factor}))
    return load_sae(folder, "small")


def test_a_scale_that_the_files_do_not_say_is_the_sidecars(tmp_path: Path) -> None:
    """As if rows came scaled: of Llama Scope without its norm, and of SAELens in the words of two of its versions."""
    x = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(0))
    norms = {"in": D_MODEL**0.5 / 1.5, "out": D_MODEL**0.5 / 1.5}
    said = load_sae(save_llama_scope(tmp_path / "said", weights(), dataset_average_activation_norm=norms), "small")
    silent = save_llama_scope(tmp_path / "silent", weights(), dataset_average_activation_norm=None)
    torch.testing.assert_close(scaled_by(silent, 1.5).encode(x), said.encode(x))
    plain = load_sae(save_sae(tmp_path / "plain", "standard", apply_b_dec_to_input=False), "plain")
    for name in ("expected_average_only_in", True):
        folder = save_sae(tmp_path / str(name), "standard", apply_b_dec_to_input=False)
        config = json.loads((folder / "cfg.json").read_text()) | {"normalize_activations": name}
        (folder / "cfg.json").write_text(json.dumps(config))
        sae = scaled_by(folder, 1.5)
        torch.testing.assert_close(sae.encode(x), plain.encode(1.5 * x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sae.decode(sae.encode(x), x), plain.decode(plain.encode(1.5 * x), x) / 1.5)


def test_what_a_transcoder_of_saelens_predicts_may_be_said_beside_its_metadata(tmp_path: Path) -> None:
    metadata = {"hook_name": "blocks.1.mlp.hook_in"}
    options = {"d_out": D_MODEL, "apply_b_dec_to_input": False, "hook_name_out": "blocks.2.hook_mlp_out"}
    folder = save_sae(tmp_path, "standard", metadata=metadata, **options)
    config = json.loads((folder / "cfg.json").read_text()) | {"architecture": "transcoder"}
    (folder / "cfg.json").write_text(json.dumps(config))
    assert places(load_sae(folder, "small")) == ("mlp_input.1", "mlp_out.2")


def test_saelens_without_a_model_names_none(tmp_path: Path) -> None:
    sae = load_sae(save_sae(tmp_path, "standard", metadata={"hook_name": "resid_post.1", "model_name": None}), "small")
    assert sae.model == ""


@pytest.mark.parametrize(
    ("said", "read", "written"),
    [
        ({"hook_point": "blocks.1.attn.hook_z", "hook_point_head_index": 2}, "z.1.2", "z.1.2"),
        ({"hook_name": "blocks.1.attn.hook_z", "hook_head_index": 0}, "z.1.0", "z.1.0"),
        ({"hook_name": "blocks.1.attn.hook_z", "hook_head_index": None, "hook_point_head_index": 2}, "z.1", "z.1"),
        (
            {
                "hook_name": "blocks.1.mlp.hook_in",
                "hook_name_out": "blocks.2.hook_mlp_out",
                "architecture": "transcoder",
                "d_out": D_MODEL,
            },
            "mlp_input.1",
            "mlp_out.2",
        ),
    ],
    ids=["hook_point", "hook_name", "no head", "transcoder"],
)
def test_saelens_before_it_had_metadata(said: dict[str, Any], read: str, written: str, tmp_path: Path) -> None:
    config = {"d_in": D_MODEL, "d_sae": 64, "model_name": "m", **said}
    (save_sae(tmp_path, "standard") / "cfg.json").write_text(json.dumps(config))
    sae = load_sae(tmp_path, "small")
    assert (*places(sae), sae.model) == (read, written, "m")


def llama_scope(**options: Any) -> Callable[[Path], Path]:
    return lambda folder: save_llama_scope(folder, weights(), **options)


def changed(file: str, make: Callable[[Path], Path], **tensors: torch.Tensor | None) -> Callable[[Path], Path]:
    """Of a file of safetensors; None takes a tensor out."""

    def save(folder: Path) -> Path:
        found = make(folder)
        changes = load_file(found / file) | tensors
        save_file({key: value for key, value in changes.items() if value is not None}, found / file)
        return found

    return save


def openai_state(**changes: Any) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        path = save_openai(folder / "resid_post_mlp_v5_32k/autoencoders/1.pt")
        torch.save(torch.load(path, weights_only=True) | changes, path)
        return path

    return save


def gemma_scope_2(**changes: Any) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        save_gemma_scope_2(folder, weights(), "model.layers.9.output")
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return save


def standard(folder: Path) -> Path:
    return save_sae(folder, "standard")


def as_wide_as(d_sae: object) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        config = json.loads((standard(folder) / "cfg.json").read_text()) | {"d_sae": d_sae}
        (folder / "cfg.json").write_text(json.dumps(config))
        return folder

    return save


NORM, SAELENS = "dataset_average_activation_norm", "sae_weights.safetensors"
REFUSED: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "one norm of two": (llama_scope(dataset_average_activation_norm={"in": 2.0}), NORM, "not a pair of norms"),
    "a norm of 0": (llama_scope(dataset_average_activation_norm={"in": 2.0, "out": 0}), NORM, "not a pair of norms"),
    "a norm without end": (
        llama_scope(dataset_average_activation_norm={"in": float("inf"), "out": 1.0}), NORM, "not a pair of norms",
    ),
    "one norm for both": (llama_scope(dataset_average_activation_norm=2.0), NORM, "not a pair of norms"),
    "a threshold below 0": (llama_scope(jump_relu_threshold=-0.5), "jump_relu_threshold", "not a valid threshold"),
    "a word for a threshold": (llama_scope(jump_relu_threshold="low"), "jump_relu_threshold", "not a valid threshold"),
    "no decoder bias": (llama_scope(use_decoder_bias=False), "use_decoder_bias", "not supported"),
    "a bias taken from the input": (
        llama_scope(apply_decoder_bias_to_pre_encoder=True), "apply_decoder_bias_to_pre_encoder", "not supported",
    ),
    "a gated encoder": (llama_scope(use_glu_encoder=True), "use_glu_encoder", "not supported"),
    "another tensor of Llama Scope": (
        changed("checkpoints/final.safetensors", llama_scope(), extra=torch.ones(2)), "tensors", "it has other tensors",
    ),
    "another tensor of sparsify": (
        changed("sae.safetensors", save_sparsify, extra=torch.ones(2)), "sae.safetensors", "no such tensors",
    ),
    "another architecture of Gemma Scope 2": (gemma_scope_2(architecture="topk"), "architecture", "not supported"),
    "a word for a connection": (gemma_scope_2(affine_connection="no"), "affine_connection", "must be true or false"),
    "a connection that is not there": (gemma_scope_2(affine_connection=True), "W_skip", "has a skip connection, but "
        "its "
        "tensors "
        "do "
        "not"),
    "several layers": (
        changed("params.safetensors", gemma_scope_2(), w_dec=torch.ones(48, 3, D_MODEL)), "w_dec", "several layers",
    ),
    "another activation of OpenAI's": (openai_state(activation="JumpReLU"), "activation", "it is not supported"),
    "features below 0": (
        openai_state(activation_state_dict={"k": 5, "postact_fn": "Identity"}), "postact_fn", "can be negative",
    ),
    "another tensor of OpenAI's": (openai_state(extra=torch.ones(2)), "tensors", "it has other tensors than expected"),
    "a skip that is not said": (
        changed(SAELENS, standard, W_skip=torch.ones(D_MODEL, D_MODEL)), "W_skip", "has no skip connection, but its "
            "tensors "
            "do",
    ),
    "no encoder": (changed(SAELENS, standard, W_enc=None), "W_enc", "the matrix is missing"),
    "a row for an encoder": (changed(SAELENS, standard, W_enc=torch.ones(64)), "W_enc", "the matrix is missing"),
    "no decoder": (changed(SAELENS, standard, W_dec=None), "W_dec", "the matrix is missing"),
    "no bias": (changed(SAELENS, standard, b_enc=None), "tensors", "needs other tensors"),
    "a number for a bias": (openai_state(pre_bias=3.0), "b_dec", "it is not a tensor"),
    "a number for an encoder": (openai_state(**{"encoder.weight": 3.0}), "W_enc", "the matrix is missing"),
    "no feature": (
        changed(
            "params.safetensors", gemma_scope_2(), w_enc=torch.ones(D_MODEL, 0), w_dec=torch.ones(0, D_MODEL),
            b_enc=torch.ones(0), threshold=torch.ones(0),
        ), "d_in, d_sae, d_out", "no features",
    ),
    "a word for the width": (as_wide_as("wide"), "cfg.json", "its sizes must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_computed_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    make, field, why = REFUSED[case]
    with pytest.raises(BadRequest, match=why) as caught:
        load_sae(make(tmp_path / "sae"), "small")
    assert caught.value.details["field"] == field


def test_sizes_of_one_are_sizes(tmp_path: Path) -> None:
    sae = load_sae(save_sae(tmp_path, "standard", d_sae=1), "small")
    assert (sae.d_in, sae.d_sae) == (D_MODEL, 1)


def test_a_scaling_factor_that_changes_nothing_is_passed_over(tmp_path: Path) -> None:
    """For a while SAELens wrote one, of ones."""
    folder = changed(SAELENS, standard, scaling_factor=torch.ones(64))(tmp_path / "ones")
    x = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(0))
    plain = load_sae(standard(tmp_path / "plain"), "plain")
    np.testing.assert_array_equal(load_sae(folder, "small").encode(x), plain.encode(x))


def without(make: Callable[[Path], Path], file: str, *options: str) -> Callable[[Path], Path]:
    """The same with those options left out of its configuration, or of the one file that it is."""

    def save(folder: Path) -> Path:
        found = make(folder)
        path = found if found.suffix == ".pt" else found / file
        read, write = (torch.load, torch.save) if path.suffix == ".pt" else (read_json, write_json)
        write({key: value for key, value in read(path).items() if key not in options}, path)
        return found

    return save


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def write_json(found: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(found))


def relu_of_openai(folder: Path) -> Path:
    return save_openai(folder / "resid_post_mlp_v5_32k/autoencoders/1.pt", k=None)


LEFT_OUT: dict[str, tuple[Callable[[Path], Path], str, tuple[str, ...]]] = {
    "Llama Scope": (
        llama_scope(), "hyperparams.json", (
            "sparsity_include_decoder_norm", "norm_activation", "act_fn", "use_decoder_bias",
            "apply_decoder_bias_to_pre_encoder", "hook_point_out",
        ),
    ),
    "Gemma Scope 2": (gemma_scope_2(), "config.json", ("architecture",)),
    "sparsify": (save_sparsify, "cfg.json", ("activation", "transcode")),
    "dictionary_learning": (save_dictionary, "config.json", ("buffer",)),
    "SAELens": (
        standard, "cfg.json", ("architecture", "apply_b_dec_to_input", "normalize_activations", "reshape_activations"),
    ),
    "OpenAI": (relu_of_openai, "", ("activation", "activation_state_dict")),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_a_configuration_leaves_out_is_as_usual(case: str, tmp_path: Path) -> None:
    make, file, options = LEFT_OUT[case]
    said = load_sae(make(tmp_path / "said"), "small")
    silent = load_sae(without(make, file, *options)(tmp_path / "silent"), "small")
    x = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(silent.encode(x), said.encode(x))
    for name in ("architecture", "site", "output_site", "model", "normalisation", "subtracts_b_dec"):
        assert getattr(silent, name) == getattr(said, name), name


def test_features_of_openai_are_positive_where_nothing_is_said(tmp_path: Path) -> None:
    folder = openai_state(activation_state_dict={"k": 5})(tmp_path)
    x = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(0))
    assert int((load_sae(folder, "small").encode(x) != 0).sum(dim=1).max()) == 5


def test_folders_far_above_a_file_of_openai_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="name its site"):
        load_sae(save_openai(tmp_path / "resid_post_mlp_v5_32k/a/b/1.pt"), "small")
