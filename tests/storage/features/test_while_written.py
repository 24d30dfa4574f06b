"""Every question about features, asked while shards are committed and indexes merged, is its twin's on the answer's own
snapshot.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.features.segments import Part, listed_segments
from actstore_storage.runs.opening import open_run
from actstore_storage.upkeep import merging as index_merge
from actstore_storage.upkeep.merging import Merge, finish_merge, merge_part, plan_merges
from tests.run_state import merge_index
from tests.storage.feature_twins import assert_every_answer, part_of, read_back
from tests.storage.random_run import SAE, make_run, write_run, write_shard

RUN = make_run(8, sequences=16, longest=14, sequences_per_shard=2, d_sae=5)
SHARDS = RUN.record.shards_total
FEATURES = (0, 4)


@pytest.fixture(autouse=True)
def small_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of two shards, of four and of eight, of several parts."""
    monkeypatch.setattr(index_merge, "FAN_IN", 2)


def written(bucket: Bucket, merge: Merge, parts: int | None = None) -> list[Part]:
    return [merge_part(bucket, merge, number) for number in range(len(merge.features))[:parts]]


def planned(bucket: Bucket, attempt: str = "merge") -> list[Merge]:
    return plan_merges(open_run(bucket, "run"), SAE, attempt, part_rows=60)


def assert_all(bucket: Bucket) -> None:
    snapshot = open_run(bucket, "run")
    assert_every_answer(snapshot, part_of(RUN, snapshot.shards), FEATURES)


def test_during_a_compaction(tmp_path: Path) -> None:
    """Between merges, and in the middle of each: parts written, their manifest not."""
    bucket = open_bucket(str(tmp_path))
    write_run(bucket, RUN, shards=(0, 1, 2, 3, 6))
    merges = planned(bucket)
    assert [merge.shards for merge in merges] == [range(2), range(2, 4), range(4)]
    for merge in merges:
        assert len(merge.features) > 1
        parts = written(bucket, merge)
        assert_all(bucket)
        assert finish_merge(bucket, merge, parts)
        assert_all(bucket)
    for shard in (4, 5, 7):
        write_shard(bucket, RUN, shard, "attempt")
    [last] = planned(bucket)
    written(bucket, last, parts=1)
    assert_all(bucket)
    assert finish_merge(bucket, last, written(bucket, last))
    assert_all(bucket)


def test_a_snapshot_outlives_the_merges_after_it(tmp_path: Path) -> None:
    """It takes segments that came later, and none that holds a shard that it has not."""
    bucket = open_bucket(str(tmp_path))
    write_run(bucket, RUN, shards=(0, 1, 2, 5))
    early = open_run(bucket, "run")
    for shard in (3, 4, 6, 7):
        write_shard(bucket, RUN, shard, "attempt")
        merge_index(bucket, "run", SAE, f"merge-{shard}", part_rows=60)
    assert range(SHARDS) in listed_segments(bucket, "run", SAE)
    assert_every_answer(early, part_of(RUN, early.shards), FEATURES)
    assert_all(bucket)


def test_during_a_running_capture(tmp_path: Path) -> None:
    """One thread commits, one merges, and one asks, whatever the other two are at."""
    bucket = open_bucket(str(tmp_path))
    write_run(bucket, RUN, shards=())
    asked = threading.Semaphore(1)

    def capture() -> None:
        for shard in (5, 4, 0, 1, 2, 3, 7, 6):
            asked.acquire()
            write_shard(bucket, RUN, shard, "attempt")

    def merge() -> None:
        for attempt in count():
            merge_index(bucket, "run", SAE, f"merge-{attempt}", part_rows=60)
            if range(SHARDS) in listed_segments(bucket, "run", SAE):
                return
            time.sleep(0.1)

    seen = set()
    with ThreadPoolExecutor(2) as pool:
        works = [pool.submit(capture), pool.submit(merge)]
        while not all(work.done() for work in works):
            snapshot = open_run(bucket, "run")
            if len(snapshot.commits):
                assert_every_answer(snapshot, part_of(RUN, snapshot.shards), (4,))
            if len(snapshot.commits) not in seen | {0}:  # however often that was asked: the next one
                asked.release()
            seen.add(len(snapshot.commits))
    for work in works:
        work.result()
    assert set(range(1, SHARDS)) <= seen
    assert_all(bucket)


def test_what_is_read_back_is_what_was_written(tmp_path: Path) -> None:
    bucket = open_bucket(str(tmp_path))
    write_run(bucket, RUN)
    found = read_back(open_run(bucket, "run"), SAE)
    assert (found.features == RUN.features).all()
    assert (found.tokens.flags == RUN.tokens.flags).all()
