"""Finds features whose directions are similar, by the cosine of their decoder or encoder vectors."""

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from actstore_api.records.sae import FindNeighbors, FindNeighborsAnswer
from actstore_storage.errors import BadRequest
from actstore_worker.live.passes.checks import check_features, check_k
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.resources import Answers
from actstore_worker.provenance import live_provenance
from actstore_worker.sae.autoencoder import SparseAutoencoder

_SCHEMA = pa.schema([pa.field("feature", pa.int32(), nullable=False), pa.field("cosine", pa.float64(), nullable=False)])


def find_neighbors(sae: SparseAutoencoder, question: FindNeighbors, limits: LiveLimits) -> FindNeighborsAnswer:
    """Find the features whose directions are nearest, largest cosine first.

    A feature whose vector is zero has no direction, and is never a neighbor.

    Errors: BadRequest for a direction that is zero, has another width, or is not a number; FEATURE_OUT_OF_RANGE.
    """
    check_k(question.k, limits.neighbors)
    vectors: Tensor = getattr(sae, question.side)
    cosines = _cosines(vectors, _direction(sae, vectors, question))
    if isinstance(question.direction, int):
        cosines[question.direction] = torch.nan
    there = torch.nonzero(~cosines.isnan()).squeeze(-1)
    values, order = cosines[there].topk(min(question.k, len(there)))
    columns = [pa.array(there[order].tolist(), pa.int32()), pa.array(values.tolist(), pa.float64())]
    return FindNeighborsAnswer(pa.Table.from_arrays(columns, schema=_SCHEMA), live_provenance(None, sae))


def _cosines(vectors: Float[Tensor, "d_sae width"], direction: Float[Tensor, " width"]) -> Float[Tensor, " d_sae"]:
    """NaN for a vector of zeros."""
    lengths = torch.linalg.vector_norm(vectors, dim=-1)
    found: Tensor = (vectors @ (direction / torch.linalg.vector_norm(direction))) / lengths
    return found


def _direction(sae: SparseAutoencoder, vectors: Tensor, question: FindNeighbors) -> Float[Tensor, " width"]:
    asked = question.direction
    if isinstance(asked, int):
        check_features(sae, [asked])
        field, value, direction = "feature", str(asked), vectors[asked]
    else:
        field, value = "vector", f"{len(asked)} numbers"
        direction = torch.tensor(asked, dtype=vectors.dtype, device=vectors.device)
        if len(direction) != vectors.shape[1]:
            raise _refused(field, value, f"the {question.side} vectors of {sae.name!r} have {vectors.shape[1]}")
    if not bool(direction.isfinite().all()) or not bool(direction.any()):
        raise _refused(field, value, "a direction has finite numbers that are not all zero")
    return direction


def _refused(field: str, value: str, why: str) -> BadRequest:
    return BadRequest(f"{field} {value} gives no direction: {why}", field=field, value=value, allowed=why)


ANSWERS: Answers = {
    FindNeighbors: lambda given, question: find_neighbors(given.saes.get(question.sae), question, given.limits),
}
