"""A requested capture: the request, and beside it who asked for it and what decides its place in the queue.

These are two objects, so that a version that knows no queue reads the requests as it always did. A place without a
request is of no meaning.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from actstore_api.records.capture import CaptureClass
from actstore_storage.bucket import Bucket
from actstore_storage.format.keys import queued_key, wanted_key
from actstore_storage.format.records import as_record, seal, unseal

# The principal of a request that names none.
DEFAULT_PRINCIPAL = "default"
# The member beside the fields of a request that an unreleased version wrote, whose place is in it.
_QUEUED = "queued"

Request = TypeVar("Request")


@dataclass(frozen=True)
class Queued:
    """What decides the place of a capture in the queue. Requests of earlier versions have the defaults, so they come
    first.

    Args:
        principal: Who asked for it.
        capture_class: Small captures are interactive; they come before bulk ones.
        submitted_seconds: When it was accepted, in seconds since 1970.
        turn: Captures of a class start in this order. A principal's next capture has its turn later by its estimated
            work, in tokens times layers.
        traceparent: The span that its work belongs to, as W3C's header has it; empty: none.
    """

    principal: str = DEFAULT_PRINCIPAL
    capture_class: CaptureClass = "bulk"
    submitted_seconds: float = 0.0
    turn: float = 0.0
    traceparent: str = ""


NO_PLACE = Queued()


def seal_wanted(request: Mapping[str, Any]) -> bytes:
    """Writes a request, which has the run's name in `run`."""
    return seal(request)


def read_wanted(data: bytes, key: str, read: Callable[[dict[str, Any]], Request]) -> tuple[Request, Queued]:
    """Reads a request, which `read` makes of its fields, and the place that is in it, if one is.

    Errors: CorruptObject for a record that is damaged or belongs to another run; those of `read`.
    """
    request, queued = unseal(data, key, lambda found: _parts(found, key))
    return read(request), queued


def seal_queued(run: str, queued: Queued) -> bytes:
    """Writes the place of a run's capture. Without a span, it is the record that it was before there were any."""
    found = asdict(queued)
    if not queued.traceparent:
        del found["traceparent"]
    return seal({"run": run, **found})


def read_queued(data: bytes, key: str) -> Queued:
    """Reads a place. Errors: CorruptObject for a record that is damaged or belongs to another run."""
    return unseal(data, key, lambda found: _place(found, key))


def queued_place(bucket: Bucket, run: str) -> Queued | None:
    """The place of a run's capture; None: it has none beside its request. Errors: CorruptObject."""
    key = queued_key(run)
    try:
        return read_queued(bucket.get(key), key)
    except KeyError:
        return None


def _parts(found: dict[str, Any], key: str) -> tuple[dict[str, Any], Queued]:
    queued = as_record(found.pop(_QUEUED, {}), Queued)
    if wanted_key(found["run"]) != key:
        raise ValueError(f"it is a request for run {found['run']}")
    return found, queued


def _place(found: dict[str, Any], key: str) -> Queued:
    if queued_key(run := found.pop("run")) != key:
        raise ValueError(f"it is the place of run {run}")
    return as_record(found, Queued)
