"""Every error that the client raises has this base; each class but the last two stands for one Kind of reason.

ActstoreError             what happened, in which field, what is allowed, and the next step
├── BadRequest            change the request
├── NotFound              name something that exists
├── Conflict              choose another name, or look at what is there
├── Denied                bring other credentials
├── LimitExceeded         ask for less
├── StoreFailed           the bucket or its configuration needs repair
├── CorruptObject         bytes in the bucket are not what was written; do not trust them
├── Unavailable           try again later
├── Cancelled             start again
├── Fault                 a mistake in actstore; report it
├── MissingLibrary        an optional library is not installed; also an ImportError
└── StackFailed           a process of the local stack did not start or died; read its log

SaeWarning is a warning, not an error: what looks wrong about an SAE, or that it could not be looked at.
"""

from collections.abc import Iterable, Mapping

from actstore_api.reasons import REASONS, Kind
from actstore_api.records.terms import Failure

# Reasons of the two errors that never cross a wire, and so are not in the table of reasons.
MISSING_LIBRARY, STACK_FAILED = "MISSING_LIBRARY", "STACK_FAILED"


class ActstoreError(Exception):
    """`reason` is a key of actstore_api.reasons.REASONS; `field`, `value`, `allowed` are None if there are none.

    `request_id` names the request in the logs of service and workers; None if the error did not come from a service.
    `retry_seconds` is after how many seconds the same is worth asking again; None if the service did not say.
    """

    request_id: str | None = None
    retry_seconds: float | None = None

    def __init__(
        self,
        message: str,
        *,
        reason: str = "INTERNAL",
        field: str | None = None,
        value: object = None,
        allowed: object = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.field = field
        self.value = _in_words(value)
        self.allowed = _in_words(allowed)
        self.next_step = next_step or (REASONS[reason].next_step if reason in REASONS else "")

    def __str__(self) -> str:
        lines = [self.message]
        if self.field is not None and self.value is not None:
            lines.append(f"  {self.field}: {self.value!r}")
        # Most messages say it already.
        if self.allowed is not None and self.allowed not in self.message:
            lines.append(f"  allowed: {self.allowed}")
        if self.request_id and REASONS[self.reason].kind is Kind.FAULT:
            lines.append(f"  request: {self.request_id}")
        return "\n".join([*lines, f"  next step: {self.next_step} [{self.reason}]"])


class BadRequest(ActstoreError):
    """Change the request."""


class NotFound(ActstoreError):
    """Name something that exists."""


class Conflict(ActstoreError):
    """Choose another name, or look at what is there."""


class Denied(ActstoreError):
    """Bring other credentials."""


class LimitExceeded(ActstoreError):
    """Ask for less."""


class StoreFailed(ActstoreError):
    """The bucket or its configuration needs repair."""


class CorruptObject(ActstoreError):
    """Do not trust the named object."""


class Unavailable(ActstoreError):
    """Try again later."""


class Cancelled(ActstoreError):
    """Start again."""


class Fault(ActstoreError):
    """Report it."""


class MissingLibrary(ActstoreError, ImportError):
    """Install the named optional library."""


class StackFailed(ActstoreError):
    """Read the end of the log in the message."""


class SaeWarning(UserWarning):
    """An SAE does not look as if it were right for the model, or could not be checked; the features are stored."""


CLASS_OF_KIND: Mapping[Kind, type[ActstoreError]] = {
    Kind.BAD_REQUEST: BadRequest,
    Kind.NOT_FOUND: NotFound,
    Kind.CONFLICT: Conflict,
    Kind.DENIED: Denied,
    Kind.LIMIT: LimitExceeded,
    Kind.STORE: StoreFailed,
    Kind.CORRUPT: CorruptObject,
    Kind.UNAVAILABLE: Unavailable,
    Kind.CANCELLED: Cancelled,
    Kind.FAULT: Fault,
}


def error_of(failure: Failure) -> ActstoreError:
    """The client's error for a failure that crossed the wire or came out of the bucket."""
    details = failure.details
    return CLASS_OF_KIND[REASONS[failure.reason].kind](
        failure.message,
        reason=failure.reason,
        field=details.get("field"),
        value=details.get("value"),
        allowed=details.get("allowed"),
    )


def refused(
    message: str, field: str, value: object, allowed: object, reason: str = "ARGUMENT_INVALID"
) -> ActstoreError:
    """What the client itself refuses before it asks anyone."""
    return CLASS_OF_KIND[REASONS[reason].kind](message, reason=reason, field=field, value=value, allowed=allowed)


def _in_words(detail: object) -> str | None:
    if detail is None or isinstance(detail, str):
        return detail
    if isinstance(detail, Iterable):
        return ", ".join(str(item) for item in detail)
    return str(detail)
