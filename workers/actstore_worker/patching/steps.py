"""Computes a sweep in steps: a generator yields patched runs, slice by slice, and receives their logits.

So the code that runs them can put slices of several sweeps into one batch, let other work go first, or stop in between.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from actstore_worker.patching.kernels.full import Kernel, Patch

Logits = Float[Tensor, "patch vocabulary"]
Update = TypeVar("Update")
Result = TypeVar("Result")

# Returns how many token-layers the next slice may cost. A slice has at least one patched run.
Budget = Callable[[], float]


@dataclass(frozen=True)
class Work:
    """Patched runs that a sweep needs next, and their kernel. All bases have the same number of tokens."""

    patches: Sequence[Patch]
    kernel: Kernel


@dataclass(frozen=True)
class Ran:
    """Finished work, and the token-layers that were computed for it."""

    logits: Logits
    token_layers: float


# Each Work is answered with its result, every other yielded value with None.
Steps = Generator[Work | Update, Ran | None, Result]
Asking = Generator[Work, Ran | None, Result]


def unlimited() -> float:
    return math.inf


def patched(patches: Sequence[Patch], kernel: Kernel) -> Asking[Ran]:
    ran = yield Work(patches, kernel)
    assert ran is not None  # noqa: S101  by whoever runs the work
    return ran


def run_work(work: Work) -> Ran:
    before = work.kernel.count.computed
    logits = work.kernel.run(work.patches)
    return Ran(logits, work.kernel.count.computed - before)


def drive(steps: Steps[Update, None]) -> Iterator[Update]:
    """Runs all work at once, and yields everything else."""
    ran: Ran | None = None
    while True:
        try:
            step = steps.send(ran)
        except StopIteration:
            return
        if isinstance(step, Work):
            ran = run_work(step)
        else:
            ran = None
            yield step
