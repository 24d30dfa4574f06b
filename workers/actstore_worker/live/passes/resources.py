"""What a live question is answered with: passes of its model, SAEs and runs that fit it, and limits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from actstore_api.records.terms import StoredSample
from actstore_storage.bucket import Bucket
from actstore_storage.errors import NotThere
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.loaded_saes import LoadedSaes
from actstore_worker.live.passes.running import Passes
from actstore_worker.models.model import LanguageModel
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.fit import check_fit


@dataclass(frozen=True)
class Resources:
    """What one question may use. `of_model`: passes of the model that it needs; None if it needs none."""

    of_model: Passes | None
    saes: LoadedSaes
    bucket: Bucket
    limits: LiveLimits

    @property
    def passes(self) -> Passes:
        """The passes of the question's model."""
        assert self.of_model is not None  # noqa: S101  by `LiveAnswers.model_of`
        return self.of_model

    def fitting(self, name: str) -> SparseAutoencoder:
        """Find an SAE that fits the model.

        Errors: as `LoadedSaes.get`, and SAE_MISMATCH.
        """
        sae = self.saes.get(name)
        check_fit(sae, self.passes.model)
        return sae

    def open(self, run: str) -> Snapshot:
        """Open a run of the model.

        Errors: NotThere RUN_NOT_FOUND, and for a run of other weights MODEL_NOT_FOUND.
        """
        snapshot = open_run(self.bucket, run)
        _check_weights(self.passes.model, snapshot)
        return snapshot

    def sampled(self, sample: StoredSample | None) -> Snapshot | None:
        """Open the run of a sample; None if there is no sample.

        Errors: as `open`.
        """
        return None if sample is None else self.open(sample.run)


# The functions that answer questions, by record. Modules of `saes` and `texts` have them as ANSWERS.
Answers = Mapping[type[Any], Callable[[Resources, Any], Any]]


def _check_weights(model: LanguageModel, snapshot: Snapshot) -> None:
    """Refuse a run of other weights or another configuration, which the name may have had before. Errors: NotThere
    MODEL_NOT_FOUND.
    """
    captured = snapshot.record.specification
    if not captured.made_by(model.weights_sha256, model.config_sha256):
        same = model.weights_sha256 == captured.weights_sha256
        raise NotThere(
            f"run {snapshot.record.run} was captured with {'a configuration' if same else 'weights'} that model "
            f"{model.name!r} "
            "does not have any more",
            reason="MODEL_NOT_FOUND",
            field="model",
            value=model.config_sha256 if same else model.weights_sha256,
            allowed=captured.config_sha256 if same else captured.weights_sha256,
        )
