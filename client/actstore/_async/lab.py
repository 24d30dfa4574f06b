"""The lab, asked without blocking the event loop."""

from types import TracebackType
from typing import Self

from actstore._async.questions import Questions
from actstore._async.runs import AsyncCapture, AsyncCaptures, AsyncCheckpoints, AsyncRun
from actstore._async.twins import Shown, Twin, at_once, awaited
from actstore._lab import Lab


class AsyncLab(Twin[Lab]):
    """A connection for asyncio, as `Lab`: `async with actstore.connect_async() as lab: run = await lab.run(name)`.

    Every method has the arguments and the docstring of `Lab`'s. What asks the service or the bucket is awaited; runs,
    captures and features that come back are awaited in the same way. If the awaiting task is cancelled, the service
    is told to stop.
    """

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab, Questions(lab.address))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels the questions that are under way, waits until their threads have ended, and closes the connection."""
        try:
            await self._questions.close()
        finally:
            self._blocking.close()

    address = Shown[str](Lab.address)
    closed = Shown[bool]()

    service_info = awaited(Lab.service_info)
    models = awaited(Lab.models)
    saes = awaited(Lab.saes)
    datasets = awaited(Lab.datasets)
    runs = awaited(Lab.runs)
    captures = awaited(Lab.captures)

    run = awaited(Lab.run, AsyncRun)
    checkpoints = awaited(Lab.checkpoints, AsyncCheckpoints)
    check = awaited(Lab.check)
    remove = awaited(Lab.remove)

    capture = awaited(Lab.capture, AsyncCapture)
    capture_revisions = awaited(Lab.capture_revisions, AsyncCaptures)
    estimate_capture = awaited(Lab.estimate_capture)
    attach = at_once(Lab.attach, AsyncCapture)

    weights = awaited(Lab.weights)

    patch = awaited(Lab.patch, lasting=True)
    estimate_patch = awaited(Lab.estimate_patch)
    compare_tokens = awaited(Lab.compare_tokens)

    tokens = awaited(Lab.tokens)
    attention = awaited(Lab.attention)
    induction_scores = awaited(Lab.induction_scores)
    logit_lens = awaited(Lab.logit_lens)
    steer = awaited(Lab.steer)
    ablate = awaited(Lab.ablate)
