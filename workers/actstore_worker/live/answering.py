"""Answers any question about a model or an SAE: finds and checks what the question names, and calls the module that
answers it.

The modules of `saes` and `texts` register the questions that they answer.
"""

import threading
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch

from actstore_api.records.terms import ModelReference
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.watched import WatchedBucket
from actstore_storage.runs.opening import open_run
from actstore_worker.caller import ANYONE, Caller
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.live import saes, texts
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.loaded_saes import LoadedSaes
from actstore_worker.live.passes.resources import Answers, Resources
from actstore_worker.live.passes.running import Passes
from actstore_worker.live.questions import NamesModel, NamesRun, Question
from actstore_worker.models.turns import SharedModel
from actstore_worker.sae.autoencoder import SparseAutoencoder


def _told() -> Iterator[Answers]:
    for package in (saes, texts):
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            yield getattr(import_module(module.name), "ANSWERS", {})


ANSWERS: Answers = {question: answer for told in _told() for question, answer in told.items()}


class LiveAnswers:
    """Answers live questions about the models and SAEs that one replica has. Any number of threads may ask."""

    def __init__(
        self,
        catalog: ModelCatalog,
        bucket: Bucket,
        device: torch.device,
        limits: LiveLimits,
    ) -> None:
        self._bucket, self._limits = bucket, limits
        self._saes = LoadedSaes(catalog, device, limits.saes)

    def find_sae(self, name: str) -> SparseAutoencoder:
        """Find an SAE among those that questions share, for other code.

        Errors: as `LoadedSaes.get`.
        """
        return self._saes.get(name)

    def model_of(self, question: Question) -> ModelReference | None:
        """Find which model the question needs; None if it needs none.

        Errors: NotThere RUN_NOT_FOUND.
        """
        if isinstance(question, NamesModel):
            return question.model
        if isinstance(question, NamesRun):
            asked = open_run(self._bucket, question.run).record.specification
            return ModelReference(asked.model, asked.model_revision)
        return None

    def answer(
        self, question: Question, model: SharedModel | None, stop: threading.Event, caller: Caller = ANYONE
    ) -> Any:
        """Answer the question with `model`, which `model_of` names, and other things that it names.

        Errors: BadRequest for every mistake in the question, and for what takes longer than the caller waits; CANCELLED
        soon after `stop` is set.
        """
        caller.check_waits()
        passes = None if model is None else Passes(model, stop, caller)
        if model is not None:
            model.turns.begin(caller.principal)
        bucket = WatchedBucket(self._bucket, stop)
        with torch.inference_mode():
            return ANSWERS[type(question)](Resources(passes, self._saes, bucket, self._limits), question)
