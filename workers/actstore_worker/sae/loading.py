"""Sparse autoencoders in SAELens's on-disk format (v6, and older files that say the same): encoders only.

The formulas are those of `sae_lens.saes` at inference. Options that SAELens handles and actstore does not are refused
by name, because a wrong feature looks like a right one. Encoders compute in float32, whatever the file holds.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from actstore_storage.errors import BadRequest
from actstore_storage.sites import RESIDUAL_KINDS, Site, parse_site
from actstore_worker.catalogue import SAE_CONFIGURATION, SAE_WEIGHTS
from actstore_worker.sae.autoencoder import ARCHITECTURES, SparseAutoencoder, TopKSae
from actstore_worker.sae.refusals import mismatch, unsupported

CLAIMS = ("l0", "fvu", "dead_share", "loss_recovered")
SAELENS_NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
# Below this log10 frequency SAELens's sparsity file means never: it adds 1e-10 before it takes the logarithm.
_LOG_SPARSITY_DEAD = -9.9
# SAELens's own lower bound of a decoder row's norm.
_NORM_MIN = 1e-8


def load_sae(path: Path, name: str) -> SparseAutoencoder:
    """Errors: BadRequest SAE_UNSUPPORTED for an option or architecture that is not here, and for broken files."""
    config = _read_config(path, name)
    kind = ARCHITECTURES[_architecture(config, name)]
    _refuse_options(config, name)
    tensors = _read_tensors(path, name, kind, int(config["d_in"]), int(config["d_sae"]))
    extra = {"k": _topk_k(config, name)} if kind is TopKSae else {}
    if kind is TopKSae and config.get("rescale_acts_by_decoder_norm", False):
        tensors = _folded_norms(tensors)
    site = _site(config, name)
    return kind(
        name=name,
        sha256=_sha256(path),
        format="sae_lens",
        site=site,
        output_site=site,
        d_in=int(config["d_in"]),
        d_sae=int(config["d_sae"]),
        d_out=int(config["d_in"]),
        claims=_claims(path, config),
        model=str(_metadata(config).get("model_name") or ""),
        normalisation=_normalisation(config),
        subtracts_b_dec=bool(config.get("apply_b_dec_to_input", True)),
        tensors=tensors,
        **extra,
    )


def _read_config(path: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((path / SAE_CONFIGURATION).read_text())
        if not isinstance(config, dict) or int(config["d_in"]) < 1 or int(config["d_sae"]) < 1:
            raise ValueError("it has no d_in and d_sae of at least 1")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unsupported(name, SAE_CONFIGURATION, None, f"it cannot be read: {error!r}") from error
    return config


def _architecture(config: Mapping[str, Any], name: str) -> str:
    """Before v6, TopK was written as an activation function of the standard architecture."""
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    architecture = "topk" if activation == "topk" else config.get("architecture", "standard")
    if architecture not in ARCHITECTURES:
        raise unsupported(name, "architecture", architecture, "it is not one of those", allowed=ARCHITECTURES)
    if activation not in ("relu", "topk"):
        raise unsupported(name, "activation_fn", activation, "it is not one of those", allowed=("relu", "topk"))
    return str(architecture)


def _refuse_options(config: Mapping[str, Any], name: str) -> None:
    normalisation = _normalisation(config)
    if normalisation not in SAELENS_NORMALISATIONS:
        # SAELens does nothing about expected_average_only_in at inference: it trusts that the scale was folded in.
        why = "SAELens does not apply it at inference; fold it into the weights first"
        raise unsupported(name, "normalize_activations", normalisation, why, allowed=SAELENS_NORMALISATIONS)
    if config.get("reshape_activations", "none") != "none":
        why = "sites whose rows are heads are not captured"
        raise unsupported(name, "reshape_activations", config["reshape_activations"], why, allowed="none")
    if config.get("finetuning_scaling_factor"):
        raise unsupported(name, "finetuning_scaling_factor", True, "it must be folded into the weights", allowed=False)
    loading = _metadata(config).get("model_from_pretrained_kwargs") or {}
    if loading.get("center_writing_weights"):
        why = "it was trained on a model with centred writing weights, and actstore runs models as they are"
        raise unsupported(name, "center_writing_weights", True, why, allowed=False)


def _normalisation(config: Mapping[str, Any]) -> str:
    """Before v6 it was a flag, or absent."""
    found = config.get("normalize_activations") or "none"
    return "expected_average_only_in" if found is True else str(found)


def _topk_k(config: Mapping[str, Any], name: str) -> int:
    k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k")
    if not isinstance(k, int) or not 1 <= k <= int(config["d_sae"]):
        raise unsupported(name, "k", k, "it is no such number", allowed=f"1..{config['d_sae']}")
    return k


def _folded_norms(tensors: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "..."]]:
    """rescale_acts_by_decoder_norm: pre-activations compete as if the decoder's rows had norm 1; SAELens folds so."""
    norms = torch.linalg.vector_norm(tensors["W_dec"], dim=-1).clamp(min=_NORM_MIN)
    folded = {
        "W_enc": tensors["W_enc"] * norms,
        "b_enc": tensors["b_enc"] * norms,
        "W_dec": tensors["W_dec"] / norms[:, None],
    }
    return {**tensors, **folded}


def _claims(path: Path, config: Mapping[str, Any]) -> dict[str, float]:
    """From quality.json, else from the configuration's metadata, else from SAELens's sparsity file."""
    stated: dict[str, Any] = {}
    if (path / "sparsity.safetensors").is_file():
        logarithms = load_file(path / "sparsity.safetensors")["sparsity"].double()
        fires = logarithms > _LOG_SPARSITY_DEAD
        stated = {"l0": float((10**logarithms * fires).sum()), "dead_share": 1 - float(fires.double().mean())}
    metadata = _metadata(config)
    stated |= {key: metadata[key] for key in CLAIMS if isinstance(metadata.get(key), int | float)}
    if isinstance(metadata.get("num_dead_features"), int):
        stated["dead_share"] = metadata["num_dead_features"] / int(config["d_sae"])
    if (path / "quality.json").is_file():
        stated |= json.loads((path / "quality.json").read_text())
    return {key: float(stated[key]) for key in CLAIMS if key in stated}


def _metadata(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Before v6 what is now metadata lay beside the rest."""
    found: Mapping[str, Any] = config.get("metadata") or config
    return found


def _site(config: Mapping[str, Any], name: str) -> Site:
    hook = str(_metadata(config).get("hook_name") or config.get("hook_name") or config.get("hook_point") or "")
    try:
        return parse_site(hook, RESIDUAL_KINDS)
    except BadRequest as error:
        raise mismatch(name, "hook_name", hook, error.details["allowed"], "that site is not captured") from error


def _read_tensors(
    path: Path, name: str, kind: type[SparseAutoencoder], d_in: int, d_sae: int
) -> dict[str, Float[Tensor, "..."]]:
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)} | dict.fromkeys(kind.biases, (d_sae,))
    try:
        found = load_file(path / SAE_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise unsupported(name, SAE_WEIGHTS, None, f"it cannot be read: {error}") from error
    scale = found.pop("scaling_factor", torch.ones(1))
    if found.keys() != shapes.keys() or not bool((scale == 1).all()):
        why = f"an SAE of architecture {kind.architecture} has other tensors"
        raise unsupported(name, "tensors", sorted(found), why, allowed=sorted(shapes))
    for key, shape in shapes.items():
        if tuple(found[key].shape) != shape:
            raise mismatch(name, key, tuple(found[key].shape), str(shape), "its configuration says otherwise")
        if not bool(found[key].isfinite().all()):
            raise unsupported(name, key, "NaN or infinite", "a feature would be no number", allowed="finite numbers")
    return {key: tensor.float() for key, tensor in found.items()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256((path / SAE_CONFIGURATION).read_bytes())
    with (path / SAE_WEIGHTS).open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
