"""One call: what its headers say, when it has to be over, and what became of it."""

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from actstore_api.request_ids import HEADER, request_id_of
from actstore_service.access import Principal
from actstore_service.calls.classes import CallClass


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
    run: str = ""
    received_bytes: int = 0
    sent_messages: int = 0
    sent_bytes: int = 0
    first_message_seconds: float | None = None
    started_seconds: float = field(default_factory=time.monotonic)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        """The caller's name, by which places are shared out."""
        return self.principal.name if self.principal else ""

    def seconds(self) -> float:
        """Since the call's start."""
        return time.monotonic() - self.started_seconds

    def sent(self, message: bytes) -> None:
        """Counts a message that the caller took."""
        if not self.sent_messages:
            self.first_message_seconds = self.seconds()
        self.sent_messages += 1
        self.sent_bytes += len(message)

    def seconds_left(self) -> float | None:
        """None for a call without a deadline."""
        seconds: float | None = self.context.time_remaining()
        return None if seconds is None or math.isinf(seconds) else seconds


def call_of(method: str, kind: CallClass, context: Any) -> Call:
    headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    return Call(method, kind, context, headers, request_id_of(headers.get(HEADER)))
