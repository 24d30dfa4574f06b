"""What a worker and its log lines say of a shard, for code that makes no shard and does without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Shards that a worker has in progress: one that runs, one that is being committed.
TASKS = 2


@dataclass(frozen=True)
class ShardReport:
    """What the bucket now has of the shard, without borrowed rows; `won` if this attempt's commit succeeded.

    `device_seconds` is how long the attempt used the device, or the model where there is no device. `seconds` has the
    attempt's stages: wait (for the device, which another shard uses), load (model and SAEs), compute (forward passes,
    SAEs, sorting and writing) and commit. `non_finite` counts rows of sites and features that are infinite or NaN.
    """

    won: bool
    tokens: int
    bytes: int
    device_seconds: float = 0.0
    sinks: int = 0
    non_finite: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


def fields_of(run: str, shard: int, attempt: str) -> dict[str, str]:
    """What log lines say of the attempt that they are about."""
    return {"run": run, "shard": str(shard), "attempt": attempt}
