"""Blocks of shards: their names, and which of several are taken."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actstore_storage.bucket import Bucket
from actstore_storage.format.blocks import (
    aligned_blocks,
    block_name,
    holds_all,
    largest_apart,
    listed_blocks,
    named_block,
    overlap,
)

BLOCKS = st.builds(lambda first, size: range(first, first + size), st.integers(0, 40), st.integers(1, 20))


@given(BLOCKS)
def test_a_name_is_read_back(block: range) -> None:
    assert named_block(block_name(block)) == block


def test_what_is_no_name() -> None:
    assert [named_block(name) for name in ("", "3", "3-", "-3", "4-3", "a-b", "1-2-3", "1-2.json")] == [None] * 8


def test_only_names_with_the_suffix_are_listed(local_bucket: Bucket) -> None:
    for name in ("0-3.parquet", "0-3.norm-sketches.parquet", "4-7.json", "other.parquet", "8-11"):
        local_bucket.put(f"folder/{name}", b"")
    assert listed_blocks(local_bucket, "folder", ".parquet") == [range(4)]


@given(st.lists(BLOCKS, max_size=8))
def test_the_largest_are_taken_and_do_not_overlap(blocks: list[range]) -> None:
    chosen = largest_apart(blocks)
    assert chosen == sorted(chosen, key=lambda block: block.start)
    assert not any(overlap(one, other) for one in chosen for other in chosen if one is not other)
    for block in blocks:
        assert block in chosen or any(overlap(block, other) and len(other) >= len(block) for other in chosen)


def test_a_block_that_is_refused_makes_room_for_smaller_ones() -> None:
    blocks = [range(8), range(4), range(4, 8)]
    assert largest_apart(blocks) == [range(8)]
    assert largest_apart(blocks, lambda block: len(block) < 8) == [range(4), range(4, 8)]


def test_blocks_that_shards_fill() -> None:
    assert list(aligned_blocks(9, (2, 4))) == [range(i, i + 2) for i in (0, 2, 4, 6)] + [range(4), range(4, 8)]
    shards = np.array([0, 1, 2, 3, 5])
    assert [holds_all(shards, block) for block in (range(4), range(4, 6), range(5, 6))] == [True, False, True]
