"""Streams through Serve's proxy, beside a handler that goes about it as the proxy's own."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from actstore_api.verbs import VERBS
from actstore_worker.wire.proxy_streams import add_services, mended_streams


class Call:
    """Its peer may be asked while it lasts."""

    def __init__(self) -> None:
        self.over = False
        self.told: list[str] = []

    def peer(self) -> str:
        assert not self.over
        return "peer"

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
