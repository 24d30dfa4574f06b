"""From a request to a run that is in the bucket: planned, created once, its model and SAEs registered."""

from actstore_storage.bucket import Bucket
from actstore_storage.registry import ModelRecord, SaeModelRecord, register_model, register_sae
from actstore_storage.runs import create_run, open_run
from actstore_worker.catalogue import ModelCatalogue
from actstore_worker.coordinator import Prepared
from actstore_worker.model import ModelDescription, token_texts
from actstore_worker.plan import CaptureRequest, PlanSettings, plan_capture
from actstore_worker.sae import SparseAutoencoder


def prepare_capture(
    request: CaptureRequest, bucket: Bucket, catalogue: ModelCatalogue, settings: PlanSettings
) -> Prepared:
    """Registers before it creates: whoever sees the run can read its tokens' texts.

    Errors: BadRequest for what was asked, Conflict where the run's name is taken, StoreError.
    """
    plan = plan_capture(request, catalogue, settings)
    register_model(bucket, _model_record(plan.model), token_texts(plan.model))
    for sae in plan.saes:
        register_sae(bucket, _sae_record(sae))
    create_run(bucket, plan.record)
    return Prepared(plan, open_run(bucket, plan.record.run))


def _model_record(model: ModelDescription) -> ModelRecord:
    return ModelRecord(
        name=model.name,
        revision=model.revision,
        weights_sha256=model.weights_sha256,
        tokenizer_sha256=model.tokenizer_sha256,
        family=model.family.name,
        layer_count=model.layer_count,
        d_model=model.d_model,
        head_count=model.head_count,
        vocabulary_size=model.vocabulary_size,
        context_length=model.context_length,
    )


def _sae_record(sae: SparseAutoencoder) -> SaeModelRecord:
    return SaeModelRecord(
        name=sae.name,
        sha256=sae.sha256,
        architecture=sae.architecture,
        site=str(sae.site),
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        model=sae.model,
    )
