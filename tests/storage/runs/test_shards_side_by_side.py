"""Norms of several shards are read side by side: the numbers, to the bit, and the order are those of one at a time."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.side_by_side import THREADS, read_side_by_side
from actstore_storage.errors import CorruptObject
from actstore_storage.format.products import NORMS
from actstore_storage.norms import rows as norm_rows
from actstore_storage.norms.growth import Bootstrap, fit_growth
from actstore_storage.norms.profile import ProfileQuestion, norm_profile
from actstore_storage.norms.rows import KeptTokens
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from tests.storage.random_run import RandomRun, make_run, write_run
from tests.waiting import PATIENCE_SECONDS

LAYERS = 5


@pytest.fixture
def made() -> RandomRun:
    """Of 20 shards, whose norms are in part no number or infinite."""
    run = make_run(3, layers=LAYERS, sequences=60, sequences_per_shard=3)
    random = np.random.default_rng(0)
    for norms in run.norms.values():
        norms[random.random(len(norms)) < 0.1] = np.nan
        norms[random.random(len(norms)) < 0.1] = np.inf
    return run


@pytest.fixture
def snapshot(local_bucket: Bucket, made: RandomRun) -> Snapshot:
    write_run(local_bucket, made)
    return open_run(local_bucket, "run")


def one_at_a_time(made: RandomRun) -> list[float]:
    """Means of resid_post without position 0: of each shard the sum over sequences of sums in order of their tokens,
    and these added in order of shards.
    """
    means = []
    for layer in range(LAYERS):
        norms, total, count = made.norms[f"resid_post.{layer}"].astype(np.float64), 0.0, 0
        counted = (made.tokens.position > 0) & np.isfinite(norms)
        for shard in range(made.record.shards_total):
            sums = []
            for sequence in made.record.shard_sequences(shard):
                summed = 0.0
                for norm in norms[counted & (made.tokens.sequence == sequence)]:
                    summed += norm
                    count += 1
                sums.append(summed)
            total += float(np.array(sums).sum())
        means.append(total / count)
    return means


@pytest.mark.parametrize("norms_at_once", [1, 1000, norm_rows.NORMS_AT_ONCE])
def test_growth_is_that_of_one_shard_after_the_other(
    norms_at_once: int, made: RandomRun, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"kept": KeptTokens(frozenset(), True), "bootstrap": Bootstrap(50)}
    monkeypatch.setattr(norm_rows, "NORMS_AT_ONCE", norms_at_once)
    growth = fit_growth(snapshot, **asked)
    assert growth.points["mean"].to_pylist() == one_at_a_time(made)
    monkeypatch.setattr(norm_rows, "SHARDS_AT_ONCE", 1)
    alone = fit_growth(snapshot, **asked)
    assert growth.points.equals(alone.points)
    assert growth.fit.rate_interval == alone.fit.rate_interval


@pytest.mark.parametrize("by", ["layer", "position", "document"])
def test_profiles_are_those_of_one_shard_after_the_other(
    by: str, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = ProfileQuestion(("resid_post",), by=by, kept=KeptTokens(exclude_position_0=True))
    found = norm_profile(snapshot, question)
    monkeypatch.setattr(norm_rows, "SHARDS_AT_ONCE", 1)
    assert found.equals(norm_profile(snapshot, question))


def test_norms_in_memory_decide_how_many_shards_are_read_at_once(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(norm_rows, "read_side_by_side", lambda read, items, at_once: seen.append(at_once) or iter(()))
    largest = int(snapshot.commits.token_counts.max())
    for norms_at_once in (1, 3 * 7 * largest, 1_000_000):
        monkeypatch.setattr(norm_rows, "NORMS_AT_ONCE", norms_at_once)
        list(norm_rows.read_shards(snapshot, snapshot.commits, 7, lambda commit: commit))
    assert seen == [1, 3, norm_rows.SHARDS_AT_ONCE]


def test_what_is_read_side_by_side_comes_in_order_and_no_more_is_held_than_allowed() -> None:
    """The first of three is the last to be done; a fourth is not begun before it was taken."""
    begun: list[int] = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for item in range(8):
            begun.append(item)
            yield item

    def read(item: int) -> int:
        if item == 2:
            third.set()
        if item == 0:
            assert third.wait(PATIENCE_SECONDS)
        return item

    found = read_side_by_side(read, items(), 3)
    assert next(found) == 0
    assert begun == [0, 1, 2]
    assert list(found) == list(range(1, 8))


def test_reads_within_reads_share_the_threads_of_the_process() -> None:
    """More of them than there are threads: none waits for a thread that waits for it."""
    names: set[str] = set()

    def inner(item: int) -> int:
        names.add(threading.current_thread().name)
        return item

    def outer(item: int) -> int:
        return sum(read_side_by_side(inner, range(item, item + 20)))

    for _ in range(3):
        found = list(read_side_by_side(outer, range(2 * THREADS), 2 * THREADS))
        assert found == [sum(range(item, item + 20)) for item in range(2 * THREADS)]
    assert len(names) <= THREADS + 1


def test_one_item_is_read_on_the_thread_of_its_question() -> None:
    [name] = read_side_by_side(lambda _: threading.current_thread().name, [0])
    assert name == threading.current_thread().name


def test_the_first_damaged_shard_is_the_one_that_is_told(local_bucket: Bucket, snapshot: Snapshot) -> None:
    for shard in (11, 4):
        local_bucket.delete(snapshot.commits[shard].objects[NORMS].key)
    with pytest.raises(CorruptObject, match="shard 4"):
        fit_growth(snapshot, kept=KeptTokens(exclude_position_0=True))


def test_a_run_of_one_shard(local_bucket: Bucket) -> None:
    alone = make_run(3, layers=LAYERS, sequences=3)
    write_run(local_bucket, replace(alone, record=replace(alone.record, run="alone")))
    means = fit_growth(open_run(local_bucket, "alone"), kept=KeptTokens(frozenset(), True)).points["mean"]
    assert means.to_pylist() == one_at_a_time(alone)
