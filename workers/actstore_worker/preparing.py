"""From a request to a run that is in the bucket: planned, created once, its model and SAEs registered."""

import json
import logging
from dataclasses import asdict, dataclass, replace

from actstore_storage.bucket import Bucket
from actstore_storage.checkpoint import fold_commits
from actstore_storage.errors import CorruptObject
from actstore_storage.layout import WANTED, wanted_key
from actstore_storage.registry import ModelRecord, SaeModelRecord, register_model, register_sae
from actstore_storage.runs import create_run, open_run
from actstore_storage.specification import Positions, RowFilter, canonical_json
from actstore_worker.catalogue import ModelCatalogue
from actstore_worker.coordinator import Prepared
from actstore_worker.encode_plan import RunPlan, plan_encoding
from actstore_worker.model import ModelDescription
from actstore_worker.plan import Plan, PlanSettings, plan_capture
from actstore_worker.request import CaptureRequest
from actstore_worker.sae import SparseAutoencoder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparing:
    """The coordinator's `Preparer` over a bucket and what there is of models and datasets."""

    bucket: Bucket
    catalogue: ModelCatalogue
    settings: PlanSettings

    def plan(self, request: CaptureRequest) -> RunPlan:
        """Errors: BadRequest for what was asked."""
        if request.rows_of:
            return plan_encoding(request, self.bucket, self.catalogue, self.settings.device)
        return plan_capture(request, self.catalogue, self.settings)

    def prepare(self, request: CaptureRequest) -> Prepared:
        """Registers before it creates: whoever sees the run can read its tokens' texts.

        Errors: BadRequest for what was asked, Conflict where the run's name is taken, StoreError.
        """
        plan = self.plan(request)
        if isinstance(plan, Plan):  # else it was registered for the run whose rows are encoded
            texts = plan.model.texts
            register_model(self.bucket, _model_record(plan.model), texts.alone, texts.parts)
        for sae in plan.saes:
            register_sae(self.bucket, sae_record(sae))
        create_run(self.bucket, plan.record)
        return Prepared(plan, open_run(self.bucket, plan.record.run))

    def want(self, run: str, request: CaptureRequest) -> None:
        """Under the run's own name, so that the request means that run whatever else would be chosen for it."""
        self.bucket.put(wanted_key(run), canonical_json(asdict(replace(request, run=run))))

    def unwant(self, run: str) -> None:
        self.bucket.delete(wanted_key(run))

    def wanted(self) -> dict[str, CaptureRequest]:
        found = {}
        for key in self.bucket.keys(WANTED):
            try:
                request = _request(self.bucket.get(key), key)
            except KeyError:  # its capture has just ended
                continue
            except CorruptObject as error:
                _log.warning("%s", error.message)
                continue
            found[request.run] = request
        return found

    def fold(self, run: str) -> None:
        fold_commits(open_run(self.bucket, run))


def _request(data: bytes, key: str) -> CaptureRequest:
    try:
        fields = json.loads(data)
        fields["positions"] = Positions(**fields["positions"])
        filters = [RowFilter(**found) for found in fields["row_filters"]]
        fields["row_filters"] = tuple(
            replace(found, value=tuple(found.value)) if isinstance(found.value, list) else found for found in filters
        )
        for name in ("dense_sites", "norm_sites", "saes"):
            fields[name] = tuple(fields[name])
        return CaptureRequest(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptObject(f"{key} is not a capture's request: {error}", field="object", value=key) from error


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
        block=model.family.block(model.config),
    )


def sae_record(sae: SparseAutoencoder) -> SaeModelRecord:
    return SaeModelRecord(
        name=sae.name,
        sha256=sae.sha256,
        architecture=sae.architecture,
        site=str(sae.site),
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        model=sae.model,
    )
