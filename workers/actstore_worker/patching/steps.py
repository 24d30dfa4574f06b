"""How a sweep is computed: it asks for patched runs, slice by slice, and is sent their logits.

So whoever runs them may put slices of several sweeps into one batch, let others go first, or stop in between.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from actstore_worker.model import LanguageModel
from actstore_worker.patching.kernel import FullForward, Kernel, Patch

Logits = Float[Tensor, "patch vocabulary"]
Update = TypeVar("Update")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Work:
    """Patched runs that are wanted next. All bases have the same number of tokens. With `whole` they are run by the
    whole model over the whole prompt: what others are checked against.
    """

    patches: Sequence[Patch]
    whole: bool = False


# Each Work is answered by its logits, and what else is handed out by None.
Steps = Generator[Work | Update, Logits | None, Result]


def patched(patches: Sequence[Patch], *, whole: bool = False) -> Generator[Work, Logits | None, Logits]:
    """The logits of those runs."""
    logits = yield Work(patches, whole)
    assert logits is not None  # noqa: S101  by whoever runs the work
    return logits


def drive(model: LanguageModel, kernel: Kernel, steps: Steps[Update, None]) -> Iterator[Update]:
    """Everything that steps hand out but their work, which is run at once."""
    slow, logits = FullForward(model), None
    while True:
        try:
            step = steps.send(logits)
        except StopIteration:
            return
        if isinstance(step, Work):
            logits = (slow if step.whole else kernel).run(step.patches)
        else:
            logits = None
            yield step
