"""Writes log lines on standard error: one JSON object a line, or text for people. Only this file makes log lines.

A thread of its own writes them. If whoever reads standard error stands still, lines are left out, and calls go on.
"""

import logging
import queue
import sys
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from enum import Enum
from logging.handlers import QueueHandler, QueueListener
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from actstore_api.request_ids import REQUEST_ID

# Lines that wait to be written; further ones are left out.
WAITING_MAX = 10_000
# Further fields of the lines of this context: which shard of which run it works on.
FIELDS: ContextVar[Mapping[str, str]] = ContextVar("FIELDS", default={})  # noqa: B039  never changed, only replaced
# What a record of the standard library has, by the names that stand in a line.
_NAMES: Mapping[str, str] = {"asctime": "time", "levelname": "level", "name": "logger"}
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_TIME = "%Y-%m-%dT%H:%M:%S%z"


class LogForm(Enum):
    """How log lines are written."""

    JSON = "json"
    TEXT = "text"


class Lines(QueueHandler):
    """Makes a line at once, where the request's id is known, and lets it wait for the thread that writes."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__(queue.Queue(WAITING_MAX))
        self.dropped = 0
        self.setFormatter(formatter)
        self._writing = QueueListener(self.queue, logging.StreamHandler(sys.stderr))
        self._writing.start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Never waits."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Returns once all lines are written; `logging.shutdown` calls it."""
        if self._writing._thread is not None:
            self._writing.stop()
        super().close()


def start_logging(process: str, form: LogForm) -> Lines:
    """Writes the lines of this process, which is a `service`, or a part of the workers, on standard error from now on.

    `logging.shutdown` writes those that wait; Python calls it at its end. A process of Ray may be asked several times.
    """
    for started in logging.getLogger().handlers:
        if isinstance(started, Lines):
            return started
    lines = Lines(_JsonLine(process) if form is LogForm.JSON else _TextLine())
    logging.basicConfig(level=logging.INFO, handlers=[lines], force=True)
    return lines


class _JsonLine(JsonFormatter):
    """Has the fields of `extra` too, and the id of the request in whose context the line was logged."""

    def __init__(self, process: str) -> None:
        super().__init__(
            [*_NAMES, "message"], datefmt=_TIME, rename_fields=dict(_NAMES), static_fields={"process": process}
        )

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Adds the context's fields and the request's id, unless the line has one of its own."""
        super().add_fields(log_data, record, message_dict)
        log_data.update({name: value for name, value in FIELDS.get().items() if name not in log_data})
        if (request := REQUEST_ID.get()) and "request_id" not in log_data:
            log_data["request_id"] = request

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Says where an error was raised, and its class."""
        return _where(ei)


class _TextLine(logging.Formatter):
    """Has the request's id at its end."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Adds the request's id to the message's line."""
        line = super().formatMessage(record)
        return f"{line} [{request}]" if (request := REQUEST_ID.get()) else line

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Says where an error was raised, and its class."""
        return _where(ei)


def _where(raised: Any) -> str:
    """The frames and the class of an error, and of what caused it. Its text may have what a caller sent, such as a
    prompt, and is left out.
    """
    kind, error, frames = raised
    lines = [*traceback.format_tb(frames), kind.__qualname__]
    cause = error.__cause__ or error.__context__
    if cause is not None:
        lines[:0] = [_where((type(cause), cause, cause.__traceback__)), "\n\n"]
    return "".join(lines)
