"""`actstore.json` next to an SAE's weights: facts that its own files do not contain, written by a user."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from actstore_storage.format.sites import Site
from actstore_worker.sae.refusals import unsupported
from actstore_worker.sae.sites import hook_site
from actstore_worker.sae.tensors import read_json

# Processing of the weights of an SAE's model (named as in TransformerLens) that an SAE can be adapted to.
ADAPTATIONS = ("center_writing_weights", "fold_ln", "fold_value_biases", "refactor_factored_attn_matrices")


@dataclass(frozen=True)
class Sidecar:
    """The contents of `actstore.json`. Missing fields are taken from the SAE's own files."""

    # The site that it reads, and for a transcoder the site that it predicts; overrides its files and folders.
    site: Site | None = None
    output_site: Site | None = None
    model: str = ""
    # Values of ADAPTATIONS: processing that its model had. The SAE is adapted to a model without it, where possible.
    adapt: tuple[str, ...] = ()
    # SAELens's term: the factor of activations in training, so that their average norm was sqrt(d_in).
    norm_scaling_factor: float | None = None


def read_sidecar(path: Path | None, name: str) -> Sidecar:
    """Reads a sidecar, if there is one. Errors: BadRequest SAE_UNSUPPORTED or SAE_MISMATCH for invalid contents."""
    if path is None:
        return Sidecar()
    found = read_json(path, name)
    known = [field.name for field in fields(Sidecar)]
    if unknown := sorted(found.keys() - set(known)):
        raise unsupported(name, f"{path.name}: {unknown[0]}", found[unknown[0]], "this field is unknown", allowed=known)
    return Sidecar(
        site=_site(found, "site", name),
        output_site=_site(found, "output_site", name),
        model=str(found.get("model", "")),
        adapt=_adapt(found.get("adapt", []), name),
        norm_scaling_factor=_factor(found.get("norm_scaling_factor"), name),
    )


def _site(found: Mapping[str, Any], field: str, name: str) -> Site | None:
    return hook_site(str(found[field]), name, field) if field in found else None


def _adapt(found: object, name: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not set(found) <= set(ADAPTATIONS):
        raise unsupported(name, "adapt", found, "it must be a list of supported adaptations", allowed=ADAPTATIONS)
    return tuple(found)


def _factor(found: object, name: str) -> float | None:
    if found is None:
        return None
    if not isinstance(found, int | float) or not 0 < found < float("inf"):
        raise unsupported(name, "norm_scaling_factor", found, "it is not a valid factor", allowed="a number above 0")
    return float(found)
