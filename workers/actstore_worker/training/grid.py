"""From what is asked on a command line to the trainings that it means: lists of widths and sparsities are a grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_storage.runs.opening import open_run
from actstore_worker.training.recipe import SPARSITY, Training, check_rows

# Where nothing is said, per architecture: what SAELens and the papers behind its classes begin with.
DEFAULT_SPARSITY: Mapping[str, float] = {"standard": 5.0, "gated": 1.0, "topk": 32, "batchtopk": 32, "jumprelu": 1.0}
TRAININGS_MAX = 256


@dataclass(frozen=True)
class Grid:
    """`sparsities` by kind: k, l1 or l0. `rows` None: as many as the run has tokens. `options`: others of Training's
    fields, as they are.
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
    """One for each width and sparsity, each under a name of its own. Errors: BadRequest, before any is begun."""
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
    """`<run>-<site>-<architecture>`, unless another is given, and what tells a sweep's SAEs apart."""
    name = grid.name or f"{grid.run}-{grid.site}-{grid.architecture}"
    if grid.name and not several:
        return name
    return f"{name}-w{width}-{SPARSITY[grid.architecture]}{sparsity:g}"
