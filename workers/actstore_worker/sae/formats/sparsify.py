"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors` in a folder named after the hook point.

encoder.weight is [d_sae, d_in], and W_dec is [d_sae, d_out] already: decoding sums rows of it. b_dec is subtracted from
the input, except for transcoders. SAELens's converter of this format transposes W_dec, and uses normalize_decoder for
b_dec; the tests compare with the package itself.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from actstore_storage.format.sites import Site
from actstore_worker.sae.files import SaeFiles
from actstore_worker.sae.parts import SaeParts
from actstore_worker.sae.refusals import mismatch, unsupported
from actstore_worker.sae.tensors import flag, read_json, read_tensors, turned

# A module within transformers' base model. An SAE reads its output; a transcoder predicts its output from its input.
_HOOK_POINT = re.compile(r"(?:\w+\.)*(?:layers|layer|h)\.(\d{1,6})(?:\.(\w+))?")
_KINDS = {"": ("resid_pre", "resid_post"), "mlp": ("mlp_input", "mlp_out")}
_KINDS |= dict.fromkeys(("attention", "self_attn", "attn"), ("", "attn_out"))
# [to, from] in the file.
_TURNED = ("encoder.weight", "W_skip")


def read(files: SaeFiles, name: str) -> SaeParts:
    """Reads the files of a sparsify SAE. Errors: BadRequest SAE_UNSUPPORTED or SAE_MISMATCH."""
    assert files.configuration is not None  # noqa: S101
    config = read_json(files.configuration, name)
    if config.get("activation", "topk") != "topk":
        why = "its features are the largest of each group, which actstore does not compute"
        raise unsupported(name, "activation", config["activation"], why, allowed="topk")
    if flag(config, "signed", False, name):
        raise unsupported(
            name,
            "signed",
            True,
            "its features can be negative, and actstore treats only features above 0 as active",
            allowed=False,
        )
    transcodes = flag(config, "transcode", False, name)
    site, output_site = _sites(files.folder.name, transcodes, name)
    return SaeParts(
        architecture="topk",
        tensors=_tensors(read_tensors(files.weights, name), name),
        sizes=_sizes(config, name),
        site=site,
        output_site=output_site,
        is_transcoder=transcodes,
        skips=flag(config, "skip_connection", False, name) if "skip_connection" in config else None,
        model=_model(files.folder.parent / "config.json", name),
        subtracts_b_dec=not transcodes,
        k=config.get("k"),
    )


def _tensors(found: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec", "W_skip": "W_skip"}
    if unknown := sorted(found.keys() - names.keys()):
        raise unsupported(name, "sae.safetensors", unknown, "the sparsify format has no such tensors", allowed=names)
    return {names[key]: turned(found[key]) if key in _TURNED else found[key] for key in found}


def _sizes(config: Mapping[str, Any], name: str) -> tuple[int, int, int]:
    """num_latents 0 means that expansion_factor determines the width."""
    try:
        d_in = int(config["d_in"])
        d_sae = int(config.get("num_latents") or d_in * int(config["expansion_factor"]))
    except (KeyError, ValueError, TypeError) as error:
        raise unsupported(
            name, "cfg.json", None, f"it does not say its width: {error!r}", "d_in and num_latents"
        ) from error
    return d_in, d_sae, d_in


def _sites(hook_point: str, transcodes: bool, name: str) -> tuple[Site | None, Site | None]:
    found = _HOOK_POINT.fullmatch(hook_point)
    if found is None:
        return None, None
    layer, kinds = int(found[1]), _KINDS.get(found[2] or "")
    if kinds is None or (transcodes and not kinds[0]):
        why = "the input of that module is not captured" if kinds else "the output of that module is not captured"
        raise mismatch(name, "hookpoint", hook_point, ("layers.N", "layers.N.mlp", "layers.N.attention"), why)
    before, after = kinds
    return Site(layer, before if transcodes else after), Site(layer, after)


def _model(path: Path, name: str) -> str:
    """The trainer's own configuration is in the folder above those of the hook points."""
    return str(read_json(path, name).get("model", "")) if path.is_file() else ""
