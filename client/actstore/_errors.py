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
NEXT_STEPS: Mapping[str, str] = {
    "ARGUMENT_INVALID": "change the named field",
    "NAME_INVALID": "choose a name of the allowed form",
    "SITE_UNKNOWN": "choose one of the sites listed as allowed",
    "MODEL_UNSUPPORTED": "choose a model of a supported family",
    "SAE_UNSUPPORTED": "convert the SAE to a supported architecture",
    "SAE_MISMATCH": "choose an SAE that was trained on this model's width and site; `lab.saes()` lists them",
    "DATASET_EMPTY": "name a dataset with at least one token of text, or another text_field",
    "DATASET_UNREADABLE": "see what is read of a dataset in docs/datasets.md, and save the file as such",
    "PROMPT_LENGTHS_DIFFER": "reword one prompt until both have the same number of tokens, or name spans of tokens",
    "RUN_MISMATCH": "name a run of the same model, revision and dtype; `lab.runs()` lists them",
    "ANSWER_NOT_ONE_TOKEN": "choose an answer that is one token; most have a leading space",
    "PROMPTS_INDISTINGUISHABLE": "choose prompts or answers whose logit differences differ",
    "FEATURE_OUT_OF_RANGE": "choose a feature index of this SAE",
    "LAYER_OUT_OF_RANGE": "choose layers that the model has",
    "VALUE_OVERFLOW": 'pass storage_dtype="bfloat16" or "float32", or widen_on_overflow=True',
    "RUNS_DIFFER": "compare runs of one model over the same dataset: capture them with the same arguments but revision",
    "NOTHING_LEFT": "exclude fewer tokens, or wait until the run has more of them",
    "NEEDS_SERVICE": "connect to a service: `actstore up` starts one here, then call `actstore.connect()`",
    "MODEL_NOT_FOUND": "check the name; `lab.models()` lists what there is",
    "SAE_NOT_FOUND": "check the name; `lab.saes()` lists what there is, `run.saes` those of a run",
    "DATASET_NOT_FOUND": "check the name; `lab.datasets()` lists what lies in the workers' dataset folders",
    "RUN_NOT_FOUND": "check the name; `lab.runs()` lists what is there",
    "CAPTURE_NOT_FOUND": "start the capture again; what is committed is kept",
    "RUN_EXISTS": "choose another name, or none, and look at the run of that name with `lab.run(name)`",
    "SAE_EXISTS": "choose another name; `lab.saes()` lists those that are taken",
    "UNAUTHENTICATED": "pass `token=` to connect, or set ACTSTORE_TOKEN",
    "STORE_CREDENTIALS": "check the access key and secret key of the store",
    "STORE_NOT_WRITABLE": "give the service and the workers permission to write to the store",
    "STORE_NOT_FOUND": "create the folder or bucket, or correct its address",
    "STORE_UNSAFE": "use another store; the message says what this one lacks",
    "STORE_FULL": "free space in the store, then start the capture again; what is committed is kept",
    "STORE_UNREACHABLE": "check that the store is up, then try again",
    "LIMIT_EXCEEDED": "ask for less; the message names the limit",
    "OBJECT_CORRUPT": "do not trust the named object: restore it from a copy, or delete the run and capture it again",
    "FILES_CHANGED": "try again once nobody writes the files",
    "WORKERS_UNAVAILABLE": "check that the workers are up, then try again",
    "SERVICE_UNAVAILABLE": "check the address and that the service is up; `actstore up` starts one here",
    "CANCELLED": "start again; what was committed is kept",
    "INTERNAL": "report it, with the service's log",
    "AUDIT_FAILED": "report it, with the model's name: its numbers cannot be trusted, and none are given",
}


class ActstoreError(Exception):
    """`reason` is a key of actstore_api.reasons.REASONS; `field`, `value`, `allowed` are None where there are none."""

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
        self.next_step = next_step or NEXT_STEPS.get(reason, "")

    def __str__(self) -> str:
        lines = [self.message]
        if self.field is not None and self.value is not None:
            lines.append(f"  {self.field}: {self.value!r}")
        # Most messages say it already.
        if self.allowed is not None and self.allowed not in self.message:
            lines.append(f"  allowed: {self.allowed}")
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
