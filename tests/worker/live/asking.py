"""One replica's answers to questions about small models of every family."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from actstore_api.records.terms import ModelReference
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.live.answering import LiveAnswers, Question
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.turns import Turns, share
from tests.made_models.small_models import BERT, DECODERS

CPU = torch.device("cpu")
GPT2 = ModelReference("gpt2")


class _Stopping(Turns):
    """Turns that count themselves, and after so many of which nobody waits for the answer any more."""

    def __init__(self, stop: threading.Event, after: int) -> None:
        super().__init__()
        self._stop, self._after, self.passes = stop, after, 0

    def __enter__(self) -> None:
        super().__enter__()
        self.passes += 1

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.passes == self._after:
            self._stop.set()


class Replica:
    """Models are read when they are first asked; `limits` may be changed between questions."""

    def __init__(self, folder: Path, limits: LiveLimits) -> None:
        self.models, self.store, self.limits = folder / "models", folder / "store", limits
        self.store.mkdir()
        for name, save in (DECODERS | BERT).items():
            save(self.models / name)
        self._loaded: dict[str, LanguageModel] = {}
        self._turns = Turns()

    @property
    def catalog(self) -> ModelCatalog:
        return ModelCatalog((self.models,))

    def model(self, name: str) -> LanguageModel:
        if name not in self._loaded:
            self._loaded[name] = load_model(self.catalog.find_model(name), device=CPU)
        return self._loaded[name]

    def answers(self, limits: LiveLimits | None = None) -> LiveAnswers:
        return LiveAnswers(self.catalog, open_bucket(str(self.store)), CPU, limits or self.limits)

    def ask(
        self,
        question: Question,
        limits: LiveLimits | None = None,
        stop: threading.Event | None = None,
        turns: Turns | None = None,
    ) -> Any:
        answers = self.answers(limits)
        named = answers.model_of(question)
        assert named is not None
        return answers.answer(question, share(self.model(named.name), turns or self._turns), stop or threading.Event())

    def passes_until_stopped(self, question: Question, after: int) -> int:
        """How many passes begin to wait for their turn when nobody waits for the answer after so many."""
        stop = threading.Event()
        turns = _Stopping(stop, after)
        with pytest.raises(ActstoreError) as refusal:
            self.ask(question, stop=stop, turns=turns)
        assert refusal.value.reason == "CANCELLED"
        return turns.passes

    def ids(self, name: str, text: str) -> list[int]:
        """As the models' tokenizer has them, an encoder's with its end."""
        own = self.model(name).tokenizer(text, add_special_tokens=False)["input_ids"]
        return [0, *own, 0] if name == "bert" else [0, *own]
