"""Seeking in a segment's objects, against an ordinary Parquet reader of the same bytes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.errors import CorruptObject
from actstore_storage.features import segment_file
from actstore_storage.features.entries import COLUMNS
from actstore_storage.features.segment_file import SegmentFile
from actstore_storage.features.segments import StoredList
from actstore_storage.format.products import SEGMENT_FORMAT, SEGMENT_GROUP_ROWS, ObjectRecord
from actstore_storage.parquet.writing import open_object

KEY = "runs/run/index/sae/objects/part.parquet"
ROWS = 5 * SEGMENT_GROUP_ROWS + 77
# Of the file: where four stretches of descending activations end; the second lies in one row group, the third in all
# but the last one.
ENDS = (3000, 3500, 20_000, ROWS)


def table(rng: np.random.Generator) -> pa.Table:
    """Activations from few values, so that many tie, also where row groups meet."""
    starts = (0, *ENDS[:-1])
    parts = [np.sort(rng.integers(1, 60, end - start))[::-1] for start, end in zip(starts, ENDS, strict=True)]
    columns = {name: rng.integers(0, 100, ROWS) for name in ("sequence", "position", "document", "token", "flags")}
    columns |= {"feature": np.repeat(range(4), np.diff((0, *ENDS))), "activation": np.concatenate(parts) / 7}
    arrays = [pa.array(columns[field.name]).cast(field.type, safe=False) for field in SEGMENT_FORMAT.schema]
    return pa.Table.from_arrays(arrays, schema=SEGMENT_FORMAT.schema)


@pytest.fixture(params=["local_bucket", "s3_bucket"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    found: Bucket = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def written(bucket: Bucket) -> pa.Table:
    return table(np.random.default_rng(1))


def write(bucket: Bucket, rows: pa.Table) -> ObjectRecord:
    with ThreadPoolExecutor(1) as pool, open_object(bucket, KEY, SEGMENT_FORMAT, pool) as item:
        item.write([column.combine_chunks() for column in rows.columns])
        return item.finish("test")


def test_rows_are_those_of_a_parquet_reader(bucket: Bucket, written: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    record = write(bucket, written)
    with bucket.open(KEY) as source:
        expected = pq.read_table(source)
    assert expected.equals(written)
    rng = np.random.default_rng(2)
    for held in (1, 3, 64):
        monkeypatch.setattr(segment_file, "_GROUPS_HELD", held)
        file = SegmentFile(bucket, record, "a test")
        for first, last in [(0, 0), (0, 1), (ROWS - 1, ROWS), (0, ROWS), (4095, 4097), *rng.integers(0, ROWS, (30, 2))]:
            found = file.read(int(first), int(last))
            for name in COLUMNS:
                there = getattr(found, name)
                assert np.array_equal(there, expected[name].to_numpy()[first : max(first, last)])
                assert there.dtype == expected[name].to_numpy().dtype
        for group in (5, 0, 3):
            slow = expected["activation"].to_numpy()[group * SEGMENT_GROUP_ROWS : (group + 1) * SEGMENT_GROUP_ROWS]
            assert np.array_equal(SegmentFile(bucket, record, "a test").activations(group), slow)


def test_places_in_a_stretch(bucket: Bucket, written: pa.Table) -> None:
    """Counted by a look at every row, for values that occur, lie between, and lie beyond."""
    record = write(bucket, written)
    activation = written["activation"].to_numpy()
    for start, end in zip((0, *ENDS[:-1]), ENDS, strict=True):
        run = StoredList(SegmentFile(bucket, record, "a test"), start, end - start, float(activation[start]))
        rows = activation[start:end].astype(np.float64)
        for value in [0.0, *np.unique(rows), *(np.unique(rows) + 1e-9), 99.0]:
            assert run.above(float(value)) == (rows > value).sum()
            assert run.at_least(float(value)) == (rows >= value).sum()
        assert [run.at(place) for place in (0, len(rows) - 1)] == [rows[0], rows[-1]]
        for first, last in ((0, 1), (3, 77), (len(rows) - 1, len(rows))):
            assert np.array_equal(run.read(first, last).activation, rows[first:last])


def flipped(data: bytes) -> bytes:
    """One bit of each page's values, headers apart."""
    return b"".join(bytes([data[i] ^ 1]) if i % 97 == 50 else data[i : i + 1] for i in range(200_000)) + data[200_000:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "bits": flipped,
    "zeros": lambda data: bytes(200_000) + data[200_000:],
    "cut": lambda data: data[:-1],
    "footer": lambda data: data[:-9] + b"\0" * 9,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, bucket: Bucket, written: pa.Table) -> None:
    record = write(bucket, written)
    bucket.put(KEY, DAMAGES[damage](bucket.get(KEY)))
    with pytest.raises(CorruptObject) as caught:
        SegmentFile(bucket, record, "a test").read(0, 10)
    assert caught.value.details["value"] == KEY
    bucket.delete(KEY)
    with pytest.raises(CorruptObject, match="it is missing"):
        SegmentFile(bucket, record, "a test").read(0, 10)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"use_dictionary": True}, "dictionary-encoded"),
        ({"row_group_size": 1000}, "1000 rows"),
        ({"compression": "zstd"}, "codec"),
        ({"write_statistics": False}, "statistics"),
    ],
)
def test_what_was_laid_out_otherwise_is_refused(options: dict, what: str, bucket: Bucket, written: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    plain = {"use_dictionary": False, "compression": "lz4", "row_group_size": SEGMENT_GROUP_ROWS}
    pq.write_table(written, sink, **plain | options)
    bucket.put(KEY, sink.getvalue().to_pybytes())
    record = ObjectRecord(KEY, sink.getvalue().size, ROWS, "")
    with pytest.raises(CorruptObject, match=what):
        SegmentFile(bucket, record, "a test").read(0, 1)


def test_places_are_kept_and_rows_read_once(bucket: Bucket, written: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    record = write(bucket, written)
    file = SegmentFile(bucket, record, "a test")
    first = file.read(4000, 5000)
    monkeypatch.setattr(bucket, "open", None)
    assert np.array_equal(file.read(4000, 5000).activation, first.activation)
    assert len(file.activations(0)) == SEGMENT_GROUP_ROWS
    assert len(SegmentFile(bucket, record, "a test").places) == 6
