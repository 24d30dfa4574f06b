"""What an observer hears of a bucket: each operation once, with its outcome and its bytes."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.bucket.observed import ObservedBucket, StoreWatch
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import BadRequest, StoreError, StoreUnreachable
from tests.storage.bucket.test_buckets import BucketBehaviour
from tests.waiting import wait_until


class Heard:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.operations: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[str] = Counter()
        self.seconds = 0.0

    def ended(self, operation: str, outcome: str, seconds: float) -> None:
        self.operations[operation, outcome] += 1
        self.seconds += seconds

    def moved(self, direction: str, n_bytes: int) -> None:
        self.bytes[direction] += n_bytes


@pytest.fixture
def heard() -> Heard:
    return Heard()


class TestObservedBucket(BucketBehaviour):
    @pytest.fixture
    def bucket(self, tmp_path: Path, heard: Heard) -> Bucket:
        return ObservedBucket(LocalBucket(tmp_path), heard)

    def test_each_operation_is_heard_once(self, bucket: Bucket, heard: Heard) -> None:
        bucket.put("a/one", b"12345")
        assert bucket.put_if_absent("a/two", b"123")
        assert not bucket.put_if_absent("a/two", b"1234567")
        with bucket.create("a/three") as stream:
            stream.write(b"12")
        assert bucket.get("a/one") == b"12345"
        assert not bucket.exists("a/none")
        with pytest.raises(KeyError):
            bucket.get("a/none")
        with pytest.raises(BadRequest):
            bucket.get("a/../b")
        with bucket.open("a/one") as source:
            assert source.read(2) == b"12"
        bucket.keys("a"), bucket.folders("a"), bucket.top(), bucket.delete("a/one")
        assert heard.operations == {
            ("put", "ok"): 2, ("put", "taken"): 1, ("create", "ok"): 1, ("get", "ok"): 1, ("get", "absent"): 1,
            ("get", "failed"): 1, ("open", "absent"): 1, ("open", "ok"): 1, ("read", "ok"): 1, ("list", "ok"): 3,
            ("delete", "ok"): 1,
        }  # fmt: skip
        assert heard.bytes == {"written": 5 + 3 + 2, "read": 5 + 2}
        assert heard.seconds > 0

    def test_parquet_is_read_through_it_and_its_bytes_are_heard(self, bucket: Bucket, heard: Heard) -> None:
        table = pa.table({"value": [number * 7919 % 999_983 for number in range(200_000)]})
        with bucket.create("a/rows") as stream:
            pq.write_table(table, stream)
        with bucket.open("a/rows") as source:
            assert pq.ParquetFile(source).read().equals(table)
            assert heard.bytes["read"] == pytest.approx(source.size(), rel=0.2)

    def test_a_write_that_is_given_up_failed(self, bucket: Bucket, heard: Heard) -> None:
        with pytest.raises(ValueError, match="mine"), bucket.create("a/rows"):
            raise ValueError("mine")
        assert heard.operations == {("create", "failed"): 1}


def test_what_cannot_be_reached_or_refuses_is_told_apart(
    heard: Heard, free_port: int, s3_address: str, s3_access: S3Access
) -> None:
    away = S3Access(f"127.0.0.1:{free_port}", "key", "secret", secure=False)
    with pytest.raises(StoreUnreachable):
        ObservedBucket(open_bucket(s3_address, away), heard).get("a/b")
    wrong = S3Access(s3_access.endpoint, s3_access.access_key, "wrong", secure=False)
    with pytest.raises(StoreError):
        ObservedBucket(open_bucket(s3_address, wrong), heard).get("a/b")
    assert heard.operations == {("get", "unreachable"): 1, ("get", "refused"): 1}


def test_a_store_that_nobody_asks_is_asked(tmp_path: Path, heard: Heard) -> None:
    watch = StoreWatch(ObservedBucket(LocalBucket(tmp_path), heard), 0.2)
    wait_until(lambda: heard.operations["list", "ok"] > 1, "two questions")
    tmp_path.rmdir()
    wait_until(lambda: heard.operations["list", "missing"], "a failure")
    watch.close()
