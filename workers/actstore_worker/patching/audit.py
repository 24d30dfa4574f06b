"""The audit of a sweep: recomputes random cells by full forward passes, and runs the model with nothing patched."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from actstore_api.records.patching import SweepAudit
from actstore_storage.errors import ActstoreError
from actstore_worker.patching.kernels.full import Kernel, Patch
from actstore_worker.patching.steps import Asking, Budget, Logits, patched
from actstore_worker.patching.updates import Checked

# The largest allowed logit error, as a share of the largest logit of base and source run. Rounding depends on the order
# of summation.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
# Token-layers are rounded, because their sum would otherwise depend on how the sweep was cut into slices.
TOKEN_LAYER_DECIMALS = 6
_SEED = 0


@dataclass(frozen=True)
class Chosen:
    """The rows of a grid that are recomputed, and the rows next to which a run with nothing patched is computed."""

    audited: frozenset[int]
    controls: frozenset[int]


def choose_checks(wanted: npt.NDArray[np.intp], stretch: int, cells: int, leg: str) -> Chosen:
    """Chooses, from each `stretch` of rows that are run, up to `cells` rows to recompute and one control, however rows
    are cut into slices.

    The choice is the same each time a sweep runs, so a failure can be reproduced. `leg` is the pair and direction.
    """
    audited: set[int] = set()
    parts = [wanted[first : first + stretch].tolist() for first in range(0, len(wanted), stretch)]
    for number, part in enumerate(parts):
        draw = random.Random(f"{_SEED} {leg} {number}")  # noqa: S311
        audited.update(draw.sample(part, min(cells, len(part))))
    return Chosen(frozenset(audited), frozenset(part[0] for part in parts))


class Auditor:
    """Checks every slice of a sweep against `slow`, the reference kernel."""

    def __init__(self, slow: Kernel, dtype: str, budget: Budget, checked: Checked) -> None:
        self._slow, self._share, self._budget = slow, TOLERANCE[dtype], budget
        self.checked = checked

    def count(self, token_layers: float, full: float) -> None:
        computed, before = self.checked.token_layers + token_layers, self.checked.token_layers_full
        self.checked = replace(self.checked, token_layers=computed, token_layers_full=before + full)

    def see(
        self,
        patches: Sequence[Patch],
        logits: Logits,
        audited: Sequence[int],
        control: Float[Tensor, " vocabulary"] | None,
    ) -> Asking[None]:
        """Recomputes the audited patches. `control`: logits of a run with nothing patched.

        Errors: ActstoreError AUDIT_FAILED for an error above the tolerance.
        """
        base, source = patches[0].base.logits, patches[0].source.logits
        tolerance = self._share * float(torch.cat([base, source]).abs().max())
        noise = 0.0 if control is None else _distance(control, base)
        errors = yield from self._errors(patches, logits, audited)
        before = self.checked
        self.checked = replace(
            before,
            audited_cells=before.audited_cells + len(audited),
            largest_error=max(before.largest_error, *errors, 0.0),
            noise_floor=max(before.noise_floor, noise),
            tolerance=max(before.tolerance, tolerance),
        )
        if not max(*errors, noise, 0.0) <= tolerance:
            worst = patches[audited[errors.index(max(errors))]] if max(errors, default=0.0) >= noise else None
            _fail(max(*errors, noise, 0.0), tolerance, worst)

    def _errors(self, patches: Sequence[Patch], logits: Logits, audited: Sequence[int]) -> Asking[list[float]]:
        errors: list[float] = []
        while len(errors) < len(audited):
            price = self._slow.price(patches[0].cells, len(patches[0].base.tokens))
            part = audited[len(errors) :][: max(1, int(min(self._budget() / price, len(audited))))]
            ran = yield from patched([patches[i] for i in part], self._slow)
            errors += [_distance(logits[i], found) for i, found in zip(part, ran.logits, strict=True)]
        return errors

    def verdict(self, kernel: Kernel, rank_agreement: float | None) -> SweepAudit:
        counted = replace(self.checked, token_layers=round(self.checked.token_layers, TOKEN_LAYER_DECIMALS))
        return SweepAudit(**asdict(counted), kernel=kernel.name, rank_agreement=rank_agreement)


def _fail(worst: float, tolerance: float, patch: Patch | None) -> None:
    place = "a run with nothing patched" if patch is None else ", ".join(map(str, patch.cells))
    raise ActstoreError(
        "the sweep's audit failed: a logit of a partial forward pass differs from that of a full one by "
        f"{worst:.3g}, but rounding explains at most {tolerance:.3g} (checked: {place})",
        reason="AUDIT_FAILED",
        field="audit",
        value=f"{worst:.3g}",
        allowed=f"at most {tolerance:.3g}",
    )


def _distance(found: Float[Tensor, " vocabulary"], expected: Float[Tensor, " vocabulary"]) -> float:
    """The largest absolute difference; infinite if a logit is not a number."""
    return float(torch.nan_to_num(found - expected, nan=torch.inf).abs().max())
