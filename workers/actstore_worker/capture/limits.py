"""Limits of the coordinator: how many captures it accepts, and how long it waits."""

from dataclasses import dataclass

from actstore_storage.settings.checks import check_least, check_positive


@dataclass(frozen=True)
class CoordinatorLimits:
    # Requests that are planned at the same time. Further ones wait.
    plans: int = 2
    # Captures that run at the same time. Further ones are refused.
    captures: int = 16
    # Finished captures whose progress is kept in memory. Beyond it, the oldest are forgotten; their runs stay.
    finished_captures: int = 1000
    # Attempts at a shard. After the last one the shard counts as failed, with its cause.
    attempts_per_shard: int = 3
    # Seconds of pause before a failed shard is tried again.
    retry_seconds: float = 1.0
    # Workers that may die with one shard. Beyond it the shard counts as failed.
    losses_per_shard: int = 10
    # Seconds between two attempts while the store cannot be reached, or refuses the credentials.
    pause_seconds: float = 5.0
    # Seconds that a capture waits for a store that cannot be reached, or refuses the credentials. Beyond it the capture
    # fails; the same capture continues it.
    patience_seconds: float = 6 * 3600.0
    # Commits of one run that are folded into a checkpoint together. Until then each is an object that readers fetch.
    fold_shards: int = 256
    # Seconds between two looks for new nodes of the cluster. A new node waits that long for work.
    pool_seconds: float = 5.0
    # Seconds that a worker may take to measure its speed, or to answer that it is alive. Beyond it the worker counts as
    # lost.
    answer_seconds: float = 30.0
    # Longest pause, in seconds, between two messages of a watch. Beyond it the last state is sent again.
    heartbeat_seconds: float = 2.0

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True)
class MergeLimits:
    # Parts of merged indexes that are written at the same time, during captures. Each takes one core and half a
    # gigabyte. Further ones wait.
    parts: int = 2
    # Complete runs whose indexes a new coordinator merges to the end. Further ones wait for the next coordinator.
    runs_resumed: int = 1000

    def __post_init__(self) -> None:
        check_positive(self, "parts")
        check_least(self, 0, "runs_resumed")
