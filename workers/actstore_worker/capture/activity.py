"""Counts what the captures of one coordinator did, for the metrics of its process."""

from collections import Counter
from dataclasses import dataclass, field

from actstore_worker.capture.shards.report import ShardReport


@dataclass
class Activity:
    """Since the coordinator started. All counters only grow."""

    attempts: Counter[str] = field(default_factory=Counter)
    """Attempts at shards by outcome: committed, second (another worker's commit came first), failed, lost (its worker
    died)."""
    seconds: Counter[str] = field(default_factory=Counter)
    """Seconds of attempts by stage; see `ShardReport`."""
    token_layers: float = 0.0
    """Tokens times layers of the attempts that ended well."""
    tokens: Counter[str] = field(default_factory=Counter)
    """Tokens of committed shards: sink, or other."""
    non_finite: Counter[str] = field(default_factory=Counter)
    """Rows or features of committed shards that are infinite or NaN: rows, features."""

    live_seconds: float = 0.0
    """Seconds for which sweeps and live questions had a device."""

    def captured(self, report: ShardReport, token_layers: float) -> None:
        """Counts an attempt that ended well."""
        self.attempts["committed" if report.won else "second"] += 1
        self.seconds.update(report.seconds)
        if report.won:
            self.token_layers += token_layers
            self.tokens.update({"sink": report.sinks, "other": report.tokens - report.sinks})
            self.non_finite.update(report.non_finite)

    def failed(self, *, lost: bool) -> None:
        """Counts an attempt that failed."""
        self.attempts["lost" if lost else "failed"] += 1
