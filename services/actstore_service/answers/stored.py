"""Answers calls from the bucket: single answers on the threads of their class, rows as a stream."""

from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any

from actstore_api.codec import encode
from actstore_api.verbs import Verb
from actstore_service.answers.ahead import Ahead, Pace
from actstore_service.answers.questions import Questions
from actstore_service.answers.row_messages import row_messages
from actstore_service.answers.work import Threads
from actstore_service.calls.call import Call
from actstore_service.calls.classes import CallClass, class_of
from actstore_service.calls.steps import Steps
from actstore_service.settings import Limits
from actstore_storage.answers import Store, answer, is_lasting, is_quick, only_run, rows
from actstore_storage.bucket.cache import Memory

# Larger answers are not kept: a few of them would leave no room for others.
KEPT_ANSWER_BYTES = 256 * 1024


class Stored:
    """The answers of all verbs that the bucket answers."""

    def __init__(self, store: Store, questions: Questions, steps: Steps, limits: Limits) -> None:
        self._store, self._questions, self._steps, self._limits = store, questions, steps, limits
        self._threads: Mapping[CallClass, Threads] = {
            CallClass.CATALOG: Threads("catalog", limits.catalog_threads),
            CallClass.READS: Threads("reads", limits.read_threads),
            # Few, because they take the interpreter from everybody else.
            CallClass.SLOW: Threads("slow", limits.slow_threads),
            CallClass.STREAMS: Threads("streams", limits.stream_threads),
        }

    def answers(self, verb: Verb) -> Callable[[Call], Awaitable[bytes | None]]:
        way = self._stream if verb.streams else self._single
        return lambda call: way(call, verb)

    def close(self) -> None:
        for threads in self._threads.values():
            threads.close()

    async def _single(self, call: Call, verb: Verb) -> bytes:
        kind = class_of(verb)
        async with self._steps.begun(call, kind) as (message, room):
            await room.enter(call.name)
            found = await self._threads[kind].run(lambda: self._answered(call, verb, message), room.leave)
            if not isinstance(found, bytes):
                slow = self._steps.admission.rooms[CallClass.SLOW]
                await slow.enter(call.name)
                found = await self._threads[CallClass.SLOW].run(found, slow.leave)
        return self._steps.outbox.last(call, found)

    async def _stream(self, call: Call, verb: Verb) -> None:
        outbox, threads = self._steps.outbox, self._threads[CallClass.STREAMS]
        outbox.check()
        async with self._steps.begun(call, CallClass.STREAMS) as (message, room):
            await room.enter(call.name)
            pace = Pace(outbox, self._limits.batch_bytes)
            made = Ahead(call, self._messages(call, verb, message, pace), pace, threads, room.leave)
            try:
                while (part := await made.next()) is not None:
                    await outbox.send(call, part)
            finally:
                made.close()

    def _answered(self, call: Call, verb: Verb, message: bytes) -> "bytes | Callable[[], bytes]":
        """The answer, or for what takes long the work that makes it."""
        question = self._questions.read(call, verb, message)
        store = self._store.until(call.over)
        run = only_run(question)
        if run is None:
            return _soon(question, lambda: _written(self._questions.seen(call, verb, answer(store, question))))
        # Who may use the run sees all of its answers, so that they are the same for all who get here.
        store = store.with_opened(run)
        memory, asked = store.opened[run].memory, (verb.name, message)
        found = memory.find(asked)
        if isinstance(found, bytes):
            return found
        return _soon(question, lambda: _kept(memory, asked, answer(store, question)))

    def _messages(self, call: Call, verb: Verb, message: bytes, pace: Pace) -> Generator[bytes, None, None]:
        question = self._questions.read(call, verb, message)
        provenance, batches = rows(self._store.until(call.over), question)
        yield from row_messages(provenance, batches, pace.message_bytes)


def _soon(question: object, work: Callable[[], bytes]) -> "bytes | Callable[[], bytes]":
    """A quick question is answered where it was read."""
    return work() if is_quick(question) else work


def _kept(memory: Memory, question: tuple[str, bytes], answer: Any) -> bytes:
    """Keeps an answer for the same question to the same snapshot."""
    written = _written(answer)
    n_bytes = len(written) + len(question[1])
    if n_bytes <= KEPT_ANSWER_BYTES and is_lasting(answer):
        memory.keep(question, written, n_bytes)
    return written


def _written(answer: Any) -> bytes:
    written: bytes = encode(answer).SerializeToString()
    return written
