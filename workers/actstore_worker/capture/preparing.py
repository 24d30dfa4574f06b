"""Creates a run from a request: plans it, stores the request, creates the run, and registers its model and SAEs."""

import logging
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from actstore_api.codec_json import from_json, to_json
from actstore_api.records.capture import CaptureProgress, CaptureSpecification
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.watched import WatchedBucket
from actstore_storage.errors import CorruptObject, NotThere, corrupt_object
from actstore_storage.format.keys import WANTED, queued_key, run_key, wanted_key
from actstore_storage.format.specification import written_format
from actstore_storage.registry.models import ModelRecord, register_model
from actstore_storage.registry.saes import register_sae
from actstore_storage.runs.opening import check_run_name, create_run, open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.wanted import NO_PLACE, Queued, queued_place, read_wanted, seal_queued, seal_wanted
from actstore_storage.upkeep.folding import fold_commits
from actstore_worker.capture.queueing.progress import CaptureState
from actstore_worker.capture.run_plan import PlanSettings, RunPlan
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.limits import NEVER
from actstore_worker.sae.stored import sae_record

if TYPE_CHECKING:
    from actstore_worker.models.model import ModelDescription

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparing:
    """The coordinator's `Preparer` for a bucket and a catalog of models and datasets."""

    bucket: Bucket
    catalog: ModelCatalog
    settings: PlanSettings

    def plan(self, request: CaptureSpecification, stop: threading.Event = NEVER) -> RunPlan:
        """Plans the run. Errors: BadRequest for the request; ActstoreError CANCELLED soon after `stop` is set."""
        plan = self._planned(request, stop)
        version = written_format(plan.record.specification, self.settings.write_format)
        return replace(plan, record=replace(plan.record, format_version=version))

    def _planned(self, request: CaptureSpecification, stop: threading.Event) -> RunPlan:
        # Imported only now: a coordinator without captures does without libraries that run models.
        from actstore_worker.capture.encode_plan import plan_encoding
        from actstore_worker.capture.plan import plan_capture

        if request.rows_of:
            return plan_encoding(request, WatchedBucket(self.bucket, stop), self.catalog, self.settings)
        return plan_capture(request, self.catalog, self.settings, stop)

    def begin(self, plan: RunPlan, request: CaptureSpecification, queued: Queued = NO_PLACE) -> Snapshot:
        """Creates the run and its request in the bucket.

        Its place in the queue is written first, then the request, then the run is created: a crash in between leaves a
        request that the next coordinator finishes, and no run without a request. Model and SAEs are registered before
        all of them, so that everyone who sees the run can read its tokens' texts. The request is stored under the run's
        own name, so that it always means this run.

        Errors: Conflict if the run's name is taken, and then nothing was written; StoreError, after which the run and
        its request do not exist, unless they did before.
        """
        record = plan.record
        check_run_name(self.bucket, record)
        register(self.bucket, plan)
        with ExitStack() as undo:
            for key, content in (
                (queued_key(record.run), seal_queued(record.run, queued)),
                (wanted_key(record.run), sealed_request(replace(request, run=record.run))),
            ):
                if self.bucket.put_if_absent(key, content):
                    undo.callback(self.bucket.delete, key)
                else:
                    self.bucket.put(key, content)
            if create_run(self.bucket, record) is record:
                undo.callback(self.bucket.delete, run_key(record.run))
            snapshot = open_run(self.bucket, record.run)
            undo.pop_all()
        return snapshot

    def unwant(self, run: str) -> None:
        self.bucket.delete(wanted_key(run))
        self.bucket.delete(queued_key(run))

    def give_up(self, run: str) -> CaptureProgress | None:
        """Removes the request of a run, and returns the state of the run. None: there was no request."""
        if not self.bucket.exists(wanted_key(run)):
            return None
        self.unwant(run)
        snapshot = self.opened(run)
        if snapshot is None:
            return CaptureProgress(run, "cancelled")
        capture = CaptureState.of(snapshot)
        capture.end("cancelled")
        return capture.progress()

    def wanted(self) -> list[tuple[CaptureSpecification, Queued]]:
        """In the order in which their captures start, within a class."""
        found = []
        for key in self.bucket.keys(WANTED):
            try:
                found.append(self._request(key))
            except KeyError:  # Its capture has just ended.
                continue
            except CorruptObject as error:
                _log.warning("%s", error.for_log)
        return sorted(found, key=lambda each: (each[1].turn, each[1].submitted_seconds, each[0].run))

    def _request(self, key: str) -> tuple[CaptureSpecification, Queued]:
        """A request without a place of its own, or with a damaged one, comes first."""
        request, said = _read_request(self.bucket.get(key), key)
        try:
            return request, queued_place(self.bucket, request.run) or said
        except CorruptObject as error:
            _log.warning("%s", error.for_log)
            return request, NO_PLACE

    def opened(self, run: str) -> Snapshot | None:
        """None: a crash came between the request and the creation of the run."""
        try:
            return open_run(self.bucket, run)
        except NotThere:
            return None

    def fold(self, run: str) -> None:
        fold_commits(open_run(self.bucket, run))


def register(bucket: Bucket, plan: RunPlan) -> None:
    """Registers the run's model, with its tokens' texts, and its SAEs."""
    model = plan.model_to_register
    if model is not None:
        register_model(bucket, _model_record(model), model.texts.alone, model.texts.parts)
    for sae in plan.saes:
        register_sae(bucket, sae_record(sae))


def sealed_request(request: CaptureSpecification) -> bytes:
    """Writes a request as it is stored: the contract's message, in protobuf's JSON."""
    return seal_wanted(to_json(request))


def _read_request(data: bytes, key: str) -> tuple[CaptureSpecification, Queued]:
    """Reads a request. Errors: CorruptObject for one that is damaged, belongs to another run, or was written by an
    incompatible version.
    """
    try:
        return read_wanted(data, key, lambda said: from_json(CaptureSpecification, said))
    except ValueError as error:
        why, *_ = str(error).splitlines()
        message = f"this version cannot read the capture request {key}: submit the capture again, or cancel it ({why})"
        raise corrupt_object(key, message) from error


def _model_record(model: "ModelDescription") -> ModelRecord:
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
        config_sha256=model.config_sha256,
    )
