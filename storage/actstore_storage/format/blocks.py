"""Blocks: ranges of shards that one object covers, named `<first>-<last>` by the numbers of both."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from actstore_storage.bucket import Bucket


def block_name(shards: range) -> str:
    """Writes a block's name."""
    return f"{shards.start:08d}-{shards.stop - 1:08d}"


def named_block(name: str) -> range | None:
    """Reads a block's name; None for an invalid one."""
    first, separator, last = name.partition("-")
    if separator and first.isdigit() and last.isdigit() and int(first) <= int(last):
        return range(int(first), int(last) + 1)
    return None


def listed_blocks(bucket: Bucket, folder: str, suffix: str) -> list[range]:
    """Lists the blocks of a folder's objects; if they have other sizes than ours, those of a later version."""
    names = [key.rpartition("/")[2] for key in bucket.keys(folder) if key.endswith(suffix)]
    blocks = [named_block(name.removesuffix(suffix)) for name in names]
    return [block for block in blocks if block is not None]


def _start(block: range) -> int:
    return block.start


def overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def is_inside(inner: range, outer: range) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop


def largest_apart(blocks: Iterable[range], admit: Callable[[range], bool] = lambda _: True) -> list[range]:
    """Chooses the largest blocks that do not overlap, in order of shard. `admit` may refuse one."""
    chosen: list[range] = []
    for block in sorted(blocks, key=len, reverse=True):
        place = bisect_left(chosen, block.start, key=_start)
        beside = chosen[max(0, place - 1) : place + 1]  # Of blocks that do not overlap, only these two can.
        if not any(overlap(block, other) for other in beside) and admit(block):
            chosen.insert(place, block)
    return chosen


def aligned_blocks(total: int, sizes: Iterable[int]) -> Iterator[range]:
    """Yields, for each size, all whole consecutive blocks from shard 0 on that `total` shards fill."""
    for size in sizes:
        yield from (range(start, start + size) for start in range(0, total - size + 1, size))


def holds_all(shards: npt.NDArray[np.int64], block: range) -> bool:
    """Whether `shards`, which ascend, contain each shard of the block."""
    first, last = np.searchsorted(shards, [block.start, block.stop])
    return bool(last - first == len(block))
