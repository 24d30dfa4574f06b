"""Streams through Serve's proxy, beside a handler that goes about it as the proxy's own."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from actstore_api.verbs import VERBS
from actstore_worker.wire.proxy_streams import SECONDS_LEFT, add_services, mended_streams


class Call:
    """Its peer may be asked while it lasts."""

    def __init__(self) -> None:
        self.over = False
        self.told: list[str] = []
        self.seconds_left: float | None = None

    def peer(self) -> str:
        assert not self.over
        return "peer"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", "Bearer token"), (SECONDS_LEFT, "forged"))

    def time_remaining(self) -> float | None:
        return self.seconds_left

    def log(self, text: str) -> None:
        self.told.append(text)


def stream(call: Call, messages: list[bytes], kind: str = "unary_stream") -> AsyncIterator[bytes]:
    async def handler(request: list[bytes], context: Call) -> AsyncIterator[bytes]:
        """Cancels what it asked where it waits for a message, and then logs the peer."""
        for message in request:
            yield message
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            context.log(f"cancelled for {context.peer()}")

    factory = mended_streams(lambda **_: handler)
    return factory(service_method="", streaming_type=SimpleNamespace(value=kind))(messages, call)


@pytest.mark.parametrize("left", [[], [b"second"], [b"", b"second", b"third"]])
def test_a_caller_who_leaves_while_a_message_is_written_is_found_out(left: list[bytes]) -> None:
    call = Call()

    async def leave() -> None:
        messages = stream(call, [b"first", *left])
        assert await anext(messages) == b"first"
        call.over = True
        await messages.aclose()

    asyncio.run(leave())
    assert call.told == ["cancelled for peer"]


def test_a_caller_who_leaves_while_none_is_there_is_found_out_by_the_proxy() -> None:
    call = Call()

    async def leave() -> None:
        messages = stream(call, [b"first"])
        assert await anext(messages) == b"first"
        waiting = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(StopAsyncIteration):
            await waiting

    asyncio.run(leave())
    assert call.told == ["cancelled for peer"]


@pytest.mark.parametrize(
    ("kind", "expected"), [("unary_stream", [b"one", b"two"]), ("stream_stream", [b"one", b"", b"two"])]
)
def test_empty_messages_stay_behind(kind: str, expected: list[bytes]) -> None:
    async def take() -> list[bytes]:
        messages = stream(Call(), [b"one", b"", b"two"], kind)
        found = [await anext(messages) for _ in expected]
        await messages.aclose()
        return found

    assert asyncio.run(take()) == expected


@pytest.mark.parametrize(("seconds_left", "said"), [(None, []), (2.5, [(SECONDS_LEFT, "2.5")])])
def test_a_deadline_is_handed_on_as_a_header(seconds_left: float | None, said: list[tuple[str, str]]) -> None:
    """As the proxy finds it, whatever a caller says."""
    call, heard = Call(), []
    call.seconds_left = seconds_left

    async def handler(request: object, context: Call) -> AsyncIterator[bytes]:
        heard.extend(context.invocation_metadata())
        yield b"message"

    async def ask() -> None:
        stream_of = mended_streams(lambda **_: handler)
        opened = stream_of(service_method="", streaming_type=SimpleNamespace(value="unary_stream"))(None, call)
        assert [message async for message in opened] == [b"message"]

    asyncio.run(ask())
    assert heard == [("authorization", "Bearer token"), *said]

    async def single(request: object, context: Call) -> bytes:
        heard[:] = context.invocation_metadata()
        return b"answer"

    answer = mended_streams(lambda **_: single)(service_method="", streaming_type=SimpleNamespace(value="unary_unary"))
    assert asyncio.iscoroutinefunction(answer)  # else gRPC would run it on a thread
    assert asyncio.run(answer(None, call)) == b"answer"
    assert heard == [("authorization", "Bearer token"), *said]


class Server:
    """Serve's, as far as generated code sees it."""

    def __init__(self) -> None:
        self.methods: set[str] = set()

    def service_handler_factory(self, service_method: str, streaming_type: Any) -> Any:
        raise AssertionError("nobody calls")

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self.methods.update(path for handler in handlers for path in handler._method_handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        pass


def test_every_method_that_is_forwarded_is_served() -> None:
    server = Server()
    add_services(StandIn(), server)
    assert server.methods == {verb.path for verb in VERBS.values() if verb.forwarded}


class StandIn:
    def __getattr__(self, name: str) -> Any:
        return name
