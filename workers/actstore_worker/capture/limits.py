"""Limits of the coordinator: how many captures it accepts, and how long it waits."""

from dataclasses import dataclass, fields

from actstore_storage.errors import SettingsError
from actstore_storage.settings.checks import check_least, check_positive

# A queue may have no places, no capture may be interactive, bulk captures may have no share of their own, and at rest
# there may be no worker.
_MAY_BE_ZERO = ("interactive_token_layers", "queued_captures", "queued_per_principal", "bulk_share", "workers_min")


@dataclass(frozen=True)
class CoordinatorLimits:
    # Requests that are planned at the same time. Further ones wait.
    plans: int = 2
    # Bulk captures that run at the same time; further ones wait in the queue. Each holds its token ids in memory.
    captures: int = 16
    # Interactive captures that run at the same time, besides the bulk ones. Further ones wait in the queue.
    interactive_captures: int = 8
    # Captures of one principal and class that run at the same time. Further ones wait in the queue.
    captures_per_principal: int = 2
    # Captures of all principals that wait in the queue. Further ones are refused.
    queued_captures: int = 1000
    # Captures of one principal that wait in the queue. Further ones are refused.
    queued_per_principal: int = 100
    # Tokens that one principal may capture a day. None: any number.
    tokens_a_day: int | None = None
    # The largest estimate, in tokens times layers, of a capture that is interactive. Larger ones are bulk.
    interactive_token_layers: float = 4e6
    # The share of the workers that bulk captures keep while interactive ones wait. The rest is for interactive ones.
    bulk_share: float = 0.25
    # What a principal gets in its turn, in tokens times layers. Beyond it, it is the next principal's turn.
    quantum_token_layers: float = 1e6
    # Principals whose use of tokens is remembered. Beyond it, those that have used least are forgotten.
    principals: int = 1000
    # Principals whose seconds of a device are counted apart. All others together are counted as one.
    principals_counted: int = 50
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
    # Capture workers that are kept while nothing is captured. Further ones are started for shards that wait, up to
    # capture_workers.
    workers_min: int = 0
    # Seconds for which a capture worker is kept that is not needed. Beyond it the worker is let go: its GPU is free.
    worker_idle_seconds: float = 300.0
    # Seconds between two looks at the cluster. A GPU that joins waits that long for a capture worker, beyond those that
    # are wanted already.
    pool_seconds: float = 5.0
    # Seconds that a worker may take to measure its speed, or to answer that it is alive. Beyond it the worker counts as
    # lost.
    answer_seconds: float = 30.0
    # Longest pause, in seconds, between two messages of a watch. Beyond it the last state is sent again.
    heartbeat_seconds: float = 2.0

    def __post_init__(self) -> None:
        check_least(self, 0, *_MAY_BE_ZERO)
        check_positive(self, *(one.name for one in fields(self) if one.name not in _MAY_BE_ZERO))
        if self.bulk_share >= 1:
            message = f"bulk_share is {self.bulk_share}, and must be below 1"
            raise SettingsError(message, field="bulk_share", value=self.bulk_share, allowed="at least 0, below 1")


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


@dataclass(frozen=True, kw_only=True)
class PlanLimits:
    # Sequences of one batch, if a capture names no number. Further ones are in the next batch.
    sequences_per_batch: int = 16
    # Bytes that a shard aims at: small enough to repeat after a crash, large enough for an object store. Further rows
    # are in the next shard.
    shard_bytes_target: int = 64 << 20
    # Most bytes of a shard, whose nonzeros a worker holds in memory. A capture that asks for larger shards gets smaller
    # ones.
    shard_bytes_max: int = 1 << 30
    # Shards that a small run has at least, so that workers share it and readers see progress. Larger runs have as many
    # as their bytes need.
    shards_target: int = 8
    # Bytes of the largest run. A capture of more is refused.
    run_bytes_max: int = 10 << 40

    def __post_init__(self) -> None:
        check_positive(self)
