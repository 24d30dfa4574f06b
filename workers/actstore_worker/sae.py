"""Sparse autoencoders in SAELens's on-disk format (v6, and older files that say the same): encoders only.

The formulas are those of `sae_lens.saes` at inference. Options that SAELens handles and actstore does not are refused
by name, because a wrong feature looks like a right one. Encoders compute in float32, whatever the file holds.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from actstore_storage.errors import BadRequest
from actstore_storage.sites import RESIDUAL_KINDS, Site, parse_site
from actstore_worker.catalogue import SAE_CONFIGURATION, SAE_WEIGHTS
from actstore_worker.model import ModelDescription

_NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
_LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class SparseAutoencoder(ABC):
    """`tensors` has SAELens's names: W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_dec and what the architecture adds."""

    name: str
    sha256: str
    site: Site
    d_in: int
    d_sae: int
    # The model it was trained on, as its configuration says; "" where it does not say.
    model: str
    normalisation: str
    subtracts_b_dec: bool
    tensors: Mapping[str, Tensor]

    architecture: ClassVar[str]
    biases: ClassVar[tuple[str, ...]]

    def encode(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_sae"]:
        """Feature activations, 0 where a feature is off."""
        return self.activate(self.project(x))

    def project(self, x: Float[Tensor, "row d_in"], out: Tensor | None = None) -> Float[Tensor, "row d_sae"]:
        """What the encoder's matrix gives, before any bias of the encoder; into `out` where it is given."""
        x = _normalise(x.float(), self.normalisation)
        if self.subtracts_b_dec:
            x = x - self.tensors["b_dec"]
        return torch.mm(x, self.tensors["W_enc"], out=out)

    @abstractmethod
    def activate(self, projected: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_sae"]: ...

    def to(self, device: torch.device) -> "SparseAutoencoder":
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})


class StandardSae(SparseAutoencoder):
    architecture = "standard"
    biases = ("b_enc",)

    def activate(self, projected: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_sae"]:
        return projected.add_(self.tensors["b_enc"]).relu_()


class JumpReluSae(SparseAutoencoder):
    """Rajamanoharan et al. 2024: a feature below its threshold is off, one above keeps its whole height."""

    architecture = "jumprelu"
    biases = ("b_enc", "threshold")

    def activate(self, projected: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_sae"]:
        before = projected.add_(self.tensors["b_enc"])
        return before.relu() * (before > self.tensors["threshold"])


class GatedSae(SparseAutoencoder):
    """Rajamanoharan et al. 2024: one matrix, two heads; `b_gate` decides whether, `r_mag` and `b_mag` how much."""

    architecture = "gated"
    biases = ("b_gate", "b_mag", "r_mag")

    def activate(self, projected: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_sae"]:
        open_gates = projected + self.tensors["b_gate"] > 0
        return (projected * self.tensors["r_mag"].exp() + self.tensors["b_mag"]).relu_() * open_gates


@dataclass(frozen=True)
class TopKSae(SparseAutoencoder):
    """Gao et al. 2024: the k largest of a token, and of those the positive ones."""

    k: int
    # Pre-activations are scaled by the decoder rows' norms before they compete.
    rescale_by_decoder_norm: bool

    architecture = "topk"
    biases = ("b_enc",)

    def activate(self, projected: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_sae"]:
        before = self.compete(projected)
        values, features = before.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(before).scatter_(-1, features, values.relu_())

    def compete(self, projected: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_sae"]:
        before = projected.add_(self.tensors["b_enc"])
        return before.mul_(self._decoder_norms) if self.rescale_by_decoder_norm else before

    @cached_property
    def _decoder_norms(self) -> Float[Tensor, " d_sae"]:
        norms: Tensor = torch.linalg.vector_norm(self.tensors["W_dec"], dim=-1)
        return norms


ARCHITECTURES = {kind.architecture: kind for kind in (StandardSae, TopKSae, JumpReluSae, GatedSae)}


def load_sae(path: Path, name: str) -> SparseAutoencoder:
    """Errors: BadRequest SAE_UNSUPPORTED for an option or architecture that is not here, and for broken files."""
    config = _read_config(path, name)
    kind = ARCHITECTURES[_architecture(config, name)]
    _refuse_options(config, name)
    tensors = _read_tensors(path, name, kind, int(config["d_in"]), int(config["d_sae"]))
    extra = _topk_options(config, name) if kind is TopKSae else {}
    return kind(
        name=name,
        sha256=_sha256(path),
        site=_site(config, name),
        d_in=int(config["d_in"]),
        d_sae=int(config["d_sae"]),
        model=str(_metadata(config).get("model_name") or ""),
        normalisation=_normalisation(config),
        subtracts_b_dec=bool(config.get("apply_b_dec_to_input", True)),
        tensors=tensors,
        **extra,
    )


def check_fit(sae: SparseAutoencoder, model: ModelDescription) -> None:
    """Errors: BadRequest SAE_MISMATCH where the SAE reads a site or a width that the model does not have."""
    if sae.d_in != model.d_model:
        raise _mismatch(sae.name, "d_in", sae.d_in, model.d_model, f"model {model.name!r} has d_model {model.d_model}")
    if sae.site.kind not in model.kinds or sae.site.layer >= model.layer_count:
        sites = [f"{kind}.0..{model.layer_count - 1}" for kind in model.kinds]
        raise _mismatch(sae.name, "site", sae.site, sites, f"model {model.name!r} has {', '.join(sites)}")


def _normalise(x: Float[Tensor, "row d_in"], normalisation: str) -> Float[Tensor, "row d_in"]:
    """SAELens's own, at run time: its layer norm has no affine part, and divides by the unbiased deviation."""
    if normalisation == "layer_norm":
        centred = x - x.mean(dim=-1, keepdim=True)
        return centred / (centred.std(dim=-1, keepdim=True) + _LAYER_NORM_EPSILON)
    if normalisation == "constant_norm_rescale":
        coefficient: Tensor = x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True)
        return x * coefficient
    return x


def _read_config(path: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((path / SAE_CONFIGURATION).read_text())
        if not isinstance(config, dict) or int(config["d_in"]) < 1 or int(config["d_sae"]) < 1:
            raise ValueError("it has no d_in and d_sae of at least 1")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unsupported(name, SAE_CONFIGURATION, None, f"it cannot be read: {error!r}") from error
    return config


def _architecture(config: Mapping[str, Any], name: str) -> str:
    """Before v6, TopK was written as an activation function of the standard architecture."""
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    architecture = "topk" if activation == "topk" else config.get("architecture", "standard")
    if architecture not in ARCHITECTURES:
        raise _unsupported(name, "architecture", architecture, "it is not one of those", allowed=ARCHITECTURES)
    if activation not in ("relu", "topk"):
        raise _unsupported(name, "activation_fn", activation, "it is not one of those", allowed=("relu", "topk"))
    return str(architecture)


def _refuse_options(config: Mapping[str, Any], name: str) -> None:
    normalisation = _normalisation(config)
    if normalisation not in _NORMALISATIONS:
        # SAELens does nothing about expected_average_only_in at inference: it trusts that the scale was folded in.
        why = "SAELens does not apply it at inference; fold it into the weights first"
        raise _unsupported(name, "normalize_activations", normalisation, why, allowed=_NORMALISATIONS)
    if config.get("reshape_activations", "none") != "none":
        why = "sites whose rows are heads are not captured"
        raise _unsupported(name, "reshape_activations", config["reshape_activations"], why, allowed="none")
    if config.get("finetuning_scaling_factor"):
        raise _unsupported(name, "finetuning_scaling_factor", True, "it must be folded into the weights", allowed=False)
    loading = _metadata(config).get("model_from_pretrained_kwargs") or {}
    if loading.get("center_writing_weights"):
        why = "it was trained on a model with centred writing weights, and actstore runs models as they are"
        raise _unsupported(name, "center_writing_weights", True, why, allowed=False)


def _normalisation(config: Mapping[str, Any]) -> str:
    """Before v6 it was a flag, or absent."""
    found = config.get("normalize_activations") or "none"
    return "expected_average_only_in" if found is True else str(found)


def _topk_options(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k")
    if not isinstance(k, int) or not 1 <= k <= int(config["d_sae"]):
        raise _unsupported(name, "k", k, "it is no such number", allowed=f"1..{config['d_sae']}")
    return {"k": k, "rescale_by_decoder_norm": bool(config.get("rescale_acts_by_decoder_norm", False))}


def _metadata(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Before v6 what is now metadata lay beside the rest."""
    found: Mapping[str, Any] = config.get("metadata") or config
    return found


def _site(config: Mapping[str, Any], name: str) -> Site:
    hook = str(_metadata(config).get("hook_name") or config.get("hook_name") or config.get("hook_point") or "")
    try:
        return parse_site(hook, RESIDUAL_KINDS)
    except BadRequest as error:
        raise _mismatch(name, "hook_name", hook, error.details["allowed"], "that site is not captured") from error


def _read_tensors(
    path: Path, name: str, kind: type[SparseAutoencoder], d_in: int, d_sae: int
) -> dict[str, Float[Tensor, "..."]]:
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)} | dict.fromkeys(kind.biases, (d_sae,))
    try:
        found = load_file(path / SAE_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise _unsupported(name, SAE_WEIGHTS, None, f"it cannot be read: {error}") from error
    scale = found.pop("scaling_factor", torch.ones(1))
    if found.keys() != shapes.keys() or not bool((scale == 1).all()):
        why = f"an SAE of architecture {kind.architecture} has other tensors"
        raise _unsupported(name, "tensors", sorted(found), why, allowed=sorted(shapes))
    for key, shape in shapes.items():
        if tuple(found[key].shape) != shape:
            raise _mismatch(name, key, tuple(found[key].shape), str(shape), "its configuration says otherwise")
        if not bool(found[key].isfinite().all()):
            raise _unsupported(name, key, "NaN or infinite", "a feature would be no number", allowed="finite numbers")
    return {key: tensor.float() for key, tensor in found.items()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256((path / SAE_CONFIGURATION).read_bytes())
    with (path / SAE_WEIGHTS).open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _unsupported(name: str, field: str, value: object, why: str, allowed: object = None) -> BadRequest:
    return BadRequest(
        f"SAE {name!r} cannot be used: {field} is {value}: {why}",
        reason="SAE_UNSUPPORTED",
        field=field,
        value=value,
        allowed=allowed,
    )


def _mismatch(name: str, field: str, value: object, allowed: object, why: str) -> BadRequest:
    return BadRequest(
        f"SAE {name!r} does not fit: its {field} is {value}, and {why}",
        reason="SAE_MISMATCH",
        field=field,
        value=str(value),
        allowed=allowed,
    )
