"""One replica's answers to questions about small models of every family."""

import threading
from pathlib import Path
from typing import Any

import torch

from actstore_storage.opening import open_bucket
from actstore_worker.catalogue import ModelCatalogue
from actstore_worker.live.answering import LiveAnswers
from actstore_worker.live.questions import LiveLimits, Question
from actstore_worker.loading import load_model
from actstore_worker.model import LanguageModel
from tests.small_models import BERT, SAVERS

CPU = torch.device("cpu")


class Replica:
    """Models are read when they are first asked; `limits` may be changed between questions."""

    def __init__(self, folder: Path, limits: LiveLimits) -> None:
        torch.set_num_threads(1)  # such small models only wait for their second thread
        self.models, self.store, self.limits = folder / "models", folder / "store", limits
        self.store.mkdir()
        for name, save in (SAVERS | BERT).items():
            save(self.models / name)
        self._loaded: dict[str, LanguageModel] = {}

    @property
    def catalogue(self) -> ModelCatalogue:
        return ModelCatalogue((self.models,))

    def model(self, name: str) -> LanguageModel:
        if name not in self._loaded:
            self._loaded[name] = load_model(self.catalogue.find_model(name), device=CPU)
        return self._loaded[name]

    def ask(self, question: Question, limits: LiveLimits | None = None, stop: threading.Event | None = None) -> Any:
        bucket, turn = open_bucket(str(self.store)), threading.Lock()
        answers = LiveAnswers(self.catalogue, bucket, CPU, turn, limits or self.limits)
        named = answers.model_of(question)
        assert named is not None
        return answers.answer(question, self.model(named[0]), stop or threading.Event())

    def ids(self, name: str, text: str) -> list[int]:
        """As the models' tokenizer has them, an encoder's with its end."""
        own = self.model(name).tokenizer(text, add_special_tokens=False)["input_ids"]
        return [0, *own, 0] if name == "bert" else [0, *own]
