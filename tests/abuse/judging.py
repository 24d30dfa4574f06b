"""What every answer must be, whatever was asked: an answer, or an error that says what to change and nothing else."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import grpc
from hypothesis import HealthCheck, Phase, settings

from actstore_api.reasons import REASONS
from actstore_api.records.terms import Failure
from actstore_api.verbs import VERBS

REPOSITORY = Path(__file__).parents[2]
# Numbers that would be wrong; the only fault of which a caller hears.
_TOLD_FAULTS = {"AUDIT_FAILED"}
_TRACE = re.compile(r"Traceback|File \"|site-packages|\.py\b|0x[0-9a-f]{8}|object at |Errno")
# A question that hangs is not made smaller: each attempt would hang, too.
FUZZ = settings(
    deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
# Each method answers such small questions far sooner; what takes longer hangs.
SECONDS = 30.0
# What a service accepts at most.
REQUEST_BYTES = 1 << 20
# Random questions of each method, beside the changed ones.
EACH = int(os.environ.get("ACTSTORE_FUZZ_REQUESTS", 12 * len(VERBS))) // len(VERBS)


@dataclass(frozen=True)
class Outcome:
    """How a call ended: with a message (OK), or with a status and what actstore says about it."""

    code: grpc.StatusCode
    message: str = ""
    failure: Failure | None = None


def check(outcome: Outcome, secrets: tuple[str, ...] = ()) -> None:
    """Fails for a fault of ours, a hang, and a text that tells of the server's insides."""
    if outcome.code is grpc.StatusCode.OK:
        return
    faults = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED)
    reason = outcome.failure.reason if outcome.failure else ""
    assert outcome.code not in faults or reason in _TOLD_FAULTS, outcome
    assert outcome.failure is not None, outcome
    assert reason in REASONS, outcome
    told = " ".join([outcome.message, *outcome.failure.details.values()])
    assert not _TRACE.search(told), outcome
    for secret in (str(REPOSITORY), f"{Path.home()}/", *secrets):
        assert secret not in told, outcome


def memory_bytes(pid: int) -> int:
    """The resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
