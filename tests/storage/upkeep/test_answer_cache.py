"""All cached answers together are bounded, whoever writes them: by number, by bytes and by age."""

import threading
from collections.abc import Callable

import pyarrow as pa
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.format.keys import KEPT, KEPT_LIST
from actstore_storage.upkeep.answer_cache import KeptAnswer, KeptLimits, is_kept, keep, read_kept, remove_oldest
from actstore_storage.upkeep.fsck import check_runs

DAY = 86_400.0
ROOMY = KeptLimits()


@pytest.fixture(params=["local_bucket", "s3_bucket"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    found: Bucket = request.getfixturevalue(request.param)
    return found


def answer(number: int = 0) -> KeptAnswer:
    return KeptAnswer({"number": number}, {"cells": pa.table({"value": [float(number)]})})


def name(number: int) -> str:
    return f"{number:064x}"


def keep_many(bucket: Bucket, numbers: range, limits: KeptLimits, at: Callable[[int], float]) -> None:
    for number in numbers:
        keep(bucket, name(number), answer(number), limits=limits, now=lambda number=number: at(number))


def held(bucket: Bucket, numbers: range = range(10)) -> list[int]:
    return [number for number in numbers if is_kept(bucket, name(number))]


def test_the_oldest_answers_leave_beyond_a_number(bucket: Bucket) -> None:
    keep_many(bucket, range(5), KeptLimits(answers=3), lambda number: 1000.0 + number)
    assert held(bucket) == [2, 3, 4]
    assert len(bucket.keys(KEPT_LIST)) == 3
    assert len(bucket.keys(KEPT)) == 2 * 3
    found = read_kept(bucket, name(3))
    assert found is not None
    assert found.record == {"number": 3}
    assert check_runs(bucket).findings == ()


def test_the_oldest_answers_leave_beyond_their_bytes_and_their_age(bucket: Bucket) -> None:
    keep_many(bucket, range(4), ROOMY, lambda number: DAY * number)
    size = int(bucket.keys(KEPT_LIST)[0].split("-")[2])
    assert remove_oldest(bucket, KeptLimits(bytes=3 * size), lambda: 3 * DAY) == [name(0)]
    assert remove_oldest(bucket, KeptLimits(days=1), lambda: 3 * DAY) == [name(1)]
    assert held(bucket) == [2, 3]


def test_an_answer_that_is_kept_again_counts_once_and_as_new(bucket: Bucket) -> None:
    keep_many(bucket, range(2), ROOMY, lambda number: 1000.0 + number)
    keep(bucket, name(0), answer(7), replace=True, limits=KeptLimits(answers=2), now=lambda: 2000.0)
    assert held(bucket) == [0, 1]
    keep(bucket, name(2), answer(2), limits=KeptLimits(answers=2), now=lambda: 3000.0)
    assert held(bucket) == [0, 2]
    found = read_kept(bucket, name(0))
    assert found is not None
    assert found.record == {"number": 7}


def test_answers_of_earlier_versions_are_counted(bucket: Bucket) -> None:
    keep_many(bucket, range(3), ROOMY, lambda number: 1000.0 + number)
    for key in bucket.keys(KEPT_LIST):
        bucket.delete(key)
    keep(bucket, name(3), answer(3), limits=KeptLimits(answers=2), now=lambda: 2000.0)
    assert len(held(bucket)) == len(bucket.keys(KEPT_LIST)) == 2


def test_several_writers_keep_within_the_bound(bucket: Bucket) -> None:
    limits = KeptLimits(answers=4)

    def write(first: int) -> None:
        keep_many(bucket, range(first, first + 4), limits, lambda number: 1000.0 + number)

    writers = [threading.Thread(target=write, args=(4 * number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    keep(bucket, name(99), answer(99), limits=limits, now=lambda: 9999.0)
    assert len(held(bucket, range(100))) <= 4
    assert held(bucket, range(99, 100)) == [99]
    assert len(bucket.keys(KEPT_LIST)) <= 4
