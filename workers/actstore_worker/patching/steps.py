"""How a sweep is computed: it asks for patched runs, slice by slice, and is sent their logits.

So whoever runs them may put slices of several sweeps into one batch, let others go first, or stop in between.
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

# How many token-layers the next slice may cost; a slice has one patched run at least.
Budget = Callable[[], float]


@dataclass(frozen=True)
class Work:
    """Patched runs that are wanted next, by that kernel. All bases have the same number of tokens."""

    patches: Sequence[Patch]
    kernel: Kernel


@dataclass(frozen=True)
class Ran:
    """Work that is done, and the token-layers that were computed for it."""

    logits: Logits
    token_layers: float


# Each Work is answered by what it gave, and what else is handed out by None.
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
    """Everything that steps hand out but their work, which is run at once."""
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
