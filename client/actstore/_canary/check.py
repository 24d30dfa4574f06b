"""Compares the canary's answers with golden numbers, which slow references computed."""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from actstore._canary.questions import SWEEPS, answers
from actstore._errors import ActstoreError
from actstore._lab import Lab

CHECKS = ("capture", "top_features", "norms", *SWEEPS)
# As the tests compare with slow references: float32, sums in any order.
RELATIVE, ABSOLUTE = 1e-3, 1e-3


@dataclass(frozen=True)
class Verdict:
    """What the canary found. `wrong` has a sentence for each check whose answer is missing or not the golden one."""

    found: Mapping[str, Any]
    wrong: Mapping[str, str]
    seconds: float
    ran_at_seconds: float

    @property
    def right(self) -> bool:
        """Whether every answer is the golden one."""
        return not self.wrong


def golden() -> dict[str, Any]:
    """The golden numbers, by check; `feature` is the index of the feature that is asked about."""
    found: dict[str, Any] = json.loads(files("actstore._canary").joinpath("golden.json").read_text())
    return found


def canary(lab: Lab, run: str | None = None, expected: Mapping[str, Any] | None = None) -> Verdict:
    """Asks everything and compares. A question that is refused is wrong, and so are those after it.

    Args:
        lab: The service that is asked.
        run: A run that is asked about instead of a new capture.
        expected: Golden numbers instead of those of the bundled model.
    """
    began, wanted = time.monotonic(), golden() if expected is None else expected
    found, refusal = _asked(answers(lab, wanted["feature"], run))
    wrong = {
        check: refusal if check not in found else said
        for check in CHECKS
        if (said := _difference(found.get(check), wanted[check]))
    }
    return Verdict(found, wrong, time.monotonic() - began, time.time())


def metrics_text(verdict: Verdict) -> str:
    """The verdict in Prometheus's text format, for the node exporter's textfile collector."""
    lines = ["# TYPE actstore_canary_ok gauge"]
    lines += [f'actstore_canary_ok{{check="{check}"}} {int(check not in verdict.wrong)}' for check in CHECKS]
    gauges = {
        "actstore_canary_last_run_timestamp_seconds": verdict.ran_at_seconds,
        "actstore_canary_run_seconds": verdict.seconds,
    }
    for name, value in gauges.items():
        lines += [f"# TYPE {name} gauge", f"{name} {value:.3f}"]
    return "\n".join(lines) + "\n"


def _asked(questions: Iterator[tuple[str, Any]]) -> tuple[dict[str, Any], str]:
    found: dict[str, Any] = {}
    try:
        found.update(questions)  # those that were answered stay, when one is refused
    except ActstoreError as error:
        return found, f"{error.reason}: {error.message}"
    return found, ""


def _difference(found: Any, wanted: Any) -> str:
    """What differs, in words; empty if nothing does."""
    if _numbers(found) == [] or len(_numbers(found)) != len(_numbers(wanted)):
        return f"found {found}, expected {wanted}"
    for one, other in zip(_numbers(found), _numbers(wanted), strict=True):
        if not math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            return f"found {one:g} where {other:g} is expected"
    return ""


def _numbers(answer: Any) -> list[float]:
    if isinstance(answer, Mapping):
        return [float(answer[name]) for name in sorted(answer)]
    if isinstance(answer, Iterable):
        return [math.nan if one is None else float(one) for one in answer]
    return []
