"""One call: what its headers say, when it has to be over, and what became of it."""

import math
import re
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from actstore_service.access import Principal
from actstore_service.calls.classes import CallClass

REQUEST_ID = "x-request-id"
# What a caller may choose as an id: it goes into logs, headers and error messages.
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


@dataclass
class Call:
    """A call from its headers on. `over` is set once nobody waits for its answer, so that its work can stop."""

    method: str
    kind: CallClass
    context: Any  # grpc.aio.ServicerContext, which is untyped
    headers: Mapping[str, str]
    request_id: str
    principal: Principal | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        """The caller's name, by which places are shared out."""
        return self.principal.name if self.principal else ""

    def seconds_left(self) -> float | None:
        """None for a call without a deadline."""
        seconds: float | None = self.context.time_remaining()
        return None if seconds is None or math.isinf(seconds) else seconds


def call_of(method: str, kind: CallClass, context: Any) -> Call:
    headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    return Call(method, kind, context, headers, _request_id(headers.get(REQUEST_ID, "")))


def _request_id(proposed: str) -> str:
    return proposed if _ID.fullmatch(proposed) else uuid.uuid4().hex
