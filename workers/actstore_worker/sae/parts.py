"""Builds an autoencoder from what a format's reader found: checked, in float32, with every scale folded in.

Readers only name and transpose tensors. All arithmetic that several formats need is here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from actstore_storage.format.sites import RESIDUAL_KINDS, Site
from actstore_worker.sae.autoencoder import ARCHITECTURES, SparseAutoencoder, TopKSae
from actstore_worker.sae.files import SIDECAR
from actstore_worker.sae.refusals import mismatch, unsupported
from actstore_worker.sae.sidecar import Sidecar

CLAIMS = ("l0", "fvu", "dead_share", "loss_recovered")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# SAELens's lower bound for the norm of a decoder row.
NORM_MIN = 1e-8
# The site kinds at which an SAE can be adapted to a model with unprocessed weights. Folding a LayerNorm's gain moves it
# into the weights that read after it: the residual, and the outputs of heads and MLP, do not change. Folding value
# biases and refactoring heads changes only z. Centering subtracts the mean over d_model from everything that is
# written.
_NO_INPUT = (*RESIDUAL_KINDS, "z")
ADAPTABLE: Mapping[str, tuple[str, ...]] = {
    "center_writing_weights": (*_NO_INPUT, "mlp_input"),
    "fold_ln": _NO_INPUT,
    "fold_value_biases": (*RESIDUAL_KINDS, "mlp_input"),
    "refactor_factored_attn_matrices": (*RESIDUAL_KINDS, "mlp_input"),
}


@dataclass(frozen=True)
class SaeParts:
    """What a reader found. `tensors` are as in SparseAutoencoder, in any float dtype; `sizes` is (d_in, d_sae, d_out)
    from the configuration, None if only the tensors show it.
    """

    architecture: str
    tensors: Mapping[str, Tensor]
    sizes: tuple[int | None, int | None, int | None] = (None, None, None)
    # None: the files do not say.
    site: Site | None = None
    # None: for an autoencoder the site itself; for a transcoder the files do not say.
    output_site: Site | None = None
    is_transcoder: bool = False
    # Whether a transcoder also writes a linear function of its input. None: as the presence of W_skip shows.
    skips: bool | None = None
    model: str = ""
    normalisation: str = "none"
    subtracts_b_dec: bool = False
    # For TopK: the value in the file, whether or not it is a number.
    k: Any = None
    # Activations are scaled by the norms of the decoder's rows, which then count as 1.
    scales_by_decoder_norm: bool = False
    # The factors of activations in training, for the input and for the predicted output.
    scales: tuple[float, float] = (1.0, 1.0)
    # The option that says that there was a factor, if its value is unknown; else "".
    unknown_scale: str = ""
    # Which of ADAPTABLE were applied to its model's weights.
    processing: tuple[str, ...] = ()
    claims: Mapping[str, float] = field(default_factory=dict)


def assemble(parts: SaeParts, sidecar: Sidecar, name: str, sha256: str, format_name: str) -> SparseAutoencoder:
    """Builds the autoencoder from what a reader found and from the sidecar.

    Errors: BadRequest SAE_UNSUPPORTED or SAE_MISMATCH, with field, value and what is allowed.
    """
    kind = ARCHITECTURES[parts.architecture]
    tensors = _checked(parts, kind, name)
    site, output_site = _sites(parts, sidecar, name)
    normalisation = _adapted(parts, sidecar, site, name)
    tensors = _scaled(tensors, *_scales(parts, sidecar, name))
    if parts.scales_by_decoder_norm:
        tensors = _norms_folded(tensors)
    d_in, d_sae = tensors["W_enc"].shape
    extra = {"k": _checked_k(parts.k, d_sae, name)} if kind is TopKSae else {}
    return kind(
        name=name,
        sha256=sha256,
        format=format_name,
        site=site,
        output_site=output_site,
        d_in=d_in,
        d_sae=d_sae,
        d_out=tensors["W_dec"].shape[1],
        model=sidecar.model or parts.model,
        normalisation=normalisation,
        subtracts_b_dec=parts.subtracts_b_dec,
        claims={key: float(parts.claims[key]) for key in CLAIMS if key in parts.claims},
        tensors=tensors,
        **extra,
    )


def _checked(parts: SaeParts, kind: type[SparseAutoencoder], name: str) -> dict[str, Float[Tensor, "..."]]:
    d_in, d_sae, d_out = _sizes(parts, name)
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)} | dict.fromkeys(kind.biases, (d_sae,))
    if "W_skip" in parts.tensors and parts.is_transcoder:
        shapes["W_skip"] = (d_in, d_out)
    if parts.skips not in (None, "W_skip" in parts.tensors):
        said, there = ("has a", "do not") if parts.skips else ("has no", "do")
        why = f"its configuration {said} skip connection, but its tensors {there}"
        raise unsupported(name, "W_skip", sorted(parts.tensors), why, allowed=sorted(shapes))
    if parts.tensors.keys() != shapes.keys():
        why = f"an SAE of architecture {kind.architecture} needs other tensors"
        raise unsupported(name, "tensors", sorted(parts.tensors), why, allowed=sorted(shapes))
    for key, shape in shapes.items():
        tensor = parts.tensors[key]
        if not isinstance(tensor, Tensor):
            raise unsupported(name, key, type(tensor).__name__, "it is not a tensor", allowed=str(shape))
        if tensor.dtype not in _FLOATS:
            why = "quantized values cannot be read without their scale, which the file does not have"
            raise unsupported(name, key, tensor.dtype, why, allowed=_FLOATS)
        if tuple(tensor.shape) != shape:
            raise mismatch(
                name, key, tuple(tensor.shape), str(shape), "its other tensors or its configuration need another shape"
            )
        if not bool(tensor.isfinite().all()):
            raise unsupported(name, key, "NaN or infinite", "features would not be numbers", allowed="finite numbers")
    return {key: parts.tensors[key].float().contiguous() for key in shapes}


def _sizes(parts: SaeParts, name: str) -> tuple[int, int, int]:
    """From the configuration, else from the matrices."""
    for key in ("W_enc", "W_dec"):
        if not isinstance(parts.tensors.get(key), Tensor) or parts.tensors[key].ndim != 2:
            raise unsupported(name, key, sorted(parts.tensors), "the matrix is missing", allowed="a matrix")
    found = (*parts.tensors["W_enc"].shape, parts.tensors["W_dec"].shape[1])
    sizes = tuple(actual if stated is None else stated for stated, actual in zip(parts.sizes, found, strict=True))
    if min(sizes) < 1:
        raise unsupported(name, "d_in, d_sae, d_out", sizes, "it has no features", allowed="at least 1")
    return sizes[0], sizes[1], sizes[2]


def _checked_k(k: Any, d_sae: int, name: str) -> int:
    if type(k) is not int or not 1 <= k <= d_sae:
        raise unsupported(name, "k", k, "it is not a valid number of features", allowed=f"1..{d_sae}")
    return k


def _sites(parts: SaeParts, sidecar: Sidecar, name: str) -> tuple[Site, Site]:
    """The sidecar takes precedence, because someone wrote it for this SAE."""
    site, output_site = sidecar.site or parts.site, sidecar.output_site or parts.output_site
    if site is None:
        why = f"neither its files nor its folders name its site; give the site in {SIDECAR} in the same folder"
        raise unsupported(name, "site", None, why, allowed='{"site": "resid_post.3"}')
    if output_site in (None, site) and parts.is_transcoder:
        why = f"it is a transcoder, and its files do not name the site that it predicts; give it in {SIDECAR}"
        raise unsupported(name, "output_site", output_site, why, allowed='{"output_site": "mlp_out.3"}')
    if output_site not in (None, site) and parts.subtracts_b_dec:
        why = "it subtracts its output bias from its input, so it cannot be a transcoder"
        raise unsupported(name, "output_site", output_site, why, allowed=str(site))
    return site, output_site or site


def _adapted(parts: SaeParts, sidecar: Sidecar, site: Site, name: str) -> str:
    """The normalization, including what compensates for the processing of weights that its model had and
    ours has not.
    """
    for done in parts.processing:
        if done not in sidecar.adapt:
            why = (
                "it was trained on weights processed this way, but actstore runs the original weights; adapt it in "
                f"{SIDECAR}"
            )
            raise unsupported(name, done, True, why, allowed=f'{{"adapt": ["{done}"]}}')
    for done in sidecar.adapt:
        if site.kind not in ADAPTABLE[done]:
            raise unsupported(name, done, site, "it cannot be adapted at that site", allowed=ADAPTABLE[done])
    if "center_writing_weights" not in sidecar.adapt or site.kind not in RESIDUAL_KINDS:
        return parts.normalisation  # heads and norms read the same from a residual with and without its mean
    if parts.normalisation == "constant_norm_rescale":
        why = "its rows are rescaled by a norm that would include the mean"
        raise unsupported(name, "center_writing_weights", parts.normalisation, why, allowed=("none", "layer_norm"))
    return "centred" if parts.normalisation == "none" else parts.normalisation


def _scales(parts: SaeParts, sidecar: Sidecar, name: str) -> tuple[float, float]:
    stated = sidecar.norm_scaling_factor
    if not parts.unknown_scale and stated is not None:
        why = "its files already contain the scale, so it would be scaled twice"
        raise unsupported(name, "norm_scaling_factor", stated, why, allowed="none")
    if parts.unknown_scale and stated is None:
        # SAELens ignores expected_average_only_in at inference: it assumes that the scale was folded in.
        why = f"activations were scaled in training, and its files do not contain the factor; give it in {SIDECAR}"
        raise unsupported(name, parts.unknown_scale, None, why, allowed='{"norm_scaling_factor": FACTOR}')
    return parts.scales if stated is None else (stated, stated)


def _scaled(tensors: dict[str, Tensor], scale_in: float, scale_out: float) -> dict[str, Tensor]:
    """(x * in) @ W_enc and (acts @ W_dec + b_dec) / out, written as weights. If b_dec is also subtracted from the
    input, in and out are equal, and x * s - b_dec is s * (x - b_dec / s).
    """
    if (scale_in, scale_out) == (1.0, 1.0):
        return tensors
    scaled = {key: tensors[key] / scale_out for key in ("W_dec", "b_dec")} | {"W_enc": tensors["W_enc"] * scale_in}
    if "W_skip" in tensors:
        scaled["W_skip"] = tensors["W_skip"] * (scale_in / scale_out)
    return tensors | scaled


def _norms_folded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As SAELens's fold_W_dec_norm. A row of norm 0 becomes a feature that never fires."""
    norms = torch.linalg.vector_norm(tensors["W_dec"], dim=-1).clamp(min=NORM_MIN)
    return tensors | {
        "W_enc": tensors["W_enc"] * norms,
        "b_enc": tensors["b_enc"] * norms,
        "W_dec": tensors["W_dec"] / norms[:, None],
    }
