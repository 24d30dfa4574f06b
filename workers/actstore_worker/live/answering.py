"""Any question to its answer: finds the SAE where it names one, looks whether it goes with the model, hands both on."""

import threading
from collections import OrderedDict
from functools import partial
from pathlib import Path

import torch

from actstore_storage.bucket import Bucket
from actstore_storage.errors import NotThere
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.files.stamps import Stamp
from actstore_worker.live.model_answering import answer_alone
from actstore_worker.live.model_questions import AloneQuestion
from actstore_worker.live.passes import Passes
from actstore_worker.live.questions import (
    AblateDirection,
    AblateText,
    Answer,
    CheckSae,
    EncodeText,
    FindNeighbours,
    LiveLimits,
    LogitLens,
    Question,
)
from actstore_worker.live.saes.ablate_direction import ablate_direction
from actstore_worker.live.saes.ablate_text import ablate_text
from actstore_worker.live.saes.lens_of_directions import logit_lens
from actstore_worker.live.saes.neighbours import find_neighbours
from actstore_worker.live.saes.sae_check import check_sae
from actstore_worker.live.texts.text import encode_text
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.turns import SharedModel
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.files import stamp_of_saes
from actstore_worker.sae.fit import check_fit
from actstore_worker.sae.formats.loading import load_sae


class LoadedSaes:
    """The few that were asked for last. One whose files were written again is read again."""

    def __init__(self, catalog: ModelCatalog, device: torch.device, count: int) -> None:
        self._catalog, self._device, self._count = catalog, device, count
        self._held: OrderedDict[Path, tuple[Stamp, SparseAutoencoder]] = OrderedDict()
        # Held while one is read, so that two questions do not read it twice.
        self._lock = threading.Lock()

    def get(self, name: str) -> SparseAutoencoder:
        """Errors: as `ModelCatalog.find_sae` and `load_sae`."""
        path = self._catalog.find_sae(name)
        stamp = stamp_of_saes(path)
        with self._lock:
            if path not in self._held or self._held[path][0] != stamp:
                self._held.pop(path, None)  # the old one is gone, but for who still uses it, when the new one comes
                # Others take gradients through it, which a tensor that is made in inference mode forbids for good.
                with torch.inference_mode(mode=False):
                    self._held[path] = stamp, load_sae(path, name).to(self._device)
            self._held.move_to_end(path)
            while len(self._held) > self._count:
                self._held.popitem(last=False)
            return self._held[path][1]


class LiveAnswers:
    """Any number of threads may ask."""

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
        """One of those that questions share, for others who need it. Errors: as `LoadedSaes.get`."""
        return self._saes.get(name)

    def model_of(self, question: Question) -> tuple[str, str] | None:
        """Name and revision of the model that it needs. Errors: NotThere RUN_NOT_FOUND."""
        match question:
            case FindNeighbours():
                return None
            case CheckSae():
                asked = open_run(self._bucket, question.run).record.specification
                return asked.model, asked.model_revision
            case _:
                return question.model, question.revision

    def answer(self, question: Question, model: SharedModel | None, stop: threading.Event) -> Answer:
        """Errors: BadRequest for everything that the caller can get wrong; CANCELLED soon after `stop` is set."""
        with torch.inference_mode():
            if isinstance(question, AloneQuestion):
                assert model is not None  # noqa: S101  by `model_of`
                open_of_model = partial(self._open, model)
                return answer_alone(question, Passes(model, stop), self._saes.get, open_of_model, self._limits)
            sae = self._saes.get(question.sae)
            if isinstance(question, FindNeighbours):
                return find_neighbours(sae, question, self._limits)
            assert model is not None  # noqa: S101  by `model_of`
            check_fit(sae, model)
            return self._of_model(question, sae, Passes(model, stop))

    def _of_model(
        self,
        question: EncodeText | LogitLens | AblateText | AblateDirection | CheckSae,
        sae: SparseAutoencoder,
        passes: Passes,
    ) -> Answer:
        match question:
            case EncodeText():
                return encode_text(passes, sae, question)
            case LogitLens():
                return logit_lens(passes, sae, question, self._limits)
            case AblateText():
                return ablate_text(passes, sae, question, self._limits)
            case AblateDirection():
                return ablate_direction(passes, sae, question)
            case CheckSae():
                snapshot = self._open(passes.model, question.run)
                return check_sae(passes, sae, snapshot, question, self._limits)

    def _open(self, model: LanguageModel, run: str) -> Snapshot:
        """Errors: NotThere RUN_NOT_FOUND, and for a run of other weights MODEL_NOT_FOUND."""
        snapshot = open_run(self._bucket, run)
        _check_weights(model, snapshot)
        return snapshot


def _check_weights(model: LanguageModel, snapshot: Snapshot) -> None:
    """A name may mean other weights by now, or another configuration. Errors: NotThere MODEL_NOT_FOUND."""
    captured = snapshot.record.specification
    if not captured.made_by(model.weights_sha256, model.config_sha256):
        same = model.weights_sha256 == captured.weights_sha256
        raise NotThere(
            f"run {snapshot.record.run} is of {'a configuration' if same else 'weights'} that model {model.name!r} "
            "does not have any more",
            reason="MODEL_NOT_FOUND",
            field="model",
            value=model.config_sha256 if same else model.weights_sha256,
            allowed=captured.config_sha256 if same else captured.weights_sha256,
        )
