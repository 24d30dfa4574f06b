"""Tests whether norms grow independently over depth and over training: whether they are the product of two factors.

If a norm is f(layer) g(checkpoint), each checkpoint has the same growth over depth and each layer the same growth over
training, so either axis can be described without the other. Otherwise a rate over one axis is valid only at one place
on the other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actstore_storage.errors import BadRequest
from actstore_storage.format.norm_columns import L2
from actstore_storage.norms.growth import chosen_layers, mean_norms
from actstore_storage.norms.revisions import in_order, warnings_of
from actstore_storage.norms.rows import DEFAULT_KEPT, KeptTokens
from actstore_storage.norms.sequence_sums import Measured
from actstore_storage.norms.sites import check_all_have
from actstore_storage.runs.snapshot import Snapshot

Norms = NDArray[np.float64]  # [layer, checkpoint]

AXIS_MIN = 2
SEPARABLE, PARTLY, INSEPARABLE = "separable", "partly", "inseparable"
# A product of two factors that is typically off by less than this factor describes the norms.
MISS_LEAST = 1.05
# The axes are not independent if the interaction is at least this fraction of what the weaker axis explains.
INTERACTION_LEAST = 0.25


@dataclass(frozen=True)
class AxisShares:
    """A two-way analysis of variance without replication: log(norm) = mean + a_layer + b_checkpoint + residual.

    Means over rows and columns are its least-squares solution, so squares add up: `layer`, `checkpoint` and
    `interaction` are fractions of all squares about the mean, and `explained` is the sum of the first two (1, and the
    fractions 0, if the norms do not vary). `miss` is exp of the root mean square residual: the factor by which the
    product is typically off. `rank_one` is the first squared singular value of the norms divided by the sum of all;
    exactly 1 for a product, and near 1 for most tables of positive numbers.
    """

    layer: float
    checkpoint: float
    interaction: float
    explained: float
    rank_one: float
    miss: float
    verdict: str
    fitted: Norms = field(compare=False)  # exp(mean + a_layer + b_checkpoint)


@dataclass(frozen=True)
class Separability:
    """`cells` has columns layer, revision, step, mean, fitted, and factor: the mean divided by the fitted product.

    `warnings` as revisions.warnings_of.
    """

    site: str
    quantity: str
    shares: AxisShares
    cells: pa.Table
    warnings: tuple[str, ...]


def axis_shares(norms: Norms) -> AxisShares:
    """Computes the analysis. The verdict is

    - separable: the product of the two factors is typically off by less than MISS_LEAST;
    - inseparable: it is off by more, and the interaction is at least INTERACTION_LEAST of what the weaker axis
      explains;
    - partly: it is off by more, and the interaction is smaller.

    A high explained share is not enough: if norms grow sixtyfold over training, that axis alone explains nearly all of
    any table. The residual includes the random error of the sample of text.

    Errors: BadRequest for fewer than two layers or checkpoints, or norms that have no logarithm.
    """
    _check(norms)
    logs = np.log(norms)
    about = logs - logs.mean()
    of_layer, of_checkpoint = about.mean(axis=1, keepdims=True), about.mean(axis=0, keepdims=True)
    left = about - of_layer - of_checkpoint
    squares = [float((part**2).sum()) for part in np.broadcast_arrays(of_layer, of_checkpoint, left)]
    miss = math.exp(math.sqrt(squares[2] / logs.size))
    total = sum(squares) if np.ptp(norms) > 0 else 0.0
    shares = [square / total if total else 0.0 for square in squares]
    singular = np.linalg.svd(norms / norms.max(), compute_uv=False) ** 2
    return AxisShares(
        layer=shares[0],
        checkpoint=shares[1],
        interaction=shares[2],
        explained=1.0 - shares[2],
        rank_one=float(singular[0] / singular.sum()),
        miss=miss,
        verdict=_verdict(miss, squares),
        fitted=np.exp(logs.mean() + of_layer + of_checkpoint),
    )


def separability(
    snapshots: Sequence[Snapshot],
    *,
    site: str = "resid_post",
    layers: tuple[int, int] | None = None,
    steps: Sequence[float] = (),
    kept: KeptTokens = DEFAULT_KEPT,
    quantity: str = L2,
) -> Separability:
    """Analyzes a site kind over runs of the same text at several revisions of a model, from the commits' statistics
    only, except without position 0.

    `layers`: the first and last, both included; at least two, and two runs. `steps` as in `in_order`.
    """
    ordered, at = in_order(snapshots, steps, least=AXIS_MIN)
    places = chosen_layers(ordered[0], site, layers, quantity, AXIS_MIN)
    check_all_have(ordered, places, quantity)
    measured = Measured(places, quantity, kept)
    norms = np.stack([mean_norms(snapshot, measured) for snapshot in ordered], axis=1)
    found = axis_shares(norms)
    revisions = [snapshot.record.specification.model_revision for snapshot in ordered]
    cells = {
        "layer": pa.array(np.repeat([place.layer for place in places], len(ordered)), pa.int32()),
        "revision": pa.array(revisions * len(places), pa.string()),
        "step": pa.array(np.tile(at, len(places))),
        "mean": pa.array(norms.ravel()),
        "fitted": pa.array(found.fitted.ravel()),
        "factor": pa.array((norms / found.fitted).ravel()),
    }
    return Separability(site, quantity, found, pa.table(cells), warnings_of(ordered, sinks="sink" in kept.exclude))


def _verdict(miss: float, squares: Sequence[float]) -> str:
    if miss < MISS_LEAST:
        return SEPARABLE
    return INSEPARABLE if squares[2] >= INTERACTION_LEAST * min(squares[:2]) else PARTLY


def _check(norms: Norms) -> None:
    for name, size in zip(("layers", "runs"), norms.shape, strict=True):
        if size < AXIS_MIN:
            message = f"{size} {name} are too few to separate layer from checkpoint"
            raise BadRequest(message, field=name, value=size, allowed=f"at least {AXIS_MIN}")
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise BadRequest("norms must be above 0", field="norms", value=float(norms.min()), allowed="numbers above 0")
