"""Runs that a process keeps open: they answer for the run as it is now, in any store, and are read once."""

import os
import threading
from collections import Counter
from pathlib import Path

import pytest

from actstore_api.records.catalog import GetRun
from actstore_api.records.feature import SampleExamples
from actstore_api.records.norm import GetNormProfile
from actstore_storage.answers import Store, answer
from actstore_storage.answers.kept import KeptRuns
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.bucket.observed import ObservedBucket
from actstore_storage.errors import ActstoreError, NotThere
from actstore_storage.format.keys import run_key
from actstore_storage.parquet.row_cache import RowCache
from actstore_storage.upkeep.removal import remove_run
from tests.stored_run import FIRING, SAE, write_stored_run
from tests.waiting import wait_until

BYTES = 1 << 20
NORMS = GetNormProfile(("planted",))


class Operations:
    """Counts what a store is asked for."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def ended(self, operation: str, outcome: str, seconds: float) -> None:
        self.seen[operation] += 1

    def moved(self, direction: str, n_bytes: int) -> None:
        """Bytes do not count here."""


@pytest.fixture(params=["local_bucket", "s3_bucket"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    found: Bucket = request.getfixturevalue(request.param)
    return found


def settle(bucket: Bucket, run: str = "planted") -> None:
    """Until what is written from now on differs in its time."""
    key = run_key(run)
    if isinstance(bucket, LocalBucket):
        os.utime(Path(bucket.address) / key, (1, 1))
    wait_until(lambda: bucket.stamp(key).settled, "an old record")


def mean_norm(store: Store) -> float:
    found: float = answer(store, NORMS).profile["mean"][0].as_py()
    return found


def test_it_answers_for_the_run_as_it_is_now(bucket: Bucket) -> None:
    store = Store(bucket, kept=KeptRuns(BYTES))
    write_stored_run(bucket, shards=())
    settle(bucket)
    for committed, shard in enumerate((0, 2, 1), start=1):
        write_stored_run(bucket, shards=(shard,))
        for _ in range(2):
            assert answer(store, GetRun("planted")).run.provenance.shards_committed == committed
            assert answer(store, NORMS) == answer(Store(bucket), NORMS)
    norm = mean_norm(store)

    remove_run(bucket, "planted")
    with pytest.raises(NotThere):
        mean_norm(store)
    assert not store.readable_runs()

    # With the very same record, byte by byte; only what it stores is another.
    write_stored_run(bucket, scale=2.0)
    settle(bucket)
    assert mean_norm(store) == pytest.approx(2 * norm)
    assert answer(store, NORMS) == answer(Store(bucket), NORMS)

    remove_run(bucket, "planted")
    write_stored_run(bucket, revision="step-2", scale=3.0)
    assert answer(store, GetRun("planted")).run.provenance.model_revision == "step-2"
    assert mean_norm(store) == pytest.approx(3 * norm)


def test_a_complete_run_is_read_once(bucket: Bucket) -> None:
    write_stored_run(bucket)
    settle(bucket)
    operations = Operations()
    store = Store(ObservedBucket(bucket, operations), kept=KeptRuns(BYTES))
    for question in (GetRun("planted"), NORMS):
        first = answer(store, question)
        operations.seen.clear()
        assert answer(store, question) == first
        assert operations.seen == {"open": 1}, "one look whether it is still the same run"


def test_a_record_that_was_just_written_is_not_kept(local_bucket: Bucket) -> None:
    """Another one within the same tick of the clock would look the same."""
    write_stored_run(local_bucket)
    os.utime(Path(local_bucket.address) / run_key("planted"))
    kept = KeptRuns(BYTES)
    kept.open(local_bucket, "planted")
    assert kept.cache.bytes_held == 0
    settle(local_bucket)
    kept.open(local_bucket, "planted")
    assert kept.cache.bytes_held > 0


def test_it_keeps_no_more_than_it_may(local_bucket: Bucket) -> None:
    names = [f"run-{number}" for number in range(6)]
    for name in names:
        write_stored_run(local_bucket, name)
        settle(local_bucket, name)
    one = KeptRuns(BYTES)
    one.open(local_bucket, names[0])
    for bytes_max in (0, one.cache.bytes_held - 1, 3 * one.cache.bytes_held):
        store = Store(local_bucket, kept=KeptRuns(bytes_max))
        for name in names:
            assert answer(store, GetRun(name)).run.name == name
            answer(store, SampleExamples(name, SAE, (FIRING,)))
        assert store.kept.cache.bytes_held <= bytes_max
    assert store.kept.cache.bytes_held > 0


def test_who_has_left_reads_nothing_more_and_others_do(local_bucket: Bucket) -> None:
    write_stored_run(local_bucket)
    settle(local_bucket)
    store, gone = Store(local_bucket, kept=KeptRuns(BYTES)), threading.Event()
    first = store.until(gone).with_opened("planted")
    gone.set()
    question = SampleExamples("planted", SAE, (FIRING,))
    with pytest.raises(ActstoreError) as caught:
        answer(first, question)
    assert caught.value.reason == "CANCELLED"
    assert answer(store.until(threading.Event()), question).examples.num_rows


def test_objects_that_are_gone_are_looked_for_once_more(local_bucket: Bucket) -> None:
    """Between the look at the run and the reading of its objects it may be removed, and captured again."""
    write_stored_run(local_bucket)
    settle(local_bucket)
    store, question = Store(local_bucket, kept=KeptRuns(BYTES)), SampleExamples("planted", SAE, (FIRING,))
    opened = store.with_opened("planted")
    expected = answer(store, question)
    remove_run(local_bucket, "planted")
    write_stored_run(local_bucket)
    assert answer(opened, question).examples == expected.examples


def test_each_row_group_that_is_read_counts_once(local_bucket: Bucket) -> None:
    write_stored_run(local_bucket)
    settle(local_bucket)
    store = Store(local_bucket, RowCache(BYTES), KeptRuns(BYTES))
    examples = SampleExamples("planted", SAE, (FIRING,))
    answer(store, examples)
    first = store.row_cache.missed
    store.row_cache._held.clear()
    store.row_cache.bytes_held = 0
    answer(store, examples)
    assert store.row_cache.missed == 2 * first > 0
    answer(store, examples)
    assert store.row_cache.missed == 2 * first
