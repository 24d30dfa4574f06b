"""OpenAI's SAEs of GPT-2 small: `{location}_v5_32k/autoencoders/{layer}.pt` and similar ones.

Their code infers from the activation whether rows are normalized: with TopK they are, like SAELens's layer_norm
(unbiased deviation, epsilon added to it, undone without), with ReLU they are not. The model had its LayerNorms folded
and its writing weights not centered, which does not change these sites.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from actstore_storage.format.sites import Site
from actstore_worker.sae.files import SaeFiles
from actstore_worker.sae.parts import SaeParts
from actstore_worker.sae.refusals import mismatch, unsupported
from actstore_worker.sae.tensors import read_tensors, turned

_KINDS = {
    "resid_delta_attn": "attn_out",
    "resid_post_attn": "resid_mid",
    "resid_delta_mlp": "mlp_out",
    "resid_post_mlp": "resid_post",
}
_HIDDEN = "mlp_post_act"
_NAMES = {"pre_bias": "b_dec", "encoder.weight": "W_enc", "latent_bias": "b_enc", "decoder.weight": "W_dec"}
# Statistics of training, not needed for encoding.
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_ACTIVATIONS = ("ReLU", "TopK")


def read(files: SaeFiles, name: str) -> SaeParts:
    """Reads the file of an OpenAI SAE. Errors: BadRequest SAE_UNSUPPORTED."""
    found = read_tensors(files.weights, name)
    activation = found.pop("activation", "ReLU")
    state = found.pop("activation_state_dict", {})
    if activation not in _ACTIVATIONS:
        raise unsupported(name, "activation", activation, "it is not supported", allowed=_ACTIVATIONS)
    is_topk = activation == "TopK"
    if not is_topk and "k" in state:
        why = "k belongs to TopK, but without `activation` the SAE would be read as ReLU"
        raise unsupported(name, "k", state["k"], why, allowed='"activation": "TopK"')
    if is_topk and state.get("postact_fn", "ReLU") != "ReLU":
        why = "its features can be negative, and actstore treats only features above 0 as active"
        raise unsupported(name, "postact_fn", state["postact_fn"], why, allowed="ReLU")
    return SaeParts(
        architecture="topk" if is_topk else "standard",
        tensors=_tensors(found, name),
        site=_site(files, name),
        model="gpt2" if _location(files) else "",
        normalisation="layer_norm" if is_topk else "none",
        subtracts_b_dec=True,
        k=state.get("k"),
    )


def _tensors(found: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    weights = {key: value for key, value in found.items() if key not in _STATISTICS}
    if weights.keys() != _NAMES.keys():
        raise unsupported(
            name, "tensors", sorted(weights), "it has other tensors than expected", allowed=sorted(_NAMES)
        )
    return {_NAMES[key]: turned(value) if key.endswith(".weight") else value for key, value in weights.items()}


def _location(files: SaeFiles) -> str:
    folders = [part for part in files.weights.parts[-3:-1] if part.startswith((*_KINDS, _HIDDEN))]
    return folders[-1] if folders else ""


def _site(files: SaeFiles, name: str) -> Site | None:
    location = _location(files)
    if location.startswith(_HIDDEN):
        raise mismatch(name, "location", location, _KINDS, "the MLP's hidden layer is not captured")
    kind = next((kind for start, kind in _KINDS.items() if location.startswith(start)), None)
    return Site(int(files.weights.stem), kind) if kind else None
