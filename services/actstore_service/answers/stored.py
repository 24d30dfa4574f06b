"""Answers calls from the bucket: single answers on the threads of their class, rows as a stream."""

from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import replace

from actstore_api.codec import encode
from actstore_api.verbs import Verb
from actstore_service.answers.ahead import Ahead
from actstore_service.answers.questions import Questions
from actstore_service.answers.row_messages import row_messages
from actstore_service.answers.work import InterruptibleBucket, Threads
from actstore_service.calls.call import Call
from actstore_service.calls.classes import CallClass, class_of
from actstore_service.calls.steps import Steps
from actstore_service.settings import Limits
from actstore_storage.answers import Store, answer, rows

# Messages of a stream that are made while one is sent, if there is room for them.
_AHEAD = 4


class Stored:
    """The answers of all verbs that the bucket answers."""

    def __init__(self, store: Store, questions: Questions, steps: Steps, limits: Limits) -> None:
        self._store, self._questions, self._steps, self._limits = store, questions, steps, limits
        self._threads: Mapping[CallClass, Threads] = {
            CallClass.CATALOG: Threads("catalog", limits.catalog_threads),
            CallClass.READS: Threads("reads", limits.read_threads),
            CallClass.STREAMS: Threads("streams", limits.stream_threads),
        }

    def answers(self, verb: Verb) -> Callable[[Call], Awaitable[None]]:
        way = self._stream if verb.streams else self._single
        return lambda call: way(call, verb)

    def close(self) -> None:
        for threads in self._threads.values():
            threads.close()

    async def _single(self, call: Call, verb: Verb) -> None:
        kind = class_of(verb)
        async with self._steps.begun(call, kind) as (message, room):
            await room.enter(call.name)
            found = await self._threads[kind].run(call, lambda: self._answered(call, verb, message), room.leave)
        await self._steps.outbox.send(call, found)

    async def _stream(self, call: Call, verb: Verb) -> None:
        async with self._steps.begun(call, CallClass.STREAMS) as (message, room):
            await room.enter(call.name)
            made = Ahead(call, self._messages(call, verb, message), self._threads[CallClass.STREAMS], room.leave)
            try:
                while (part := await made.next(self._bytes_ahead())) is not None:
                    await self._steps.outbox.send(call, part)
            finally:
                made.close()

    def _answered(self, call: Call, verb: Verb, message: bytes) -> bytes:
        question = self._questions.read(call, verb, message)
        found = self._questions.seen(call, verb, answer(self._store_of(call), question))
        written: bytes = encode(found).SerializeToString()
        return written

    def _messages(self, call: Call, verb: Verb, message: bytes) -> Generator[bytes, None, None]:
        question = self._questions.read(call, verb, message)
        provenance, batches = rows(self._store_of(call), question)
        yield from row_messages(provenance, batches, self._limits.batch_bytes)

    def _store_of(self, call: Call) -> Store:
        return replace(self._store, bucket=InterruptibleBucket(self._store.bucket, call.over))

    def _bytes_ahead(self) -> int:
        return self._limits.batch_bytes * (_AHEAD if self._steps.outbox.roomy else 1)
