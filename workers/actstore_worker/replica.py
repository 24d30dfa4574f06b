"""A model replica: answers questions and runs sweeps on the models that it has loaded, in turns."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol

import torch

from actstore_storage.bucket import Bucket
from actstore_worker.caller import ANYONE, Caller
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.files.stamps import Stamp
from actstore_worker.live.answering import LiveAnswers
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.questions import Question
from actstore_worker.models.files.source import ModelSource
from actstore_worker.models.loading import load_model
from actstore_worker.models.turns import SharedModel, Turns, share
from actstore_worker.models.used import Usage
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.inputs.supplies import Supplies
from actstore_worker.patching.serving.sweeps import Served, Sweeps


class Replica:
    """A replica. Any number of threads may use `live` and `sweeps`, with models that `open` returns."""

    def __init__(
        self,
        catalog: ModelCatalog,
        bucket: Bucket,
        device: torch.device,
        live: LiveLimits,
        patching: PatchingLimits,
        questions: int = 16,
        loaded: Callable[[float], None] = lambda _: None,
    ) -> None:
        """`questions`: live questions that are answered at the same time. `loaded` is told how many seconds it took to
        load a model.
        """
        self._tell_loaded = loaded
        self._threads = ThreadPoolExecutor(questions, "question")
        self._catalog, self._device = catalog, device
        # One for all models: two models that run at the same time would only compete for the same cores.
        self.usage = Usage()
        self._turns = Turns(self.usage)
        self.live = LiveAnswers(catalog, bucket, device, live)
        self.sweeps = Sweeps(patching, Supplies(bucket, self.live.find_sae))

    def open(self, name: str, revision: str) -> "OpenModel":
        """Returns a loaded model. Errors: as `OpenModel.get`."""
        found = OpenModel(partial(self._catalog.find_model, name, revision), self._load)
        found.get()
        return found

    async def ask(self, question: Question, model: SharedModel | None, caller: Caller = ANYONE) -> Any:
        """Answers a live question on a thread that no other question has. Errors: as `LiveAnswers.answer`. If the
        caller has gone, no passes are run.
        """
        stop, loop = threading.Event(), asyncio.get_running_loop()
        try:
            # With the context, which has the request's id for the log.
            return await loop.run_in_executor(
                self._threads, copy_context().run, self.live.answer, question, model, stop, caller
            )
        finally:
            stop.set()

    def _load(self, source: ModelSource) -> Served:
        began = time.monotonic()
        model = load_model(source, device=self._device)
        self._tell_loaded(time.monotonic() - began)
        return self.sweeps.serve(share(model, self._turns))


class _Find(Protocol):
    def __call__(self, *, asks_hub: bool) -> ModelSource: ...


class OpenModel:
    """A model by its name, with its current files. A user who got it before they changed continues with the old
    weights.
    """

    def __init__(self, find: _Find, load: Callable[[ModelSource], Served]) -> None:
        self._find, self._load = find, load
        self._read: tuple[Stamp, Served] | None = None
        # Held during loading, so that two questions do not load it twice.
        self._lock = threading.Lock()

    def get(self) -> Served:
        """Returns the model with its current files. If they have not changed, this only reads their sizes and times.

        Errors: as `ModelCatalog.find_model` and `load_model`.
        """
        with self._lock:
            read, self._read = self._read, None  # A model that is missing or incomplete is dropped.
            source = self._find(asks_hub=read is None)
            stamp = source.stamp()
            if read is None or read[0] != stamp:
                read = None  # The old one is released before the new one is loaded, unless it is still in use.
                read = stamp, self._load(source)
            self._read = read
            return read[1]
