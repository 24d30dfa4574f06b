"""Quality figures in an SAE's own files, for comparison with measurements."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actstore_worker.sae.files import QUALITY, SPARSITY
from actstore_worker.sae.parts import CLAIMS
from actstore_worker.sae.refusals import unsupported
from actstore_worker.sae.tensors import read_json, read_tensors

# SAELens's sparsity file has log10 of how often each feature fires, after adding 1e-10: a feature below this never
# fires.
_LOG_NEVER = -9.9


def read_claims(folder: Path, name: str, metadata: Mapping[str, Any], d_sae: int) -> dict[str, float]:
    """Reads them from quality.json, else from the configuration's metadata, else from SAELens's sparsity file."""
    stated: dict[str, Any] = _from_sparsity(folder / SPARSITY, name)
    stated |= {key: metadata[key] for key in CLAIMS if isinstance(metadata.get(key), int | float)}
    if isinstance(metadata.get("num_dead_features"), int):
        stated["dead_share"] = metadata["num_dead_features"] / d_sae
    if (folder / QUALITY).is_file():
        stated |= read_json(folder / QUALITY, name)
    claims = {key: float(stated[key]) for key in CLAIMS if isinstance(stated.get(key), int | float)}
    for key, claim in claims.items():
        if not math.isfinite(claim):
            raise unsupported(name, key, claim, "nothing could be compared with it", allowed="a finite number")
    return claims


def _from_sparsity(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        return {}
    logarithms = read_tensors(path, name)["sparsity"].double()
    fires = logarithms > _LOG_NEVER
    return {"l0": float((10**logarithms * fires).sum()), "dead_share": 1 - float(fires.double().mean())}
