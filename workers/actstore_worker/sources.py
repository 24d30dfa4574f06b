"""Where text comes from: the documents of a file or folder below the dataset folders.

A JSONL or Parquet file has a document a row; a plain-text file is one document. Text is UTF-8 or refused: a document
that is silently repaired is no longer what its name says.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.errors import BadRequest, NotThere

TABLE_SUFFIXES = (".jsonl", ".parquet")
# What counts as text in a folder. A file that is named by itself may have any suffix.
TEXT_SUFFIXES = frozenset(
    {
        *(".txt", ".md", ".rst", ".tex", ".html", ".xml", ".csv", ".json", ".yaml", ".yml", ".toml"),
        *(".py", ".c", ".h", ".cpp", ".go", ".java", ".js", ".ts", ".rs", ".sh", ".sql", ".css"),
    }
)
# A document is tokenised whole, so it must fit into memory several times over.
DOCUMENT_BYTES_MAX = 1 << 28
_PARQUET_BATCH_ROWS = 256


def find_dataset(name: str, dataset_folders: tuple[Path, ...]) -> Path:
    """The file or folder of that name. Errors: NotThere DATASET_NOT_FOUND; BadRequest NAME_INVALID for `..`."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise BadRequest(
            f"dataset {name!r} is not a name: it is a path below a dataset folder, without '..'",
            reason="NAME_INVALID",
            field="dataset",
            value=name,
            allowed="a relative path without '..'",
        )
    for folder in dataset_folders:
        path = folder.joinpath(*parts)
        if path.exists() and _is_inside(path, folder):
            return path
    there = sorted({path.name for folder in dataset_folders for path in folder.iterdir()})
    raise NotThere(
        f"no dataset {name!r}; the dataset folders have: {', '.join(there) or 'nothing'}",
        reason="DATASET_NOT_FOUND",
        field="dataset",
        value=name,
        allowed=there,
    )


def documents(path: Path, text_field: str = "text") -> Iterator[str]:
    """Texts in a fixed order: files by path, rows as they lie.

    Errors: BadRequest DATASET_UNREADABLE with file and place, DATASET_EMPTY for a folder without text files.
    """
    for file in dataset_files(path):
        if file.suffix == ".jsonl":
            yield from _jsonl_texts(file, text_field)
        elif file.suffix == ".parquet":
            yield from _parquet_texts(file, text_field)
        else:
            yield _decode(_read(file), file, 0)


def dataset_files(path: Path) -> list[Path]:
    """The file itself; or every table below the folder; or, where it has no table, every text file."""
    if path.is_file():
        return [path]
    below = sorted(file for file in path.rglob("*") if file.is_file())
    tables = [file for file in below if file.suffix in TABLE_SUFFIXES]
    found = tables or [file for file in below if file.suffix in TEXT_SUFFIXES]
    if not found:
        raise BadRequest(
            f"dataset folder {path.name} has no file that is text",
            reason="DATASET_EMPTY",
            field="dataset",
            value=path.name,
            allowed=[*TABLE_SUFFIXES, *sorted(TEXT_SUFFIXES)],
        )
    for file in found:
        if not _is_inside(file, path):
            raise _unreadable(file, "it is a symbolic link that leaves the dataset", "a file inside the dataset")
    return found


def _jsonl_texts(file: Path, text_field: str) -> Iterator[str]:
    offset = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _row_text(
                    _json_row(_decode(line, file, offset), file, number), text_field, f"{file.name} line {number}"
                )
            offset += len(line)


def _json_row(line: str, file: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _unreadable(file, f"line {number} is not JSON: {error}", "a JSON object a line") from error
    if not isinstance(row, dict):
        raise _unreadable(file, f"line {number} is not a JSON object", "a JSON object a line")
    return row


def _parquet_texts(file: Path, text_field: str) -> Iterator[str]:
    try:
        table = pq.ParquetFile(file)
        if text_field not in table.schema_arrow.names:
            raise _no_field(file.name, text_field, table.schema_arrow.names)
        row = 0
        for batch in table.iter_batches(_PARQUET_BATCH_ROWS, columns=[text_field]):
            for text in batch.column(0).to_pylist():
                yield _row_text({text_field: text}, text_field, f"{file.name} row {row}")
                row += 1
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, f"it is not a whole Parquet file: {error}", "Parquet") from error
    except UnicodeDecodeError as error:
        raise _unreadable(file, f"a text is not UTF-8: {error}", "UTF-8") from error


def _row_text(row: dict[str, Any], text_field: str, place: str) -> str:
    if text_field not in row:
        raise _no_field(place, text_field, row)
    text = row[text_field]
    if not isinstance(text, str):
        raise BadRequest(
            f"{place}: {text_field!r} is {type(text).__name__}, not text",
            reason="DATASET_UNREADABLE",
            field="dataset.text_field",
            value=text_field,
            allowed="a column of strings",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair
        raise _not_text(place, error) from error
    return text


def _not_text(place: str, error: UnicodeError) -> BadRequest:
    return BadRequest(
        f"{place} is not UTF-8: {error}", reason="DATASET_UNREADABLE", field="dataset", value=place, allowed="UTF-8"
    )


def _read(file: Path) -> bytes:
    size = file.stat().st_size
    if size > DOCUMENT_BYTES_MAX:
        raise BadRequest(
            f"{file.name} is one document of {size} bytes; the limit is {DOCUMENT_BYTES_MAX}",
            reason="LIMIT_EXCEEDED",
            field="dataset",
            value=size,
            allowed=f"at most {DOCUMENT_BYTES_MAX}",
        )
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, str(error), "a readable file") from error


def _decode(data: bytes, file: Path, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        place = offset + error.start
        raise _unreadable(
            file, f"byte {data[error.start]:#04x} at offset {place} is not UTF-8", "UTF-8", place
        ) from error


def _is_inside(path: Path, folder: Path) -> bool:
    """Also after every symbolic link on the way is followed."""
    return path.resolve().is_relative_to(folder.resolve())


def _unreadable(file: Path, why: str, allowed: str, offset: int | None = None) -> BadRequest:
    return BadRequest(
        f"{file.name} cannot be read: {why}",
        reason="DATASET_UNREADABLE",
        field="dataset",
        value=file.name if offset is None else f"{file.name} at byte {offset}",
        allowed=allowed,
    )


def _no_field(place: str, text_field: str, there: Any) -> BadRequest:
    return BadRequest(
        f"{place} has no field {text_field!r}; it has: {', '.join(there) or 'none'}",
        reason="DATASET_UNREADABLE",
        field="dataset.text_field",
        value=text_field,
        allowed=sorted(there),
    )
