"""The errors of storage, service and workers: one base class, and a class for each thing that a caller can do next.

ActstoreError               a reason from actstore_api/reasons.py, and which field was wrong
├── BadRequest              the caller should change the request
│   ├── NotThere            ... or name something that exists
│   └── SettingsError       an operator should change a setting; the process does not start
├── Conflict                the name is taken by something else
├── StoreError              the bucket refuses or fails; an operator has to repair it
│   └── StoreUnreachable    ... or it may recover without help
└── CorruptObject           bytes in the bucket do not match their commit
"""

from collections.abc import Iterable

# The detail that says when to try again.
RETRY_SECONDS = "retry_seconds"


class ActstoreError(Exception):
    """Base of all errors. `reason` is a key of actstore_api.reasons.REASONS; the details name the field, its value and
    what is allowed.
    """

    default_reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        field: str | None = None,
        value: object = None,
        allowed: object = None,
        retry_seconds: object = None,
    ) -> None:
        """`retry_seconds`: when the same is worth trying again, if that is known."""
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        known = {"field": field, "value": value, "allowed": allowed, RETRY_SECONDS: retry_seconds}
        self.details = {key: _in_words(detail) for key, detail in known.items() if detail is not None}

    @property
    def for_log(self) -> str:
        """What a log may have of it. The message may quote what a caller sent, such as a prompt, so it is left out."""
        field = self.details.get("field")
        return " ".join(part for part in (self.reason, field and f"in {field}", f"({type(self).__name__})") if part)

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross Ray's process boundaries by pickle, which would lose the keyword arguments."""
        return _rebuild, (type(self), self.message, self.reason, self.details)


class BadRequest(ActstoreError):
    default_reason = "ARGUMENT_INVALID"


class NotThere(BadRequest):
    default_reason = "RUN_NOT_FOUND"


class SettingsError(BadRequest):
    """A setting that is missing or impossible; the text names its variable, or its key and the file."""


class Conflict(ActstoreError):
    default_reason = "RUN_EXISTS"


class StoreError(ActstoreError):
    default_reason = "STORE_NOT_FOUND"

    @property
    def for_log(self) -> str:
        """Its message is about the store alone."""
        return self.message


class StoreUnreachable(StoreError):
    default_reason = "STORE_UNREACHABLE"


class CorruptObject(ActstoreError):
    default_reason = "OBJECT_CORRUPT"

    @property
    def for_log(self) -> str:
        """Its message names the object, which is what an operator needs."""
        return self.message


def corrupt_object(key: str, message: str) -> CorruptObject:
    """Makes the error for an object that belongs elsewhere in the bucket."""
    return CorruptObject(message, field="object", value=key)


def damaged(key: str, what: object, *, kind: str = "object", owner: str = "") -> CorruptObject:
    """Makes the error for an object whose bytes are not those that were written; `owner` describes what it
    belongs to.
    """
    of = f" of {owner}" if owner else ""
    return corrupt_object(key, f"{kind} {key}{of} is damaged: {str(what).strip()}")


def check_limit(value: int, limit: int, field: str, least: int = 1, because: str = "") -> None:
    """Refuses a number below `least` as invalid, and one above `limit` as exceeding it, with both numbers. `because`
    explains why the limit applies.
    """
    allowed = f"{least} to {limit}"
    if value < least:
        raise BadRequest(
            f"{field} is {value}; the smallest allowed value is {least}", field=field, value=value, allowed=allowed
        )
    if value > limit:
        message = f"{field} is {value}; the limit is {limit}" + (f": {because}" if because else "")
        raise BadRequest(message, reason="LIMIT_EXCEEDED", field=field, value=value, allowed=allowed)


def _in_words(detail: object) -> str:
    if isinstance(detail, str):
        return detail
    if isinstance(detail, Iterable):
        return ", ".join(str(item) for item in detail)
    return str(detail)


def _rebuild(kind: type[ActstoreError], message: str, reason: str, details: dict[str, str]) -> ActstoreError:
    error = kind(message, reason=reason)
    error.details = details
    return error
