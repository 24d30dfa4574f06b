"""Between the api's messages and the workers' own types."""

from collections.abc import Mapping
from dataclasses import asdict, fields

import grpc
import pyarrow as pa

from actstore_api.reasons import Failure
from actstore_api.v1 import capture_pb2, common_pb2, patching_pb2
from actstore_storage.errors import ActstoreError, BadRequest
from actstore_storage.snapshot import Provenance
from actstore_worker.coordinator import Progress, Totals
from actstore_worker.patching.plan import SweepRequest
from actstore_worker.patching.sweep import SweepProgress, SweepResult
from actstore_worker.plan import CaptureRequest

STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
_BOS: Mapping[int, bool | None] = {
    capture_pb2.BOS_POLICY_UNSPECIFIED: None,
    capture_pb2.BOS_POLICY_PREPEND: True,
    capture_pb2.BOS_POLICY_NONE: False,
}
_DIRECTIONS: Mapping[int, str] = {
    patching_pb2.PATCH_DIRECTION_DENOISE: "denoise",
    patching_pb2.PATCH_DIRECTION_NOISE: "noise",
}


def capture_request(message: capture_pb2.CaptureSpecification) -> CaptureRequest:
    """Errors: BadRequest for an absent model or dataset, or an enum value that this version does not know."""
    return CaptureRequest(
        run=message.run,
        model=_required(message.model.name, "model"),
        model_revision=message.model.revision,
        dataset=_required(message.dataset.name, "dataset"),
        text_field=message.dataset.text_field,
        max_tokens=message.dataset.max_tokens if message.dataset.HasField("max_tokens") else None,
        context_length=message.context_length if message.HasField("context_length") else None,
        prepend_bos=_bos(message.bos),
        dense_sites=tuple(message.dense_sites),
        norm_sites=tuple(message.norm_sites),
        saes=tuple(message.saes),
        dtype=message.dtype,
        sequences_per_shard=message.sequences_per_shard if message.HasField("sequences_per_shard") else None,
        sequences_per_batch=message.sequences_per_batch if message.HasField("sequences_per_batch") else None,
    )


def progress_message(progress: Progress) -> capture_pb2.CaptureProgress:
    message = capture_pb2.CaptureProgress(
        run=progress.run,
        state=f"CAPTURE_STATE_{progress.state.value}",
        shards_committed=progress.shards_committed,
        shards_total=progress.shards_total,
        tokens_committed=progress.tokens_committed,
        tokens_total=progress.tokens_total,
        elapsed_seconds=progress.elapsed_seconds,
    )
    if progress.failure is not None:
        message.failure.reason = progress.failure.reason
        message.failure.message = progress.failure.message
        message.failure.details.update(progress.failure.details)
    return message


def totals_message(totals: Totals) -> capture_pb2.GetCaptureTotalsResponse:
    return capture_pb2.GetCaptureTotalsResponse(**asdict(totals))


def sweep_request(message: patching_pb2.RunSweepRequest) -> SweepRequest:
    """Errors: BadRequest for an absent model, or an enum value that this version does not know."""
    return SweepRequest(
        model=_required(message.model.name, "model"),
        revision=message.model.revision,
        clean=message.clean,
        corrupt=message.corrupt,
        clean_answer=message.clean_answer,
        corrupt_answer=message.corrupt_answer,
        sites=tuple(message.sites),
        layers=tuple(message.layers),
        directions=tuple(_direction(value) for value in message.directions),
        prepend_bos=_bos(message.bos),
    )


def sweep_response(update: SweepProgress | SweepResult) -> patching_pb2.RunSweepResponse:
    if isinstance(update, SweepProgress):
        progress = patching_pb2.SweepProgress(cells_done=update.cells_done, cells_total=update.cells_total)
        return patching_pb2.RunSweepResponse(progress=progress)
    result = patching_pb2.SweepResult(
        cells=_table(update.cells),
        tokens=_table(update.tokens),
        clean_logit_difference=update.clean_logit_difference,
        corrupt_logit_difference=update.corrupt_logit_difference,
        provenance=_provenance(update.provenance),
    )
    return patching_pb2.RunSweepResponse(result=result)


def failure_of(error: Exception) -> Failure:
    """What a caller may know of an error: of one that is not actstore's own, nothing but that it happened."""
    if not isinstance(error, ActstoreError):
        return Failure("INTERNAL", "the workers failed; their log says how")
    return Failure(error.reason, error.message, error.details)


def _provenance(provenance: Provenance) -> common_pb2.Provenance:
    return common_pb2.Provenance(**{item.name: getattr(provenance, item.name) for item in fields(provenance)})


def _table(table: pa.Table) -> common_pb2.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return common_pb2.Table(arrow_ipc_stream=sink.getvalue().to_pybytes())


def _required(value: str, field: str) -> str:
    if not value:
        raise BadRequest(f"{field} is required", field=field, value="", allowed="a name")
    return value


def _bos(value: int) -> bool | None:
    if value not in _BOS:
        raise BadRequest(f"bos {value} is not known", field="bos", value=value, allowed=sorted(_BOS))
    return _BOS[value]


def _direction(value: int) -> str:
    if value not in _DIRECTIONS:
        message = f"direction {value} is not known"
        raise BadRequest(message, field="directions", value=value, allowed=_DIRECTIONS.values())
    return _DIRECTIONS[value]
