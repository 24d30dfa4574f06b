"""Answers calls with what the workers answer. Messages go there and come back as bytes."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from actstore_api.verbs import Verb
from actstore_service.answers.questions import Questions
from actstore_service.answers.work import Threads
from actstore_service.calls.call import Call
from actstore_service.calls.classes import CallClass
from actstore_service.calls.steps import Steps
from actstore_service.gateway import Gateway

# Looks at the messages of a stream from the workers, by method name.
Watch = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]
Way = Callable[[Call, Verb, bytes, Any], Awaitable[bytes | None]]
# Looks at a question and the workers' single answer, by method name.
Look = Callable[[Any, bytes], None]


class Forwarded:
    """The answers of all verbs that the workers answer."""

    def __init__(
        self,
        gateway: Gateway,
        questions: Questions,
        steps: Steps,
        watches: Mapping[str, Watch],
        looks: Mapping[str, Look],
        threads: int,
    ) -> None:
        """`threads`: questions are parsed here too, for their bounds and permission. The rest is waiting."""
        self._gateway, self._questions, self._steps, self._watches = gateway, questions, steps, watches
        self._looks = looks
        self._threads = Threads("forwarded", threads)

    def answers(self, verb: Verb) -> Callable[[Call], Awaitable[bytes | None]]:
        way = self._stream if verb.streams else self._single
        return lambda call: self._placed(call, verb, way)

    def close(self) -> None:
        self._threads.close()

    async def _placed(self, call: Call, verb: Verb, way: Way) -> bytes | None:
        async with self._steps.begun(call, CallClass.FORWARDED) as (message, room), room.place(call.name):
            question = await self._threads.run(lambda: self._questions.read(call, verb, message), lambda: None)
            await self._gateway.check_level(question, call)
            return await way(call, verb, message, question)

    async def _single(self, call: Call, verb: Verb, message: bytes, question: Any) -> bytes:
        found = await self._gateway.answer(verb.path, message, call)
        self._looks.get(verb.name, _ignore)(question, found)
        return self._steps.outbox.last(call, found)

    async def _stream(self, call: Call, verb: Verb, message: bytes, _: Any) -> None:
        watch = self._watches.get(verb.name, aiter)
        async for part in watch(self._gateway.stream(verb.path, message, call)):
            await self._steps.outbox.send(call, part)


def _ignore(_question: Any, _answer: bytes) -> None:
    """Answers of other methods are not looked at."""
