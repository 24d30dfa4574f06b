"""Every reason for which actstore refuses or fails: one table, read in both directions.

The service and the workers look up a reason's gRPC status; the client looks up which of its errors to raise. Codes are
stable and the table only grows. `to_status` and `from_status` carry a reason over the wire as google.rpc.ErrorInfo.
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
RESOURCE_EXHAUSTED, FAILED_PRECONDITION, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 8, 9, 12, 13, 14
DATA_LOSS, UNAUTHENTICATED = 15, 16


class Kind(Enum):
    """What a caller does next; the client has one error class for each."""

    BAD_REQUEST = "change the request"
    NOT_FOUND = "name something that exists"
    CONFLICT = "choose another name, or look at what is there"
    DENIED = "bring other credentials"
    LIMIT = "ask for less"
    STORE = "repair the store or its configuration"
    CORRUPT = "look at the named object; do not trust it"
    UNAVAILABLE = "try again later"
    CANCELLED = "start again"
    FAULT = "report it"


@dataclass(frozen=True)
class Reason:
    status: int
    kind: Kind


REASONS: Mapping[str, Reason] = {
    "ARGUMENT_INVALID": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "NAME_INVALID": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "SITE_UNKNOWN": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "MODEL_UNSUPPORTED": Reason(UNIMPLEMENTED, Kind.BAD_REQUEST),
    "SAE_UNSUPPORTED": Reason(UNIMPLEMENTED, Kind.BAD_REQUEST),
    "SAE_MISMATCH": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "DATASET_EMPTY": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "DATASET_UNREADABLE": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "PROMPT_LENGTHS_DIFFER": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "ANSWER_NOT_ONE_TOKEN": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "PROMPTS_INDISTINGUISHABLE": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "RUN_MISMATCH": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "FEATURE_OUT_OF_RANGE": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "LAYER_OUT_OF_RANGE": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "VALUE_OVERFLOW": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "RUNS_DIFFER": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "NOTHING_LEFT": Reason(INVALID_ARGUMENT, Kind.BAD_REQUEST),
    "NEEDS_SERVICE": Reason(FAILED_PRECONDITION, Kind.BAD_REQUEST),
    "MODEL_NOT_FOUND": Reason(NOT_FOUND, Kind.NOT_FOUND),
    "SAE_NOT_FOUND": Reason(NOT_FOUND, Kind.NOT_FOUND),
    "DATASET_NOT_FOUND": Reason(NOT_FOUND, Kind.NOT_FOUND),
    "RUN_NOT_FOUND": Reason(NOT_FOUND, Kind.NOT_FOUND),
    "CAPTURE_NOT_FOUND": Reason(NOT_FOUND, Kind.NOT_FOUND),
    "RUN_EXISTS": Reason(ALREADY_EXISTS, Kind.CONFLICT),
    "SAE_EXISTS": Reason(ALREADY_EXISTS, Kind.CONFLICT),
    "UNAUTHENTICATED": Reason(UNAUTHENTICATED, Kind.DENIED),
    "STORE_CREDENTIALS": Reason(PERMISSION_DENIED, Kind.STORE),
    "STORE_NOT_WRITABLE": Reason(PERMISSION_DENIED, Kind.STORE),
    "STORE_NOT_FOUND": Reason(FAILED_PRECONDITION, Kind.STORE),
    "STORE_UNSAFE": Reason(FAILED_PRECONDITION, Kind.STORE),
    "STORE_FULL": Reason(RESOURCE_EXHAUSTED, Kind.STORE),
    "STORE_UNREACHABLE": Reason(UNAVAILABLE, Kind.UNAVAILABLE),
    "LIMIT_EXCEEDED": Reason(RESOURCE_EXHAUSTED, Kind.LIMIT),
    "OBJECT_CORRUPT": Reason(DATA_LOSS, Kind.CORRUPT),
    "FILES_CHANGED": Reason(UNAVAILABLE, Kind.UNAVAILABLE),
    "WORKERS_UNAVAILABLE": Reason(UNAVAILABLE, Kind.UNAVAILABLE),
    "SERVICE_UNAVAILABLE": Reason(UNAVAILABLE, Kind.UNAVAILABLE),
    "CANCELLED": Reason(CANCELLED, Kind.CANCELLED),
    "INTERNAL": Reason(INTERNAL, Kind.FAULT),
    "AUDIT_FAILED": Reason(INTERNAL, Kind.FAULT),
}


def to_status(failure: Failure) -> status_pb2.Status:
    """Long texts are cut: a status travels in HTTP/2 headers, of which gRPC accepts 8 KiB, the message twice."""
    details = {name: _cut(text, DETAIL_BYTES_MAX) for name, text in failure.details.items()}
    info = error_details_pb2.ErrorInfo(reason=failure.reason, domain=DOMAIN, metadata=details)
    packed = any_pb2.Any()
    packed.Pack(info)
    message = _cut(failure.message, MESSAGE_BYTES_MAX)
    return status_pb2.Status(code=REASONS[failure.reason].status, message=message, details=[packed])


def from_status(status: status_pb2.Status) -> Failure | None:
    """The failure that a status carries, or None where actstore did not write it."""
    for packed in status.details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info) and info.domain == DOMAIN:
            return Failure(known_reason(info.reason), status.message, dict(info.metadata))
    return None


def known_reason(reason: str) -> str:
    """A newer server may know reasons that this table does not; they are INTERNAL here."""
    return reason if reason in REASONS else "INTERNAL"


def _cut(text: str, bytes_max: int) -> str:
    encoded = text.encode()
    if len(encoded) <= bytes_max:
        return text
    return encoded[: bytes_max - len(" ...")].decode(errors="ignore") + " ..."
