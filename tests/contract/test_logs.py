"""Log lines: fields, request ids, and what is left out of them."""

import json
import logging
import subprocess
import sys

import pytest

from actstore_api.logs.lines import LogForm

SCRIPT = """
import logging, sys
from actstore_api.logs.lines import LogForm, start_logging
from actstore_api.request_ids import REQUEST_ID

start_logging("service", LogForm(sys.argv[1]))
log = logging.getLogger("a.b")
log.info("outside %s", 1)
REQUEST_ID.set("one")
log.warning("inside", extra={"run": "planted"})
try:
    try:
        raise KeyError("planted prompt")
    except KeyError as error:
        raise ValueError("planted prompt") from error
except ValueError:
    log.exception("failed")
log.debug("not written")
"""


def _lines(form: LogForm) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, form.value], capture_output=True, text=True, check=True, timeout=120
    )
    assert "planted prompt" not in done.stderr
    return done.stderr.splitlines()


def test_a_line_is_one_json_object() -> None:
    outside, inside, failed = map(json.loads, _lines(LogForm.JSON))
    assert (outside["message"], outside["level"], outside["logger"]) == ("outside 1", "INFO", "a.b")
    assert outside["process"] == "service"
    assert "request_id" not in outside
    assert (inside["request_id"], inside["run"], inside["level"]) == ("one", "planted", "WARNING")
    assert "T" in inside["time"]
    assert all(word in failed["exc_info"] for word in ("ValueError", "KeyError", "line 13"))


def test_text_is_for_people() -> None:
    outside, inside, failed, *where = _lines(LogForm.TEXT)
    assert outside.endswith("INFO a.b: outside 1")
    assert inside.endswith("WARNING a.b: inside [one]")
    assert failed.endswith("failed [one]")
    assert where[-1] == "ValueError"


def test_lines_are_left_out_and_counted_when_nobody_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from actstore_api.logs import lines as logs

    monkeypatch.setattr(logs, "WAITING_MAX", 2)
    monkeypatch.setattr(logs.QueueListener, "start", lambda self: None)
    lines = logs.Lines(logging.Formatter())
    for number in range(5):
        lines.handle(logging.LogRecord("a", logging.INFO, "a.py", 1, str(number), None, None))
    assert lines.dropped == 3
