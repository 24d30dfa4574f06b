"""Calls between processes of the workers: what goes along with them, and how their answers and errors come back.

Ray and Serve write the text of an error that leaves a method into their files, and it may have what a caller sent. So
an error comes back as a value.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from actstore_api.logs.lines import LogForm, start_logging
from actstore_api.logs.traces import received, start_traces
from actstore_api.reasons import REASONS, Kind
from actstore_storage.errors import ActstoreError
from actstore_worker.errors import LOG_HAS_DETAILS

_log = logging.getLogger(__name__)
# A process that ended or its node did, one that has no place any more, and one that the node ended for its memory.
_DIED = (RayActorError, ActorUnschedulableError, NodeDiedError, OutOfMemoryError, RuntimeEnvSetupError)
# Errors that a caller cannot fix.
_OPERATORS = frozenset({Kind.STORE, Kind.CORRUPT, Kind.FAULT})
# What goes along with a call, as `traces.carried` made it: its request's id, and its span.
Headers: TypeAlias = Mapping[str, str]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Failed:
    """Instead of an answer: the error."""

    error: ActstoreError


def start_process(part: str, form: LogForm, environment: Mapping[str, str]) -> None:
    """What each process of the workers does first: its lines are as all others', and its calls are traced."""
    start_logging(part, form)
    start_traces(part, environment)


async def answer(reference: Awaitable[Answer]) -> Answer:
    """Waits for the answer of another process.

    Errors: those that were raised there; ActstoreError WORKERS_UNAVAILABLE if the process died.
    """
    try:
        return unwrapped(await reference)
    except RayTaskError as error:
        raise error.cause from None
    except _DIED:
        raise unavailable("a worker process died; try again") from None


def unwrapped(found: Answer) -> Answer:
    """The answer. Errors: the one that came instead."""
    if isinstance(found, Failed):
        raise found.error
    return found


async def answered(name: str, headers: Headers, work: Awaitable[Answer]) -> Answer | Failed:
    """The answer of a method, which is in this process `work`, to a call that came with these headers."""
    with received(name, headers) as span:
        try:
            return await work
        except Exception as error:  # noqa: BLE001  see above
            span.note(failed=True)
            return _failed(name, error)


async def answered_in_parts(
    name: str, headers: Headers, parts: AsyncIterator[Answer]
) -> AsyncIterator[Answer | Failed]:
    """As `answered`, for a stream."""
    with received(name, headers) as span:
        try:
            async for part in parts:
                yield part
        except Exception as error:  # noqa: BLE001  see above
            span.note(failed=True)
            yield _failed(name, error)


def done(name: str, headers: Headers, work: Callable[[], Answer]) -> Answer | Failed:
    """As `answered`, for a method that runs on a thread."""
    with received(name, headers) as span:
        try:
            return work()
        except Exception as error:  # noqa: BLE001  see above
            span.note(failed=True)
            return _failed(name, error)


def _failed(name: str, error: Exception) -> Failed:
    """Its frames are in this process's log, for they do not travel."""
    if not isinstance(error, ActstoreError):
        _log.error("%s failed", name, exc_info=error)
        return Failed(ActstoreError(LOG_HAS_DETAILS))
    level = logging.ERROR if REASONS[error.reason].kind in _OPERATORS else logging.INFO
    _log.log(level, "%s: %s", name, error.for_log)
    return Failed(error)


def unavailable(message: str, retry_seconds: float | None = None) -> ActstoreError:
    """`retry_seconds`: when it is worth trying again, if that is known."""
    return ActstoreError(message, reason="WORKERS_UNAVAILABLE", retry_seconds=retry_seconds)
