"""Small SAEs on disk in the formats of others: as their authors' code wrote them, without it."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from tests.made_models.small_models import D_MODEL

D_SAE, K = 48, 5
_FOUR = torch.tensor(4)
Weights = dict[str, NDArray[np.float32]]


def weights(d_in: int = D_MODEL, d_out: int = D_MODEL, seed: int = 0) -> Weights:
    """[from, to]; biases and thresholds that matter, decoder rows of different norms."""
    generator = np.random.default_rng(seed)
    shapes = {
        "W_enc": (d_in, D_SAE),
        "W_dec": (D_SAE, d_out),
        "b_enc": (D_SAE,),
        "b_dec": (d_out,),
        "threshold": (D_SAE,),
        "W_skip": (d_in, d_out),
    }
    found = {key: 0.3 * generator.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    found["threshold"] = np.abs(found["threshold"])
    found["W_dec"] *= generator.uniform(0.5, 2, (D_SAE, 1)).astype(np.float32)
    return found


def save_gemma_scope(folder: Path, found: Weights | None = None) -> Path:
    found = weights() if found is None else found
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{key: found[key] for key in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")})
    return folder


def save_gemma_scope_2(folder: Path, found: Weights, point_in: str, point_out: str = "", affine: bool = False) -> Path:
    """The affine connection lies as [d_in, d_out]."""
    names = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
    names |= {"affine_skip_connection": "W_skip"} if affine else {}
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-pt", "hf_hook_point_in": point_in}
    config |= {"hf_hook_point_out": point_out, "affine_connection": affine} if point_out else {}
    return _save(folder, {key: found[ours] for key, ours in names.items()}, "params.safetensors", "config.json", config)


def save_openai(path: Path, found: Weights | None = None, k: int | None = K) -> Path:
    """As their Autoencoder's state_dict is, `k` None with ReLU: an OrderedDict of tensors, words and one more table."""
    found = weights() if found is None else found
    state: OrderedDict[str, Any] = OrderedDict(
        {
            "pre_bias": torch.from_numpy(found["b_dec"]),
            "latent_bias": torch.from_numpy(found["b_enc"]),
            "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long),
            "latents_activation_frequency": torch.ones(D_SAE),
            "latents_mean_square": torch.zeros(D_SAE),
            "encoder.weight": torch.from_numpy(found["W_enc"].T.copy()),
            "decoder.weight": torch.from_numpy(found["W_dec"].T.copy()),
            "activation": "ReLU" if k is None else "TopK",
            "activation_state_dict": OrderedDict({} if k is None else {"k": k, "postact_fn": "ReLU"}),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def save_llama_scope(folder: Path, found: Weights, **options: Any) -> Path:
    """hyperparams.json of a published one, and what of it decides what is computed."""
    config = {
        "d_model": found["W_enc"].shape[0],
        "d_sae": D_SAE,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.25,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 6.3125, "out": 6.3125},
        "top_k": 50,
        "hook_point_in": "blocks.1.hook_resid_post",
        "hook_point_out": "blocks.1.hook_resid_post",
    } | options
    return _save(folder, _linear(found), "checkpoints/final.safetensors", "hyperparams.json", config)


def save_llama_scope_r1(folder: Path, found: Weights, **options: Any) -> Path:
    """Of the later series, whose thresholds are logarithms in the weights."""
    config = {
        "d_model": found["W_enc"].shape[0],
        "expansion_factor": D_SAE // found["W_enc"].shape[0],
        "act_fn": "jumprelu",
        "norm_activation": "inference",
        "sparsity_include_decoder_norm": False,
        "hook_point_in": "blocks.1.hook_resid_post",
        "hook_point_out": "blocks.1.hook_resid_post",
    } | options
    tensors = _linear(found) | {"log_jumprelu_threshold": np.log(found["threshold"])}
    return _save(folder, tensors, "sae_weights.safetensors", "config.json", config)


def save_sparsify(folder: Path, hook_point: str = "layers.1", **options: Any) -> Path:
    """Weights that are all alike, for what is asked of names and options alone."""
    config = {"activation": "topk", "d_in": D_MODEL, "num_latents": D_SAE, "k": 4, "transcode": False} | options
    tensors = {"encoder.weight": torch.ones(D_SAE, D_MODEL), "encoder.bias": torch.ones(D_SAE)}
    tensors |= {"W_dec": torch.ones(D_SAE, D_MODEL), "b_dec": torch.ones(D_MODEL)}
    (folder / hook_point).mkdir(parents=True)
    save_file(tensors, folder / hook_point / "sae.safetensors")
    (folder / hook_point / "cfg.json").write_text(json.dumps(config))
    return folder / hook_point


def save_dictionary(
    folder: Path, known: str = "BatchTopKSAE", threshold: float = 0.5, k: Tensor = _FOUR, **trainer: Any
) -> Path:
    tensors = {"encoder.weight": torch.ones(D_SAE, D_MODEL), "encoder.bias": torch.ones(D_SAE)}
    tensors |= {"decoder.weight": torch.ones(D_MODEL, D_SAE), "b_dec": torch.ones(D_MODEL)}
    tensors |= {"k": k, "threshold": torch.tensor(threshold)}
    folder.mkdir(parents=True)
    torch.save(tensors, folder / "ae.pt")
    buffer = {"io": trainer.pop("io", "out")}
    config = {"dict_class": known, "layer": 1, "submodule_name": "resid_post_layer_1"} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": config, "buffer": buffer}))
    return folder


def _linear(found: Weights) -> Weights:
    """As torch's linear layers, [to, from]."""
    return {
        "encoder.weight": found["W_enc"].T,
        "encoder.bias": found["b_enc"],
        "decoder.weight": found["W_dec"].T,
        "decoder.bias": found["b_dec"],
    }


def _save(folder: Path, tensors: Weights, weights_file: str, config_file: str, config: dict[str, Any]) -> Path:
    (folder / weights_file).parent.mkdir(parents=True, exist_ok=True)
    save_file({key: torch.from_numpy(value.copy()) for key, value in tensors.items()}, folder / weights_file)
    (folder / config_file).write_text(json.dumps(config))
    return folder
