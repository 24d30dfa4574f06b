"""The id of a request, by which its lines in all logs are found: made or taken over by the service, and sent on."""

import re
from contextvars import ContextVar
from uuid import uuid4

HEADER = "x-request-id"
# As proxies and meshes make them. It stands in log lines and in headers, so it has no other characters.
_VALID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# The request that runs in this context; empty outside of one.
REQUEST_ID: ContextVar[str] = ContextVar("REQUEST_ID", default="")


def request_id_of(sent: object) -> str:
    """Returns the id that a caller sent, or makes one if there is none or it is not valid."""
    return sent if isinstance(sent, str) and _VALID.fullmatch(sent) else uuid4().hex
