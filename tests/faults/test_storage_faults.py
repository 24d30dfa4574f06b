"""Stores that fail and objects that are damaged: one clear error each, and nothing lost."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.bucket.probe import probe
from actstore_storage.errors import ActstoreError, BadRequest, CorruptObject, StoreError, StoreUnreachable
from actstore_storage.features.statistics import feature_statistics, top_examples
from actstore_storage.norms.profile import ProfileQuestion, norm_profile
from actstore_storage.rows.reading import read_activations, read_tokens
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.snapshot import Snapshot
from tests.servers import SeaweedServer, answering, http_answer, s3_refusal
from tests.storage.random_run import SAE, make_run, write_run, write_shard

# Each product, and a question that reads it.
QUESTIONS: dict[str, Callable[[Snapshot], object]] = {
    "tokens": lambda snapshot: list(read_tokens(snapshot)),
    "resid_pre.0": lambda snapshot: list(read_activations(snapshot, "resid_pre.0")),
    "norms": lambda snapshot: norm_profile(snapshot, ProfileQuestion(exact=True)),
    "norm-sketches": norm_profile,
    "index-sae": lambda snapshot: top_examples(snapshot, SAE, 5),
    "statistics-sae": lambda snapshot: feature_statistics(snapshot, SAE, 5),
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "lengthened": lambda data: data + b"\0",
    "footer overwritten": lambda data: data[:-200] + b"\xff" * 200,
    "another format": lambda data: b"\0" * len(data),
    "one bit of a page flipped": lambda data: _flipped(data, len(data) // 4),
}


@pytest.fixture(params=["local_bucket", "s3_bucket"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    found: Bucket = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("product", QUESTIONS)
def test_a_damaged_object_is_named(bucket: Bucket, product: str, damage: str) -> None:
    # Rows enough that a quarter of the way into every file lies inside a page.
    write_run(bucket, make_run(1, sequences=60, longest=60, d_sae=60, sequences_per_shard=30))
    snapshot = open_run(bucket, "run")
    key = snapshot.commits[1].objects[product].key
    bucket.put(key, DAMAGES[damage](bucket.get(key)))
    with pytest.raises(CorruptObject) as caught:
        QUESTIONS[product](snapshot)
    assert caught.value.details["value"] == key
    assert "run run, shard 1" in caught.value.message


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_texts_of_tokens_are_named(bucket: Bucket, damage: str) -> None:
    run = make_run(1)
    write_run(bucket, run)
    key = f"tokenizers/{run.record.specification.tokenizer_sha256}/token-texts.parquet"
    bucket.put(key, DAMAGES[damage](bucket.get(key)))
    with pytest.raises(CorruptObject) as caught:
        list(read_tokens(open_run(bucket, "run")))
    assert caught.value.details["value"] == key


@pytest.mark.parametrize("product", QUESTIONS)
def test_a_missing_object_is_named(bucket: Bucket, product: str) -> None:
    write_run(bucket, make_run(1))
    snapshot = open_run(bucket, "run")
    bucket.delete(snapshot.commits[2].objects[product].key)
    with pytest.raises(CorruptObject) as caught:
        QUESTIONS[product](snapshot)
    assert caught.value.details["value"] == snapshot.commits[2].objects[product].key


def test_a_reader_who_may_not_write(seaweed: SeaweedServer, s3_bucket: Bucket) -> None:
    run = make_run(1)
    write_run(s3_bucket, run, shards=(0, 1))
    access = S3Access(seaweed.endpoint, seaweed.reader_access_key, seaweed.reader_secret_key, secure=False)
    reader = open_bucket(s3_bucket.address, access)
    assert norm_profile(open_run(reader, "run")).num_rows == 8
    for refused in (
        lambda: probe(reader),
        lambda: reader.put("a/b", b"1"),
        lambda: reader.delete("runs/run/run.json"),
        lambda: write_shard(reader, run, 2, "attempt"),
        lambda: create_run(reader, replace(run.record, run="other")),
    ):
        _refused(refused, "STORE_NOT_WRITABLE", reader)
    assert open_run(s3_bucket, "run").name == open_run(reader, "run").name


def _asks(bucket: Bucket) -> Iterator[Callable[[], object]]:
    yield lambda: probe(bucket)
    yield lambda: open_run(bucket, "run")
    yield lambda: bucket.put("a/b", b"1")
    yield lambda: bucket.keys("runs")
    yield lambda: bucket.folders("runs")
    yield lambda: write_shard(bucket, make_run(1), 0, "attempt")


@pytest.mark.parametrize(("access_key", "secret_key"), [(None, "not the secret"), ("nobody", "not the secret")])
def test_wrong_credentials(s3_address: str, s3_access: S3Access, access_key: str | None, secret_key: str) -> None:
    wrong = replace(s3_access, access_key=access_key or s3_access.access_key, secret_key=secret_key)
    bucket = open_bucket(s3_address, wrong)
    for ask in _asks(bucket):
        error = _refused(ask, "STORE_CREDENTIALS", bucket)
        assert secret_key not in f"{error!r} {error} {error.details}"
    _refused(lambda: bucket.open("a/b"), "STORE_CREDENTIALS", bucket)


def test_a_bucket_that_is_not_there(s3_access: S3Access) -> None:
    bucket = open_bucket("s3://nonesuch", s3_access)
    for ask in _asks(bucket):
        _refused(ask, "STORE_NOT_FOUND", bucket)


def test_an_endpoint_that_nobody_answers(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setattr("actstore_storage.bucket.s3.BACKOFF_SECONDS", 0.01)
    bucket = open_bucket("s3://bucket", S3Access(f"127.0.0.1:{free_port}", "key", "secret", secure=False))
    for ask in (lambda: probe(bucket), lambda: open_run(bucket, "run"), lambda: bucket.open("a/b")):
        assert isinstance(_refused(ask, "STORE_UNREACHABLE", bucket), StoreUnreachable)


# What an endpoint answers to plain HTTP, the setting that is wrong, and what the message says of it.
WRONG_SETTINGS = {
    "TLS": (b"\x15\x03\x03\x00\x02\x02\x46", "secure", "ACTSTORE_S3_SECURE=1"),
    "TLS, told in words": (
        b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n"
        b"Client sent an HTTP request to an HTTPS server.\n",
        "secure",
        "ACTSTORE_S3_SECURE=1",
    ),
    "another region": (s3_refusal("AuthorizationHeaderMalformed"), "region", "ACTSTORE_S3_REGION"),
    "moved": (s3_refusal("PermanentRedirect"), "region", "ACTSTORE_S3_REGION"),
}


@pytest.mark.parametrize("wrong", WRONG_SETTINGS)
def test_a_wrong_setting_is_named_at_once(wrong: str) -> None:
    answer, field, said = WRONG_SETTINGS[wrong]
    heard: list[bytes] = []
    with answering(answer, heard) as endpoint:
        bucket = open_bucket("s3://bucket", S3Access(endpoint, "key", "secret", secure=False))
        for ask in (lambda: bucket.keys("runs"), lambda: bucket.get("a/b"), lambda: bucket.put("a/b", b"")):
            with pytest.raises(StoreError, match=said) as caught:
                ask()
            assert caught.value.details["field"] == field
            assert not isinstance(caught.value, StoreUnreachable)
    assert len(heard) == 3  # none was asked again


def _page(*names: str) -> bytes:
    """Of a listing, with more behind it."""
    when = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    keys = "".join(f"<Contents><Key>runs/{name}</Key>{when}<Size>1</Size></Contents>" for name in names)
    told = "<Name>b</Name><IsTruncated>true</IsTruncated><NextContinuationToken>on</NextContinuationToken>"
    body = f"<ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>{told}{keys}</ListBucketResult>".encode()
    return http_answer("200 OK", body, Content_Type="application/xml")


@pytest.mark.parametrize("repeated", [5, 6])
def test_a_listing_that_does_not_go_on(repeated: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page is the first one, whatever is asked; the first and the last key of the fourth are those too many."""
    monkeypatch.setattr("actstore_storage.bucket.s3.REPEATED_MAX", repeated)
    heard: list[bytes] = []
    with answering(_page("a", "b"), heard) as endpoint:
        bucket = open_bucket("s3://bucket", S3Access(endpoint, "key", "secret", secure=False))
        for ask in (lambda: bucket.keys("runs"), lambda: bucket.folders("runs"), bucket.top):
            heard.clear()
            with pytest.raises(StoreError, match="repeats the same keys in its listing"):
                ask()
            assert len(heard) == 4


def test_a_listing_between_two_keys_asks_for_no_page_before_or_behind_them() -> None:
    heard: list[bytes] = []
    with answering(_page("b", "c"), heard) as endpoint:
        bucket = open_bucket("s3://bucket", S3Access(endpoint, "key", "secret", secure=False))
        assert bucket.keys("runs", after="runs/a", until="runs/b") == ["runs/b"]
    [said] = heard
    assert b"start-after=runs%2Fa HTTP" in said


def test_a_clock_that_is_not_the_stores() -> None:
    with answering(s3_refusal("RequestTimeTooSkewed")) as endpoint:
        bucket = open_bucket("s3://bucket", S3Access(endpoint, "key", "secret", secure=False))
        with pytest.raises(StoreError, match="its clock differs from the store's") as caught:
            bucket.get("a/b")
    assert caught.value.reason == "STORE_CREDENTIALS"


def test_tls_to_a_store_without_it(s3_address: str, s3_access: S3Access) -> None:
    bucket = open_bucket(s3_address, replace(s3_access, secure=True))
    for ask in (lambda: probe(bucket), lambda: bucket.open("a/b")):
        with pytest.raises(StoreError, match="ACTSTORE_S3_SECURE=0") as caught:
            ask()
        assert caught.value.details["field"] == "secure"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "the host name is unknown"),
        (http_answer("404 Not Found"), "the server there is not an S3 store"),
        (b"", "it closed the connection.*ACTSTORE_S3_SECURE=1"),
        (http_answer("200 OK", b"<html><br>log in</b>"), "the server there is not an S3 store"),
        (http_answer("200 OK"), "the server there is not an S3 store"),
        (http_answer("200 OK", b"<a/>"), "the server there is not an S3 store"),
        (http_answer("307 Go", Location="http://other.invalid/"), "redirects requests to another address"),
    ],
)
def test_a_wrong_endpoint_is_named(answer: bytes | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore_storage.bucket.s3.BACKOFF_SECONDS", 0.01)
    with answering(answer or b"") as address:
        endpoint = "nowhere.invalid:80" if answer is None else address
        bucket = open_bucket("s3://bucket", S3Access(endpoint, "key", "secret", secure=False))
        with pytest.raises(StoreUnreachable, match=f"{endpoint}, from ACTSTORE_S3_ENDPOINT .*{said}"):
            bucket.keys("runs")


@pytest.mark.parametrize("through", ["http_proxy", "all_proxy"])
def test_a_store_elsewhere_is_reached_through_the_proxy_of_the_environment(
    through: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By both clients; one on loopback never is (tests/client/stack/test_stack.py)."""
    monkeypatch.setattr("actstore_storage.bucket.s3.BACKOFF_SECONDS", 0.01)
    heard: list[bytes] = []
    with answering(s3_refusal("NoSuchBucket"), heard) as proxy:
        monkeypatch.setenv(through, f"http://name:password@{proxy}")
        bucket = open_bucket("s3://bucket", S3Access("store.invalid:9000", "key", "secret", secure=False))
        for ask in (lambda: bucket.keys("runs"), lambda: write_shard(bucket, make_run(1), 0, "attempt")):
            with pytest.raises(StoreError):
                ask()
    verbs, addresses = zip(*(said.split()[:2] for said in heard), strict=True)
    assert {b"GET", b"PUT"} <= set(verbs)
    assert all(address.startswith(b"http://store.invalid:9000/bucket") for address in addresses)
    monkeypatch.setenv("no_proxy", "store.invalid")
    with pytest.raises(StoreUnreachable, match="the host name is unknown"):
        open_bucket("s3://bucket", S3Access("store.invalid:80", "key", "secret", secure=False)).keys("runs")


def test_a_proxy_that_leads_nowhere_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setattr("actstore_storage.bucket.s3.BACKOFF_SECONDS", 0.01)
    access = S3Access("store.invalid:80", "key", "secret", secure=False)
    monkeypatch.setenv("http_proxy", f"http://name:password@127.0.0.1:{free_port}")
    with pytest.raises(
        StoreUnreachable, match=f"the proxy http://127.0.0.1:{free_port} could not connect to it"
    ) as caught:
        open_bucket("s3://bucket", access).keys("runs")
    assert "password" not in str(caught.value)
    monkeypatch.setenv("http_proxy", "socks5://name:password@127.0.0.1:1")
    with pytest.raises(BadRequest, match=r"socks5://127.0.0.1:1, but only HTTP proxies") as refused:
        open_bucket("s3://bucket", access)
    assert "password" not in f"{refused.value} {refused.value.details}"


def test_a_file_where_a_folder_should_be(local_bucket: Bucket) -> None:
    """What a folder without write permission does, also for root, to whom permissions do not apply."""
    (Path(local_bucket.address) / "runs").write_text("in the way")
    _refused(lambda: create_run(local_bucket, make_run(1).record), "STORE_NOT_WRITABLE", local_bucket)
    _refused(lambda: write_shard(local_bucket, make_run(1), 0, "attempt"), "STORE_NOT_WRITABLE", local_bucket)


def test_a_read_only_file_system() -> None:
    """/proc refuses every new file, also to root."""
    if not Path("/proc/self").is_dir():
        pytest.skip("this system has no /proc to serve as a directory that nobody may write to")
    bucket = LocalBucket(Path("/proc"))
    with pytest.raises(StoreError) as caught:
        probe(bucket)
    assert caught.value.details["value"] == "/proc"


def test_a_store_that_vanishes(local_bucket: Bucket) -> None:
    Path(local_bucket.address).rmdir()
    for ask in _asks(local_bucket):
        _refused(ask, "STORE_NOT_FOUND", local_bucket)


FULL_DISK = """
import resource, sys
from pathlib import Path
from actstore_storage.errors import StoreError
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.runs.opening import create_run, open_run
from tests.storage.random_run import make_run, write_run, write_shard

bucket, run = open_bucket(sys.argv[1]), make_run(1, d_model=4096, longest=60)
write_run(bucket, run, shards=(0,))
before = bucket.keys("runs")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_shard(bucket, run, 1, "attempt")
except StoreError as error:
    print(error.reason, error.details["value"])
assert bucket.keys("runs") == before, bucket.keys("runs")
assert not list((Path(sys.argv[1]) / ".scratch").iterdir())
assert [commit.shard for commit in open_run(bucket, "run").commits] == [0]
"""


def test_a_full_disk_loses_nothing(local_bucket: Bucket) -> None:
    """The kernel refuses bytes past a limit on file size: a real failing write, without the right to mount a disk."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, local_bucket.address],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"STORE_FULL {local_bucket.address}\n", "")


def _refused(ask: Callable[[], object], reason: str, bucket: Bucket) -> ActstoreError:
    with pytest.raises(StoreError) as caught:
        ask()
    assert caught.value.reason == reason
    assert caught.value.details["field"] == "store"
    assert caught.value.details["value"] == bucket.address
    return caught.value


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
