"""What comes back of a call to another process, or that it did not."""

from collections.abc import Awaitable
from typing import TypeVar

from ray.exceptions import RayActorError, RayTaskError

from actstore_storage.errors import ActstoreError

Answer = TypeVar("Answer")


async def answer(reference: Awaitable[Answer]) -> Answer:
    """Waits for what another process answers.

    Errors: those that were raised over there; ActstoreError WORKERS_UNAVAILABLE where the process died.
    """
    try:
        return await reference
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError:
        raise unavailable("a worker process died; try again") from None


def unavailable(message: str) -> ActstoreError:
    return ActstoreError(message, reason="WORKERS_UNAVAILABLE")
