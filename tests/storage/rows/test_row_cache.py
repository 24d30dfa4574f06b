"""Rows that are kept are those that would be read, and never more of them than the limit."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import BadRequest, CorruptObject
from actstore_storage.parquet.row_cache import RowCache
from actstore_storage.rows.reading import read_activations, read_tokens
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.token_filter import TokenFilter
from tests.stored_run import DENSE_SITE, write_stored_run

TABLE = pa.table({"row": pa.array(range(100), pa.int64())})


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("held")
    write_stored_run(open_bucket(str(folder)))
    return str(folder)


@pytest.mark.parametrize(
    "keep", [TokenFilter(), TokenFilter(first_sequence=1), TokenFilter(exclude=frozenset(("bos",)))]
)
def test_answers_are_those_without_it(address: str, keep: TokenFilter) -> None:
    snapshot = open_run(open_bucket(address), "planted")
    held = RowCache(1 << 20)
    expected = pa.Table.from_batches(read_activations(snapshot, DENSE_SITE, keep))
    tokens = pa.Table.from_batches(read_tokens(snapshot, keep))
    for _ in range(2):
        assert pa.Table.from_batches(read_activations(snapshot, DENSE_SITE, keep, cache=held)).equals(expected)
        assert pa.Table.from_batches(read_tokens(snapshot, keep, held)).equals(tokens)
    assert 0 < held.bytes_held <= held.bytes_max


def test_what_was_read_is_not_read_again() -> None:
    held, reads = RowCache(10_000), []

    def read() -> pa.Table:
        reads.append(1)
        return TABLE

    assert held.get("object", 0, read) is held.get("object", 0, read)
    held.get("object", 1, read)
    held.get("another", 0, read)
    assert len(reads) == 3


def test_the_oldest_leave_first() -> None:
    held = RowCache(2 * TABLE.nbytes)
    for number in (0, 1, 0, 2):  # 1 is what was asked for longest ago
        held.get("object", number, lambda: TABLE.slice(0))
    assert held.bytes_held == 2 * TABLE.nbytes
    held.get("object", 0, lambda: pytest.fail("it left too early"))
    assert held.get("object", 1, lambda: TABLE.slice(1, 1)).num_rows == 1


def test_what_is_larger_than_the_limit_is_not_kept() -> None:
    for limit in (0, TABLE.nbytes - 1):
        held = RowCache(limit)
        held.get("object", 0, lambda: TABLE)
        assert held.bytes_held == 0


def test_a_read_that_fails_leaves_nothing() -> None:
    held = RowCache(10_000)

    def damaged() -> pa.Table:
        raise CorruptObject("damaged", field="object", value="object")

    with pytest.raises(CorruptObject):
        held.get("object", 0, damaged)
    assert held.get("object", 0, lambda: TABLE) is TABLE


def test_threads_share_it() -> None:
    held = RowCache(3 * TABLE.nbytes)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: held.get("object", number % 5, lambda: TABLE), range(2000)))
    assert all(table is TABLE for table in found)
    assert held.bytes_held == 3 * TABLE.nbytes


def test_a_limit_below_nothing_is_refused() -> None:
    with pytest.raises(BadRequest, match="-1 is not a valid size"):
        RowCache(-1)
