"""Limits of the coordinator: how many captures it accepts, and how long it waits."""

from dataclasses import dataclass, fields

from actstore_storage.errors import SettingsError
from actstore_storage.settings.checks import check_least, check_positive

# A queue may have no places, no capture may be interactive, and bulk captures may have no share of their own.
_MAY_BE_ZERO = ("interactive_token_layers", "queued_captures", "queued_per_principal", "bulk_share")


@dataclass(frozen=True)
class CoordinatorLimits:
    # Requests that are planned at the same time; further ones wait.
    plans: int = 2
    # Bulk captures that run at the same time; further ones wait in the queue. Each holds its token ids in memory.
    captures: int = 16
    # Interactive captures that run at the same time, besides the bulk ones.
    interactive_captures: int = 8
    # Captures of one principal and class that run at the same time.
    captures_per_principal: int = 2
    # Captures that wait in the queue, of all principals and of one; further ones are refused.
    queued_captures: int = 1000
    queued_per_principal: int = 100
    # Tokens that one principal may capture a day. None: any number.
    tokens_a_day: int | None = None
    # The largest estimate, in tokens times layers, of a capture that is interactive. Larger ones are bulk.
    interactive_token_layers: float = 4e6
    # The share of the workers that bulk captures keep while interactive ones wait.
    bulk_share: float = 0.25
    # What a principal gets in its turn before the next one's, in tokens times layers.
    quantum_token_layers: float = 1e6
    # Principals whose use of tokens is remembered, and whose seconds of a device are counted apart.
    principals: int = 1000
    principals_counted: int = 50
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
        check_least(self, 0, *_MAY_BE_ZERO)
        check_positive(self, *(one.name for one in fields(self) if one.name not in _MAY_BE_ZERO))
        if self.bulk_share >= 1:
            message = f"bulk_share is {self.bulk_share}, and must be below 1"
            raise SettingsError(message, field="bulk_share", value=self.bulk_share, allowed="at least 0, below 1")


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
