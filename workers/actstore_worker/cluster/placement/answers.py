"""Answers of calls to other processes, and errors if a process died."""

from collections.abc import Awaitable
from typing import TypeVar

from ray.exceptions import RayActorError, RayTaskError

from actstore_storage.errors import ActstoreError

Answer = TypeVar("Answer")


async def answer(reference: Awaitable[Answer]) -> Answer:
    """Waits for the answer of another process.

    Errors: those that were raised there; ActstoreError WORKERS_UNAVAILABLE if the process died.
    """
    try:
        return await reference
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError:
        raise unavailable("a worker process died; try again") from None


def unavailable(message: str) -> ActstoreError:
    return ActstoreError(message, reason="WORKERS_UNAVAILABLE")
