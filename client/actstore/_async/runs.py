"""Runs, captures under way, and checkpoints of a model, asked without blocking the event loop."""

from collections.abc import Iterator

from actstore._async.features import AsyncFeature, AsyncSaeFeatures
from actstore._async.questions import Questions
from actstore._async.twins import Shown, Twin, at_once, awaited, streamed
from actstore._runs.checkpoints import Captures, Checkpoints
from actstore._runs.run import Capture, Run
from actstore_api.records.capture import CaptureSpecification, DatasetFiles
from actstore_api.records.catalog import SaeAttachment
from actstore_api.records.terms import ModelReference, Provenance


def _finished(run: Run, questions: Questions) -> "AsyncRun":
    return AsyncRun(run, questions)


class AsyncCapture(Twin[Capture]):
    """A capture in the workers, as `Capture`: `await capture.wait()`, `async for news in capture.progress()`."""

    run = Shown[str]()
    dataset_files = Shown[DatasetFiles]()

    progress = streamed(Capture.progress)
    wait = awaited(Capture.wait, _finished, lasting=True)
    cancel = awaited(Capture.cancel)


class AsyncRun(Twin[Run]):
    """One run, as `Run`; questions are awaited: `await run.norms()`. `run.features(sae)` is not."""

    name = Shown[str](Run.name)
    specification = Shown[CaptureSpecification](Run.specification)
    provenance = Shown[Provenance](Run.provenance)
    model = Shown[ModelReference](Run.model)
    complete = Shown[bool](Run.complete)
    tokens_committed = Shown[int](Run.tokens_committed)
    tokens_total = Shown[int](Run.tokens_total)
    n_layers = Shown[int](Run.n_layers)
    d_model = Shown[int](Run.d_model)
    dense_sites = Shown[tuple[str, ...]](Run.dense_sites)
    norm_sites = Shown[tuple[str, ...]](Run.norm_sites)
    saes = Shown[tuple[SaeAttachment, ...]](Run.saes)

    features = at_once(Run.features, AsyncSaeFeatures)
    feature = at_once(Run.feature, AsyncFeature)
    norms = awaited(Run.norms)
    token_norms = awaited(Run.token_norms)
    fit_growth = awaited(Run.fit_growth)
    activations = awaited(Run.activations)
    tokens = awaited(Run.tokens)
    encode = awaited(Run.encode, AsyncCapture)
    export = awaited(Run.export)

    _repr_html_ = at_once(Run._repr_html_)


class AsyncCheckpoints(Twin[Checkpoints]):
    """Runs of several revisions of one model, as `Checkpoints`; questions are awaited."""

    names = Shown[tuple[str, ...]](Checkpoints.names)
    steps = Shown[tuple[float, ...]]()

    @property
    def runs(self) -> tuple[AsyncRun, ...]:
        """The runs, in the order of their steps."""
        return tuple(AsyncRun(run, self._questions) for run in self._blocking.runs)

    __len__ = at_once(Checkpoints.__len__)

    def __iter__(self) -> Iterator[AsyncRun]:
        return iter(self.runs)

    norms = awaited(Checkpoints.norms)
    fit_growth = awaited(Checkpoints.fit_growth)
    separability = awaited(Checkpoints.separability)


class AsyncCaptures(Twin[Captures]):
    """Captures of several revisions of a model, as `Captures`: `await captures.wait()`."""

    runs = Shown[tuple[str, ...]](Captures.runs)

    @property
    def captures(self) -> tuple[AsyncCapture, ...]:
        """The captures, in the order of the revisions."""
        return tuple(AsyncCapture(capture, self._questions) for capture in self._blocking.captures)

    progress = streamed(Captures.progress)
    wait = awaited(Captures.wait, AsyncCheckpoints, lasting=True)
    cancel = awaited(Captures.cancel)
