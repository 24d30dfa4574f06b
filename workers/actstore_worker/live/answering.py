"""Any question about a model or an SAE to its answer: what it names is found and looked over, and handed on."""

import threading

import torch

from actstore_api.records.model import (
    AblateSites,
    AblateSitesAnswer,
    CompareTokens,
    CompareTokensAnswer,
    GetAttention,
    GetAttentionAnswer,
    GetInductionScores,
    GetInductionScoresAnswer,
    GetTextLens,
    GetTextLensAnswer,
    GetWeightNorms,
    GetWeightNormsAnswer,
    SteerText,
    SteerTextAnswer,
    TokenizeText,
    TokenizeTextAnswer,
)
from actstore_api.records.sae import (
    AblateDirection,
    AblateDirectionAnswer,
    AblateText,
    AblateTextAnswer,
    CheckSae,
    CheckSaeAnswer,
    EncodeText,
    EncodeTextAnswer,
    FindNeighbors,
    FindNeighborsAnswer,
    GetLogitLens,
    GetLogitLensAnswer,
)
from actstore_api.records.terms import ModelReference, SaeFeature, StoredSample
from actstore_storage.bucket import Bucket
from actstore_storage.errors import NotThere
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.loaded_saes import LoadedSaes
from actstore_worker.live.passes.running import Passes
from actstore_worker.live.saes.ablate_direction import ablate_direction
from actstore_worker.live.saes.ablate_text import ablate_text
from actstore_worker.live.saes.encode_text import encode_text
from actstore_worker.live.saes.lens_of_directions import logit_lens
from actstore_worker.live.saes.neighbors import find_neighbors
from actstore_worker.live.saes.sae_check import check_sae
from actstore_worker.live.texts.ablate_sites import ablate_sites
from actstore_worker.live.texts.attention import score_induction, see_attention
from actstore_worker.live.texts.compare_tokens import compare_tokens
from actstore_worker.live.texts.lens_of_text import lens_text
from actstore_worker.live.texts.steering import steer_text
from actstore_worker.live.texts.tokenize_text import tokenize_text
from actstore_worker.live.texts.weight_norms import weight_norms
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.turns import SharedModel
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.fit import check_fit

SaeQuestion = EncodeText | GetLogitLens | AblateText | AblateDirection
ModelQuestion = (
    TokenizeText
    | GetAttention
    | GetInductionScores
    | GetTextLens
    | SteerText
    | AblateSites
    | CompareTokens
    | GetWeightNorms
)
# These name a model; of the others one has that of its run, and one needs none.
NamesModel = SaeQuestion | ModelQuestion
Question = NamesModel | FindNeighbors | CheckSae
Answer = (
    EncodeTextAnswer
    | GetLogitLensAnswer
    | AblateTextAnswer
    | AblateDirectionAnswer
    | FindNeighborsAnswer
    | CheckSaeAnswer
    | TokenizeTextAnswer
    | GetAttentionAnswer
    | GetInductionScoresAnswer
    | GetTextLensAnswer
    | SteerTextAnswer
    | AblateSitesAnswer
    | CompareTokensAnswer
    | GetWeightNormsAnswer
)


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
        """Find one of the SAEs that questions share, for others who need it.

        Errors: as `LoadedSaes.get`.
        """
        return self._saes.get(name)

    def model_of(self, question: Question) -> ModelReference | None:
        """Find which model the question needs; None where it needs none.

        Errors: NotThere RUN_NOT_FOUND.
        """
        match question:
            case FindNeighbors():
                return None
            case CheckSae():
                asked = open_run(self._bucket, question.run).record.specification
                return ModelReference(asked.model, asked.model_revision)
            case _:
                return question.model

    def answer(self, question: Question, model: SharedModel | None, stop: threading.Event) -> Answer:
        """Answer the question by `model`, that of `model_of`, and by what it names beside it.

        Errors: BadRequest for everything that the caller can get wrong; CANCELLED soon after `stop` is set.
        """
        with torch.inference_mode():
            if isinstance(question, FindNeighbors):
                return find_neighbors(self._saes.get(question.sae), question, self._limits)
            assert model is not None  # noqa: S101  by `model_of`
            return self._of_model(question, Passes(model, stop))

    def _of_model(self, question: NamesModel | CheckSae, passes: Passes) -> Answer:
        """In the order of the contract."""
        limits = self._limits
        match question:
            case EncodeText():
                return encode_text(passes, self._fitting(question.sae, passes), question)
            case GetLogitLens():
                return logit_lens(passes, self._fitting(question.sae, passes), question, limits)
            case AblateText():
                return ablate_text(passes, self._fitting(question.sae, passes), question, limits)
            case AblateDirection():
                return ablate_direction(passes, self._fitting(question.sae, passes), question)
            case CheckSae():
                sae = self._fitting(question.sae, passes)
                return check_sae(passes, sae, self._open(passes.model, question.run), question, limits)
            case TokenizeText():
                return tokenize_text(passes.model, question)
            case GetAttention():
                return see_attention(passes, question, limits)
            case GetInductionScores():
                return score_induction(passes, question, limits)
            case GetTextLens():
                return lens_text(passes, question, limits)
            case SteerText(direction=SaeFeature(sae=name)):
                return steer_text(passes, self._fitting(name, passes), question, limits)
            case SteerText():
                return steer_text(passes, None, question, limits)
            case AblateSites():
                stored = question.stored if question.ablation == "mean" else None
                return ablate_sites(passes, self._opened(passes.model, stored), question, limits)
            case CompareTokens():
                return compare_tokens(passes, question, limits)
            case GetWeightNorms():
                return weight_norms(passes, question, limits, self._opened(passes.model, question.stored))

    def _fitting(self, name: str, passes: Passes) -> SparseAutoencoder:
        """Errors: as `LoadedSaes.get`, and SAE_MISMATCH for one that does not go with the model."""
        sae = self._saes.get(name)
        check_fit(sae, passes.model)
        return sae

    def _opened(self, model: LanguageModel, sample: StoredSample | None) -> Snapshot | None:
        """The run of a sample, if there is to be one. Errors: as `_open`."""
        return None if sample is None else self._open(model, sample.run)

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
