"""Answers of an S3 store that it would give again, and those that pass: asked of SeaweedFS where it can be made to give
them, and of a listener where not.
"""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import StoreError, StoreUnreachable
from tests.servers import answering, http_answer, relaying, s3_refusal


def _refused(ask: Callable[[], object], reason: str, bucket: Bucket) -> StoreError:
    with pytest.raises(StoreError) as caught:
        ask()
    assert (caught.value.reason, caught.value.details["field"]) == (reason, "store")
    assert caught.value.details["value"] == bucket.address
    return caught.value


def _streamed(bucket: Bucket, key: str) -> None:
    with bucket.create(key) as stream:
        stream.write(b"1")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("EntityTooLarge", 400),
        ("InvalidArgument", 400),
        ("MalformedXML", 400),
        ("PreconditionFailed", 412),
        ("NotImplemented", 501),
        ("SomethingOfAnotherMaker", 503),
    ],
)
def test_what_a_store_would_refuse_again_fails_at_once(code: str, status: int) -> None:
    """Whatever its number: only the code says whether it is of use to try again."""
    heard: list[bytes] = []
    with answering(s3_refusal(code, status), heard) as endpoint:
        bucket = open_bucket("s3://bucket", S3Access(endpoint, "key", "secret", secure=False))
        asks = (
            lambda: bucket.put("a/b", b""),
            lambda: bucket.get("a/b"),
            lambda: bucket.keys("a"),
            lambda: bucket.delete("a/b"),
        )
        for ask in asks:
            _refused_for_good(ask, bucket, code)
        assert len(heard) == len(asks)  # none was asked again
        _refused_for_good(lambda: _streamed(bucket, "a/b"), bucket, code)


def test_a_key_that_the_store_finds_too_long_fails_at_once(s3_bucket: Bucket) -> None:
    key = "/".join(["a" * 100] * 11)
    for write in (
        lambda: s3_bucket.put(key, b"1"),
        lambda: s3_bucket.put_if_absent(key, b"1"),
        lambda: _streamed(s3_bucket, key),
    ):
        _refused_for_good(write, s3_bucket, "KeyTooLongError")


def _refused_for_good(ask: Callable[[], object], bucket: Bucket, code: str) -> None:
    refused = _refused(ask, "STORE_UNSAFE", bucket)
    assert not isinstance(refused, StoreUnreachable)
    assert f"rejected the request, and retrying would not help ({code.lower()})" in refused.message


@pytest.mark.parametrize("write", [lambda bucket: bucket.put("a/b", b"1"), lambda bucket: _streamed(bucket, "a/b")])
def test_a_full_store_is_told_by_both_clients(write: Callable[[Bucket], None]) -> None:
    with answering(s3_refusal("XMinioStorageFull", 507)) as endpoint:
        bucket = open_bucket("s3://bucket", S3Access(endpoint, "key", "secret", secure=False))
        _refused(lambda: write(bucket), "STORE_FULL", bucket)


# After which it is worth to try again: of a store that is busy or starts, of a proxy that lacks its store, and none.
PASSING = {
    "SlowDown": s3_refusal("SlowDown", 503),
    "InternalError": s3_refusal("InternalError", 500),
    "ServiceUnavailable": s3_refusal("ServiceUnavailable", 503),
    "RequestTimeout": s3_refusal("RequestTimeout", 400),
    "OperationAborted": s3_refusal("OperationAborted", 409),
    "XMinioServerNotInitialized": s3_refusal("XMinioServerNotInitialized", 503),
    "a proxy's": http_answer("502 Bad Gateway", b"<html>", Content_Type="text/html"),
    "none": b"",
}


@pytest.mark.parametrize("answer", PASSING)
def test_what_comes_back_by_itself_is_tried_again(
    answer: str, s3_bucket: Bucket, s3_access: S3Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every question outlasts three failures; a fourth is told, as what may come back."""
    monkeypatch.setattr("actstore_storage.bucket.s3.BACKOFF_SECONDS", 0.01)
    s3_bucket.put("a/old", b"old")
    asks: list[tuple[Callable[[Bucket], object], object]] = [
        (lambda bucket: bucket.put("a/put", b"1"), None),
        (lambda bucket: bucket.get("a/old"), b"old"),
        (lambda bucket: bucket.keys("a"), ["a/old", "a/put"]),
        (lambda bucket: bucket.put_if_absent("a/absent", b"2"), True),
        (lambda bucket: bucket.delete("a/old"), None),
    ]
    for ask, expected in asks:
        for failures in (3, 4):
            with relaying(s3_access.endpoint, [PASSING[answer]] * failures) as endpoint:
                bucket = open_bucket(s3_bucket.address, replace(s3_access, endpoint=endpoint))
                if failures == 3:
                    assert ask(bucket) == expected
                else:
                    _refused(lambda ask=ask, bucket=bucket: ask(bucket), "STORE_UNREACHABLE", bucket)
    assert s3_bucket.get("a/put") == b"1"
    assert s3_bucket.get("a/absent") == b"2"


def test_between_tries_it_waits_twice_as_long_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("actstore_storage.bucket.s3.time", SimpleNamespace(sleep=waits.append))
    heard: list[bytes] = []
    with answering(s3_refusal("SlowDown", 503), heard) as endpoint:
        bucket = open_bucket("s3://bucket", S3Access(endpoint, "key", "secret", secure=False))
        _refused(lambda: bucket.get("a/b"), "STORE_UNREACHABLE", bucket)
    assert (waits, len(heard)) == ([0.2, 0.4, 0.8], 4)


@pytest.mark.parametrize("answer", ["SlowDown", "none"])
def test_a_stream_outlasts_what_comes_back_by_itself(answer: str, s3_bucket: Bucket, s3_access: S3Access) -> None:
    with relaying(s3_access.endpoint, [PASSING[answer]] * 2) as endpoint:
        _streamed(open_bucket(s3_bucket.address, replace(s3_access, endpoint=endpoint)), "a/b")
    assert s3_bucket.get("a/b") == b"1"


@pytest.mark.parametrize("lost", [1, 2])
def test_a_conditional_put_whose_answer_was_lost_knows_its_own_object(
    lost: int, s3_bucket: Bucket, s3_access: S3Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store wrote it the first time, and says to the second that one is there: whose, only the bytes tell."""
    monkeypatch.setattr("actstore_storage.bucket.s3.BACKOFF_SECONDS", 0.01)
    s3_bucket.put("a/theirs", b"theirs")
    for key, won, stands in (("a/own", True, b"own"), ("a/theirs", False, b"theirs")):
        with relaying(s3_access.endpoint, [b""] * lost) as endpoint:
            bucket = open_bucket(s3_bucket.address, replace(s3_access, endpoint=endpoint))
            assert bucket.put_if_absent(key, b"own") is won
        assert s3_bucket.get(key) == stands
