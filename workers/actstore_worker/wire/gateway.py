"""Implements every method of the contract that the workers answer.

It does not import Ray, but follows the conventions of its ingress: a method gets the request and a `grpc_context`. A
failure is set on the context, because trailers with google.rpc.Status are sent with a returned message and not with an
exception.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from actstore_api.codec import encode, message_of
from actstore_api.levels import API_LEVEL, TooOldError, check_caller, own_version
from actstore_api.logs.traces import Span, received
from actstore_api.reasons import REASONS, to_status
from actstore_api.records.capture import CaptureProgress, WatchCapture, WatchCaptureAnswer
from actstore_api.records.information import GetWorkersInfo, GetWorkersInfoAnswer, WorkersInfo
from actstore_api.records.patching import (
    EstimateSweep,
    EstimateSweepAnswer,
    RunSweep,
    RunSweepAnswer,
)
from actstore_api.v1 import service_pb2
from actstore_api.verbs import VERBS, Verb
from actstore_storage.errors import ActstoreError, BadRequest
from actstore_storage.format.specification import FORMAT_VERSION, FORMATS_READ
from actstore_storage.runs.wanted import DEFAULT_PRINCIPAL
from actstore_worker.caller import Caller
from actstore_worker.files.secrets import NO_TOKEN, has_token
from actstore_worker.wire.failures import DETAILS_KEY, STATUS_CODES, failure_of, read_question
from actstore_worker.wire.live_places import Models
from actstore_worker.wire.proxy_streams import SECONDS_LEFT

_log = logging.getLogger(__name__)
# The header with the name of the principal, which the service sends.
PRINCIPAL = "actstore-principal"
_CAPTURES = service_pb2.DESCRIPTOR.services_by_name["CaptureService"].full_name


class Captures(Protocol):
    """Questions to the coordinator."""

    async def ask(self, question: Any, caller: Caller) -> Any: ...

    async def progress_after(self, run: str, version: int) -> tuple[int, CaptureProgress]: ...


class Context(Protocol):
    """The part of Ray Serve's gRPC context that is used."""

    def invocation_metadata(self) -> list[tuple[str, str]]: ...

    def set_code(self, code: Any) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, Any]]) -> None: ...


class Gateway:
    """Answers each method that is forwarded to the workers, by a method of the same name; see below.

    Every call must have `authorization: Bearer <token>`; only the service has the token. `tokens` returns those that
    are valid now: while a token is replaced, there are two.
    """

    # The newest format version of runs that captures write.
    format_written = FORMAT_VERSION

    def __init__(self, tokens: Callable[[], Sequence[str]], captures: Captures, models: Models) -> None:
        self._tokens = tokens
        self._captures, self._models = captures, models

    async def answer(self, verb: Verb, request: Any, context: Context) -> Any:
        """Answer a method with one message; after a failure with an empty one."""
        with received(verb.path, _headers(context)) as span:
            try:
                self._check_caller(context)
                return encode(await self._answered(verb, read_question(verb.question, request), caller_of(context)))
            except Exception as error:  # noqa: BLE001  none may reach Serve, which would send its traceback
                _refuse(context, error, span)
                return message_of(verb.answer)()

    async def stream(self, verb: Verb, request: Any, context: Context) -> AsyncIterator[Any]:
        """Answer a method with a stream of messages.

        After a failure an empty message carries the status, and `mended_streams` removes it for the caller.
        """
        with received(verb.path, _headers(context)) as span:
            try:
                self._check_caller(context)
                async with aclosing(self._told(read_question(verb.question, request), caller_of(context))) as answers:
                    async for told in answers:
                        yield encode(told)
            except Exception as error:  # noqa: BLE001  as above
                _refuse(context, error, span)
                yield message_of(verb.answer)()

    async def _answered(self, verb: Verb, question: Any, caller: Caller) -> Any:
        """Questions about captures go to the coordinator, sweeps and all other questions to a model replica. What the
        workers are, it knows itself.
        """
        if isinstance(question, GetWorkersInfo):
            return GetWorkersInfoAnswer(WorkersInfo(own_version(), API_LEVEL, FORMATS_READ, self.format_written))
        if verb.service == _CAPTURES:
            return await self._captures.ask(question, caller)
        if isinstance(question, EstimateSweep):
            return EstimateSweepAnswer(await self._models.estimate(question.sweep, caller))
        return await self._models.ask(question, caller)

    async def _told(
        self, question: WatchCapture | RunSweep, caller: Caller
    ) -> AsyncGenerator[WatchCaptureAnswer | RunSweepAnswer, None]:
        match question:
            case WatchCapture():
                async for progress in self._watched(question.run):
                    yield WatchCaptureAnswer(progress)
            case RunSweep():
                async with aclosing(self._models.run(question, caller)) as updates:
                    async for update in updates:
                        yield RunSweepAnswer(update)

    async def _watched(self, run: str) -> AsyncIterator[CaptureProgress]:
        """Asks repeatedly instead of holding a stream open, so that a caller who disconnects leaves nothing behind."""
        version, ended = -1, False
        while not ended:
            version, progress = await self._captures.progress_after(run, version)
            yield progress
            ended = progress.ended

    def _check_caller(self, context: Context) -> None:
        self._check_token(context)
        try:
            check_caller(_headers(context), "workers have")
        except TooOldError as error:
            raise BadRequest(
                str(error), reason=error.reason, field=error.field, value=error.value, allowed=error.allowed
            ) from None

    def _check_token(self, context: Context) -> None:
        if not has_token(context.invocation_metadata(), self._tokens()):
            raise ActstoreError(NO_TOKEN, reason="UNAUTHENTICATED")


def caller_of(context: Context) -> Caller:
    """Reads who the service says that asks, and the deadline that the proxy found. A call without a name is the default
    principal's, and one without a deadline has no limit.

    Errors: ActstoreError CANCELLED for a call that comes after its deadline.
    """
    said = dict(context.invocation_metadata())
    seconds = said.get(SECONDS_LEFT)
    caller = Caller(said.get(PRINCIPAL) or DEFAULT_PRINCIPAL, None if seconds is None else float(seconds))
    caller.check_waits()
    return caller


def _headers(context: Context) -> dict[str, str]:
    return {key: str(value) for key, value in context.invocation_metadata()}


def _refuse(context: Context, error: Exception, span: Span) -> None:
    if not isinstance(error, ActstoreError):
        _log.error("a call failed", exc_info=error)
    failure = failure_of(error)
    span.note(failed=True, reason=failure.reason)
    context.set_code(STATUS_CODES[REASONS[failure.reason].status])
    status = to_status(failure)  # with texts cut to what trailers can hold
    context.set_details(status.message)
    context.set_trailing_metadata([(DETAILS_KEY, status.SerializeToString())])


def _method(verb: Verb) -> Any:
    """In the form that Serve needs: a parameter named `grpc_context`, and streams as generator functions."""

    async def answer(self: Gateway, request: Any, grpc_context: Context) -> Any:
        return await self.answer(verb, request, grpc_context)

    async def stream(self: Gateway, request: Any, grpc_context: Context) -> AsyncIterator[Any]:
        async for message in self.stream(verb, request, grpc_context):
            yield message

    return stream if verb.streams else answer


for _verb in VERBS.values():
    if _verb.forwarded:
        setattr(Gateway, _verb.name, _method(_verb))
