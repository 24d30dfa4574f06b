"""gRPC's standard services, health and reflection, as two more answers behind the same steps.

Not grpc_health's servicer for asyncio: it holds a lock while it sends, so that one watcher that does not read stops all
others and every change of state, the one at the end included; and it forgets all watchers of a name once one leaves.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from actstore_service.calls.call import Call
from actstore_service.calls.classes import CallClass
from actstore_service.calls.failures import StatusGiven
from actstore_service.calls.pipeline import Method
from actstore_service.calls.steps import Steps
from actstore_storage.errors import BadRequest

_States = health_pb2.HealthCheckResponse
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION = reflection.SERVICE_NAME


class Health:
    """The state of each service by its full name; the empty name is the whole server."""

    def __init__(self, steps: Steps, serving: Mapping[str, bool]) -> None:
        self._steps = steps
        self._states = {name: _States.SERVING if serves else _States.NOT_SERVING for name, serves in serving.items()}
        self._changed = asyncio.Event()

    def methods(self, is_open: bool) -> tuple[Method, Method]:
        """Open ones need no token."""
        kind = CallClass.STANDARD
        return (
            Method(f"/{HEALTH}/Check", kind, self._check, streams=False, is_open=is_open),
            Method(f"/{HEALTH}/Watch", kind, self._watch, streams=True, is_open=is_open),
        )

    def stop_serving(self) -> None:
        """Tells everyone who watches that no service takes calls any more."""
        self._states = dict.fromkeys(self._states, _States.NOT_SERVING)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _check(self, call: Call) -> bytes:
        async with self._asked(call) as name:
            if name not in self._states:
                raise StatusGiven(status_pb2.Status(code=code_pb2.NOT_FOUND, message="no service of this name"))
            return _state(self._states[name])

    async def _watch(self, call: Call) -> None:
        async with self._asked(call) as name:
            told = None
            while True:
                changed = self._changed
                state = self._states.get(name, _States.SERVICE_UNKNOWN)
                if state != told:
                    await self._steps.outbox.send(call, _state(state))
                told = state
                await changed.wait()

    @asynccontextmanager
    async def _asked(self, call: Call) -> AsyncIterator[str]:
        """The name that is asked about."""
        async with self._steps.begun(call, CallClass.STANDARD) as (message, room), room.place(call.name):
            yield _parsed(health_pb2.HealthCheckRequest, message).service


class Reflection:
    """Describes the contract to tools such as grpcurl."""

    def __init__(self, steps: Steps, services: Iterable[str]) -> None:
        self._steps = steps
        self._servicer = reflection.aio.ReflectionServicer((*services, HEALTH, REFLECTION))

    def method(self) -> Method:
        return Method(f"/{REFLECTION}/ServerReflectionInfo", CallClass.STANDARD, self._info, streams=True)

    async def _info(self, call: Call) -> None:
        async with self._steps.begun(call, CallClass.STANDARD) as (first, room), room.place(call.name):
            async for found in self._servicer.ServerReflectionInfo(self._requests(call, first), None):
                await self._steps.outbox.send(call, found.SerializeToString())

    async def _requests(self, call: Call, first: bytes) -> AsyncIterator[Message]:
        message: bytes | None = first
        while message is not None:
            yield _parsed(reflection_pb2.ServerReflectionRequest, message)
            message = await self._steps.opening.next_message(call)


def _state(state: int) -> bytes:
    written: bytes = _States(status=state).SerializeToString()
    return written


def _parsed(kind: Any, message: bytes) -> Any:
    try:
        return kind.FromString(message)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise BadRequest(f"the message is not a {name}", field="message", allowed=f"a serialized {name}") from None
