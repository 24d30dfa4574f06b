"""From what is asked on a command line to the trainings that it means: lists of widths and sparsities are a sweep."""

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
class Sweep:
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


def trainings(bucket: Bucket, sweep: Sweep) -> list[Training]:
    """One for each width and sparsity, each under a name of its own. Errors: BadRequest, before any is begun."""
    snapshot = open_run(bucket, sweep.run)
    site = check_rows(snapshot, sweep.site)
    sparsities = _sparsities(sweep)
    pairs = list(product(sweep.widths, sparsities))
    if not 1 <= len(set(pairs)) == len(pairs) <= TRAININGS_MAX:
        message = f"{len(sweep.widths)} widths and {len(sparsities)} sparsities are no sweep"
        raise BadRequest(message, field="width", value=len(pairs), allowed=f"1 to {TRAININGS_MAX} different pairs")
    return [
        Training(
            name=_name(sweep, width, sparsity, len(pairs) > 1),
            run=sweep.run,
            specification_sha256=snapshot.record.specification_sha256,
            site=str(site),
            architecture=sweep.architecture,
            width=width,
            sparsity=sparsity,
            rows=snapshot.record.tokens_total if sweep.rows is None else sweep.rows,
            **sweep.options or {},
        )
        for width, sparsity in pairs
    ]


def _sparsities(sweep: Sweep) -> Sequence[float]:
    if sweep.architecture not in SPARSITY:
        message = f"architecture {sweep.architecture!r} is not known"
        raise BadRequest(message, field="architecture", value=sweep.architecture, allowed=SPARSITY)
    kind = SPARSITY[sweep.architecture]
    for name, values in sweep.sparsities.items():
        if values and name != kind:
            message = f"{name} does not apply to {sweep.architecture}"
            raise BadRequest(message, field=name, value=list(values), allowed=f"{kind}, or another architecture")
    return sweep.sparsities.get(kind) or [DEFAULT_SPARSITY[sweep.architecture]]


def _name(sweep: Sweep, width: int, sparsity: float, several: bool) -> str:
    """`<run>-<site>-<architecture>`, unless another is given, and what tells a sweep's SAEs apart."""
    name = sweep.name or f"{sweep.run}-{sweep.site}-{sweep.architecture}"
    if sweep.name and not several:
        return name
    return f"{name}-w{width}-{SPARSITY[sweep.architecture]}{sparsity:g}"
