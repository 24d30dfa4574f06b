"""A sweep's check of itself: random cells once more by the whole model, and runs in which nothing is replaced."""

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from actstore_storage.errors import ActstoreError
from actstore_worker.model import LanguageModel
from actstore_worker.patching.kernel import Kernel, Patch
from actstore_worker.patching.steps import Logits, Work, patched

# Largest error of a logit, as a share of the largest of base and source run: sums come out in another order.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
_SEED = 0


@dataclass(frozen=True)
class Audit:
    """The fields of proto SweepAudit. Errors are in a logit, the largest over the vocabulary."""

    audited_cells: int
    largest_error: float
    noise_floor: float
    tolerance: float
    kernel: str
    token_layers: float
    token_layers_full: float
    rank_agreement: float | None


class Auditor:
    """Sees every slice; of each, looks at up to `cells_per_slice` cells again.

    Errors of `see`: ActstoreError AUDIT_FAILED for an error above the tolerance.
    """

    def __init__(self, model: LanguageModel, cells_per_slice: int) -> None:
        self._cells_per_slice = cells_per_slice
        self._share = TOLERANCE[model.dtype]
        # The same sweep is checked in the same places: a failure can be looked at.
        self._random = random.Random(_SEED)  # noqa: S311
        self._audited, self._error, self._noise, self._tolerance = 0, 0.0, 0.0, 0.0

    def see(
        self,
        patches: Sequence[Patch],
        logits: Float[Tensor, "patch vocabulary"],
        control: Float[Tensor, " vocabulary"],
    ) -> Generator[Work, Logits | None, None]:
        """`control`: logits of a run in which nothing was replaced."""
        base, source = patches[0].base.logits, patches[0].source.logits
        tolerance = self._share * float(torch.cat([base, source]).abs().max())
        self._tolerance = max(self._tolerance, tolerance)
        self._noise = max(self._noise, _distance(control, base))
        chosen = sorted(self._random.sample(range(len(patches)), min(self._cells_per_slice, len(patches))))
        expected = yield from patched([patches[i] for i in chosen], whole=True)
        errors = [_distance(logits[i], found) for i, found in zip(chosen, expected, strict=True)]
        self._audited += len(chosen)
        self._error = max(self._error, *errors)
        worst = max(*errors, self._noise)
        if not worst <= tolerance:  # also where it is no number
            place = patches[chosen[errors.index(max(errors))]].cells
            raise ActstoreError(
                "patched runs of this model are not what the whole model makes of the same prompts: a logit differs by "
                f"{worst:.3g}, and at most {tolerance:.3g} is rounding (looked at: {', '.join(map(str, place))})",
                reason="AUDIT_FAILED",
                field="audit",
                value=f"{worst:.3g}",
                allowed=f"at most {tolerance:.3g}",
            )

    def verdict(self, kernel: Kernel, rank_agreement: float | None) -> Audit:
        count = kernel.count
        return Audit(
            audited_cells=self._audited,
            largest_error=self._error,
            noise_floor=self._noise,
            tolerance=self._tolerance,
            kernel=kernel.name,
            token_layers=count.computed,
            token_layers_full=count.full,
            rank_agreement=rank_agreement,
        )


def _distance(found: Float[Tensor, " vocabulary"], expected: Float[Tensor, " vocabulary"]) -> float:
    return float(torch.nan_to_num(found - expected, nan=torch.inf).abs().max())
