"""Gemma Scope: `params.npz` without any configuration; Gemma Scope 2: `params.safetensors`, mostly with `config.json`.

Both are JumpReLU, do not subtract b_dec from the input, and have matrices [from, to]. The site is in the names of
folders, `gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`, or in Gemma Scope 2's configuration, named as in
transformers. Neither was trained on BOS.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from actstore_storage.format.sites import Site
from actstore_worker.sae.files import SIDECAR, SaeFiles
from actstore_worker.sae.parts import SaeParts
from actstore_worker.sae.refusals import unsupported
from actstore_worker.sae.sites import module_site
from actstore_worker.sae.tensors import flag, put_once, read_json, read_tensors

_LAYER = re.compile(r"layer_(\d{1,6})")
_REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(\w+)")
# By the last word of the repository's name. MLP outputs are those after Gemma 2's norm following the MLP, like our
# mlp_out.
_KINDS = {"res": "resid_post", "mlp": "mlp_out", "att": "z"}
_L0 = re.compile(r"average_l0_(\d{1,9})")
# The number of folders above a file that are searched: in the hub's cache it is at
# models--google--gemma-scope-2b-pt-res/snapshots/COMMIT/layer_12/width_16k/average_l0_82.
_FOLDERS = 6
_ARCHITECTURE = "jump_relu"
# By the folder's name, if Gemma Scope 2 has no configuration.
_KINDS_2 = {"resid_post": "resid_post", "mlp_out": "mlp_out", "attn_out": "z"}
_AFFINE = "affine_skip_connection"


def read(files: SaeFiles, name: str) -> SaeParts:
    """Reads the files of a Gemma Scope SAE.

    Errors: BadRequest SAE_UNSUPPORTED, also for embedding SAEs and transcoders: their input is not captured, or the
    files do not say whether it includes a norm's gain.
    """
    place = _place(files)
    if "embedding" in place:
        raise unsupported(name, "params.npz", "embedding", "its input is not captured", allowed=_KINDS)
    if "transcoder" in place and files.sidecar is None:
        why = f"its files do not say whether its input includes the norm's gain; give its site in {SIDECAR}"
        raise unsupported(name, "params.npz", "transcoder", why, allowed=_KINDS)
    repository = _REPOSITORY.search(place)
    return SaeParts(
        architecture="jumprelu",
        tensors=_renamed(read_tensors(files.weights, name), name),
        site=_site_by_folders(place, _KINDS.get(repository[3]) if repository else None),
        is_transcoder="transcoder" in place,
        model=_model(repository),
        claims={"l0": float(found[1])} if (found := _L0.search(place)) else {},
    )


def read_2(files: SaeFiles, name: str) -> SaeParts:
    """Reads the files of a Gemma Scope 2 SAE. Errors: BadRequest SAE_UNSUPPORTED or SAE_MISMATCH."""
    config = read_json(files.configuration, name) if files.configuration else {}
    if config.get("architecture", _ARCHITECTURE) != _ARCHITECTURE:
        raise unsupported(name, "architecture", config["architecture"], "it is not supported", allowed=_ARCHITECTURE)
    tensors = _renamed(read_tensors(files.weights, name), name)
    if tensors.get("W_dec") is not None and tensors["W_dec"].ndim == 3:
        raise unsupported(
            name,
            "w_dec",
            tuple(tensors["W_dec"].shape),
            "it predicts several layers, which is not supported",
            allowed="a matrix",
        )
    site, output_site = _sites_2(config, _place(files), name)
    return SaeParts(
        architecture="jumprelu",
        tensors=tensors,
        site=site,
        output_site=output_site,
        is_transcoder="hf_hook_point_out" in config or "transcoder" in _place(files),
        skips=flag(config, "affine_connection", False, name) if "affine_connection" in config else None,
        model=str(config.get("model_name", "")),
    )


def _place(files: SaeFiles) -> str:
    return "/".join(files.weights.parent.parts[-_FOLDERS:])


def _renamed(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Matrices are W_enc in some files and w_enc in others. The affine skip is [d_in, d_out]."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        plain = "W_" + key[2:] if key.startswith("w_") else key
        put_once(renamed, "W_skip" if plain == _AFFINE else plain, tensor, name)
    return renamed


def _site_by_folders(place: str, kind: str | None) -> Site | None:
    layer = _LAYER.search(place)
    return Site(int(layer[1]), kind) if layer and kind else None


def _model(repository: re.Match[str] | None) -> str:
    if repository is None:
        return ""
    return f"gemma-2-{repository[1]}" + ("-it" if repository[2] == "it" else "")


def _sites_2(config: Mapping[str, Any], place: str, name: str) -> tuple[Site | None, Site | None]:
    if "hf_hook_point_in" not in config:
        kind = next((kind for word, kind in _KINDS_2.items() if word in place), None)
        return _site_by_folders(place, kind), None
    site = module_site(str(config["hf_hook_point_in"]), name, "hf_hook_point_in")
    out = config.get("hf_hook_point_out")
    return site, None if out is None else module_site(str(out), name, "hf_hook_point_out")
