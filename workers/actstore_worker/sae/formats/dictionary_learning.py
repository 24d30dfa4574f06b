"""dictionary_learning (Marks, Karvonen, Mueller): `ae.pt`, and `config.json`, whose dict_class names the architecture.

Computes the same as the package does by default when it loads an SAE: BatchTopK and Matryoshka SAEs use their
threshold, TopK uses k, and an AutoEncoder has its decoder's columns normalized to 1. The scale of training is in the
weights already.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from actstore_storage.format.sites import Site
from actstore_worker.sae.files import SaeFiles
from actstore_worker.sae.parts import SaeParts
from actstore_worker.sae.refusals import unsupported
from actstore_worker.sae.tensors import read_json, read_tensors, turned

_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
_PLAIN = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"}
_GATED = {
    "encoder.weight": "W_enc",
    "decoder.weight": "W_dec",
    "decoder_bias": "b_dec",
    "r_mag": "r_mag",
    "gate_bias": "b_gate",
    "mag_bias": "b_mag",
}
# Buffers that repeat the configuration, or describe the training.
_IGNORED = ("k", "group_sizes", "group_indices")
_UNTRAINED = -1.0


@dataclass(frozen=True)
class _Class:
    """How one of the package's classes names its tensors, and what it computes."""

    architecture: str
    names: Mapping[str, str]
    subtracts_b_dec: bool = True
    scales_by_decoder_norm: bool = False


_THRESHOLDED = _LINEAR | {"b_dec": "b_dec", "threshold": "threshold"}
_CLASSES = {
    "AutoEncoder": _Class("standard", _LINEAR | {"bias": "b_dec"}, scales_by_decoder_norm=True),
    "AutoEncoderNew": _Class("standard", _LINEAR | {"decoder.bias": "b_dec"}, subtracts_b_dec=False),
    "GatedAutoEncoder": _Class("gated", _GATED),
    "AutoEncoderTopK": _Class("topk", _THRESHOLDED),
    "BatchTopKSAE": _Class("jumprelu", _THRESHOLDED),
    "MatryoshkaBatchTopKSAE": _Class("jumprelu", _PLAIN),
    "JumpReluAutoEncoder": _Class("jumprelu", _PLAIN, subtracts_b_dec=False),
}
# `resid_post_layer_3`, `resid_out_layer3`, `mlp_out_layer0`, as its authors name submodules and folders.
_SUBMODULE = re.compile(r"(resid_post|resid_out|resid_pre|attn_out|attention_out|mlp_out)(?:_layer_?(\d{1,6}))?")
_KINDS = {"resid_post": "resid_post", "resid_out": "resid_post", "resid_pre": "resid_pre", "mlp_out": "mlp_out"}
_KINDS |= {"attn_out": "attn_out", "attention_out": "attn_out"}
_FOLDERS = 3


def read(files: SaeFiles, name: str) -> SaeParts:
    """Reads the files of a dictionary_learning SAE. Errors: BadRequest SAE_UNSUPPORTED."""
    assert files.configuration is not None  # noqa: S101
    config = read_json(files.configuration, name)
    trainer, buffer = config.get("trainer", {}), config.get("buffer", {})
    known = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if known not in _CLASSES:
        raise unsupported(name, "dict_class", known, "it is not supported", allowed=_CLASSES)
    meant = _CLASSES[known]
    found = read_tensors(files.weights, name)
    k = found.get("k", trainer.get("k"))
    return SaeParts(
        architecture=meant.architecture,
        tensors=_tensors(found, meant, known, name),
        sizes=(trainer.get("activation_dim"), trainer.get("dict_size"), trainer.get("activation_dim")),
        # Submodules are named for their outputs; their inputs are other sites.
        site=_site(files, trainer) if buffer.get("io", "out") == "out" else None,
        model=str(trainer.get("lm_name") or "").rpartition("/")[2],
        subtracts_b_dec=meant.subtracts_b_dec,
        k=k.item() if isinstance(k, Tensor) else k,
        scales_by_decoder_norm=meant.scales_by_decoder_norm,
    )


def _tensors(found: Mapping[str, Any], meant: _Class, known: str, name: str) -> dict[str, Tensor]:
    tensors = {
        meant.names[key]: turned(value) if key.endswith(".weight") else value  # torch's linear layers are [to, from].
        for key, value in found.items()
        if key in meant.names
    }
    if unknown := sorted(found.keys() - meant.names.keys() - set(_IGNORED)):
        raise unsupported(name, "tensors", unknown, f"{known} has no such tensors", allowed=sorted(meant.names))
    if meant.architecture == "topk":
        tensors.pop("threshold", None)  # it has one, and by default does not use it
    if meant.architecture == "jumprelu":
        tensors["threshold"] = _threshold(tensors, known, name)
    return tensors


def _threshold(tensors: Mapping[str, Tensor], known: str, name: str) -> Tensor:
    """One for all features, or one for each."""
    found = tensors.get("threshold")
    if found is None or bool((found == _UNTRAINED).all()):
        why = f"without a trained threshold the features of {known} would depend on the batch"
        raise unsupported(name, "threshold", None if found is None else _UNTRAINED, why, allowed="0 or above")
    return found.expand(tensors["b_enc"].shape[0]) if found.ndim == 0 else found


def _site(files: SaeFiles, trainer: Mapping[str, Any]) -> Site | None:
    """The site from its submodule's name, else from its folders: the layer alone does not determine it."""
    places = [str(trainer.get("submodule_name") or ""), *reversed(files.folder.parts[-_FOLDERS:])]
    for place in places:
        if found := _SUBMODULE.search(place):
            layer = trainer.get("layer") if found[2] is None else int(found[2])
            return Site(layer, _KINDS[found[1]]) if type(layer) is int and layer >= 0 else None
    return None
