"""The slow twin of the fair queue: ideal sharing, in which every principal that waits is served at once and equally.

Demers, Keshav and Shenker (1989), "Analysis and simulation of a fair queueing algorithm", compare queues to it.
"""

from collections.abc import Mapping, Sequence


def served(work: Mapping[str, float], total: float) -> dict[str, float]:
    """How much of its work each principal has got when `total` was done in all."""
    left, got = total, dict.fromkeys(work, 0.0)
    while left > 1e-9 and (waiting := [name for name in work if work[name] - got[name] > 1e-9]):
        step = min(left / len(waiting), *(work[name] - got[name] for name in waiting))
        for name in waiting:
            got[name] += step
        left -= step * len(waiting)
    return got


def ends(shards: Mapping[str, Sequence[float]]) -> dict[tuple[str, int], float]:
    """The work that is done in all when each shard ends, by principal and index."""
    work = {name: sum(costs) for name, costs in shards.items()}
    found = {}
    for name, costs in shards.items():
        for index in range(len(costs)):
            end = sum(costs[: index + 1])
            found[name, index] = sum(min(other, end) for other in work.values())
    return found
