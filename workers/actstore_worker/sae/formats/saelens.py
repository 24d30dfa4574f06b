"""SAELens: `cfg.json` and `sae_weights.safetensors`, of version 6 and of earlier versions with equivalent options.

The formulas are those of `sae_lens.saes` at inference. Options that SAELens supports and actstore does not are refused
by name, because a wrong feature looks like a right one. BatchTopK and Matryoshka SAEs are saved as JumpReLU.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from actstore_storage.format.sites import Site
from actstore_worker.sae.claims import read_claims
from actstore_worker.sae.files import SaeFiles
from actstore_worker.sae.parts import SaeParts
from actstore_worker.sae.refusals import unsupported
from actstore_worker.sae.sidecar import ADAPTATIONS
from actstore_worker.sae.sites import hook_site
from actstore_worker.sae.tensors import flag, put_once, read_json, read_tensors, turned

# SAELens's architecture -> what is computed, and whether it is a transcoder.
_ARCHITECTURES = {
    "standard": ("standard", False),
    "topk": ("topk", False),
    "jumprelu": ("jumprelu", False),
    "gated": ("gated", False),
    "transcoder": ("standard", True),
    "skip_transcoder": ("standard", True),
    "jumprelu_transcoder": ("jumprelu", True),
    "jumprelu_skip_transcoder": ("jumprelu", True),
}
_WHY_NOT = {
    "batchtopk": "its features depend on the batch; SAELens saves it for inference as jumprelu",
    "matryoshka_batchtopk": "its features depend on the batch; SAELens saves it for inference as jumprelu",
    "temporal": "its features depend on earlier tokens",
}
# Normalizations of rows at run time. expected_average_only_in is not one: its scale must be folded in, or given.
_NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
_SCALED = "expected_average_only_in"


def read(files: SaeFiles, name: str) -> SaeParts:
    """Reads the files of a SAELens SAE. Errors: BadRequest SAE_UNSUPPORTED or SAE_MISMATCH."""
    assert files.configuration is not None  # noqa: S101
    config = read_json(files.configuration, name)
    architecture, is_transcoder = _ARCHITECTURES[_architecture(config, name)]
    _refuse_options(config, name)
    sizes = _sizes(config, is_transcoder, name)
    normalisation = _normalisation(config, name)
    return SaeParts(
        architecture=architecture,
        tensors=_tensors(files, name),
        sizes=sizes,
        site=_site(config, name),
        output_site=_output_site(config, name) if is_transcoder else None,
        is_transcoder=is_transcoder,
        skips="skip" in str(config.get("architecture")),
        model=str(_metadata(config).get("model_name") or ""),
        normalisation="none" if normalisation == _SCALED else normalisation,
        subtracts_b_dec=flag(config, "apply_b_dec_to_input", not is_transcoder, name),
        k=_said_once("k", [config.get("k"), (config.get("activation_fn_kwargs") or {}).get("k")], name),
        scales_by_decoder_norm=architecture == "topk" and flag(config, "rescale_acts_by_decoder_norm", False, name),
        unknown_scale="normalize_activations" if normalisation == _SCALED else "",
        processing=_processing(config),
        claims=read_claims(files.folder, name, _metadata(config), sizes[1]),
    )


def _architecture(config: Mapping[str, Any], name: str) -> str:
    """Before v6, TopK was an activation function of the standard architecture."""
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    architecture = "topk" if activation == "topk" else config.get("architecture", "standard")
    if architecture not in _ARCHITECTURES:
        why = _WHY_NOT.get(str(architecture), "it is not supported")
        raise unsupported(name, "architecture", architecture, why, allowed=_ARCHITECTURES)
    if activation not in ("relu", "topk"):
        raise unsupported(name, "activation_fn", activation, "it is not supported", allowed=("relu", "topk"))
    return str(architecture)


def _refuse_options(config: Mapping[str, Any], name: str) -> None:
    if config.get("finetuning_scaling_factor"):
        raise unsupported(name, "finetuning_scaling_factor", True, "it must be folded into the weights", allowed=False)
    if config.get("reshape_activations", "none") not in ("none", "hook_z"):
        why = "rows of other shapes are not captured"
        raise unsupported(name, "reshape_activations", config["reshape_activations"], why, allowed=("none", "hook_z"))


def _sizes(config: Mapping[str, Any], is_transcoder: bool, name: str) -> tuple[int, int, int]:
    try:
        d_in, d_sae = int(config["d_in"]), int(config["d_sae"])
        d_out = int(config["d_out"]) if is_transcoder else d_in
        if min(d_in, d_sae, d_out) < 1:
            raise ValueError("a size is below 1")
    except (ValueError, KeyError, TypeError) as error:
        raise unsupported(name, "cfg.json", None, f"its sizes must be at least 1: {error!r}", "d_in, d_sae") from error
    return d_in, d_sae, d_out


def _normalisation(config: Mapping[str, Any], name: str) -> str:
    """Before v6 it was a flag, or absent."""
    found = config.get("normalize_activations") or "none"
    found = _SCALED if found is True else str(found)
    if found not in (*_NORMALISATIONS, _SCALED):
        why = "SAELens does not apply it at inference; fold it into the weights first"
        raise unsupported(name, "normalize_activations", found, why, allowed=(*_NORMALISATIONS, _SCALED))
    return found


def _said_once(option: str, said: Sequence[Any], name: str) -> Any:
    """An option that versions of SAELens have in different places. Errors: BadRequest SAE_UNSUPPORTED if these
    disagree.
    """
    found = [value for value in said if value is not None]
    if any(value != found[0] for value in found):
        raise unsupported(
            name, option, found, "the configuration gives different values in several places", allowed="one"
        )
    return found[0] if found else None


def _metadata(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Before v6, metadata was not separate from the other options."""
    found: Mapping[str, Any] = config.get("metadata") or config
    return found


def _site(config: Mapping[str, Any], name: str) -> Site | None:
    metadata = _metadata(config)
    said = [metadata.get("hook_name"), config.get("hook_name"), config.get("hook_point")]
    hook = str(_said_once("hook_name", said, name) or "")
    head = metadata.get("hook_head_index", metadata.get("hook_point_head_index"))
    return hook_site(hook, name, head=head) if hook else None


def _output_site(config: Mapping[str, Any], name: str) -> Site | None:
    hook = _metadata(config).get("hook_name_out") or config.get("hook_name_out")
    return hook_site(str(hook), name, "hook_name_out") if hook else None


def _processing(config: Mapping[str, Any]) -> tuple[str, ...]:
    """SAELens loads models without processing, except for what is requested here."""
    loading = _metadata(config).get("model_from_pretrained_kwargs") or {}
    return tuple(done for done in ADAPTATIONS if loading.get(done))


def _tensors(files: SaeFiles, name: str) -> dict[str, Tensor]:
    """Training checkpoints may have a threshold's logarithm; for a while files had a scale that was always 1."""
    found = read_tensors(files.weights, name)
    if "log_threshold" in found:
        put_once(found, "threshold", found.pop("log_threshold").float().exp(), name)
    if "scaling_factor" in found and bool((found["scaling_factor"] == 1).all()):
        del found["scaling_factor"]
    if "W_skip" in found:  # [d_out, d_in] there
        found["W_skip"] = turned(found["W_skip"])
    return found
