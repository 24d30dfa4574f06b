"""The table of all error reasons of actstore, used both to send and to read errors.

The service and the workers look up a reason's gRPC status; the client looks up which of its errors to raise. Reasons
are stable, and the table only grows. `to_status` and `from_status` convert an error to and from google.rpc.ErrorInfo.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from actstore_api.records.terms import Failure

DOMAIN = "actstore"
MESSAGE_BYTES_MAX, DETAIL_BYTES_MAX = 1000, 600

# google.rpc.Code, as numbers, so that this table needs no gRPC.
CANCELLED, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED = 1, 3, 5, 6, 7
RESOURCE_EXHAUSTED, FAILED_PRECONDITION, ABORTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 8, 9, 10, 12, 13, 14
DATA_LOSS, UNAUTHENTICATED = 15, 16


class Kind(Enum):
    """What a caller should do next; the client has one error class for each."""

    BAD_REQUEST = "change the request"
    NOT_FOUND = "name something that exists"
    CONFLICT = "choose another name, or use what has that name"
    DENIED = "use other credentials"
    LIMIT = "ask for less"
    STORE = "repair the store or its configuration"
    CORRUPT = "look at the named object; do not trust it"
    UNAVAILABLE = "try again later"
    CANCELLED = "start again"
    FAULT = "report it"


@dataclass(frozen=True)
class Reason:
    """One reason for an error.

    Args:
        status: The gRPC status code.
        kind: What the caller does next; decides the class of the client's error.
        cause: Why this error occurs, in one or two sentences. The reference shows it.
        next_step: What the caller can do about it. The error itself shows it.
    """

    status: int
    kind: Kind
    cause: str
    next_step: str


REASONS: Mapping[str, Reason] = {
    "ARGUMENT_INVALID": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "An argument has a value that is not allowed. The error names the field, the value and what is allowed.",
        "change the named field",
    ),
    "NAME_INVALID": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "A name is not 1 to 128 letters, digits, '.', '_' and '-' that begin with a letter or a digit.",
        "choose a name of the allowed form",
    ),
    "SITE_UNKNOWN": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "The model or the run has no site of this name.",
        "choose one of the sites listed as allowed",
    ),
    "MODEL_UNSUPPORTED": Reason(
        UNIMPLEMENTED,
        Kind.BAD_REQUEST,
        "The model's family is not supported, or its files contradict each other. The message says which.",
        "choose a model of a supported family",
    ),
    "SAE_UNSUPPORTED": Reason(
        UNIMPLEMENTED,
        Kind.BAD_REQUEST,
        "The SAE's files have an architecture, a format or an option that actstore does not read.",
        "convert the SAE to a supported architecture",
    ),
    "SAE_MISMATCH": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "The SAE does not fit: it was trained on another model, another width or another site.",
        "choose an SAE that was trained on this model's width and site; `lab.saes()` lists them",
    ),
    "DATASET_EMPTY": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "The dataset has no text, or every document is filtered out or empty.",
        "name a dataset with at least one token of text, or another text_field",
    ),
    "DATASET_UNREADABLE": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "A file of the dataset is damaged, of an unknown format, or could be read in more than one way.",
        "save the data in a supported format; docs/reference/datasets.md lists them",
    ),
    "PROMPT_LENGTHS_DIFFER": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "The clean and the corrupt prompt have different numbers of tokens, and no spans say which tokens correspond.",
        "reword one prompt until both have the same number of tokens, or name spans of tokens",
    ),
    "ANSWER_NOT_ONE_TOKEN": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "The tokenizer makes more than one token of an answer, or another token than the one whose text was given.",
        "choose an answer that is one token; most have a leading space",
    ),
    "PROMPTS_INDISTINGUISHABLE": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "The logit difference is the same on the clean and the corrupt prompt, so no effect can be normalized by it.",
        "choose prompts or answers for which the model's logit difference changes between clean and corrupt",
    ),
    "RUN_MISMATCH": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "The stored run comes from another model, revision or dtype than the question asks about.",
        "name a run of the same model, revision and dtype; `lab.runs()` lists them",
    ),
    "FEATURE_OUT_OF_RANGE": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "The SAE has fewer features than the index.",
        "choose a feature index of this SAE",
    ),
    "LAYER_OUT_OF_RANGE": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "The model has fewer layers than the number.",
        "choose layers that the model has",
    ),
    "VALUE_OVERFLOW": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "An activation is too large for float16, in which it was to be stored.",
        'pass storage_dtype="bfloat16" or "float32", or widen_on_overflow=True',
    ),
    "RUNS_DIFFER": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "The runs that are compared differ in more than the revision of the model: in model, dataset or specification.",
        "compare runs of one model over the same dataset: capture them with the same arguments except revision",
    ),
    "NOTHING_LEFT": Reason(
        INVALID_ARGUMENT,
        Kind.BAD_REQUEST,
        "After `exclude` and the filters no token is left to answer from.",
        "exclude fewer tokens, or wait until more of the run is captured",
    ),
    "NEEDS_SERVICE": Reason(
        FAILED_PRECONDITION,
        Kind.BAD_REQUEST,
        "The question needs a model or an SAE that runs, and the lab was opened on a bucket without a service.",
        "connect to a service: `actstore up` starts one here, then call `actstore.connect()`",
    ),
    "MODEL_NOT_FOUND": Reason(
        NOT_FOUND,
        Kind.NOT_FOUND,
        "No model of this name is in the workers' model folders, or on the hub, if the workers may use it.",
        "check the name; `lab.models()` lists the known models",
    ),
    "SAE_NOT_FOUND": Reason(
        NOT_FOUND,
        Kind.NOT_FOUND,
        "No SAE of this name is in the workers' model folders or in the store, or the run does not store it.",
        "check the name; `lab.saes()` lists all SAEs, `run.saes` those of a run",
    ),
    "DATASET_NOT_FOUND": Reason(
        NOT_FOUND,
        Kind.NOT_FOUND,
        "No file or folder of this name is in the workers' dataset folders or dataset stores.",
        "check the name; `lab.datasets()` lists the workers' datasets",
    ),
    "RUN_NOT_FOUND": Reason(
        NOT_FOUND,
        Kind.NOT_FOUND,
        "The store has no run of this name.",
        "check the name; `lab.runs()` lists the runs",
    ),
    "CAPTURE_NOT_FOUND": Reason(
        NOT_FOUND,
        Kind.NOT_FOUND,
        "The workers do not know the capture: it ended long ago, or they were started again after it ended.",
        "start the capture again; committed shards are kept",
    ),
    "RUN_EXISTS": Reason(
        ALREADY_EXISTS,
        Kind.CONFLICT,
        "The store has a run of this name with another specification.",
        "choose another name, or leave it out; `lab.run(name)` opens the run that exists",
    ),
    "SAE_EXISTS": Reason(
        ALREADY_EXISTS,
        Kind.CONFLICT,
        "The store has an SAE of this name that was trained in another way.",
        "choose another name; `lab.saes()` lists those that are taken",
    ),
    "UNAUTHENTICATED": Reason(
        UNAUTHENTICATED,
        Kind.DENIED,
        "The service asks for a token, and the call had none, a wrong one, or one that has expired.",
        "pass `token=` to connect, or set ACTSTORE_TOKEN",
    ),
    "PERMISSION_DENIED": Reason(
        PERMISSION_DENIED,
        Kind.DENIED,
        "The service knows the caller, but the caller lacks the role that the call needs, or may not use runs of this "
        "name. The message says which.",
        "ask who runs the service for the role or the runs, or name a run of your own",
    ),
    "ISSUER_UNAVAILABLE": Reason(
        UNAVAILABLE,
        Kind.UNAVAILABLE,
        "The service cannot check signed tokens yet, because it has not reached their issuer since it started.",
        "try again in a minute; if that does not help, the service's operator has to look at oidc.keys_url",
    ),
    "STORE_CREDENTIALS": Reason(
        PERMISSION_DENIED,
        Kind.STORE,
        "The S3 store refuses the access key or the secret key, or none were given.",
        "check the access key and secret key of the store",
    ),
    "STORE_NOT_WRITABLE": Reason(
        PERMISSION_DENIED,
        Kind.STORE,
        "The store may be read but not written to with these credentials.",
        "give the service and the workers permission to write to the store",
    ),
    "STORE_NOT_FOUND": Reason(
        FAILED_PRECONDITION,
        Kind.STORE,
        "The folder or bucket that the store's address names does not exist.",
        "create the folder or bucket, or correct its address",
    ),
    "STORE_UNSAFE": Reason(
        FAILED_PRECONDITION,
        Kind.STORE,
        "The store lets two writers create the same object, so that commits would not be written exactly once.",
        "use another store; the message says what this one lacks",
    ),
    "STORE_FULL": Reason(
        RESOURCE_EXHAUSTED,
        Kind.STORE,
        "The disk or the bucket's quota has no space left.",
        "free space in the store, then start the capture again; committed shards are kept",
    ),
    "STORE_UNREACHABLE": Reason(
        UNAVAILABLE, Kind.UNAVAILABLE, "The S3 endpoint does not answer.", "check that the store is up, then try again"
    ),
    "LIMIT_EXCEEDED": Reason(
        RESOURCE_EXHAUSTED,
        Kind.LIMIT,
        "The question is larger than a limit of the service or the workers. The message has both numbers.",
        "ask for less; the message names the limit",
    ),
    "BUSY": Reason(
        RESOURCE_EXHAUSTED,
        Kind.UNAVAILABLE,
        "The service or the workers have as many calls of this kind open as they take. The call itself is in order.",
        "try again after a moment; the error says when, and the client does so by itself",
    ),
    "MESSAGE_LATE": Reason(
        ABORTED,
        Kind.UNAVAILABLE,
        "The call's headers arrived, and its message did not follow in time.",
        "try again; if it happens often, look at the connection between client and service",
    ),
    "STREAM_STALLED": Reason(
        ABORTED,
        Kind.CANCELLED,
        "The client of a stream took none of its messages for too long, so the service ended it.",
        "start again, and take the messages as they come",
    ),
    "OBJECT_CORRUPT": Reason(
        DATA_LOSS,
        Kind.CORRUPT,
        "An object in the bucket does not have the bytes that were written: its hash, checksum or size differs.",
        "do not trust the named object: restore it from a copy, or delete the run and capture it again",
    ),
    "FILES_CHANGED": Reason(
        UNAVAILABLE,
        Kind.UNAVAILABLE,
        "The files of a model, an SAE or a dataset were written to while they were read.",
        "try again once the files are no longer being written",
    ),
    "WORKERS_UNAVAILABLE": Reason(
        UNAVAILABLE,
        Kind.UNAVAILABLE,
        "The service has no workers configured, or they do not answer.",
        "check that the workers are up, then try again",
    ),
    "SERVICE_UNAVAILABLE": Reason(
        UNAVAILABLE,
        Kind.UNAVAILABLE,
        "No service answers at the address, or no address is known.",
        "check the address and that the service is up; `actstore up` starts one here",
    ),
    "CLIENT_TOO_OLD": Reason(
        FAILED_PRECONDITION,
        Kind.BAD_REQUEST,
        "The caller's API level is lower than the service, or the workers, answer. The message has both versions.",
        "install a newer version of actstore where the call comes from",
    ),
    "SERVICE_TOO_OLD": Reason(
        UNIMPLEMENTED,
        Kind.BAD_REQUEST,
        "The service is older than the method or the option that the client uses. The message has both versions.",
        "ask without that option, or have the service upgraded",
    ),
    "WORKERS_TOO_OLD": Reason(
        UNIMPLEMENTED,
        Kind.BAD_REQUEST,
        "The workers are older than the method or the option that the call uses. The message has both versions.",
        "ask without that option, or have the workers upgraded",
    ),
    "FORMAT_PINNED": Reason(
        FAILED_PRECONDITION,
        Kind.BAD_REQUEST,
        "The capture needs a newer format of the bucket than the workers may write, for example during an upgrade.",
        "leave out what the message names, or wait until the operator allows the newer format",
    ),
    "CANCELLED": Reason(
        CANCELLED,
        Kind.CANCELLED,
        "Someone cancelled the capture or the call.",
        "start again; committed shards are kept",
    ),
    "INTERNAL": Reason(
        INTERNAL,
        Kind.FAULT,
        "actstore has a bug, or a library below it failed in a way that actstore does not know.",
        "report it, with the service's log",
    ),
    "AUDIT_FAILED": Reason(
        INTERNAL,
        Kind.FAULT,
        "Cells of the sweep that were computed again by full forward passes differ by more than the tolerance.",
        "report it, with the model's name; no numbers were returned, because they could be wrong",
    ),
}


def to_status(failure: Failure, request_id: str = "") -> status_pb2.Status:
    """Returns the status of a failure, with the id of its request if there is one. Long texts are cut, because a status
    travels in HTTP/2 headers, of which gRPC accepts 8 KiB, with the message twice.
    """
    details = {name: _cut(text, DETAIL_BYTES_MAX) for name, text in failure.details.items()}
    info = error_details_pb2.ErrorInfo(reason=failure.reason, domain=DOMAIN, metadata=details)
    packed = any_pb2.Any()
    packed.Pack(info)
    message = _cut(failure.message, MESSAGE_BYTES_MAX)
    status = status_pb2.Status(code=REASONS[failure.reason].status, message=message, details=[packed])
    return with_request_id(status, request_id)


def with_request_id(status: status_pb2.Status, request_id: str) -> status_pb2.Status:
    """Returns the same status with the id of its request, unless it has one or there is none."""
    if not request_id or request_id_of(status):
        return status
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.RequestInfo(request_id=request_id))
    return status_pb2.Status(code=status.code, message=status.message, details=[*status.details, packed])


def request_id_of(status: status_pb2.Status) -> str:
    """Returns the id of the request in a status; empty if it has none."""
    for packed in status.details:
        info = error_details_pb2.RequestInfo()
        if packed.Unpack(info):
            return str(info.request_id)
    return ""


def from_status(status: status_pb2.Status) -> Failure | None:
    """Returns the failure in a status, or None if actstore did not write it."""
    for packed in status.details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info) and info.domain == DOMAIN:
            return Failure(known_reason(info.reason), status.message, dict(info.metadata))
    return None


def known_reason(reason: str) -> str:
    """Returns INTERNAL for an unknown reason, because a newer server may have reasons that this table does not."""
    return reason if reason in REASONS else "INTERNAL"


def _cut(text: str, bytes_max: int) -> str:
    encoded = text.encode()
    if len(encoded) <= bytes_max:
        return text
    return encoded[: bytes_max - len(" ...")].decode(errors="ignore") + " ..."
