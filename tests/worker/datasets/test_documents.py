"""Documents of every kind of source, and one clear refusal for each kind of bad one."""

import json
import sys
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actstore_api.records import capture
from actstore_api.records.capture import DatasetReference
from actstore_storage.bucket import Bucket
from actstore_storage.errors import ActstoreError, BadRequest, NotThere
from actstore_storage.format.specification import RowFilter
from actstore_worker.capture.planning.options import document_query
from actstore_worker.datasets.documents import UNWATCHED, DocumentQuery
from actstore_worker.datasets.documents import documents as dataset_documents
from actstore_worker.datasets.files import Dataset
from actstore_worker.datasets.limits import DatasetLimits, Reading
from actstore_worker.datasets.places import DatasetPlaces

TEXTS = ["one\n", "zwei – Ümläute\r\n", ""]


def documents(path: Path, field: str = "text", reading: Reading = UNWATCHED, **query: object) -> list[str]:
    """What is in a file or folder, found by its name in the folder around it."""
    dataset = DatasetPlaces((path.parent,)).find(path.name)
    return [document.content for document in dataset_documents(dataset, DocumentQuery(field, **query), reading)]


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    path.write_text("\n\n".join(json.dumps({"id": 1, field: text}, ensure_ascii=False) for text in texts))
    return path


def write_parquet(path: Path, texts: list[str | None], field: str = "text") -> Path:
    pq.write_table(pa.table({"id": list(range(len(texts))), field: pa.array(texts, pa.large_string())}), path)
    return path


def test_files_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "texts" / "deep"
    folder.mkdir(parents=True)
    (folder / "b.py").write_bytes(TEXTS[0].encode())
    (folder / "a.txt").write_bytes(TEXTS[1].encode())
    (tmp_path / "texts" / "z.txt").write_bytes(b"")
    (tmp_path / "texts" / "picture.png").write_bytes(b"\xff\xd8")
    assert (documents(tmp_path / "texts")) == [TEXTS[1], TEXTS[0], ""]
    assert (documents(folder / "b.py")) == [TEXTS[0]]
    (folder / "no-suffix").write_text("named by itself")
    assert (documents(folder / "no-suffix")) == ["named by itself"]


def test_tables_one_by_one_and_in_a_folder(tmp_path: Path) -> None:
    first, second = write_jsonl(tmp_path / "a.jsonl", TEXTS), write_parquet(tmp_path / "b.parquet", TEXTS)
    (tmp_path / "README.md").write_text("is no part of a folder of tables")
    assert (documents(first)) == (documents(second)) == TEXTS
    assert (documents(tmp_path)) == TEXTS + TEXTS
    assert (documents(write_jsonl(tmp_path / "c.jsonl", TEXTS, "body"), "body")) == TEXTS


def refusal(path: Path, field: str = "text", limits: DatasetLimits = UNWATCHED.limits) -> BadRequest:
    with pytest.raises(BadRequest) as refused:
        (documents(path, field, Reading(limits)))
    assert refused.value.reason in ("DATASET_UNREADABLE", "DATASET_EMPTY", "LIMIT_EXCEEDED")
    return refused.value


def test_what_is_not_utf8_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    error = refusal(tmp_path / "latin.txt")
    assert error.details == {"field": "dataset", "value": "latin.txt at byte 3", "allowed": "UTF-8"}
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xe9"}\n')
    assert refusal(tmp_path / "latin.jsonl").details["value"] == "latin.jsonl at byte 25"


def test_a_missing_field_names_those_that_are_there(tmp_path: Path) -> None:
    for path in (write_jsonl(tmp_path / "a.jsonl", TEXTS), write_parquet(tmp_path / "b.parquet", TEXTS)):
        assert refusal(path, "body").details == {"field": "dataset.text_field", "value": "body", "allowed": "id, text"}
        assert "not text" in refusal(path, "id").message
    assert "row 1" in refusal(write_parquet(tmp_path / "c.parquet", ["a", None])).message


def test_broken_tables(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "ok"}\n{"text": \n')
    assert "line 2 is not JSON" in refusal(tmp_path / "a.jsonl").message
    (tmp_path / "b.jsonl").write_text("[1]")
    assert "line 1 is not a JSON object" in refusal(tmp_path / "b.jsonl").message
    whole = write_parquet(tmp_path / "c.parquet", ["a"] * 1000).read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.parquet").write_bytes(whole[:size])
        assert "not a complete Parquet file" in refusal(tmp_path / "cut.parquet").message


def test_a_folder_without_text_is_empty(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\xff")
    assert refusal(tmp_path).reason == "DATASET_EMPTY"


@pytest.mark.parametrize(
    ("name", "content", "value", "allowed"),
    [
        ("a.txt", "x" * 41, "at least 41 characters", "at most 10 characters"),
        ("a.txt", "ü" * 11, "at least 11 characters", "at most 10 characters"),
        ("a.jsonl", '{"text": "ab"}\n{"text": "' + "x" * 11 + '"}', "at least 11 characters", "at most 10 characters"),
        ("a.csv", "text\nab\n" + "x" * 11, "at least 11 characters", "at most 10 characters"),
        ("b.jsonl", '{"text": "' + "x" * 100 + '"}', "at least 61 bytes", "at most 60 bytes"),
        ("b.json", '[{"text": "' + "x" * 100 + '"}]', "at least 61 bytes", "at most 60 bytes"),
    ],
)
def test_a_document_has_a_limit(tmp_path: Path, name: str, content: str, value: str, allowed: str) -> None:
    (tmp_path / name).write_text(content)
    error = refusal(tmp_path / name, limits=DatasetLimits(json_bytes=60, document_characters=10))
    assert (error.reason, error.details["value"], error.details["allowed"]) == ("LIMIT_EXCEEDED", value, allowed)


def test_names_stay_below_the_dataset_folders(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.txt").write_text("text")
    (inside / "link.txt").symlink_to(outside / "a.txt")
    (inside / "folder").mkdir()
    (inside / "folder" / "link.txt").symlink_to(outside / "a.txt")
    assert documents(inside / "a.txt") == ["text"]
    for name in ("../outside/a.txt", str(outside / "a.txt"), "folder/../a.txt", "", ".", "a\0b"):
        with pytest.raises(ActstoreError) as refused:
            DatasetPlaces((inside,)).find(name)
        assert refused.value.reason == "NAME_INVALID"
    with pytest.raises(NotThere) as missing:
        DatasetPlaces((inside, tmp_path / "removed since")).find("link.txt")
    assert missing.value.reason == "DATASET_NOT_FOUND"
    assert missing.value.details["allowed"] == "a.txt, folder, link.txt"
    assert "symbolic link" in refusal(inside / "folder").message


def test_texts_in_tables_are_utf8_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}')
    invalid = pa.StringArray.from_buffers(1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff"))
    pq.write_table(pa.table({"text": invalid}), tmp_path / "b.parquet")
    for name, value in (("a.jsonl", "a.jsonl line 1"), ("b.parquet", "b.parquet")):
        assert refusal(tmp_path / name).reason == "DATASET_UNREADABLE"
        assert refusal(tmp_path / name).details == {"field": "dataset", "value": value, "allowed": "UTF-8"}


ROWS = [
    {"text": "a", "language": "en", "score": 1, "ids": [1, 2]},
    {"text": "b", "language": "fr", "score": 2, "ids": [3]},
    {"text": "c", "language": None, "score": 3, "ids": []},
    {"text": "d", "language": "en", "score": 4, "ids": [4, 5, 6]},
]
FILTERS: dict[tuple[str, str, object], list[int]] = {
    ("language", "==", "en"): [0, 3],
    ("language", "!=", "en"): [1],
    ("language", "in", ("en", "fr")): [0, 1, 3],
    ("language", "not in", ("fr",)): [0, 3],
    ("score", "<", 3): [0, 1],
    ("score", "<=", 3): [0, 1, 2],
    ("score", ">", 3): [3],
    ("score", ">=", 3.5): [3],
}


@pytest.fixture(params=["rows.jsonl", "rows.parquet", "saved"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    path = tmp_path / request.param
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    return DatasetPlaces((tmp_path,)).find(request.param)


@pytest.mark.parametrize("wanted", FILTERS, ids=str)
def test_rows_that_pass_keep_their_numbers(wanted: tuple[str, str, object], table: Dataset) -> None:
    found = list(dataset_documents(table, DocumentQuery(row_filters=(RowFilter(*wanted),))))
    assert [document.number for document in found] == FILTERS[wanted]
    assert [document.content for document in found] == [ROWS[number]["text"] for number in FILTERS[wanted]]
    first = list(dataset_documents(table, DocumentQuery(row_filters=(RowFilter(*wanted),), max_documents=1)))
    assert first == found[:1]


@pytest.mark.parametrize(
    ("wanted", "allowed"),
    [
        (("score", "!=", "1"), "a number, like the column's values"),
        (("score", "==", True), "a number, like the column's values"),
        (("score", "not in", ("1", "2")), "a number, like the column's values"),
        (("language", "!=", 1), "a text, like the column's values"),
        (("ids", "!=", "x"), "a column of text, numbers or booleans"),
    ],
    ids=str,
)
def test_filters_compare_like_with_like(wanted: tuple[str, str, object], allowed: str, table: Dataset) -> None:
    """Pyarrow raises too; to compare and exclude nothing would be a silent answer."""
    with pytest.raises(BadRequest) as refused:
        list(dataset_documents(table, DocumentQuery(row_filters=(RowFilter(*wanted),))))
    told = f"{wanted[0]} {wanted[1]} {wanted[2]!r}"
    assert refused.value.details == {"field": "dataset.row_filters", "value": told, "allowed": allowed}


@pytest.mark.parametrize(
    ("value", "allowed"),
    [(("en", 1), "values of one kind"), ((1, True), "values of one kind"), (float("nan"), "a number other than NaN")],
)
def test_filters_that_no_column_fits(value: object, allowed: str) -> None:
    several = isinstance(value, tuple)
    asked = capture.RowFilter("a", "in" if several else "!=", value if several else (value,))
    with pytest.raises(BadRequest) as refused:
        document_query(DatasetReference("text", row_filters=(asked,)))
    assert refused.value.details["field"] == "dataset.row_filters"
    assert refused.value.details["allowed"].startswith(allowed)


def test_decimals_and_times(tmp_path: Path) -> None:
    """A decimal is compared with the number as it was written; a time with nothing that a filter can say."""
    cents = pa.array([Decimal("0.10"), None, Decimal("0.30")], pa.decimal128(5, 2))
    days = pa.array([datetime(2026, 1, day) for day in (1, 2, 3)])
    pq.write_table(pa.table({"text": ["a", "b", "c"], "cents": cents, "day": days}), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet", row_filters=(RowFilter("cents", "==", 0.1),)) == ["a"]
    assert documents(tmp_path / "a.parquet", row_filters=(RowFilter("cents", "in", (0.1, 0.3)),)) == ["a", "c"]
    with pytest.raises(BadRequest, match="datetime"):
        documents(tmp_path / "a.parquet", row_filters=(RowFilter("day", ">", "2026-01-01"),))


def test_a_filter_of_a_csv_says_what_its_cells_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,id\na,007\nb,8\n")
    assert documents(tmp_path / "a.csv", row_filters=(RowFilter("id", "==", "007"),)) == ["a"]
    assert documents(tmp_path / "a.csv", row_filters=(RowFilter("id", "in", ("007", "8")),)) == ["a", "b"]
    assert documents(tmp_path / "a.csv", row_filters=(RowFilter("id", ">", 7),)) == ["b"]


def test_columns_of_token_ids(table: Dataset) -> None:
    found = list(dataset_documents(table, DocumentQuery(text_field="", tokens_field="ids")))
    assert [document.content.tolist() for document in found] == [row["ids"] for row in ROWS]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_padding_is_no_token(suffix: str, tmp_path: Path) -> None:
    """Of a dataset that transformers' tokenizers made, with padding on either side."""
    path = tmp_path / f"a.{suffix}"
    all_ids, masks = [[0, 0, 5, 6], [7, 8, 9], [4, 0, 0], [0, 0]], [[0, 0, 1, 1], [1, 1, 1], [1, 0, 0], [0, 0]]

    def found(masks: list[list[int]]) -> list[list[int]]:
        rows = [{"ids": ids, "attention_mask": mask} for ids, mask in zip(all_ids, masks, strict=True)]
        if suffix == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pq.write_table(pa.Table.from_pylist([row | {"other": 1} for row in rows]), path)
        table = DatasetPlaces((tmp_path,)).find(path.name)
        asked = DocumentQuery(text_field="", tokens_field="ids")
        return [document.content.tolist() for document in dataset_documents(table, asked)]

    assert found(masks) == [[5, 6], [7, 8, 9], [4], []]
    for wrong in ([1, 1], [1, 0, 1], [2, 1, 1]):
        with pytest.raises(BadRequest, match="attention_mask is not valid") as refused:
            found([masks[0], wrong, *masks[2:]])
        assert refused.value.details["field"] == "dataset.tokens_field"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (DocumentQuery(row_filters=(RowFilter("nothing", "==", 1),)), "dataset.row_filters"),
        (DocumentQuery(row_filters=(RowFilter("language", "<", 1),)), "dataset.row_filters"),
        (DocumentQuery(text_field="", tokens_field="text"), "dataset.tokens_field"),
        (DocumentQuery(text_field="", tokens_field="nothing"), "dataset.tokens_field"),
        (DocumentQuery(text_field="nothing"), "dataset.text_field"),
        (DocumentQuery(text_field="score"), "dataset.text_field"),
    ],
    ids=str,
)
def test_columns_that_are_not_there_or_not_that(query: DocumentQuery, field: str, table: Dataset) -> None:
    with pytest.raises(BadRequest) as refused:
        list(dataset_documents(table, query))
    assert refused.value.details["field"] == field
    assert refused.value.details["allowed"]


def test_plain_text_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for query in ({"row_filters": (RowFilter("a", "==", 1),)}, {"tokens_field": "ids"}):
        with pytest.raises(BadRequest, match="plain text and has no columns"):
            documents(tmp_path / "a.txt", **query)


def test_datasets_in_a_store(s3_bucket: Bucket, tmp_path: Path) -> None:
    s3_bucket.put("corpus/a.jsonl", b'{"text": "one"}\n{"text": "two"}\n')
    pq.write_table(pa.table({"text": ["three"]}), tmp_path / "b.parquet")
    s3_bucket.put("corpus/b.parquet", (tmp_path / "b.parquet").read_bytes())
    s3_bucket.put("corpus/README.md", b"no part of a folder of tables")
    places = DatasetPlaces((tmp_path,), (s3_bucket,))

    def texts(name: str) -> list[object]:
        return [document.content for document in dataset_documents(places.find(name), DocumentQuery())]

    assert texts("corpus") == ["one", "two", "three"]
    assert texts("corpus/b.parquet") == texts("b.parquet") == ["three"]
    assert texts("corpus/README.md") == ["no part of a folder of tables"]
    for name in ("corpu", "corpus/missing.txt", "../corpus"):
        with pytest.raises(BadRequest):
            places.find(name)


# What the `datasets` library would take for a path, an address, one of its own builders, or a part of one.
NOT_OF_THE_HUB = (
    "owner/name", "owner/name::", "text:train", "json:train", "name:train", "/etc:train", "./owner/name:train",
    "../owner:train", "owner/../name:train", "owner/..:train", "owner//name:train", "owner/name/more:train",
    "owner/na..me:train", "https://host/name:train", "hf://datasets/owner/name:train", "owner/name@main:train",
    "owner/name:../config:train", "owner/name:a/b:train", "owner/name:config:tr/ain", "~/name:train",
    "owner\\name:train",
)  # fmt: skip


def test_datasets_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub itself cannot be asked here; what would be asked of the library is seen."""
    asked: list[tuple[object, ...]] = []

    def builder(name: str, config: str | None) -> object:
        if name == "owner/gone":
            raise FileNotFoundError(name)
        place = "/etc" if name == "owner/climbs" else f"hf://datasets/{name}@0123"
        return SimpleNamespace(
            config=SimpleNamespace(data_files={"train": [f"{place}/part-0.jsonl"]}),
            download_and_prepare=lambda: None,
            as_dataset=lambda split: asked.append((name, config, split)) or datasets.Dataset.from_list(ROWS),
        )

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "here").mkdir(parents=True)
    places = DatasetPlaces(allow_hub=True)
    for name in ("hf:owner/name:train", "hf:owner/name:config:test"):
        assert len(list(dataset_documents(places.find(name), DocumentQuery()))) == len(ROWS)
    assert asked == [("owner/name", None, "train"), ("owner/name", "config", "test")]
    for searched, name, reason in (
        (places, "hf:owner/gone:train", "DATASET_NOT_FOUND"),
        (DatasetPlaces(), "hf:owner/name:train", "DATASET_NOT_FOUND"),
        (places, "hf:owner/here:train", "DATASET_NOT_FOUND"),
        (places, "hf:owner/climbs:train", "DATASET_UNREADABLE"),
        *((places, f"hf:{other}", "NAME_INVALID") for other in NOT_OF_THE_HUB),
    ):
        with pytest.raises(BadRequest) as refused:
            searched.find(name)
        assert (refused.value.reason, refused.value.details["field"]) == (reason, "dataset")


def test_without_the_library_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert documents(tmp_path / "saved") == [row["text"] for row in ROWS]
    with pytest.raises(BadRequest, match="Hugging Face `datasets` library") as refused:
        DatasetPlaces(allow_hub=True).find("hf:a/b:train")
    assert refused.value.reason == "DATASET_UNREADABLE"
