"""Limits of the coordinator: how many captures it accepts, and how long it waits."""

from dataclasses import dataclass

from actstore_storage.settings.checks import check_least, check_positive


@dataclass(frozen=True)
class CoordinatorLimits:
    # Requests that are planned at the same time; further ones wait.
    plans: int = 2
    # Captures that run at the same time; further ones are refused.
    captures: int = 16
    # Finished captures whose progress is kept.
    finished_captures: int = 1000
    # Attempts at a shard before its capture fails.
    attempts_per_shard: int = 3
    # The pause before a failed shard is tried again.
    retry_seconds: float = 1.0
    # Workers that may die with one shard before the shard is given up.
    losses_per_shard: int = 10
    # While the store cannot be reached, or refuses the credentials: the interval between attempts, and the time limit.
    pause_seconds: float = 5.0
    patience_seconds: float = 6 * 3600.0
    # The number of commits after which they are folded into checkpoints.
    fold_shards: int = 256
    # The interval at which the cluster is checked for new nodes.
    pool_seconds: float = 5.0
    # How long a worker may take to measure its speed, or to answer that it is alive.
    answer_seconds: float = 30.0
    # The longest pause between messages of a watch.
    heartbeat_seconds: float = 2.0

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True)
class MergeLimits:
    # Parts of merged indexes that are written at the same time, during captures. Each takes one core and half a
    # gigabyte.
    parts: int = 2
    # Complete runs whose indexes a new coordinator merges to the end. The next coordinator continues with others.
    runs_resumed: int = 1000

    def __post_init__(self) -> None:
        check_positive(self, "parts")
        check_least(self, 0, "runs_resumed")
