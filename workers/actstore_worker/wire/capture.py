"""Between the api's messages and the workers' own types."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import grpc
import pyarrow as pa

from actstore_api.records.terms import Failure
from actstore_api.v1 import capture_pb2, common_pb2
from actstore_storage.errors import ActstoreError, BadRequest
from actstore_storage.format.specification import Positions, RowFilter
from actstore_storage.runs.snapshot import Provenance
from actstore_worker.capture.progress import DatasetFiles, Estimate, Progress, Totals
from actstore_worker.capture.request import CaptureRequest
from actstore_worker.catalog.listing import Sources
from actstore_worker.models.prompts import Prompt

STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
_BOS: Mapping[int, bool | None] = {
    capture_pb2.BOS_POLICY_UNSPECIFIED: None,
    capture_pb2.BOS_POLICY_PREPEND: True,
    capture_pb2.BOS_POLICY_NONE: False,
}
_COMPARISONS: Mapping[int, str] = {
    capture_pb2.COMPARISON_EQUAL: "==",
    capture_pb2.COMPARISON_NOT_EQUAL: "!=",
    capture_pb2.COMPARISON_LESS: "<",
    capture_pb2.COMPARISON_LESS_OR_EQUAL: "<=",
    capture_pb2.COMPARISON_GREATER: ">",
    capture_pb2.COMPARISON_GREATER_OR_EQUAL: ">=",
    capture_pb2.COMPARISON_IN: "in",
    capture_pb2.COMPARISON_NOT_IN: "not in",
}


def capture_request(message: capture_pb2.CaptureSpecification) -> CaptureRequest:
    """Errors: BadRequest for an absent model or dataset where rows are to be captured, or an enum value that this
    version does not know.
    """
    model, dataset = message.model.name, message.dataset.name
    return CaptureRequest(
        run=message.run,
        rows_of=message.rows_of,
        model=model if message.rows_of else required(model, "model"),
        model_revision=message.model.revision,
        dataset=dataset if message.rows_of else required(dataset, "dataset"),
        text_field=message.dataset.text_field,
        max_tokens=given(message.dataset, "max_tokens"),
        context_length=given(message, "context_length"),
        prepend_bos=prepend_bos(message.bos),
        dense_sites=tuple(message.dense_sites),
        norm_sites=tuple(message.norm_sites),
        saes=tuple(message.saes),
        dtype=message.dtype,
        sequences_per_shard=given(message, "sequences_per_shard"),
        sequences_per_batch=given(message, "sequences_per_batch"),
        storage_dtype=message.storage_dtype,
        widen_on_overflow=message.widen_on_overflow,
        packing=message.packing,
        positions=_positions(message.positions),
        tokens_field=message.dataset.tokens_field,
        row_filters=tuple(_row_filter(found) for found in message.dataset.filters),
        max_documents=given(message.dataset, "max_documents"),
        sink_ratio=given(message, "sink_ratio"),
        source_field=message.dataset.source_field,
    )


def prompt_of(message: Any, text: str = "text", ids: str = "token_ids") -> Prompt:
    """What is asked about: a text, or token ids in its place. Errors: BadRequest where both are given."""
    if not message.HasField(ids):
        words: str = getattr(message, text)
        return words
    _check_one(message, text, ids)
    return tuple(getattr(message, ids).ids)


def prompts_of(message: Any, texts: str, ids: str = "token_ids") -> tuple[Prompt, ...]:
    """Several, all of them texts or all of them token ids. Errors: BadRequest where both are given."""
    if not getattr(message, ids):
        return tuple(getattr(message, texts))
    _check_one(message, texts, ids)
    return tuple(tuple(found.ids) for found in getattr(message, ids))


def answer_of(message: Any, text: str, token: str) -> str | int:
    """A token's text, or its id in its place. Errors: BadRequest where both are given."""
    if message.HasField(token):
        _check_one(message, text, token)
    found: str | int = getattr(message, token if message.HasField(token) else text)
    return found


def _check_one(message: Any, text: str, ids: str) -> None:
    if getattr(message, text):
        raise BadRequest(f"{text} and {ids} are both given", field=ids, value="both", allowed=f"{text} or {ids}")


def given(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _positions(message: capture_pb2.PositionSelection) -> Positions:
    match message.WhichOneof("kind"):
        case "last":
            return Positions("last" if message.last else "all")
        case "stride":
            return Positions("stride", stride=message.stride)
        case "random":
            return Positions("fraction", fraction=message.random.fraction, seed=message.random.seed)
        case "feature":
            return Positions("feature", sae=message.feature.sae, feature=message.feature.feature)
    return Positions()


def _row_filter(message: capture_pb2.RowFilter) -> RowFilter:
    field = "dataset.filters"
    column = required(message.column, field)
    if message.comparison not in _COMPARISONS:
        raise BadRequest(
            f"comparison {message.comparison} of {column} is not known",
            field=field,
            value=message.comparison,
            allowed=_COMPARISONS.values(),
        )
    comparison = _COMPARISONS[message.comparison]
    kinds = [value.WhichOneof("kind") for value in message.values]
    several = comparison in ("in", "not in")
    if None in kinds or (len(kinds) != 1 and not several):
        allowed = "values with a kind; one of them, or any number for IN and NOT_IN"
        raise BadRequest(f"the filter of {column} has no value", field=field, value=column, allowed=allowed)
    values = tuple(getattr(value, str(kind)) for value, kind in zip(message.values, kinds, strict=True))
    return RowFilter(column, comparison, values if several else values[0])


def estimate_message(estimate: Estimate) -> capture_pb2.CaptureEstimate:
    fields = asdict(estimate) | {"dataset_files": _files_message(estimate.dataset_files)}
    return capture_pb2.CaptureEstimate(**fields)


def _files_message(files: DatasetFiles) -> capture_pb2.DatasetFiles:
    return capture_pb2.DatasetFiles(**asdict(files))


def progress_message(progress: Progress) -> capture_pb2.CaptureProgress:
    message = capture_pb2.CaptureProgress(
        run=progress.run,
        state=f"CAPTURE_STATE_{progress.state.value}",
        shards_committed=progress.shards_committed,
        shards_total=progress.shards_total,
        tokens_committed=progress.tokens_committed,
        tokens_total=progress.tokens_total,
        elapsed_seconds=progress.elapsed_seconds,
        dataset_files=_files_message(progress.dataset_files),
    )
    if progress.failure is not None:
        message.failure.CopyFrom(_failure_message(progress.failure))
    for shard, failure in progress.failed_shards.items():
        message.failed_shards.add(shard=shard, failure=_failure_message(failure))
    return message


def _failure_message(failure: Failure) -> capture_pb2.CaptureFailure:
    return capture_pb2.CaptureFailure(reason=failure.reason, message=failure.message, details=failure.details)


def sources_message(sources: Sources) -> capture_pb2.ListSourcesResponse:
    return capture_pb2.ListSourcesResponse(
        models=[capture_pb2.FoundModel(**asdict(model)) for model in sources.models],
        saes=sources.saes,
        datasets=sources.datasets,
        hub_allowed=sources.hub_allowed,
        truncated=sources.truncated,
    )


def totals_message(totals: Totals) -> capture_pb2.GetCaptureTotalsResponse:
    return capture_pb2.GetCaptureTotalsResponse(**asdict(totals))


def failure_of(error: Exception) -> Failure:
    """What a caller may know of an error: of one that is not actstore's own, nothing but that it happened."""
    if not isinstance(error, ActstoreError):
        return Failure("INTERNAL", "the workers failed; their log says how")
    return Failure(error.reason, error.message, error.details)


def provenance_message(provenance: Provenance) -> common_pb2.Provenance:
    return common_pb2.Provenance(**{item.name: getattr(provenance, item.name) for item in fields(provenance)})


def table_message(table: pa.Table) -> common_pb2.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return common_pb2.Table(arrow_ipc_stream=sink.getvalue().to_pybytes())


def required(value: str, field: str) -> str:
    if not value:
        raise BadRequest(f"{field} is required", field=field, value="", allowed="a name")
    return value


def prepend_bos(value: int) -> bool | None:
    if value not in _BOS:
        raise BadRequest(f"bos {value} is not known", field="bos", value=value, allowed=sorted(_BOS))
    return _BOS[value]
