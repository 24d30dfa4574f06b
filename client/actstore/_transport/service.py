"""Asking a service: the one file of the client that touches gRPC; `_messages` turns protobuf into our own words."""

import ipaddress
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import getproxies

import grpc
from grpc_status import rpc_status

from actstore._errors import ActstoreError, Denied, error_of, refused
from actstore._features.stored import FeatureStatistics
from actstore._model_questions import ModelQuestion
from actstore._norms.profile import Growth, GrowthQuestion, NormProfile, ProfileQuestion
from actstore._norms.separability import Separability, SeparabilityQuestion
from actstore._patching.sweep import Sweep, SweptCells
from actstore._questions import Found, RowsQuestion
from actstore._records import (
    CaptureEstimate,
    CaptureProgress,
    CaptureSpecification,
    ModelDescription,
    RowQuery,
    RunDescription,
    SaeDescription,
    Sources,
    SweepEstimate,
    SweepProgress,
    SweepRequest,
    field_names,
)
from actstore._transport import messages as _messages
from actstore._transport import norm_messages as _norm_messages
from actstore._transport.base import Backend, Question, Rows
from actstore._transport.feature_messages import CALLS, rows_request
from actstore._transport.model_messages import MODEL_CALLS
from actstore_api.reasons import from_status
from actstore_api.records.terms import Failure
from actstore_api.v1 import (
    activation_pb2,
    capture_pb2,
    catalog_pb2,
    feature_pb2,
    service_pb2_grpc,
)

# Of a unary call with all its attempts. Streams have none: a capture may take days.
DEADLINE_SECONDS = 60.0
CHECK_SECONDS = 10.0
CONNECT_SECONDS = 10.0
# Between two tries to reach a service that is away; gRPC's own grows to two minutes, after which it may long be back.
RECONNECT_SECONDS = 0.5
# The workers load a model and tokenise a whole dataset before they say under which name the capture runs.
START_CAPTURE_SECONDS = 3600.0
# What looks at every activation or norm, or loads a model first, takes longer than a read.
LIVE_SECONDS = {"FeatureService": 600.0, "SaeService": 600.0, "ModelService": 600.0, "NormService": 600.0}
MAXIMUM_MESSAGE_BYTES = 256 * 2**20
READS = {
    "CatalogService": ("ListRuns", "GetRun", "ListModels", "ListSaes"),
    "ActivationService": ("ReadActivations", "ReadTokens"),
    "FeatureService": (
        "GetTopExamples",
        "GetFeatureStatistics",
        "SampleExamples",
        "ReadFeature",
        "FindFeatures",
        "GetActiveFeatures",
        "GetCofiringFeatures",
    ),
    "SaeService": ("EncodeText", "GetLogitLens", "AblateText", "AblateDirection", "FindNeighbours", "CheckSae"),
    "ModelService": ("GetAttention", "GetInductionScores", "GetTextLens", "SteerText", "AblateSites", "CompareTokens"),
    "NormService": ("GetNormProfile", "FitGrowth", "GetSeparability", "GetWeightNorms"),
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
    grpc.StatusCode.UNIMPLEMENTED: "SERVICE_UNAVAILABLE",
}
# A connection that ended within an answer, as gRPC or a proxy tells it under the statuses INTERNAL and UNKNOWN.
_CUT = re.compile("RST_STREAM|Stream removed")

# The next step where gRPC's own words tell what is wrong with an address.
_CONNECTING = (
    (re.compile("WRONG_VERSION_NUMBER"), "what listens there does not speak TLS: pass tls=False, or another address"),
    (
        re.compile("CERTIFICATE_VERIFY_FAILED"),
        "its certificate is not trusted: GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names a file of those that are",
    ),
    (re.compile("Socket closed|reset by peer"), "if the service is behind TLS, pass tls=True; else check the address"),
    (re.compile("HTTP/2|http1"), "what listens there is no gRPC service: check the port"),
    (re.compile("UNIMPLEMENTED"), "what listens there is no actstore service, or an older one: check the port"),
)


class GrpcBackend(Backend):
    def __init__(self, address: str, token: str | None, tls: bool | None) -> None:
        self.address = address
        _check_token(token)
        self._channel = _channel(address, token, tls)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        stubs: Any = service_pb2_grpc  # generated, without types
        self._catalog = stubs.CatalogServiceStub(self._channel)
        self._captures = stubs.CaptureServiceStub(self._channel)
        self._read_activations = _rows_call(self._channel, "ActivationService/ReadActivations")
        self._read_tokens = _rows_call(self._channel, "ActivationService/ReadTokens")
        self._read_feature = _rows_call(self._channel, "FeatureService/ReadFeature")
        self._features = stubs.FeatureServiceStub(self._channel)
        self._norms = stubs.NormServiceStub(self._channel)
        self._asked = {
            "FeatureService": self._features,
            "SaeService": stubs.SaeServiceStub(self._channel),
            "ModelService": stubs.ModelServiceStub(self._channel),
            "NormService": self._norms,
        }
        self._patching = stubs.PatchingServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def check_workers(self) -> None:
        """Returns where the service answers, and its workers do. Errors: Unavailable, Denied."""
        self._ask(self._captures.GetCaptureTotals, capture_pb2.GetCaptureTotalsRequest(), CHECK_SECONDS)

    def list_runs(self) -> list[RunDescription]:
        return [_messages.run_of(run) for run in self._ask(self._catalog.ListRuns, catalog_pb2.ListRunsRequest()).runs]

    def get_run(self, run: str) -> RunDescription:
        return _messages.run_of(self._ask(self._catalog.GetRun, catalog_pb2.GetRunRequest(run=run)).run)

    def list_models(self) -> list[ModelDescription]:
        models = self._ask(self._catalog.ListModels, catalog_pb2.ListModelsRequest()).models
        return [_messages.record_of(ModelDescription, model) for model in models]

    def list_sources(self) -> Sources:
        found = self._ask(self._captures.ListSources, capture_pb2.ListSourcesRequest())
        return Sources(
            models={(model.name, model.revision): model.family for model in found.models},
            saes=tuple(found.saes),
            datasets=tuple(found.datasets),
            hub_allowed=found.hub_allowed,
            truncated=found.truncated,
        )

    def list_saes(self) -> list[SaeDescription]:
        saes = self._ask(self._catalog.ListSaes, catalog_pb2.ListSaesRequest()).saes
        return [_messages.record_of(SaeDescription, sae) for sae in saes]

    def norm_profile(self, question: ProfileQuestion) -> NormProfile:
        request = _norm_messages.profile_out(question)
        answer = self._ask(self._norms.GetNormProfile, request, LIVE_SECONDS["NormService"])
        return _norm_messages.profile_of(answer, question, self.fit_growth)

    def fit_growth(self, question: GrowthQuestion) -> Growth:
        return _norm_messages.growth_of(self._ask(self._norms.FitGrowth, _norm_messages.growth_out(question)))

    def separability(self, question: SeparabilityQuestion) -> Separability:
        answer = self._ask(self._norms.GetSeparability, _norm_messages.separability_out(question))
        return _norm_messages.separability_of(answer)

    def feature_statistics(
        self, run: str, sae: str, feature: int, exclude: frozenset[str], bins: int
    ) -> FeatureStatistics:
        request = feature_pb2.GetFeatureStatisticsRequest(
            feature=feature_pb2.FeatureReference(run=run, sae=sae, feature=feature),
            bins=bins,
            exclude=_messages.exclusion_of(exclude),
        )
        answer = self._ask(self._features.GetFeatureStatistics, request)
        return FeatureStatistics(
            table=_messages.table_of(answer.histogram),
            sae=sae,
            feature=feature,
            tokens=answer.tokens,
            active_tokens=answer.active_tokens,
            density=answer.density,
            maximum=answer.maximum,
            mean_when_active=answer.mean_when_active,
            **_messages.origin_of(answer),
        )

    def ask(self, question: Question) -> Found:
        call = MODEL_CALLS[type(question)] if isinstance(question, ModelQuestion) else CALLS[type(question)]
        verb = getattr(self._asked[call.service], call.verb)
        return call.found(self._ask(verb, call.request(question), LIVE_SECONDS[call.service]))

    def read_feature(self, question: RowsQuestion) -> Rows:
        return _messages.rows_of(self._listen(self._read_feature, rows_request(question)))

    def read_activations(self, run: str, query: RowQuery) -> Rows:
        request = activation_pb2.ReadActivationsRequest(
            run=run,
            site=query.sites[0],
            more_sites=query.sites[1:],
            columns=[_messages.COLUMNS[name] for name in query.columns] or [activation_pb2.ROW_COLUMN_NONE],
            **_messages.row_range(query),
        )
        return _messages.rows_of(self._listen(self._read_activations, request))

    def read_tokens(self, run: str, query: RowQuery) -> Rows:
        request = activation_pb2.ReadTokensRequest(run=run, **_messages.row_range(query))
        return _messages.rows_of(self._listen(self._read_tokens, request))

    def estimate_capture(self, specification: CaptureSpecification) -> CaptureEstimate:
        request = capture_pb2.EstimateCaptureRequest(specification=_messages.specification_out(specification))
        found = self._ask(self._captures.EstimateCapture, request, START_CAPTURE_SECONDS).estimate
        fields = {name: getattr(found, name) for name in field_names(CaptureEstimate)}
        fields["dataset_files"] = _messages.dataset_files_of(found.dataset_files)
        return CaptureEstimate(**{**fields, "bytes_by_product": dict(found.bytes_by_product)})

    def start_capture(self, specification: CaptureSpecification) -> str:
        request = capture_pb2.StartCaptureRequest(specification=_messages.specification_out(specification))
        run: str = self._ask(self._captures.StartCapture, request, START_CAPTURE_SECONDS).run
        return run

    def watch_capture(self, run: str) -> Iterator[CaptureProgress]:
        request = capture_pb2.WatchCaptureRequest(run=run)
        for update in self._listen(self._captures.WatchCapture, request):
            yield _messages.progress_of(update.progress)

    def cancel_capture(self, run: str) -> CaptureProgress:
        request = capture_pb2.CancelCaptureRequest(run=run)
        return _messages.progress_of(self._ask(self._captures.CancelCapture, request).progress)

    def run_sweep(self, request: SweepRequest) -> Iterator[SweepProgress | SweptCells | Sweep]:
        parts: list[SweptCells] = []
        for update in self._listen(self._patching.RunSweep, _messages.sweep_out(request)):
            if update.HasField("result"):
                yield _messages.sweep_of(update.result, request, [part.to_arrow() for part in parts])
            elif update.HasField("cells"):
                parts.append(SweptCells(table=_messages.table_of(update.cells.rows)))
                yield parts[-1]
            else:
                yield SweepProgress(update.progress.cells_done, update.progress.cells_total)

    def estimate_sweep(self, request: SweepRequest) -> SweepEstimate:
        asked = _messages.sweep_estimate_out(request)
        found = self._ask(self._patching.EstimateSweep, asked, START_CAPTURE_SECONDS).estimate
        return SweepEstimate(**{name: getattr(found, name) for name in field_names(SweepEstimate)})

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


def _check_token(token: str | None) -> None:
    """It travels in a header."""
    if token and not (token.isascii() and token.isprintable()):
        message = "the token holds a character that no token has, as the end of the line that it was read from"
        raise refused(message, "token", None, "printable ASCII characters")


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
        # A proxy that the environment names is never for this machine itself.
        ("grpc.enable_http_proxy", int(not _is_loopback(address))),
        ("grpc.min_reconnect_backoff_ms", int(1000 * CONNECT_SECONDS)),  # which is how long one try may take
        ("grpc.initial_reconnect_backoff_ms", int(1000 * RECONNECT_SECONDS)),
        ("grpc.max_reconnect_backoff_ms", int(1000 * RECONNECT_SECONDS)),
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
    except ValueError as error:  # gRPC's own, for a channel that is closed
        if "closed" not in str(error):
            raise
        raise refused(
            f"this lab of {address} is closed", "lab", "closed", "a lab that is open: connect again"
        ) from None


def _error(error: Any, address: str) -> ActstoreError:
    status = rpc_status.from_call(error)
    failure = from_status(status) if status is not None else None
    if failure is None:
        said = f"{error.code().name}: {error.details()}"
        reason = FOREIGN.get(error.code()) or ("SERVICE_UNAVAILABLE" if _CUT.search(said) else "INTERNAL")
        message = f"the service at {address} gave no answer of its own ({said})"
        found = error_of(Failure(reason, message, {"field": "address", "value": address}))
        if reason == "SERVICE_UNAVAILABLE":
            found.next_step = _next_step(said, address) or found.next_step
        return found
    return error_of(failure)


def _next_step(said: str, address: str) -> str:
    for pattern, step in _CONNECTING:
        if pattern.search(said):
            return step
    if getproxies() and not _is_loopback(address):
        return "check the address; a proxy of the environment is in between: no_proxy names hosts that it is not for"
    return ""


def _rows_call(channel: grpc.Channel, verb: str) -> Any:
    """Its answers stay bytes: see `rows_of`."""
    return channel.unary_stream(
        f"/actstore_api.v1.{verb}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=lambda message: message,
    )
