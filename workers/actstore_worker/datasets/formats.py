"""Decides the format of a dataset's files, and which files of a folder are read, in the same way on a disk and in a
store.

Names decide; for `.json` also whether it contains rows.

Nothing is skipped silently: unread files are listed, and a folder of which a part would be missing, or read twice, is
refused.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from actstore_storage.bucket.side_by_side import read_side_by_side
from actstore_storage.errors import BadRequest

LINES, JSON, PARQUET, ARROW, CSV, TSV = "lines", "json", "parquet", "arrow", "csv", "tsv"
# Formats with one document per row.
TABLE_SUFFIXES: Mapping[str, str] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".ldjson"), LINES),
    ".json": JSON,
    **dict.fromkeys((".parquet", ".pq"), PARQUET),
    **dict.fromkeys((".arrow", ".feather"), ARROW),
    ".csv": CSV,
    ".tsv": TSV,
}
# Formats with one document per file. A file that is named directly may have any other suffix.
TEXT_SUFFIXES = frozenset(
    {
        *(".txt", ".text", ".md", ".rst", ".tex", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml"),
        *(".py", ".c", ".h", ".cpp", ".go", ".java", ".js", ".ts", ".rs", ".sh", ".sql", ".css"),
    }
)
# Named as in pyarrow, and xz, which the standard library reads.
COMPRESSIONS: Mapping[str, str] = {
    **dict.fromkeys((".gz", ".gzip"), "gzip"),
    ".bz2": "bz2",
    **dict.fromkeys((".zst", ".zstd"), "zstd"),
    ".lz4": "lz4",
    ".xz": "xz",
}
# Data formats that are not supported: a folder that has such files is not read without them.
UNREAD_SUFFIXES = frozenset(
    {
        *(".avro", ".orc", ".tar", ".tgz", ".zip", ".7z", ".rar", ".warc", ".tfrecord", ".tfrecords", ".msgpack"),
        *(".pkl", ".pickle", ".npy", ".npz", ".h5", ".hdf5", ".xlsx", ".xls", ".sqlite", ".sqlite3", ".duckdb"),
        *(".lz", ".lzma", ".br", ".snappy", ".z", ".mds", ".lance", ".json5"),
    }
)
# Files that describe a dataset, next to its tables.
_PAPERS = frozenset({"readme", "license", "licence", "copying", "notice", "changelog", "citation", "authors"})
_PAPER_SUFFIXES = frozenset({".md", ".rst", ".yaml", ".yml", ".toml"})
# Files that the `datasets` library writes next to its Arrow files.
SAVED_STATE, SAVED_SPLITS = "state.json", "dataset_dict.json"
_RECORDS = frozenset({SAVED_STATE, SAVED_SPLITS, "dataset_info.json", "dataset_infos.json"})
# Hidden names, in addition to those that begin with a dot.
_STAGING = frozenset({"_temporary", "_success", "_metadata", "_common_metadata", "_spark_metadata"})
_SKIPPED = _STAGING | {"__pycache__", "__macosx", "lost+found", "thumbs.db", "desktop.ini"}
# Logs that say which files are valid: others were removed from the table, but still exist.
_LOGS = frozenset({"_delta_log", ".hoodie"})
# The number of refused or unread files that a message lists.
NAMES_TOLD = 5
ROWS_OF_JSON = "one JSON object per line, or a JSON array of objects"


@dataclass(frozen=True)
class FileKind:
    """`rows`: the table format; empty: plain text. `compression`: empty, or one of COMPRESSIONS."""

    rows: str = ""
    compression: str = ""


@dataclass(frozen=True)
class FolderFiles:
    """Names in order. `not_read` are unread files, and folders of which nothing is read."""

    read: tuple[str, ...]
    not_read: tuple[str, ...]


def kind_of(name: str) -> FileKind | None:
    """The kind by its suffix, in upper or lower case; None if it is neither a table nor text."""
    inner, compression = _uncompressed(name)
    suffix = PurePosixPath(inner).suffix.lower()
    if suffix in TABLE_SUFFIXES:
        rows = TABLE_SUFFIXES[suffix]
        whole = rows not in (PARQUET, ARROW)  # These are compressed inside, and are read at arbitrary positions.
        return FileKind(rows, compression) if whole or not compression else None
    return FileKind("", compression) if suffix in TEXT_SUFFIXES else None


def kind_of_named(name: str) -> FileKind:
    """The kind of a file that is named directly. Errors: BadRequest DATASET_UNREADABLE for unsupported data."""
    found = kind_of(name)
    if found is not None:
        return found
    if _looks_like_data(name) and not _is_bare_compression(name):
        raise _unread([name])
    return FileKind("", _uncompressed(name)[1])


def choose_files(dataset: str, names: Iterable[str], has_rows: Callable[[str], bool]) -> FolderFiles:
    """Chooses among the files below a folder, by their paths in it: every table; or, without any tables, every text
    file. `has_rows` looks into a `.json`, which may be a setting instead of a table.

    Errors: BadRequest DATASET_EMPTY; DATASET_UNREADABLE for unsupported data, tables together with text, and files that
    seem to hold the same data twice.
    """
    names = sorted(names)
    _check_no_log(names)
    hidden = {name: skipped for name in names if (skipped := _skipped(name))}
    there = [name for name in names if name not in hidden]
    tables = _tables(there, has_rows)
    texts = [name for name in there if (kind := kind_of(name)) is not None and not kind.rows]
    if unread := [name for name in there if _looks_like_data(name) and name not in tables]:
        raise _unread(unread)
    _check_once(tables)
    read = tables or texts
    rest = [name for name in there if name not in set(read)]
    _check_whole(tables, texts, rest)
    not_read = (*rest, *dict.fromkeys(hidden.values()))
    if not read:
        raise _empty(dataset, not_read)
    return FolderFiles(tuple(read), not_read)


def told(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
    return ", ".join(names[:NAMES_TOLD]) + more


def _skipped(name: str) -> str:
    """Returns the part of the path that makes it hidden or unfinished: the file, or a folder around it; empty if there
    is none.
    """
    parts = PurePosixPath(name).parts
    kind = kind_of(name)
    for depth, part in enumerate(parts, start=1):
        # For tables, as in Spark, Hive and pyarrow; Python modules may have such names.
        staged = part.startswith("_") and kind is not None and bool(kind.rows)
        cached = part.startswith("cache-") and kind == FileKind(ARROW)  # by the `datasets` library
        if part.startswith(".") or part.lower() in _SKIPPED or staged or cached:
            return "/".join(parts[:depth]) + ("/" if depth < len(parts) else "")
    return ""


def _tables(names: Sequence[str], has_rows: Callable[[str], bool]) -> list[str]:
    kinds = {name: kind.rows for name in names if (kind := kind_of(name)) and kind.rows and not _is_record(name)}
    looked_into = [name for name, rows in kinds.items() if rows == JSON]
    settings = {
        name for name, found in zip(looked_into, read_side_by_side(has_rows, looked_into), strict=True) if not found
    }
    return [name for name in kinds if name not in settings]


def _check_no_log(names: Sequence[str]) -> None:
    for name in names:
        if logs := _LOGS.intersection(PurePosixPath(name).parts):
            what = f"{min(logs)} says which of its files are valid, and actstore does not read such logs"
            raise _mixed(what, name, "an export of the table, for example to Parquet")


def _check_once(tables: Sequence[str]) -> None:
    """`gzip -k` keeps both files, and so may an export in two formats."""
    seen: dict[str, str] = {}
    for name in tables:
        inner = _uncompressed(name)[0]
        stem = inner[: -len(PurePosixPath(inner).suffix)]
        if stem in seen:
            raise _mixed(f"{seen[stem]} and {name} seem to hold the same rows twice", name, "one of the two")
        seen[stem] = name


def _check_whole(tables: Sequence[str], texts: Sequence[str], rest: Sequence[str]) -> None:
    if tables and (beside := [name for name in texts if not _is_paper(name)]):
        what = f"it has both tables ({told(tables)}) and text ({told(beside)}), and only one kind can be read"
        raise _mixed(what, beside[0], "a folder with one kind of file, or the name of a file or folder in it")
    values = [name for name in rest if (kind := kind_of(name)) and kind.rows == JSON and not _is_record(name)]
    if values and not tables and all(_is_paper(name) for name in texts):
        raise _mixed(f"{told(values)} hold one JSON value each instead of rows", values[0], ROWS_OF_JSON)


def _is_record(name: str) -> bool:
    return PurePosixPath(name).name in _RECORDS


def _is_paper(name: str) -> bool:
    path = PurePosixPath(_uncompressed(name)[0])
    return path.suffix.lower() in _PAPER_SUFFIXES or path.name.split(".")[0].lower() in _PAPERS


def _looks_like_data(name: str) -> bool:
    """Whether a file that is neither table nor text is data: by its suffix, or because it is compressed."""
    suffix = PurePosixPath(name).suffix.lower()
    return kind_of(name) is None and (suffix in UNREAD_SUFFIXES or suffix in COMPRESSIONS)


def _is_bare_compression(name: str) -> bool:
    inner, compression = _uncompressed(name)
    suffix = PurePosixPath(inner).suffix.lower()
    return bool(compression) and suffix not in UNREAD_SUFFIXES and suffix not in TABLE_SUFFIXES


def _uncompressed(name: str) -> tuple[str, str]:
    """Returns the name without the suffix of its compression, and that compression."""
    suffix = PurePosixPath(name).suffix
    compression = COMPRESSIONS.get(suffix.lower(), "")
    return (name[: -len(suffix)], compression) if compression else (name, "")


def _unread(names: Sequence[str]) -> BadRequest:
    whose = f"{told(names)} {'is' if len(names) == 1 else 'are'} data in an unsupported format"
    formats = (
        f"{' '.join(TABLE_SUFFIXES)} and text; all but Parquet and Arrow may be compressed: {' '.join(COMPRESSIONS)}"
    )
    return _mixed(whose, names[0], formats)


def _mixed(what: str, value: str, allowed: str) -> BadRequest:
    return BadRequest(
        f"the dataset cannot be read: {what}",
        reason="DATASET_UNREADABLE",
        field="dataset",
        value=value,
        allowed=allowed,
    )


def _empty(dataset: str, not_read: Sequence[str]) -> BadRequest:
    holds = f"; it has {told(not_read)}" if not_read else ""
    return BadRequest(
        f"dataset folder {dataset} has no file with text{holds}",
        reason="DATASET_EMPTY",
        field="dataset",
        value=dataset,
        allowed=[*TABLE_SUFFIXES, *sorted(TEXT_SUFFIXES)],
    )
