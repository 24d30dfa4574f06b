"""Llama Scope (OpenMOSS), with the files of its first series and of its later R1 series.

The first has `hyperparams.json` and `checkpoints/final.safetensors`, R1 has `config.json` and
`sae_weights.safetensors`. Computes the same as its authors' code at the time: rows are scaled once by sqrt(d_in) over
the dataset's average norm, and the output is scaled back by its own average norm; a feature is active if its
pre-activation, times its decoder's norm with sparsity_include_decoder_norm (their default), is above the threshold; and
its activation is the pre-activation itself. SAELens's converter scales the threshold by the input's factor instead of
the decoder's norm.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from actstore_worker.sae.files import SaeFiles
from actstore_worker.sae.parts import NORM_MIN, SaeParts
from actstore_worker.sae.refusals import unsupported
from actstore_worker.sae.sites import hook_site
from actstore_worker.sae.tensors import flag, read_json, read_tensors, turned

_NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "decoder.bias": "b_dec"}
_LOG_THRESHOLD = "log_jumprelu_threshold"
# Other options, and the one supported value of each.
_OPTIONS = {
    "act_fn": "jumprelu",
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "use_glu_encoder": False,
}
_NORMALISATIONS = ("dataset-wise", "inference")


def read(files: SaeFiles, name: str) -> SaeParts:
    """Reads the files of a Llama Scope SAE of either series. Errors: BadRequest SAE_UNSUPPORTED or SAE_MISMATCH."""
    assert files.configuration is not None  # noqa: S101
    config = read_json(files.configuration, name)
    for option, allowed in _OPTIONS.items():
        if config.get(option, allowed) != allowed:
            raise unsupported(name, option, config[option], "it is not supported", allowed=allowed)
    d_in, d_sae = _sizes(config, files.configuration.name, name)
    tensors = _tensors(read_tensors(files.weights, name), config, name)
    scales = _scales(config, d_in, tensors["W_dec"].shape[1], name)
    site = hook_site(str(config.get("hook_point_in", "")), name, "hook_point_in")
    output_site = hook_site(str(config.get("hook_point_out") or config["hook_point_in"]), name, "hook_point_out")
    return SaeParts(
        architecture="jumprelu",
        tensors=tensors,
        sizes=(d_in, d_sae, None),
        site=site,
        output_site=output_site,
        is_transcoder=site != output_site,
        model=_model(files.folder.as_posix()),
        scales=scales or (1.0, 1.0),
        unknown_scale="" if scales else "dataset_average_activation_norm",
    )


def _sizes(config: Mapping[str, Any], file: str, name: str) -> tuple[int, int]:
    try:
        d_in = int(config["d_model"])
        return d_in, int(config["d_sae"] if "d_sae" in config else d_in * config["expansion_factor"])
    except (KeyError, ValueError, TypeError) as error:
        raise unsupported(name, file, None, f"it does not say its width: {error!r}", "d_model and d_sae") from error


def _tensors(found: dict[str, Tensor], config: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    logarithm = found.pop(_LOG_THRESHOLD, None)
    if found.keys() != _NAMES.keys():
        raise unsupported(name, "tensors", sorted(found), "it has other tensors than expected", allowed=sorted(_NAMES))
    tensors = {_NAMES[key]: turned(value) if key.endswith(".weight") else value for key, value in found.items()}
    threshold = _threshold(logarithm, config, name).expand(tensors["b_enc"].shape)
    if flag(config, "sparsity_include_decoder_norm", True, name):
        norms = torch.linalg.vector_norm(tensors["W_dec"].float(), dim=-1).clamp(min=NORM_MIN)
        threshold = threshold / norms
    return tensors | {"threshold": threshold}


def _threshold(logarithm: Tensor | None, config: Mapping[str, Any], name: str) -> Tensor:
    """One number for all features in the configuration, or the logarithm of each feature's in the weights."""
    if logarithm is not None:
        return logarithm.float().exp()
    stated = config.get("jump_relu_threshold")
    if not isinstance(stated, int | float) or stated < 0:
        raise unsupported(name, "jump_relu_threshold", stated, "it is not a valid threshold", allowed="0 or above")
    return torch.tensor(float(stated))


def _scales(config: Mapping[str, Any], d_in: int, d_out: int, name: str) -> tuple[float, float] | None:
    """None: the files do not contain the scales."""
    normalisation = config.get("norm_activation", "dataset-wise")
    if normalisation not in _NORMALISATIONS:
        raise unsupported(name, "norm_activation", normalisation, "it is not supported", allowed=_NORMALISATIONS)
    if normalisation == "inference":  # their term for weights into which the scale was folded
        return 1.0, 1.0
    norms = config.get("dataset_average_activation_norm")
    if norms is None:
        return None
    if not isinstance(norms, dict) or not all(_is_norm(norms.get(side)) for side in ("in", "out")):
        why = "it is not a pair of norms"
        raise unsupported(name, "dataset_average_activation_norm", norms, why, allowed='{"in": NORM, "out": NORM}')
    return d_in**0.5 / norms["in"], d_out**0.5 / norms["out"]


def _is_norm(found: object) -> bool:
    return isinstance(found, int | float) and 0 < found < float("inf")


def _model(place: str) -> str:
    return "Llama-3.1-8B" if re.search(r"Llama3_1-8B-Base|Llama-Scope-R1", place) else ""
