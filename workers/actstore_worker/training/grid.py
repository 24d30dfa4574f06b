"""Turns the arguments of a command line into trainings: lists of widths and sparsities form a grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_storage.runs.opening import open_run
from actstore_worker.training.recipe import SPARSITY, Training, check_rows

# Default sparsities by architecture: the defaults of SAELens and of the papers behind its classes.
DEFAULT_SPARSITY: Mapping[str, float] = {"standard": 5.0, "gated": 1.0, "topk": 32, "batchtopk": 32, "jumprelu": 1.0}
TRAININGS_MAX = 256


@dataclass(frozen=True)
class Grid:
    """The arguments. `sparsities` by kind: k, l1 or l0. `rows` None: as many as the run has tokens. `options`: other
    fields of Training, unchanged.
    """

    run: str
    site: str
    architecture: str
    widths: Sequence[int]
    sparsities: Mapping[str, Sequence[float]]
    name: str = ""
    rows: int | None = None
    options: Mapping[str, Any] | None = None


def trainings(bucket: Bucket, grid: Grid) -> list[Training]:
    """Returns one training for each width and sparsity, each with its own name. Errors: BadRequest, before any is
    started.
    """
    snapshot = open_run(bucket, grid.run)
    site = check_rows(snapshot, grid.site)
    sparsities = _sparsities(grid)
    pairs = list(product(grid.widths, sparsities))
    if not 1 <= len(set(pairs)) == len(pairs) <= TRAININGS_MAX:
        message = f"{len(grid.widths)} widths and {len(sparsities)} sparsities are not a valid grid"
        raise BadRequest(message, field="width", value=len(pairs), allowed=f"1 to {TRAININGS_MAX} different pairs")
    return [
        Training(
            name=_name(grid, width, sparsity, len(pairs) > 1),
            run=grid.run,
            specification_sha256=snapshot.record.specification_sha256,
            site=str(site),
            architecture=grid.architecture,
            width=width,
            sparsity=sparsity,
            rows=snapshot.record.tokens_total if grid.rows is None else grid.rows,
            **grid.options or {},
        )
        for width, sparsity in pairs
    ]


def _sparsities(grid: Grid) -> Sequence[float]:
    if grid.architecture not in SPARSITY:
        message = f"architecture {grid.architecture!r} is unknown"
        raise BadRequest(message, field="architecture", value=grid.architecture, allowed=SPARSITY)
    kind = SPARSITY[grid.architecture]
    for name, values in grid.sparsities.items():
        if values and name != kind:
            message = f"{name} does not apply to {grid.architecture}"
            raise BadRequest(message, field=name, value=list(values), allowed=f"{kind}, or another architecture")
    return grid.sparsities.get(kind) or [DEFAULT_SPARSITY[grid.architecture]]


def _name(grid: Grid, width: int, sparsity: float, several: bool) -> str:
    """`<run>-<site>-<architecture>`, unless another is given, and the values that distinguish the SAEs of a grid."""
    name = grid.name or f"{grid.run}-{grid.site}-{grid.architecture}"
    if grid.name and not several:
        return name
    return f"{name}-w{width}-{SPARSITY[grid.architecture]}{sparsity:g}"
