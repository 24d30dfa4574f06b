"""Folders as people have them, on a disk and in S3: everything is read, or named, or refused."""

import bz2
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from minio import Minio

from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_files
from actstore_storage.errors import BadRequest, StoreError
from actstore_storage.runs.document_sources import WHOLE
from actstore_worker.datasets.documents import DocumentQuery
from actstore_worker.datasets.documents import documents as dataset_documents
from actstore_worker.datasets.files import Dataset
from actstore_worker.datasets.places import DatasetPlaces
from tests.servers import SeaweedServer

Files = Mapping[str, bytes]
Finder = Callable[[Files], Dataset]


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def zstd(data: bytes, kind: str = "zstd") -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, kind) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def parquet(*texts: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": list(texts)}), sink)
    return sink.getvalue().to_pybytes()


def arrow(*texts: str, stream: bool = False) -> bytes:
    table, sink = pa.table({"text": list(texts)}), pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def texts(dataset: Dataset, **query: object) -> list[object]:
    return [document.content for document in dataset_documents(dataset, DocumentQuery(**query))]


def on_disk(folder: Path, files: Files) -> Dataset:
    for name, data in files.items():
        path = folder / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return DatasetPlaces((folder,)).find("corpus")


@pytest.fixture
def put(seaweed: SeaweedServer, s3_address: str) -> Callable[..., None]:
    """Objects in a folder (`corpus`) of the test's own prefix, as other programs put them there."""
    client = Minio(seaweed.endpoint, access_key=seaweed.access_key, secret_key=seaweed.secret_key, secure=False)
    prefix = s3_address.removeprefix(f"s3://{seaweed.bucket}/")

    def put_all(files: Files, folder: str = "corpus") -> None:
        def one(item: tuple[str, bytes]) -> None:
            client.put_object(seaweed.bucket, f"{prefix}/{folder}/{item[0]}", io.BytesIO(item[1]), len(item[1]))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, files.items()))

    return put_all


@pytest.fixture(params=["disk", "s3"])
def find(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Finder]:
    """The same files as a folder on a disk and below a prefix."""
    if request.param == "disk":
        yield lambda files: on_disk(tmp_path, files)
        return
    put, address, access = (request.getfixturevalue(name) for name in ("put", "s3_address", "s3_access"))

    def in_store(files: Files) -> Dataset:
        put(files)
        return DatasetPlaces((), (open_files(address, access),)).find("corpus")

    yield in_store


ANY_NAMES = (
    "a=b.jsonl", "a+b.jsonl", "a b.jsonl", "a:b.jsonl", "a(b).jsonl", "a@b.jsonl", "a#b.jsonl", "é.jsonl", "日本.jsonl",
    "lang=en/part-0.jsonl", "lang=fr/part-0.jsonl", "50%25.jsonl", "100%.jsonl", "q?x=1&y.jsonl", "~t.jsonl",
    "a'b\"c.jsonl", "a,b;c!$.jsonl", "[x]{y}.jsonl", "-dash.jsonl", "e\u0301.jsonl",
)  # fmt: skip


def test_names_of_any_kind_are_read(find: Finder) -> None:
    found = find({name: lines(name) for name in ANY_NAMES})
    assert texts(found) == sorted(ANY_NAMES)
    assert [file.name for file in found.files] == sorted(ANY_NAMES)
    assert found.not_read == ()


def test_a_prefix_of_more_than_one_page(put: Callable[..., None], s3_address: str, s3_access: S3Access) -> None:
    """S3 lists 1,000 keys at once. A prefix ends at a slash, and an object of a folder's own is no file."""
    put({f"{number:04}.txt": b"%d" % number for number in range(1003)} | {"folder/": b"", "empty.txt": b""})
    put({"a.txt": b"not of this one"}, "corpus-secret")
    found = DatasetPlaces((), (open_files(s3_address, s3_access),)).find("corpus")
    assert texts(found) == [*(str(number) for number in range(1003)), ""]


def test_a_store_has_names_and_a_prefix_of_any_kind(
    put: Callable[..., None], s3_address: str, s3_access: S3Access
) -> None:
    put({"lang=en +/ü.jsonl": lines("one")})
    for address, name in ((f"{s3_address}/corpus", "lang=en +"), (f"{s3_address}/corpus/lang=en +", "ü.jsonl")):
        assert texts(DatasetPlaces((), (open_files(address, s3_access),)).find(name)) == ["one"]


def test_a_store_that_fails_is_no_damaged_file(
    put: Callable[..., None], s3_address: str, s3_access: S3Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    put({"a.jsonl": lines("one"), "b.parquet": parquet("two")})
    store = open_files(s3_address, s3_access)
    found = DatasetPlaces((), (store,)).find("corpus")

    def gone(path: str) -> None:
        raise OSError(f"When reading {path}: AWS Error NETWORK_CONNECTION during GetObject operation")

    monkeypatch.setattr(type(store), "_arrow", property(lambda _: type("Arrow", (), {"open_input_file": gone})))
    with pytest.raises(StoreError):
        texts(found)


@pytest.mark.parametrize("key", ["corpus//a.jsonl", "corpus/../a.jsonl", "corpus/./a.jsonl"])
def test_keys_that_no_folder_could_have(key: str) -> None:
    """Clients and servers of S3 read them as other keys."""
    listed = SimpleNamespace(exists=lambda name: False, keys=lambda name: [key], store_error=lambda error: None)
    with pytest.raises(BadRequest, match="a part of its name"):
        DatasetPlaces((), (listed,)).find("corpus")


KINDS: Mapping[str, bytes] = {
    "a.jsonl": lines("1"),
    "b.ndjson": lines("1"),
    "C.JSONL": lines("1"),
    "d.json": lines("1"),
    "e.json": json.dumps([{"text": "1"}], indent=2).encode(),
    "f.jsonl.gz": gzip.compress(lines("1")),
    "g.json.gz": gzip.compress(lines("1")),
    "h.JSONL.ZST": zstd(lines("1")),
    "i.ndjson.bz2": bz2.compress(lines("1")),
    "j.jsonl.xz": lzma.compress(lines("1")),
    "k.jsonl.lz4": zstd(lines("1"), "lz4"),
    "l.parquet": parquet("1"),
    "m.arrow": arrow("1"),
    "n.arrow": arrow("1", stream=True),
    "o.feather": arrow("1"),
    "p.csv": b'id,text\n1,"1"\n',
    "q.tsv.gz": gzip.compress(b"id\ttext\n1\t1\n"),
}


@pytest.mark.parametrize("name", KINDS)
def test_tables_of_every_kind(name: str, tmp_path: Path) -> None:
    """In a folder, beside its README, and named by itself."""
    found = on_disk(tmp_path, {name: KINDS[name], "README.md": b"about"})
    assert [(each.content, each.source, each.row) for each in dataset_documents(found, DocumentQuery())] == [
        ("1", name, 0)
    ]
    assert found.not_read == ("README.md",)
    assert texts(DatasetPlaces((tmp_path,)).find(f"corpus/{name}")) == ["1"]


def test_tables_of_different_kinds_are_all_read(find: Finder) -> None:
    """The mixed folder: a quarter of it used to be read."""
    found = find({"part-0.jsonl": lines("a"), "part-1.jsonl.gz": gzip.compress(lines("b") + lines("c"))})
    assert texts(found) == ["a", "b", "c"]


def test_texts_may_be_compressed(find: Finder) -> None:
    found = find({"a.txt.gz": gzip.compress(b"one"), "b.md": b"two", "c.xz.txt": b"three", "d": b"binary"})
    assert texts(found) == ["one", "two", "three"]
    assert found.not_read == ("d",)


def test_hidden_and_staged_files_are_named_and_not_read(find: Finder) -> None:
    skipped = {
        ".ipynb_checkpoints/part-checkpoint.jsonl": lines("no"),
        "_temporary/0/part-0.jsonl": lines("no"),
        "_temporary/0/part-1.jsonl": lines("no"),
        "_SUCCESS": b"",
        "._part-0.jsonl": b"\0\5\26\7",
        ".part-0.jsonl.crc": b"crc",
        "part-0.jsonl.crc": b"crc",
        ".DS_Store": b"Bud1",
        "__MACOSX/part-0.jsonl": b"\0",
        "_draft.jsonl": lines("no"),
        "cache-123.arrow": arrow("no"),
        "settings.yaml": b"a: 1",
        "dataset_infos.json": b"{}",
    }
    found = find({"part-0.jsonl": lines("yes")} | skipped)
    assert texts(found) == ["yes"]
    assert found.not_read == (
        "dataset_infos.json", "part-0.jsonl.crc", "settings.yaml", ".DS_Store", "._part-0.jsonl", ".ipynb_checkpoints/",
        ".part-0.jsonl.crc", "_SUCCESS", "__MACOSX/", "_draft.jsonl", "_temporary/", "cache-123.arrow",
    )  # fmt: skip


def test_folders_of_source_code(find: Finder) -> None:
    """Python's own names begin with an underscore, and a setting is no row."""
    code = {"__init__.py": b"a", "_x.py": b"b", "package.json": b'{\n "name": 1\n}', "__pycache__/x.pyc": b"\0"}
    found = find(code)
    assert texts(found) == ["a", "b"]
    assert found.not_read == ("package.json", "__pycache__/")


REFUSED: Mapping[str, tuple[Files, str]] = {
    "data that is not read": ({"a.jsonl": lines("a"), "b.avro": b"Obj", "c.zip": b"PK"}, "b.avro, c.zip are data"),
    "an unknown file that is compressed": ({"a.jsonl": lines("a"), "dump.gz": gzip.compress(b"x")}, "dump.gz is data"),
    "Parquet in gzip": ({"a.parquet.gz": gzip.compress(parquet("a"))}, "a.parquet.gz is data"),
    "only archives": ({"a.tar.gz": b"x", "README.md": b"x"}, "a.tar.gz is data"),
    "tables and text": ({"a.jsonl": lines("a"), "b.txt": b"b"}, r"tables \(a.jsonl\) and text \(b.txt\)"),
    "tables and code": ({"a.jsonl": lines("a"), "b.py": b"b"}, r"text \(b.py\)"),
    "twice, compressed": ({"a.jsonl": lines("a"), "a.jsonl.gz": gzip.compress(lines("a"))}, "same rows twice"),
    "twice, in two formats": ({"x/a.jsonl": lines("a"), "x/a.parquet": parquet("a")}, "same rows twice"),
    "a Delta table": ({"a.parquet": parquet("a"), "_delta_log/0.json": b"{}"}, "_delta_log says which"),
    "JSON that is nested too deep": ({"a.json": b'{"a":' * 10_000}, "a.json hold one JSON value"),
    "JSON without rows": ({"squad.json": b'{"data": [\n1]}', "README.md": b"x"}, "squad.json hold one JSON value"),
    "only hidden": (
        {".a.jsonl": lines("a"), "_temporary/b.jsonl": lines("b")},
        "no file with text; it has .a.jsonl",
    ),
    "a DatasetDict": (
        {"dataset_dict.json": b'{"splits": ["train", "test"]}', "train/state.json": b"{}", "train/data.arrow": b""},
        "saved DatasetDict; name one of its splits: train, test",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_left_out_is_refused(case: str, tmp_path: Path) -> None:
    files, message = REFUSED[case]
    with pytest.raises(BadRequest, match=message) as refused:
        on_disk(tmp_path, files)
    assert refused.value.reason in ("DATASET_UNREADABLE", "DATASET_EMPTY")
    assert refused.value.details["field"] == "dataset"
    assert refused.value.details["allowed"]


def test_saved_datasets_and_their_splits(find: Finder, tmp_path: Path) -> None:
    """As `datasets` itself reads them, in its order of files."""
    saved = datasets.Dataset.from_dict({"text": [f"text {number}" for number in range(20)]})
    datasets.DatasetDict(train=saved, test=saved.select(range(3))).save_to_disk(
        tmp_path / "dict", num_shards={"train": 3, "test": 1}
    )
    folder = tmp_path / "dict" / "train"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert texts(find(files | {"cache-1.arrow": arrow("no")})) == list(datasets.load_from_disk(folder)["text"])
    with pytest.raises(BadRequest) as refused:
        DatasetPlaces((tmp_path,)).find("dict")
    assert refused.value.details["allowed"] == "dict/train, dict/test"
    assert texts(DatasetPlaces((tmp_path,)).find("dict/test")) == ["text 0", "text 1", "text 2"]
    with pytest.raises(BadRequest, match="which is missing"):
        find({"state.json": json.dumps({"_data_files": [{"filename": "../secret.arrow"}]}).encode(), "a.arrow": b""})


@pytest.mark.parametrize("name", ["f.jsonl.gz", "h.JSONL.ZST", "i.ndjson.bz2", "j.jsonl.xz", "k.jsonl.lz4", "m.arrow"])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    for number, data in enumerate((KINDS[name][:-4], KINDS[name][: len(KINDS[name]) // 2], b"", b"\1" * 100)):
        with pytest.raises(BadRequest, match="cannot be read") as refused:
            texts(on_disk(tmp_path / str(number), {name: data}))
        assert refused.value.reason == "DATASET_UNREADABLE"


@pytest.mark.parametrize("name", [*KINDS, "a.txt"])
def test_a_file_that_git_lfs_did_not_bring_is_named(name: str, tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    with pytest.raises(BadRequest, match=f"{name} cannot be read: it is a Git LFS pointer") as refused:
        texts(on_disk(tmp_path, {name: pointer}))
    assert (refused.value.reason, "git lfs pull" in refused.value.details["allowed"]) == ("DATASET_UNREADABLE", True)


@pytest.mark.parametrize("kind", ["gz", "bz2", "zst", "lz4", "xz"])
def test_files_that_were_joined_are_read_to_their_end(kind: str, tmp_path: Path) -> None:
    """As of Common Crawl and Wikipedia; one that is damaged behind its first part is not taken for that part."""
    packed = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}
    pack = packed.get(kind, lambda data: zstd(data, "lz4"))
    first, second = (pack(lines(*(f"{half}{n}" for n in range(999)))) for half in "ab")
    assert len(texts(on_disk(tmp_path, {f"a.jsonl.{kind}": first + second}))) == 2 * 999
    for number, behind in enumerate((second[:-3], b"no" + second, b"no")):
        with pytest.raises(BadRequest, match="cannot be read"):
            texts(on_disk(tmp_path / str(number), {f"a.jsonl.{kind}": first + behind}))


@pytest.mark.parametrize("stream", [False, True])
def test_an_arrow_file_is_read_to_its_end(stream: bool, find: Finder) -> None:
    """A writer that was killed leaves whole batches, and two files in one are easily read as one of them."""
    whole = arrow("a", "b", stream=stream)
    end = whole.rindex(b"\xff\xff\xff\xff\0\0\0\0")
    for data in (whole[:end], whole + whole, whole + arrow("c", stream=stream), whole[:end] + whole[end + 8 :]):
        with pytest.raises(BadRequest, match="cannot be read") as refused:
            texts(find({"a.arrow": data}))
        assert refused.value.reason == "DATASET_UNREADABLE"


def test_what_is_no_file_of_the_dataset(tmp_path: Path) -> None:
    """Links to folders, pipes, and files that lie elsewhere are refused, and none is waited for."""
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "b.jsonl").write_bytes(lines("b"))
    root = tmp_path / "root"
    for name, make, message in (
        ("folder", lambda path: path.symlink_to(tmp_path / "else"), "link to a folder"),
        ("b.jsonl", lambda path: path.symlink_to(tmp_path / "else" / "b.jsonl"), "outside the dataset folders"),
        ("c.jsonl", os.mkfifo, "not a regular file"),
        ("d.jsonl", lambda path: path.symlink_to(path.parent / "gone"), "not a regular file"),
    ):
        on_disk(root / name, {"a.jsonl": lines("a")})
        make(root / name / "corpus" / name)
        with pytest.raises(BadRequest, match=message):
            DatasetPlaces((root / name,)).find("corpus")
    with pytest.raises(BadRequest, match="not a regular file"):
        DatasetPlaces((root / "c.jsonl",)).find("corpus/c.jsonl")


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_byte_order_mark_is_no_text(name: str, tmp_path: Path) -> None:
    plain = {"a.jsonl": lines("one"), "a.json": b'[{"text": "one"}]', "a.csv": b"text\none\n", "a.txt": b"one"}[name]
    assert texts(on_disk(tmp_path, {name: MARK + plain})) == ["one"]
    for encoding in ("utf-16", "utf-32", "utf-16-le"):
        with pytest.raises(BadRequest) as refused:
            texts(on_disk(tmp_path / encoding, {name: plain.decode().encode(encoding)}))
        assert refused.value.reason == "DATASET_UNREADABLE"


TWICE: Files = {
    "a.jsonl": b'{"text": "one", "text": "two"}\n',
    "a.json": b'[{"text": "one", "text": "two"}]',
    "a.csv": b"text,text\none,two\n",
    "a.arrow": b"",
    "a.parquet": b"",
}


@pytest.mark.parametrize("name", TWICE)
def test_what_is_there_twice_is_refused(name: str, tmp_path: Path) -> None:
    table, sink = pa.table([["one"], ["two"]], names=["text", "text"]), pa.BufferOutputStream()
    if name == "a.parquet":
        pq.write_table(table, sink)
    elif name == "a.arrow":
        pyarrow.feather.write_feather(table, sink, compression="uncompressed")
    data = TWICE[name] or sink.getvalue().to_pybytes()
    with pytest.raises(BadRequest, match="'text'") as refused:
        texts(on_disk(tmp_path, {name: data}))
    assert refused.value.reason == "DATASET_UNREADABLE"


def test_a_key_that_nobody_asked_for_may_be_there_twice(tmp_path: Path) -> None:
    assert texts(on_disk(tmp_path, {"a.jsonl": b'{"text": "one", "more": 1, "more": 2}\r\n'})) == ["one"]


def test_a_csv_has_text_where_text_is_asked_for(tmp_path: Path) -> None:
    """Numbers that look like numbers, empty and quoted cells: as they stand."""
    found = on_disk(tmp_path, {"a.csv": b'text,id\n007,1\n"a\nb, ""c""",2\n,3\nNA,4\n'})
    assert texts(found) == ["007", 'a\nb, "c"', "", "NA"]
    assert [each.source for each in dataset_documents(found, DocumentQuery(source_field="id"))] == ["1", "2", "3", "4"]


def test_sources_are_files_and_rows_or_a_column(find: Finder) -> None:
    rows = [{"text": "a", "url": "https://x/1", "n": 7}, {"text": "b", "url": None, "n": 8}]
    many = "\n\n".join(map(json.dumps, rows)).encode()
    found = find({"in/a.jsonl": many, "b.jsonl": many})

    def sources(**query: object) -> list[tuple[str, int]]:
        return [(each.source, each.row) for each in dataset_documents(found, DocumentQuery(**query))]

    assert sources() == [("b.jsonl", 0), ("b.jsonl", 1), ("in/a.jsonl", 0), ("in/a.jsonl", 1)]
    assert sources(source_field="url") == [("https://x/1", WHOLE), ("", WHOLE)] * 2
    assert sources(source_field="n", max_documents=1) == [("7", WHOLE)]
    for field in ("gone", "text"):
        with pytest.raises(BadRequest) as refused:
            texts(find({"in/a.jsonl": b'{"text": ["list"]}'}), source_field=field, text_field="text")
        assert refused.value.details["field"].startswith("dataset.")


def test_a_text_is_its_own_source(tmp_path: Path) -> None:
    found = on_disk(tmp_path, {"a/b.txt": b"one"})
    [only] = dataset_documents(found, DocumentQuery())
    assert (only.source, only.row) == ("a/b.txt", WHOLE)
    with pytest.raises(BadRequest, match="plain text and has no columns") as refused:
        texts(found, source_field="url")
    assert refused.value.details["field"] == "dataset.source_field"
