"""CaptureService, PatchingService, SaeService and ModelService as the workers answer them.

Knows nothing of Ray, but keeps its ingress's ways: a method gets the request and a `grpc_context`, and a failure is
what it sets there, for the trailers that carry google.rpc.Status are sent with a returned message and not with an
exception.
"""

import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from actstore_api.reasons import REASONS, to_status
from actstore_api.v1 import capture_pb2, model_pb2, norm_pb2, patching_pb2, sae_pb2
from actstore_storage.errors import ActstoreError
from actstore_worker.capture.progress import Estimate, Progress, Totals
from actstore_worker.capture.request import CaptureRequest
from actstore_worker.catalog.listing import Sources
from actstore_worker.live.questions import Answer, Question
from actstore_worker.patching.inputs.request import SweepRequest
from actstore_worker.patching.serving.estimate import SweepEstimate
from actstore_worker.patching.sweep import SweepUpdate
from actstore_worker.wire import capture as wire
from actstore_worker.wire import model_questions as model_messages
from actstore_worker.wire import sae_questions as messages
from actstore_worker.wire.sweeps import estimate_message, sweep_request, sweep_response

_log = logging.getLogger(__name__)
_DETAILS_KEY = "grpc-status-details-bin"

Request = TypeVar("Request")
Response = TypeVar("Response")


class Captures(Protocol):
    """The coordinator, from here."""

    async def submit(self, request: CaptureRequest) -> str: ...

    async def estimate(self, request: CaptureRequest) -> Estimate: ...

    async def sources(self) -> Sources: ...

    async def progress_after(self, run: str, version: int) -> tuple[int, Progress]: ...

    async def cancel(self, run: str) -> Progress: ...

    async def totals(self) -> Totals: ...


class Models(Protocol):
    """The model replicas, from here."""

    def run(self, request: SweepRequest) -> AsyncIterator[SweepUpdate]: ...

    async def estimate(self, request: SweepRequest) -> SweepEstimate: ...

    async def ask(self, question: Question) -> Answer: ...


class Context(Protocol):
    """The part of Ray Serve's gRPC context that is used."""

    def invocation_metadata(self) -> list[tuple[str, str]]: ...

    def set_code(self, code: Any) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, Any]]) -> None: ...


class Gateway:
    """Every call must bring `authorization: Bearer <token>`; only the service knows the token."""

    def __init__(self, token: str, captures: Captures, models: Models) -> None:
        self._expected = f"Bearer {token}".encode()
        self._captures, self._models = captures, models

    async def StartCapture(  # noqa: N802
        self, request: capture_pb2.StartCaptureRequest, grpc_context: Context
    ) -> capture_pb2.StartCaptureResponse:
        return await self._answer(self._start, request, grpc_context, capture_pb2.StartCaptureResponse)

    async def EstimateCapture(  # noqa: N802
        self, request: capture_pb2.EstimateCaptureRequest, grpc_context: Context
    ) -> capture_pb2.EstimateCaptureResponse:
        return await self._answer(self._estimate, request, grpc_context, capture_pb2.EstimateCaptureResponse)

    async def ListSources(  # noqa: N802
        self, request: capture_pb2.ListSourcesRequest, grpc_context: Context
    ) -> capture_pb2.ListSourcesResponse:
        return await self._answer(self._sources, request, grpc_context, capture_pb2.ListSourcesResponse)

    async def CancelCapture(  # noqa: N802
        self, request: capture_pb2.CancelCaptureRequest, grpc_context: Context
    ) -> capture_pb2.CancelCaptureResponse:
        return await self._answer(self._cancel, request, grpc_context, capture_pb2.CancelCaptureResponse)

    async def GetCaptureTotals(  # noqa: N802
        self, request: capture_pb2.GetCaptureTotalsRequest, grpc_context: Context
    ) -> capture_pb2.GetCaptureTotalsResponse:
        return await self._answer(self._totals, request, grpc_context, capture_pb2.GetCaptureTotalsResponse)

    async def WatchCapture(  # noqa: N802
        self, request: capture_pb2.WatchCaptureRequest, grpc_context: Context
    ) -> AsyncIterator[capture_pb2.WatchCaptureResponse]:
        async for message in self._stream(self._watch, request, grpc_context, capture_pb2.WatchCaptureResponse):
            yield message

    async def RunSweep(  # noqa: N802
        self, request: patching_pb2.RunSweepRequest, grpc_context: Context
    ) -> AsyncIterator[patching_pb2.RunSweepResponse]:
        async for message in self._stream(self._sweep, request, grpc_context, patching_pb2.RunSweepResponse):
            yield message

    async def EstimateSweep(  # noqa: N802
        self, request: patching_pb2.EstimateSweepRequest, grpc_context: Context
    ) -> patching_pb2.EstimateSweepResponse:
        return await self._answer(self._price, request, grpc_context, patching_pb2.EstimateSweepResponse)

    async def EncodeText(  # noqa: N802
        self, request: sae_pb2.EncodeTextRequest, grpc_context: Context
    ) -> sae_pb2.EncodeTextResponse:
        return await self._ask(messages.ENCODE_TEXT, request, grpc_context)

    async def GetLogitLens(  # noqa: N802
        self, request: sae_pb2.GetLogitLensRequest, grpc_context: Context
    ) -> sae_pb2.GetLogitLensResponse:
        return await self._ask(messages.GET_LOGIT_LENS, request, grpc_context)

    async def AblateText(  # noqa: N802
        self, request: sae_pb2.AblateTextRequest, grpc_context: Context
    ) -> sae_pb2.AblateTextResponse:
        return await self._ask(messages.ABLATE_TEXT, request, grpc_context)

    async def AblateDirection(  # noqa: N802
        self, request: sae_pb2.AblateDirectionRequest, grpc_context: Context
    ) -> sae_pb2.AblateDirectionResponse:
        return await self._ask(messages.ABLATE_DIRECTION, request, grpc_context)

    async def FindNeighbours(  # noqa: N802
        self, request: sae_pb2.FindNeighboursRequest, grpc_context: Context
    ) -> sae_pb2.FindNeighboursResponse:
        return await self._ask(messages.FIND_NEIGHBOURS, request, grpc_context)

    async def CheckSae(  # noqa: N802
        self, request: sae_pb2.CheckSaeRequest, grpc_context: Context
    ) -> sae_pb2.CheckSaeResponse:
        return await self._ask(messages.CHECK_SAE, request, grpc_context)

    async def TokeniseText(  # noqa: N802
        self, request: model_pb2.TokeniseTextRequest, grpc_context: Context
    ) -> model_pb2.TokeniseTextResponse:
        return await self._ask(model_messages.TOKENISE_TEXT, request, grpc_context)

    async def GetAttention(  # noqa: N802
        self, request: model_pb2.GetAttentionRequest, grpc_context: Context
    ) -> model_pb2.GetAttentionResponse:
        return await self._ask(model_messages.GET_ATTENTION, request, grpc_context)

    async def GetInductionScores(  # noqa: N802
        self, request: model_pb2.GetInductionScoresRequest, grpc_context: Context
    ) -> model_pb2.GetInductionScoresResponse:
        return await self._ask(model_messages.GET_INDUCTION_SCORES, request, grpc_context)

    async def GetTextLens(  # noqa: N802
        self, request: model_pb2.GetTextLensRequest, grpc_context: Context
    ) -> model_pb2.GetTextLensResponse:
        return await self._ask(model_messages.GET_TEXT_LENS, request, grpc_context)

    async def SteerText(  # noqa: N802
        self, request: model_pb2.SteerTextRequest, grpc_context: Context
    ) -> model_pb2.SteerTextResponse:
        return await self._ask(model_messages.STEER_TEXT, request, grpc_context)

    async def AblateSites(  # noqa: N802
        self, request: model_pb2.AblateSitesRequest, grpc_context: Context
    ) -> model_pb2.AblateSitesResponse:
        return await self._ask(model_messages.ABLATE_SITES, request, grpc_context)

    async def CompareTokens(  # noqa: N802
        self, request: model_pb2.CompareTokensRequest, grpc_context: Context
    ) -> model_pb2.CompareTokensResponse:
        return await self._ask(model_messages.COMPARE_TOKENS, request, grpc_context)

    async def GetWeightNorms(  # noqa: N802
        self, request: norm_pb2.GetWeightNormsRequest, grpc_context: Context
    ) -> norm_pb2.GetWeightNormsResponse:
        return await self._ask(model_messages.GET_WEIGHT_NORMS, request, grpc_context)

    async def _ask(self, verb: messages.Verb[Request, Response], request: Request, context: Context) -> Response:
        async def answer(asked: Request) -> Response:
            return verb.message(await self._models.ask(verb.question(asked)))

        return await self._answer(answer, request, context, verb.response)

    async def _start(self, request: capture_pb2.StartCaptureRequest) -> capture_pb2.StartCaptureResponse:
        run = await self._captures.submit(wire.capture_request(request.specification))
        return capture_pb2.StartCaptureResponse(run=run)

    async def _estimate(self, request: capture_pb2.EstimateCaptureRequest) -> capture_pb2.EstimateCaptureResponse:
        found = await self._captures.estimate(wire.capture_request(request.specification))
        return capture_pb2.EstimateCaptureResponse(estimate=wire.estimate_message(found))

    async def _sources(self, _: capture_pb2.ListSourcesRequest) -> capture_pb2.ListSourcesResponse:
        return wire.sources_message(await self._captures.sources())

    async def _cancel(self, request: capture_pb2.CancelCaptureRequest) -> capture_pb2.CancelCaptureResponse:
        progress = await self._captures.cancel(request.run)
        return capture_pb2.CancelCaptureResponse(progress=wire.progress_message(progress))

    async def _totals(self, _: capture_pb2.GetCaptureTotalsRequest) -> capture_pb2.GetCaptureTotalsResponse:
        return wire.totals_message(await self._captures.totals())

    async def _watch(self, request: capture_pb2.WatchCaptureRequest) -> AsyncIterator[capture_pb2.WatchCaptureResponse]:
        """Asks again and again rather than holding a stream open, so that a caller who goes away leaves nothing."""
        version, ended = -1, False
        while not ended:
            version, progress = await self._captures.progress_after(request.run, version)
            yield capture_pb2.WatchCaptureResponse(progress=wire.progress_message(progress))
            ended = progress.ended

    async def _sweep(self, request: patching_pb2.RunSweepRequest) -> AsyncIterator[patching_pb2.RunSweepResponse]:
        async for update in self._models.run(sweep_request(request)):
            yield sweep_response(update)

    async def _price(self, request: patching_pb2.EstimateSweepRequest) -> patching_pb2.EstimateSweepResponse:
        return estimate_message(await self._models.estimate(sweep_request(request.sweep)))

    async def _answer(
        self,
        call: Callable[[Request], Awaitable[Response]],
        request: Request,
        context: Context,
        empty: Callable[[], Response],
    ) -> Response:
        try:
            self._check_token(context)
            return await call(request)
        except Exception as error:  # noqa: BLE001  none may reach Serve, which would send its traceback
            _refuse(context, error)
            return empty()

    async def _stream(
        self,
        call: Callable[[Request], AsyncIterator[Response]],
        request: Request,
        context: Context,
        empty: Callable[[], Response],
    ) -> AsyncIterator[Response]:
        """After a failure one empty message takes the status along; `mended_streams` keeps it from the caller."""
        try:
            self._check_token(context)
            async for message in call(request):
                yield message
        except Exception as error:  # noqa: BLE001  as above
            _refuse(context, error)
            yield empty()

    def _check_token(self, context: Context) -> None:
        """Of a header that came twice only the first counts, and the time taken tells nothing of the token."""
        sent = next((value for key, value in context.invocation_metadata() if key == "authorization"), "")
        if not hmac.compare_digest(str(sent).encode(), self._expected):
            raise ActstoreError("the gateway's token is missing or wrong", reason="UNAUTHENTICATED")


def _refuse(context: Context, error: Exception) -> None:
    if not isinstance(error, ActstoreError):
        _log.error("a call failed", exc_info=error)
    failure = wire.failure_of(error)
    context.set_code(wire.STATUS_CODES[REASONS[failure.reason].status])
    status = to_status(failure)  # whose texts are cut to what trailers hold
    context.set_details(status.message)
    context.set_trailing_metadata([(_DETAILS_KEY, status.SerializeToString())])
