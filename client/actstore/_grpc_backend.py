"""Asking a service: the one file of the client that touches gRPC and protobuf messages."""

import ipaddress
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import pyarrow as pa
from grpc_status import rpc_status

from actstore._backend import Backend, Rows
from actstore._errors import ActstoreError, Denied, Fault, error_of
from actstore._features import Examples, FeatureStatistics
from actstore._norms import Growth, NormProfile
from actstore._records import (
    CaptureEstimate,
    CaptureProgress,
    CaptureSpecification,
    ModelDescription,
    Positions,
    Provenance,
    RowFilter,
    RowQuery,
    RunDescription,
    SaeAttachment,
    SaeDescription,
    ShardFailure,
    SweepProgress,
    SweepRequest,
    field_names,
)
from actstore._sweep import Sweep
from actstore_api.reasons import Failure, from_status, known_reason
from actstore_api.v1 import (
    activation_pb2,
    capture_pb2,
    catalog_pb2,
    common_pb2,
    feature_pb2,
    norm_pb2,
    patching_pb2,
    service_pb2_grpc,
)

# Of a unary call with all its attempts. Streams have none: a capture may take days.
DEADLINE_SECONDS = 60.0
# The workers load a model and tokenise a whole dataset before they say under which name the capture runs.
START_CAPTURE_SECONDS = 3600.0
MAXIMUM_MESSAGE_BYTES = 256 * 2**20
READS = {
    "CatalogService": ("ListRuns", "GetRun", "ListModels", "ListSaes"),
    "ActivationService": ("ReadActivations", "ReadTokens"),
    "FeatureService": ("GetTopExamples", "GetFeatureStatistics"),
    "NormService": ("GetNormProfile", "FitGrowth"),
}
# gRPC retries by itself, and a stream only until its first message. StartCapture, CancelCapture and RunSweep are not
# here: their caller decides.
RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.2s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# What a status means that did not come from actstore itself: a proxy's, or gRPC's own.
FOREIGN = {
    grpc.StatusCode.UNAVAILABLE: "SERVICE_UNAVAILABLE",
    grpc.StatusCode.DEADLINE_EXCEEDED: "SERVICE_UNAVAILABLE",
    grpc.StatusCode.UNAUTHENTICATED: "UNAUTHENTICATED",
    grpc.StatusCode.PERMISSION_DENIED: "UNAUTHENTICATED",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "LIMIT_EXCEEDED",
    grpc.StatusCode.CANCELLED: "CANCELLED",
}
# Of protobuf's wire format: the kind of bytes and messages, and the lengths of those that are of fixed length.
_LENGTH_DELIMITED, _FIXED_BYTES = 2, {1: 8, 5: 4}
_ROWS, _PROVENANCE = (
    activation_pb2.ReadActivationsResponse.DESCRIPTOR.fields_by_name[name].number for name in ("rows", "provenance")
)
_STREAM = common_pb2.Table.DESCRIPTOR.fields_by_name["arrow_ipc_stream"].number
_BOS = {
    None: capture_pb2.BOS_POLICY_UNSPECIFIED,
    True: capture_pb2.BOS_POLICY_PREPEND,
    False: capture_pb2.BOS_POLICY_NONE,
}
_COMPARISONS = {
    "==": capture_pb2.COMPARISON_EQUAL,
    "!=": capture_pb2.COMPARISON_NOT_EQUAL,
    "<": capture_pb2.COMPARISON_LESS,
    "<=": capture_pb2.COMPARISON_LESS_OR_EQUAL,
    ">": capture_pb2.COMPARISON_GREATER,
    ">=": capture_pb2.COMPARISON_GREATER_OR_EQUAL,
    "in": capture_pb2.COMPARISON_IN,
    "not in": capture_pb2.COMPARISON_NOT_IN,
}
_COMPARISONS_BACK = {number: comparison for comparison, number in _COMPARISONS.items()}
_VALUE_FIELDS = {str: "text", int: "integer", float: "real", bool: "truth"}
_BOS_BACK = {number: bos for bos, number in _BOS.items()}
_CLASSES: Mapping[str, Any] = {
    name: common_pb2.TokenClass.Value(f"TOKEN_CLASS_{name.upper()}") for name in ("bos", "special", "sink")
}
_COLUMNS: Mapping[str, Any] = {
    name: activation_pb2.RowColumn.Value(f"ROW_COLUMN_{name.upper()}")
    for name in ("sequence", "position", "document", "token", "flags")
}
_CLASSES_BACK = {number: name for name, number in _CLASSES.items()}
_DIRECTIONS = {"denoise": patching_pb2.PATCH_DIRECTION_DENOISE, "noise": patching_pb2.PATCH_DIRECTION_NOISE}


class GrpcBackend(Backend):
    def __init__(self, address: str, token: str | None, tls: bool | None) -> None:
        self.address = address
        self._channel = _channel(address, token, tls)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        stubs: Any = service_pb2_grpc  # generated, without types
        self._catalog = stubs.CatalogServiceStub(self._channel)
        self._captures = stubs.CaptureServiceStub(self._channel)
        self._read_activations = _rows_call(self._channel, "ReadActivations")
        self._read_tokens = _rows_call(self._channel, "ReadTokens")
        self._features = stubs.FeatureServiceStub(self._channel)
        self._norms = stubs.NormServiceStub(self._channel)
        self._patching = stubs.PatchingServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def list_runs(self) -> list[RunDescription]:
        return [_run(run) for run in self._ask(self._catalog.ListRuns, catalog_pb2.ListRunsRequest()).runs]

    def get_run(self, run: str) -> RunDescription:
        return _run(self._ask(self._catalog.GetRun, catalog_pb2.GetRunRequest(run=run)).run)

    def list_models(self) -> list[ModelDescription]:
        models = self._ask(self._catalog.ListModels, catalog_pb2.ListModelsRequest()).models
        return [_record(ModelDescription, model) for model in models]

    def list_saes(self) -> list[SaeDescription]:
        saes = self._ask(self._catalog.ListSaes, catalog_pb2.ListSaesRequest()).saes
        return [_record(SaeDescription, sae) for sae in saes]

    def norm_profile(
        self, run: str, sites: Sequence[str], exclude: frozenset[str], quantiles: Sequence[float]
    ) -> NormProfile:
        request = norm_pb2.GetNormProfileRequest(run=run, sites=sites, exclude=_exclusion(exclude), quantiles=quantiles)
        answer = self._ask(self._norms.GetNormProfile, request)
        return NormProfile(table=_table(answer.profile), fit=partial(self.fit_growth, run, exclude), **_origin(answer))

    def fit_growth(self, run: str, exclude: frozenset[str], site: str, layers: tuple[int, int] | None) -> Growth:
        request = norm_pb2.FitGrowthRequest(run=run, site=site, exclude=_exclusion(exclude))
        if layers is not None:
            request.layers.CopyFrom(norm_pb2.LayerRange(first=layers[0], last=layers[1]))
        answer = self._ask(self._norms.FitGrowth, request)
        return Growth(
            table=_table(answer.points),
            site=answer.site,
            layers=(answer.layers.first, answer.layers.last),
            rate=answer.rate,
            r_squared=answer.r_squared,
            **_origin(answer),
        )

    def top_examples(
        self, run: str, sae: str, feature: int, exclude: frozenset[str], k: int, tokens_before: int, tokens_after: int
    ) -> Examples:
        request = feature_pb2.GetTopExamplesRequest(
            feature=feature_pb2.FeatureReference(run=run, sae=sae, feature=feature),
            k=k,
            tokens_before=tokens_before,
            tokens_after=tokens_after,
            exclude=_exclusion(exclude),
        )
        answer = self._ask(self._features.GetTopExamples, request)
        return Examples(table=_table(answer.examples), sae=sae, feature=feature, **_origin(answer))

    def feature_statistics(
        self, run: str, sae: str, feature: int, exclude: frozenset[str], bins: int
    ) -> FeatureStatistics:
        request = feature_pb2.GetFeatureStatisticsRequest(
            feature=feature_pb2.FeatureReference(run=run, sae=sae, feature=feature),
            bins=bins,
            exclude=_exclusion(exclude),
        )
        answer = self._ask(self._features.GetFeatureStatistics, request)
        return FeatureStatistics(
            table=_table(answer.histogram),
            sae=sae,
            feature=feature,
            tokens=answer.tokens,
            active_tokens=answer.active_tokens,
            density=answer.density,
            maximum=answer.maximum,
            mean_when_active=answer.mean_when_active,
            **_origin(answer),
        )

    def read_activations(self, run: str, query: RowQuery) -> Rows:
        request = activation_pb2.ReadActivationsRequest(
            run=run,
            site=query.sites[0],
            more_sites=query.sites[1:],
            columns=[_COLUMNS[name] for name in query.columns] or [activation_pb2.ROW_COLUMN_NONE],
            **_row_range(query),
        )
        return _rows(self._listen(self._read_activations, request))

    def read_tokens(self, run: str, query: RowQuery) -> Rows:
        request = activation_pb2.ReadTokensRequest(run=run, **_row_range(query))
        return _rows(self._listen(self._read_tokens, request))

    def estimate_capture(self, specification: CaptureSpecification) -> CaptureEstimate:
        request = capture_pb2.EstimateCaptureRequest(specification=_specification_out(specification))
        found = self._ask(self._captures.EstimateCapture, request, START_CAPTURE_SECONDS).estimate
        fields = {name: getattr(found, name) for name in field_names(CaptureEstimate)}
        return CaptureEstimate(**{**fields, "bytes_by_product": dict(found.bytes_by_product)})

    def start_capture(self, specification: CaptureSpecification) -> str:
        request = capture_pb2.StartCaptureRequest(specification=_specification_out(specification))
        run: str = self._ask(self._captures.StartCapture, request, START_CAPTURE_SECONDS).run
        return run

    def watch_capture(self, run: str) -> Iterator[CaptureProgress]:
        request = capture_pb2.WatchCaptureRequest(run=run)
        for update in self._listen(self._captures.WatchCapture, request):
            yield _progress(update.progress)

    def cancel_capture(self, run: str) -> CaptureProgress:
        request = capture_pb2.CancelCaptureRequest(run=run)
        return _progress(self._ask(self._captures.CancelCapture, request).progress)

    def run_sweep(self, request: SweepRequest) -> Iterator[SweepProgress | Sweep]:
        for update in self._listen(self._patching.RunSweep, _sweep_out(request)):
            if update.HasField("result"):
                yield _sweep(update.result, request.answers)
            else:
                yield SweepProgress(update.progress.cells_done, update.progress.cells_total)

    def _ask(self, verb: Callable[..., Any], request: Any, deadline_seconds: float | None = None) -> Any:
        with _in_our_words(self.address):
            return verb(request, timeout=deadline_seconds or DEADLINE_SECONDS, metadata=self._metadata)

    def _listen(self, verb: Callable[..., Any], request: Any) -> Iterator[Any]:
        with _in_our_words(self.address):
            stream = verb(request, metadata=self._metadata)
            try:
                yield from stream
            finally:
                stream.cancel()  # nobody listens any more; of no effect on a stream that ended


def _channel(address: str, token: str | None, tls: bool | None) -> grpc.Channel:
    if token and tls is None and not _is_loopback(address):
        raise Denied(
            f"the token would travel to {address} in the clear",
            reason="UNAUTHENTICATED",
            field="tls",
            value="None",
            allowed="True, or False where the network itself is trusted",
            next_step="pass tls=True for a service behind TLS, or tls=False to send the token in the clear",
        )
    reads = [
        {"service": f"actstore_api.v1.{service}", "method": verb} for service, verbs in READS.items() for verb in verbs
    ]
    options = [
        ("grpc.max_receive_message_length", MAXIMUM_MESSAGE_BYTES),
        ("grpc.service_config", json.dumps({"methodConfig": [{"name": reads, "retryPolicy": RETRY}]})),
    ]
    if tls:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(), options)
    return grpc.insecure_channel(address, options)


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _in_our_words(address: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise _error(error, address) from None


def _error(error: Any, address: str) -> ActstoreError:
    status = rpc_status.from_call(error)
    failure = from_status(status) if status is not None else None
    if failure is None:
        reason = FOREIGN.get(error.code(), "INTERNAL")
        said = f"{error.code().name}: {error.details()}"
        message = f"the service at {address} gave no answer of its own ({said})"
        failure = Failure(reason, message, {"field": "address", "value": address})
    return error_of(failure)


def _table(message: common_pb2.Table) -> pa.Table:
    return pa.ipc.open_stream(message.arrow_ipc_stream).read_all()


def _rows_call(channel: grpc.Channel, verb: str) -> Any:
    """Its answers stay bytes: see `_rows`."""
    return channel.unary_stream(
        f"/actstore_api.v1.ActivationService/{verb}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=lambda message: message,
    )


def _rows(messages: Iterator[bytes]) -> Rows:
    """The rows of a stream, of which the first message has the provenance.

    The messages are read here, because protobuf would copy each byte twice more; Arrow's tables lie in them.
    """
    tables, provenance = [], None
    for message in messages:
        fields = _fields(memoryview(message))
        if provenance is None:
            provenance = _provenance(common_pb2.Provenance.FromString(bytes(fields.get(_PROVENANCE, b""))))
        stream = _fields(fields[_ROWS])[_STREAM]
        tables.append(pa.ipc.open_stream(pa.py_buffer(stream)).read_all())
    if provenance is None:
        raise Fault("the service ended a stream of rows without a first message")
    return pa.concat_tables(tables), provenance


def _fields(message: memoryview) -> dict[int, memoryview]:
    """By number, the fields of a protobuf message that are bytes or messages; other kinds are skipped."""
    found, place = {}, 0
    while place < len(message):
        tag, place = _varint(message, place)
        if tag & 7 == _LENGTH_DELIMITED:
            length, place = _varint(message, place)
            found[tag >> 3] = message[place : place + length]
            place += length
        elif tag & 7 in _FIXED_BYTES:
            place += _FIXED_BYTES[tag & 7]
        else:
            _, place = _varint(message, place)
    return found


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place


def _origin(answer: Any) -> dict[str, Any]:
    excluded = tuple(sorted(_CLASSES_BACK[number] for number in answer.excluded))
    return {"excluded": excluded, "provenance": _provenance(answer.provenance)}


def _record(kind: type[Any], message: Any) -> Any:
    """A dataclass from the message with the same scalar fields."""
    return kind(**{name: getattr(message, name) for name in field_names(kind)})


def _provenance(message: common_pb2.Provenance) -> Provenance:
    fields = {name: getattr(message, name) for name in field_names(Provenance)}
    return Provenance(**{**fields, "sae_sha256": dict(message.sae_sha256)})


def _exclusion(classes: Iterable[str]) -> common_pb2.Exclusion:
    return common_pb2.Exclusion(classes=[_CLASSES[name] for name in sorted(classes)])


def _row_range(query: RowQuery) -> dict[str, Any]:
    """The fields that both requests for rows have."""
    kept = activation_pb2.TokenFilter(
        tokens=query.tokens,
        documents=query.documents,
        first_position=query.first_position,
        end_position=query.end_position,
        exclude=_exclusion(query.exclude),
    )
    return {"first_sequence": query.first_sequence, "sequence_count": query.sequence_count, "filter": kept}


def _run(message: catalog_pb2.Run) -> RunDescription:
    return RunDescription(
        name=message.name,
        specification=_specification_in(message.specification),
        provenance=_provenance(message.provenance),
        sequences_total=message.sequences_total,
        tokens_total=message.tokens_total,
        tokens_committed=message.tokens_committed,
        dense_sites=tuple(message.dense_sites),
        norm_sites=tuple(message.norm_sites),
        saes=tuple(_record(SaeAttachment, sae) for sae in message.saes),
        layer_count=message.layer_count,
        d_model=message.d_model,
    )


def _given(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _specification_in(message: capture_pb2.CaptureSpecification) -> CaptureSpecification:
    return CaptureSpecification(
        model=message.model.name,
        dataset=message.dataset.name,
        run=message.run,
        model_revision=message.model.revision,
        text_field=message.dataset.text_field,
        max_tokens=_given(message.dataset, "max_tokens"),
        context_length=_given(message, "context_length"),
        bos=_BOS_BACK[message.bos],
        dense_sites=tuple(message.dense_sites),
        norm_sites=tuple(message.norm_sites),
        saes=tuple(message.saes),
        dtype=message.dtype,
        sequences_per_shard=_given(message, "sequences_per_shard"),
        sequences_per_batch=_given(message, "sequences_per_batch"),
        storage_dtype=message.storage_dtype,
        widen_on_overflow=message.widen_on_overflow,
        packing=message.packing,
        positions=_positions_in(message.positions),
        tokens_field=message.dataset.tokens_field,
        row_filters=tuple(_row_filter_in(found) for found in message.dataset.filters),
        max_documents=_given(message.dataset, "max_documents"),
        sink_ratio=_given(message, "sink_ratio"),
    )


def _positions_in(message: capture_pb2.PositionSelection) -> Positions:
    match message.WhichOneof("kind"):
        case "last":
            return Positions.last()
        case "stride":
            return Positions.every(message.stride)
        case "random":
            return Positions.random(message.random.fraction, message.random.seed)
        case "feature":
            return Positions.active(message.feature.sae, message.feature.feature)
    return Positions()


def _positions_out(positions: Positions) -> capture_pb2.PositionSelection | None:
    match positions.kind:
        case "last":
            return capture_pb2.PositionSelection(last=True)
        case "stride":
            return capture_pb2.PositionSelection(stride=positions.stride)
        case "fraction":
            random = capture_pb2.RandomFraction(fraction=positions.fraction, seed=positions.seed)
            return capture_pb2.PositionSelection(random=random)
        case "feature":
            feature = capture_pb2.FeaturePositions(sae=positions.sae, feature=positions.feature)
            return capture_pb2.PositionSelection(feature=feature)
    return None


def _row_filter_in(message: capture_pb2.RowFilter) -> RowFilter:
    comparison = _COMPARISONS_BACK[message.comparison]
    values = tuple(getattr(value, value.WhichOneof("kind")) for value in message.values)
    return RowFilter(message.column, comparison, values if comparison in ("in", "not in") else values[0])


def _row_filter_out(found: RowFilter) -> capture_pb2.RowFilter:
    values = found.value if isinstance(found.value, tuple) else (found.value,)
    return capture_pb2.RowFilter(
        column=found.column,
        comparison=_COMPARISONS[found.comparison],
        values=[capture_pb2.FilterValue(**{_VALUE_FIELDS[type(value)]: value}) for value in values],
    )


def _specification_out(specification: CaptureSpecification) -> capture_pb2.CaptureSpecification:
    return capture_pb2.CaptureSpecification(
        run=specification.run,
        model=capture_pb2.ModelReference(name=specification.model, revision=specification.model_revision),
        dataset=capture_pb2.DatasetReference(
            name=specification.dataset,
            text_field=specification.text_field,
            max_tokens=specification.max_tokens,
            tokens_field=specification.tokens_field,
            filters=[_row_filter_out(found) for found in specification.row_filters],
            max_documents=specification.max_documents,
        ),
        context_length=specification.context_length,
        bos=_BOS[specification.bos],
        dense_sites=specification.dense_sites,
        norm_sites=specification.norm_sites,
        saes=specification.saes,
        dtype=specification.dtype,
        sequences_per_shard=specification.sequences_per_shard,
        sequences_per_batch=specification.sequences_per_batch,
        storage_dtype=specification.storage_dtype,
        widen_on_overflow=specification.widen_on_overflow,
        packing=specification.packing,
        positions=_positions_out(specification.positions),
        sink_ratio=specification.sink_ratio,
    )


def _progress(message: capture_pb2.CaptureProgress) -> CaptureProgress:
    if message.state == capture_pb2.CAPTURE_STATE_FAILED:
        failed = message.failure
        causes = "".join(f"\n  shard {found.shard}: {found.failure.message}" for found in message.failed_shards)
        text = f"{failed.message}; all other shards are committed{causes}" if causes else failed.message
        raise error_of(Failure(known_reason(failed.reason), text, dict(failed.details)))
    state = capture_pb2.CaptureState.Name(message.state).removeprefix("CAPTURE_STATE_").lower()
    own = ("state", "failure", "failed_shards")
    counts: dict[str, Any] = {name: getattr(message, name) for name in field_names(CaptureProgress) if name not in own}
    failed_shards = tuple(
        ShardFailure(found.shard, found.failure.reason, found.failure.message) for found in message.failed_shards
    )
    return CaptureProgress(state=state, failure=message.failure.message, failed_shards=failed_shards, **counts)


def _sweep_out(request: SweepRequest) -> patching_pb2.RunSweepRequest:
    return patching_pb2.RunSweepRequest(
        model=capture_pb2.ModelReference(name=request.model, revision=request.model_revision),
        clean=request.clean,
        corrupt=request.corrupt,
        clean_answer=request.answers[0],
        corrupt_answer=request.answers[1],
        sites=request.sites,
        layers=request.layers,
        directions=[_DIRECTIONS[name] for name in request.directions],
        bos=_BOS[request.bos],
    )


def _sweep(result: patching_pb2.SweepResult, answers: tuple[str, str]) -> Sweep:
    return Sweep(
        table=_table(result.cells),
        prompt_tokens=_table(result.tokens),
        clean_logit_difference=result.clean_logit_difference,
        corrupt_logit_difference=result.corrupt_logit_difference,
        provenance=_provenance(result.provenance),
        clean_answer=answers[0],
        corrupt_answer=answers[1],
    )
