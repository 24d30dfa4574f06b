"""Answers what the service is: its version, what it can do, and its workers."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from actstore_api.codec import encode
from actstore_api.levels import API_LEVEL, OLDEST_LEVEL, own_version
from actstore_api.records.information import (
    Capabilities,
    GetServiceInfoAnswer,
    ServiceInfo,
    ServiceLimits,
    WorkersInfo,
)
from actstore_api.verbs import Verb
from actstore_service.answers.questions import Questions
from actstore_service.calls.call import Call
from actstore_service.calls.classes import CallClass
from actstore_service.calls.failures import StatusGiven
from actstore_service.calls.steps import Steps
from actstore_service.gateway import Gateway
from actstore_service.settings import Limits
from actstore_storage.errors import ActstoreError
from actstore_storage.format.specification import FORMATS_READ


class Information:
    """The answer to GetServiceInfo. It needs no thread."""

    def __init__(self, gateway: Gateway, questions: Questions, steps: Steps, limits: Limits) -> None:
        self._gateway, self._questions, self._steps, self._limits = gateway, questions, steps, limits

    def answers(self, verb: Verb) -> Callable[[Call], Awaitable[bytes | None]]:
        return lambda call: self._single(call, verb)

    async def _single(self, call: Call, verb: Verb) -> bytes:
        async with self._steps.begun(call, CallClass.STANDARD) as (message, _):
            self._questions.read(call, verb, message)
            found = GetServiceInfoAnswer(self._info(call, await self._workers(call)))
        return self._steps.outbox.last(call, encode(found).SerializeToString())

    def _info(self, call: Call, workers: WorkersInfo | None) -> ServiceInfo:
        return ServiceInfo(
            version=own_version(),
            api_level=API_LEVEL,
            oldest_client_level=OLDEST_LEVEL,
            formats_read=FORMATS_READ,
            capabilities=Capabilities(workers=self._gateway.configured, request_ids=True, retry_delay=True),
            limits=_told(self._limits),
            roles=() if call.principal is None else tuple(sorted(role.value for role in call.principal.roles)),
            workers=workers,
        )

    async def _workers(self, call: Call) -> WorkersInfo | None:
        with suppress(ActstoreError, StatusGiven):
            return await self._gateway.workers(call)
        return None


def _told(limits: Limits) -> ServiceLimits:
    return ServiceLimits(
        request_bytes=limits.request_bytes,
        response_bytes=limits.response_bytes,
        calls=limits.principal_calls,
        streams=limits.principal_streams,
        stalled_seconds=limits.stalled_seconds,
    )
