"""How much the coordinator of captures takes on, and how long it waits."""

from dataclasses import dataclass

from actstore_worker.errors import SettingsError


@dataclass(frozen=True)
class CoordinatorLimits:
    # Requests being planned at once; further ones wait.
    plans: int = 2
    # Captures running at once; the next is refused.
    captures: int = 16
    # Finished captures whose progress can still be asked for.
    finished_captures: int = 1000
    # How often a shard is tried before its capture fails.
    attempts_per_shard: int = 3
    # Wait before a shard that failed is tried again.
    retry_seconds: float = 1.0
    # How many workers may die with one shard before the shard is given up.
    losses_per_shard: int = 10
    # While the store is not there, or refuses the credentials, one try so often, for so long.
    pause_seconds: float = 5.0
    patience_seconds: float = 6 * 3600.0
    # Commits are folded into checkpoints after so many of them.
    fold_shards: int = 256
    # How often the cluster is looked at for more places.
    pool_seconds: float = 5.0
    # How long a worker may take to say how fast it is, and that it is there.
    answer_seconds: float = 30.0
    # Longest silence of a watch.
    heartbeat_seconds: float = 2.0

    def __post_init__(self) -> None:
        if min(self.plans, self.captures, self.finished_captures, self.attempts_per_shard) < 1:
            raise SettingsError(f"each of these limits must be at least 1: {self}")


@dataclass(frozen=True)
class MergeLimits:
    # Parts of merged indexes that are written at once, beside captures: each takes a core and half a gigabyte.
    parts: int = 2
    # Complete runs whose indexes a coordinator that starts finishes merging; of more, the next one.
    runs_resumed: int = 1000

    def __post_init__(self) -> None:
        if self.parts < 1 or self.runs_resumed < 0:
            raise SettingsError(f"ACTSTORE_MERGE_PARTS must be at least 1: {self}")
