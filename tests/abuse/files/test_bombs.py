"""Small files that would become large, and files that name or hold what they should not: each is refused by reason,
before it takes memory.
"""

import bz2
import gzip
import lzma
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actstore_storage.errors import ActstoreError, BadRequest
from actstore_worker.datasets.documents import DocumentQuery, documents
from actstore_worker.datasets.limits import DatasetLimits, Reading
from actstore_worker.datasets.places import DatasetPlaces

MEBIBYTE = 1 << 20
# Of one text. All of them together would take far more memory than reading one after the other may.
LARGE, COPIES = 4 * MEBIBYTE, 150
MEMORY_BYTES = 250 * MEBIBYTE
LIMITS = DatasetLimits(
    json_bytes=MEBIBYTE, json_values=100_000, document_characters=MEBIBYTE, expanded_bytes=16 * MEBIBYTE
)


def parquet_of_a_dictionary(path: Path) -> None:
    """The same text again and again, which the file has once."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * COPIES, pa.int32()), pa.array(["x" * LARGE]))
    pq.write_table(pa.table({"text": values}), path, compression="zstd")


def parquet_of_pages(path: Path) -> None:
    """All texts in pages of one chunk, which zstd makes small."""
    plain = pa.table({"text": pa.array(["x" * LARGE] * 10)})
    pq.write_table(plain, path, compression="zstd", use_dictionary=False)


def parquet_of_prefixes(path: Path) -> None:
    """Each text is said to be as the one before."""
    plain = pa.table({"text": pa.array(["x" * LARGE] * COPIES)})
    pq.write_table(plain, path, compression="zstd", use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")


def arrow(path: Path, compression: str = "zstd") -> None:
    plain = pa.table({"text": pa.array(["x" * LARGE] * 10)})
    with pa.ipc.new_file(str(path), plain.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write(plain)


def line(characters: int = 20 * MEBIBYTE) -> bytes:
    return b'{"text": "' + b"x" * characters + b'"}\n'


BOMBS: dict[str, Callable[[Path], object]] = {
    "pages.parquet": parquet_of_pages,
    "batch.arrow": arrow,
    "line.jsonl.gz": lambda path: path.write_bytes(gzip.compress(line(), 9)),
    "array.json.bz2": lambda path: path.write_bytes(bz2.compress(b"[" + line() + b"]")),
    "values.jsonl": lambda path: path.write_bytes(b'{"text": "a", "more": [' + b"[]," * 200_000 + b"1]}"),
    "values.json": lambda path: path.write_bytes(b'[{"text": "a", "more": [' + b"[]," * 200_000 + b"1]}]"),
    "text.txt.xz": lambda path: path.write_bytes(lzma.compress(b"x" * 20 * MEBIBYTE, preset=1)),
    "text.txt": lambda path: path.write_text("word " * (2 * MEBIBYTE)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_becomes_large_is_refused_before_it_does(tmp_path: Path, name: str) -> None:
    BOMBS[name](tmp_path / name)
    with pytest.raises(BadRequest) as refused:
        list(documents(DatasetPlaces((tmp_path,)).find(name), DocumentQuery(), Reading(LIMITS)))
    assert (refused.value.reason, refused.value.details["field"]) == ("LIMIT_EXCEEDED", "dataset")


def texts_ending_at(first: int, second: int) -> Callable[[Path], None]:
    """An Arrow file of two rows, which says that the second one ends somewhere else."""

    def write(path: Path) -> None:
        batch = pa.record_batch([pa.array(["abcdefgh", "ijklmnop"])], names=["text"])
        with pa.ipc.new_stream(str(path), batch.schema) as writer:
            writer.write(batch)
        data = path.read_bytes()
        assert data.count(struct.pack("<iii", 0, 8, 16)) == 1
        path.write_bytes(data.replace(struct.pack("<iii", 0, 8, 16), struct.pack("<iii", 0, first, second)))

    return write


@pytest.mark.parametrize("offsets", [(8, 100_000), (-(2**30), 2**30), (8, -8), (17, 18)])
def test_values_outside_of_an_arrow_file_are_not_read(tmp_path: Path, offsets: tuple[int, int]) -> None:
    """They would be other memory of the process, or end it."""
    texts_ending_at(*offsets)(tmp_path / "a.arrow")
    with pytest.raises(BadRequest) as refused:
        list(documents(DatasetPlaces((tmp_path,)).find("a.arrow"), DocumentQuery()))
    assert refused.value.reason == "DATASET_UNREADABLE"
    assert "out of bounds" in refused.value.message or "non-monotonic" in refused.value.message


@pytest.mark.parametrize(
    "change", [b"", b'{"text": "b"}\n' * 3000, b'{"text": "b"}\n'], ids=["cut", "longer", "as long"]
)
def test_a_dataset_that_changes_while_it_is_read_is_told(tmp_path: Path, change: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "a"}\n' * 2000)
    found = documents(DatasetPlaces((tmp_path,)).find("rows.jsonl"), DocumentQuery())
    next(found)
    (tmp_path / "rows.jsonl").write_bytes(change)
    with pytest.raises(ActstoreError) as told:
        list(found)
    assert told.value.reason == "FILES_CHANGED"


READ = """
import resource, sys
from pathlib import Path
from actstore_worker.datasets.documents import DocumentQuery, documents
from actstore_worker.datasets.limits import DatasetLimits, Reading
from actstore_worker.datasets.places import DatasetPlaces
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(1 for _ in documents(DatasetPlaces((Path(sys.argv[1]),)).find("a.parquet"), DocumentQuery()))
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("write", [parquet_of_a_dictionary, parquet_of_prefixes])
def test_a_text_that_a_file_has_once_is_in_memory_a_few_times(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < MEBIBYTE
    told = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=True)
    count, mebibytes = map(int, told.stdout.split())
    assert count == COPIES
    assert mebibytes < MEMORY_BYTES // MEBIBYTE
