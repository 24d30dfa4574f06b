"""What every bucket must do, asked of each implementation."""

import errno
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR

import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.bucket.probe import probe
from actstore_storage.errors import BadRequest, StoreError, StoreUnreachable
from tests.waiting import wait_until


class BucketBehaviour:
    """Subclasses provide the fixture `bucket`."""

    def test_gives_back_what_was_put_and_replaces_it(self, bucket: Bucket) -> None:
        bucket.put("a/b", b"one")
        bucket.put("a/b", b"two")
        assert bucket.get("a/b") == b"two"

    def test_its_top(self, bucket: Bucket) -> None:
        assert bucket.top() == ([], [])
        for key in ("one", "b/two", "a/three", "a/d/four"):
            bucket.put(key, b"x")
        assert bucket.top() == (["one"], ["a", "b"])

    def test_puts_an_empty_object(self, bucket: Bucket) -> None:
        bucket.put("a/empty", b"")
        assert bucket.get("a/empty") == b""
        assert bucket.keys("a") == ["a/empty"]

    def test_put_if_absent_never_replaces(self, bucket: Bucket) -> None:
        assert bucket.put_if_absent("a/b", b"first")
        assert not bucket.put_if_absent("a/b", b"second")
        assert not bucket.put_if_absent("a/b", b"first")
        assert bucket.get("a/b") == b"first"

    @pytest.mark.parametrize("size", [1, 300_000])
    def test_sixteen_racing_writers_have_one_winner_and_its_bytes_stand(self, bucket: Bucket, size: int) -> None:
        for number in range(3):
            bodies = [bytes([racer]) * size for racer in range(16)]
            with ThreadPoolExecutor(16) as pool:
                won = list(pool.map(lambda body, key=f"race/{number}": bucket.put_if_absent(key, body), bodies))
            assert won.count(True) == 1
            assert bucket.get(f"race/{number}") == bodies[won.index(True)]

    def test_a_reader_during_a_race_sees_nothing_or_all(self, bucket: Bucket) -> None:
        body = os.urandom(2_000_000)

        def read() -> bytes | None:
            try:
                return bucket.get("seen/whole")
            except KeyError:
                return None

        with ThreadPoolExecutor(4) as pool:
            writing = pool.submit(bucket.put_if_absent, "seen/whole", body)
            seen = [read() for _ in range(20)]
            assert writing.result()
        assert set(seen) <= {None, body}

    def test_a_stream_becomes_an_object_when_its_block_ends(self, bucket: Bucket) -> None:
        body = os.urandom(12_000_000)  # more than one part of an upload
        with bucket.create("data/large") as stream:
            for start in range(0, len(body), 1_000_000):
                stream.write(body[start : start + 1_000_000])
            assert not bucket.exists("data/large")
        assert bucket.get("data/large") == body

    @pytest.mark.parametrize("size", [10, 12_000_000])
    def test_a_stream_that_fails_leaves_nothing(self, bucket: Bucket, size: int) -> None:
        with pytest.raises(ZeroDivisionError), bucket.create("data/failed") as stream:  # noqa: PT012
            stream.write(b"x" * size)
            raise ZeroDivisionError
        assert not bucket.exists("data/failed")
        assert bucket.keys("data") == []

    def test_opens_for_ranges(self, bucket: Bucket) -> None:
        bucket.put("a/b", bytes(range(256)))
        with bucket.open("a/b") as file:
            assert file.size() == 256
            file.seek(100)
            assert file.read(3) == bytes([100, 101, 102])

    @pytest.mark.parametrize("key", ["a/c", "a", "z/y/x", "a/b/c"])
    def test_an_object_that_is_not_there_is_a_key_error(self, bucket: Bucket, key: str) -> None:
        bucket.put("a/b", b"")
        with pytest.raises(KeyError):
            bucket.get(key)
        with pytest.raises(KeyError):
            bucket.open(key)
        assert not bucket.exists(key)

    def test_lists_keys_below_a_folder_only(self, bucket: Bucket) -> None:
        for key in ("runs/b/x", "runs/a/deep/er", "runs/a.json", "runs2/c", "runs/ab/y"):
            bucket.put(key, b"1")
        assert bucket.keys("runs") == ["runs/a.json", "runs/a/deep/er", "runs/ab/y", "runs/b/x"]
        assert bucket.keys("runs/a") == ["runs/a/deep/er"]
        assert bucket.keys("nothing") == []
        assert bucket.folders("runs") == ["a", "ab", "b"]
        assert bucket.folders("nothing") == []

    def test_lists_more_than_a_page(self, bucket: Bucket) -> None:
        keys = [f"many/{number:05d}" for number in range(1_100)]  # S3 answers a thousand at a time
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: bucket.put(key, b"1"), keys))
        assert bucket.keys("many") == keys

    def test_deletes_and_does_not_mind_deleting_nothing(self, bucket: Bucket) -> None:
        bucket.put("a/b/c", b"1")
        bucket.put("a/d", b"1")
        for _ in range(2):
            bucket.delete("a/b/c")
        assert bucket.keys("a") == ["a/d"]
        assert bucket.put_if_absent("a/b/c", b"2")

    @pytest.mark.parametrize(
        "key", ["", "/", "a/", "/a", "a//b", "../a", "a/../b", ".", ".hidden", "a b", "a\n", "ä", "a\\b"]
    )
    def test_refuses_keys_that_could_leave_their_folder(self, bucket: Bucket, key: str) -> None:
        for ask in (bucket.get, bucket.open, bucket.delete, bucket.keys, bucket.folders):
            with pytest.raises(BadRequest) as caught:
                ask(key)
            assert caught.value.reason == "NAME_INVALID"
        for write in (bucket.put, bucket.put_if_absent):
            with pytest.raises(BadRequest):
                write(key, b"1")
        with pytest.raises(BadRequest), bucket.create(key):
            pass

    def test_passes_the_probe_and_is_left_empty(self, bucket: Bucket) -> None:
        probe(bucket)
        assert bucket.keys("probe") == []


def _streamed(bucket: Bucket, key: str, data: bytes) -> None:
    with bucket.create(key) as stream:
        stream.write(data)


class TestLocalBucket(BucketBehaviour):
    @pytest.fixture
    def bucket(self, local_bucket: Bucket) -> Bucket:
        return local_bucket

    def test_two_processes_race_and_one_wins(self, bucket: Bucket) -> None:
        context = multiprocessing.get_context("spawn")
        rounds = 100
        with context.Pool(2) as pool:
            first, second = pool.starmap(_race, [(bucket.address, "one", rounds), (bucket.address, "two", rounds)])
        assert [one + two for one, two in zip(first, second, strict=True)] == [1] * rounds
        for number, won in enumerate(first):
            assert bucket.get(f"race/{number}") == (b"one" if won else b"two")

    def test_a_link_out_of_the_store_is_not_followed(self, tmp_path: Path, bucket: Bucket) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_text("secret")
        (Path(bucket.address) / "link").symlink_to(outside)
        for ask in (bucket.get, bucket.open, bucket.delete):
            with pytest.raises(BadRequest) as caught:
                ask("link/secret")
            assert caught.value.reason == "NAME_INVALID"
        with pytest.raises(BadRequest):
            bucket.put("link/other", b"1")
        assert [path.name for path in outside.iterdir()] == ["secret"]

    @pytest.mark.parametrize("cause", [errno.EPERM, errno.EOPNOTSUPP])
    def test_a_file_system_without_hard_links_is_told_as_that(
        self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, cause: int
    ) -> None:
        def link(*_: object) -> None:
            raise OSError(cause, os.strerror(cause))

        monkeypatch.setattr(os, "link", link)
        with pytest.raises(StoreError, match=f"file system of {bucket.address} has no hard links") as caught:
            bucket.put_if_absent("a", b"1")
        assert (caught.value.reason, caught.value.details["value"]) == ("STORE_UNSAFE", bucket.address)

    def test_a_link_within_the_store_is_followed_by_who_asks_for_it_and_listed_for_nobody(self, bucket: Bucket) -> None:
        """Or one that leads back up would be walked for ever. Names that no key has are others', and not listed."""
        root = Path(bucket.address)
        bucket.put("a/b/object", b"1")
        (root / "a/up").symlink_to(root)
        (root / "a/file").symlink_to(root / "a/b/object")
        (root / "top").symlink_to(root / "a")
        (root / "top-file").symlink_to(root / "a/b/object")
        for odd in ("odd name", "a/odd name"):
            (root / odd).mkdir()
            (root / odd / "object").write_bytes(b"")
        assert bucket.get("a/up/a/b/object") == bucket.get("a/file") == b"1"
        assert (bucket.keys("a"), bucket.folders("a")) == (["a/b/object"], ["b"])
        assert bucket.top() == ([], ["a", "odd name"])

    def test_keys_between_two_that_need_not_be_there(self, bucket: Bucket) -> None:
        names = [f"a/{letter}" for letter in "bdfh"]
        for name in names:
            bucket.put(name, b"")
        assert bucket.keys("a", after="a/b", until="a/f") == ["a/d", "a/f"]
        assert bucket.keys("a", after="a/c", until="a/g") == ["a/d", "a/f"]
        assert bucket.keys("a", after="a/d") == ["a/f", "a/h"]
        assert bucket.keys("a", until="a/d") == ["a/b", "a/d"]

    def test_a_folder_goes_with_its_last_object_and_the_store_stays(self, bucket: Bucket) -> None:
        root = Path(bucket.address)
        (root / "a/b").mkdir(parents=True)
        for name in ("a/one", "a/b/two"):
            (root / name).write_bytes(b"")  # by another's hand: nothing else lies in the store
        bucket.delete("a/b/two")
        assert bucket.folders("a") == []
        bucket.delete("a/one")
        assert list(root.iterdir()) == []
        assert bucket.keys("a") == []

    @pytest.mark.parametrize("write", [LocalBucket.put, LocalBucket.put_if_absent])
    def test_a_folder_that_vanishes_before_its_object_comes_is_made_again_a_few_times(
        self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, write: Callable[[Bucket, str, bytes], object]
    ) -> None:
        """As with the last object of a folder, which another deletes just then."""
        folder, left = Path(bucket.address) / "a/b", [3]
        name = "link" if write is LocalBucket.put_if_absent else "replace"
        honest = getattr(os, name)

        def vanishing(*paths: Path) -> None:
            if left[0]:
                left[0] -= 1
                folder.rmdir()
            honest(*paths)

        monkeypatch.setattr(os, name, vanishing)
        assert write(bucket, "a/b/object", b"1") is not False
        assert bucket.get("a/b/object") == b"1"
        bucket.delete("a/b/object")
        left[0] = 1000
        with pytest.raises(StoreUnreachable):
            write(bucket, "a/b/object", b"1")
        assert list((Path(bucket.address) / ".scratch").iterdir()) == []

    @pytest.mark.parametrize("write", [LocalBucket.put, LocalBucket.put_if_absent])
    def test_folders_that_writers_make_and_remove_for_each_other_hinder_none(
        self, bucket: Bucket, write: Callable[[Bucket, str, bytes], object]
    ) -> None:
        def many(writer: int) -> None:
            for _ in range(200):
                assert write(bucket, f"a/b/c/{writer}/object", b"1") is not False
                bucket.delete(f"a/b/c/{writer}/object")

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(many, range(4)))
        finally:
            sys.setswitchinterval(interval)

    @pytest.mark.parametrize(
        ("cause", "reading", "writing"),
        [
            (errno.EACCES, "STORE_CREDENTIALS", "STORE_NOT_WRITABLE"),
            (errno.EPERM, "STORE_CREDENTIALS", "STORE_NOT_WRITABLE"),
            (errno.EROFS, "STORE_NOT_WRITABLE", "STORE_NOT_WRITABLE"),
            (errno.ENOSPC, "STORE_FULL", "STORE_FULL"),
            (errno.EDQUOT, "STORE_FULL", "STORE_FULL"),
            (errno.EIO, "STORE_UNREACHABLE", "STORE_UNREACHABLE"),
            (errno.ESTALE, "STORE_UNREACHABLE", "STORE_UNREACHABLE"),
        ],
    )
    def test_what_the_system_says_is_told_as_what_it_is_of_the_store(
        self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, cause: int, reading: str, writing: str
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(cause, os.strerror(cause))

        monkeypatch.setattr(Path, "read_bytes", fail)
        monkeypatch.setattr(Path, "write_bytes", fail)
        for ask, reason in ((lambda: bucket.get("a"), reading), (lambda: bucket.put("a", b""), writing)):
            with pytest.raises(StoreError) as caught:
                ask()
            assert caught.value.reason == reason
            assert isinstance(caught.value, StoreUnreachable) == (reason == "STORE_UNREACHABLE")
            assert caught.value.details == {"field": "store", "value": bucket.address}

    def test_an_error_without_a_number_is_none_of_the_stores(self, bucket: Bucket) -> None:
        assert bucket.store_error(OSError("Invalid: not a Parquet file")) is None
        with pytest.raises(OSError, match="of another's") as caught, bucket.create("a"):
            raise OSError("of another's")
        assert type(caught.value) is OSError

    def test_a_link_that_fails_for_another_cause_is_no_matter_of_links(
        self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def link(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "link", link)
        with pytest.raises(StoreUnreachable):
            bucket.put_if_absent("a", b"1")

    def test_leaves_no_scratch_files(self, bucket: Bucket) -> None:
        bucket.put("a", b"1")
        bucket.put_if_absent("a", b"2")
        with pytest.raises(ZeroDivisionError), bucket.create("b"):
            raise ZeroDivisionError
        assert list((Path(bucket.address) / ".scratch").iterdir()) == []

    @pytest.mark.parametrize("write", [LocalBucket.put, LocalBucket.put_if_absent, _streamed])
    def test_an_object_is_flushed_before_it_is_seen_and_then_every_folder_on_the_way(
        self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, write: Callable[[Bucket, str, bytes], object]
    ) -> None:
        """A folder's entry lies in the folder above it, and is lost in a power cut unless that one is flushed."""
        root = Path(bucket.address)
        path = root / "a/b/object"
        flushed: list[
            tuple[int, int, bool]
        ] = []  # which file, how much of it, and whether the object was there by then

        def flush(descriptor: int) -> None:
            state = os.fstat(descriptor)
            flushed.append((state.st_ino, 0 if S_ISDIR(state.st_mode) else state.st_size, path.exists()))

        monkeypatch.setattr(os, "fsync", flush)
        write(bucket, "a/b/object", b"x" * 1000)
        folders = [(folder.stat().st_ino, 0, True) for folder in (root / "a/b", root / "a", root)]
        assert flushed == [(path.stat().st_ino, 1000, False), *folders]

    def test_a_missing_folder_is_refused_not_made(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError) as caught:
            open_bucket(str(tmp_path / "missing"))
        assert caught.value.reason == "STORE_NOT_FOUND"
        assert caught.value.details["value"] == str(tmp_path / "missing")
        assert "there is no directory" in caught.value.message

    def test_a_file_is_refused_as_what_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StoreError, match="is a file"):
            open_bucket(str(tmp_path / "file"))


class TestS3Bucket(BucketBehaviour):
    @pytest.fixture
    def bucket(self, s3_bucket: Bucket) -> Bucket:
        return s3_bucket

    def test_stores_with_different_prefixes_do_not_see_each_other(self, bucket: Bucket, s3_access: S3Access) -> None:
        bucket.put("a/b", b"1")
        assert open_bucket(f"{bucket.address}x", s3_access).keys("a") == []

    def test_no_secret_in_reprs(self, bucket: Bucket, s3_access: S3Access) -> None:
        assert s3_access.secret_key not in repr(s3_access) + repr(bucket) + bucket.address


@pytest.mark.parametrize("address", ["s3://", "s3:///prefix", "http://host/bucket", "gs://bucket"])
def test_refuses_other_addresses(address: str) -> None:
    with pytest.raises(BadRequest) as caught:
        open_bucket(address)
    assert caught.value.details["value"] == address


def test_s3_without_access_says_so() -> None:
    with pytest.raises(StoreError) as caught:
        open_bucket("s3://bucket")
    assert caught.value.reason == "STORE_CREDENTIALS"


@pytest.mark.parametrize(
    "endpoint", ["http://host:9000", "host:9000/path", "host:port", "host:65536", "", "a b", "host\n"]
)
def test_refuses_what_is_not_an_endpoint(endpoint: str) -> None:
    with pytest.raises(BadRequest) as caught:
        open_bucket("s3://bucket", S3Access(endpoint, "key", "secret"))
    assert caught.value.details == {"field": "endpoint", "value": endpoint, "allowed": "host or host:port"}


@pytest.mark.parametrize("endpoint", ["host", "host:65535", "10.0.0.1:1", "[::1]:9000", "a-b.c_d.example:443"])
def test_accepts_endpoints(endpoint: str) -> None:
    assert open_bucket("s3://bucket/p", S3Access(endpoint, "key", "secret")).address == "s3://bucket/p"


@pytest.mark.parametrize("name", ["ab", "10.0.0.1", "a..b", "bücket", "b" * 64, "bucket?x"])
def test_refuses_what_is_no_name_of_a_bucket(name: str) -> None:
    with pytest.raises(BadRequest, match="not a valid name of an S3 bucket") as caught:
        open_bucket(f"s3://{name}/prefix", S3Access("host", "key", "secret"))
    assert caught.value.details["value"] == name


def test_refuses_what_is_no_region() -> None:
    for region in ("us-east-1\n", "US East"):
        with pytest.raises(BadRequest) as caught:
            open_bucket("s3://bucket", S3Access("host", "key", "secret", region=region))
        assert (caught.value.details["field"], caught.value.details["value"]) == ("region", region)


@pytest.mark.parametrize("field", ["access_key", "secret_key"])
@pytest.mark.parametrize("key", ["hidden\n", "hidden\r", "hïdden"])
def test_keys_that_no_header_can_hold_are_refused_unshown(field: str, key: str) -> None:
    with pytest.raises(StoreError, match=field) as caught:
        open_bucket("s3://bucket", replace(S3Access("host", "key", "secret"), **{field: key}))
    assert caught.value.reason == "STORE_CREDENTIALS"
    assert "dden" not in str(caught.value) + str(caught.value.details)


@pytest.mark.parametrize("said", [None, "no keys here", "[other]\naws_access_key_id = a\naws_secret_access_key = b\n"])
def test_a_file_that_has_no_keys_is_named(said: str | None, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    if said is not None:
        file.write_text(said)
    bucket = open_bucket("s3://bucket", S3Access("host", "", "", credentials_file=str(file)))
    for ask in (lambda: bucket.get("a"), lambda: bucket.open("a")):
        with pytest.raises(StoreError, match="has no S3 credentials") as caught:
            ask()
        assert caught.value.reason == "STORE_CREDENTIALS"
        assert caught.value.details == {"field": "credentials_file", "value": str(file)}


def test_a_session_token_that_no_header_can_hold_is_refused_unshown(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    keys = "aws_access_key_id = a\naws_secret_access_key = b\n"
    file.write_text(f"[default]\n{keys}aws_session_token = h\u00efdden\n", encoding="utf-8")
    bucket = open_bucket("s3://bucket", S3Access("host", "", "", credentials_file=str(file)))
    with pytest.raises(StoreError, match="session_token") as caught:
        bucket.get("a")
    assert caught.value.details == {"field": "session_token", "allowed": "printable ASCII characters"}
    assert "dden" not in str(caught.value)


class _Overwriting(LocalBucket):
    """A store that takes If-None-Match for a remark."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


class _CheckThenWrite(LocalBucket):
    """A store that asks first and writes later: here, once a second racer has asked as well."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._asked: list[str] = []

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self.exists(key):
            return False
        self._asked.append(key)
        wait_until(lambda: self._asked.count(key) > 1, "a second racer")
        self.put(key, data)
        return True


@pytest.mark.parametrize("kind", [_Overwriting, _CheckThenWrite])
def test_the_probe_refuses_a_store_without_a_conditional_put(tmp_path: Path, kind: type[LocalBucket]) -> None:
    with pytest.raises(StoreError) as caught:
        probe(kind(tmp_path))
    assert caught.value.reason == "STORE_UNSAFE"
    assert caught.value.details["field"] == "store"


def _race(address: str, body: str, rounds: int) -> list[bool]:
    bucket = open_bucket(address)
    return [bucket.put_if_absent(f"race/{number}", body.encode()) for number in range(rounds)]


def test_keys_that_are_renewed_in_a_file(s3_address: str, s3_access: S3Access, tmp_path: Path) -> None:
    """Small objects, streams and ranges all go on with the new ones, in the same bucket object."""
    file = tmp_path / "credentials"

    def write(secret: str) -> None:
        file.write_text(f"[default]\naws_access_key_id = {s3_access.access_key}\naws_secret_access_key = {secret}\n")
        os.utime(file, ns=(time.time_ns(), time.time_ns()))

    bucket = open_bucket(s3_address, replace(s3_access, access_key="", secret_key="", credentials_file=str(file)))

    def use(name: str) -> None:
        bucket.put(f"{name}-small", b"small")
        with bucket.create(f"{name}-large") as stream:
            stream.write(b"large")
        assert bucket.get(f"{name}-small") == b"small"
        with bucket.open(f"{name}-large") as source:
            assert source.read() == b"large"

    def refused(ask: Callable[[], object]) -> None:
        with pytest.raises(StoreError) as caught:
            ask()
        assert caught.value.reason == "STORE_CREDENTIALS"
        assert s3_access.secret_key not in str(caught.value)

    refused(lambda: use("missing"))
    write(s3_access.secret_key)
    use("first")
    write("expired")
    refused(lambda: bucket.get("first-small"))
    refused(lambda: bucket.open("first-large").read())
    refused(lambda: bucket.put("again", b""))
    write(s3_access.secret_key)
    use("second")
    file.write_text("no keys here")
    refused(lambda: bucket.get("first-small"))
