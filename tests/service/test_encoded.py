"""Messages that are encoded by hand are those that protobuf would have made."""

import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore._transport.messages import rows_of
from actstore_api.v1 import activation_pb2, common_pb2
from actstore_service.encoded import ahead, rows_message
from tests.waiting import PATIENCE_SECONDS

PROVENANCE = common_pb2.Provenance(model="m", shards_committed=3, sae_sha256={"a": "b"})


@given(rows=st.integers(0, 3000), width=st.integers(1, 40))
def test_protobuf_reads_them_and_so_does_the_client(rows: int, width: int) -> None:
    batch = pa.RecordBatch.from_pydict(
        {"token": pa.array(range(rows), pa.int32()), "activation": pa.array([b"x" * width] * rows, pa.binary(width))}
    )
    first = activation_pb2.ReadActivationsResponse(provenance=PROVENANCE).SerializeToString()
    messages = [rows_message(batch, first), rows_message(batch)]
    for message, provenance in zip(messages, (PROVENANCE, common_pb2.Provenance()), strict=True):
        for kind in (activation_pb2.ReadActivationsResponse, activation_pb2.ReadTokensResponse):
            read = kind.FromString(message)
            assert read.provenance == provenance
            assert pa.ipc.open_stream(read.rows.arrow_ipc_stream).read_all() == pa.Table.from_batches([batch])
    table, told = rows_of(iter(messages))
    assert table == pa.Table.from_batches([batch, batch])
    assert (told.model, told.shards_committed, told.sae_sha256) == ("m", 3, {"a": "b"})


def test_fields_of_later_versions_are_skipped() -> None:
    batch = pa.RecordBatch.from_pydict({"token": [1, 2]})
    later = b"\x18\x96\x01" + b"\x21" + b"\0" * 8 + b"\x2d" + b"\0" * 4 + b"\x32\x02hi"
    table, _ = rows_of(iter([later + rows_message(batch) + later]))
    assert table == pa.Table.from_batches([batch])


def test_items_come_in_order_and_errors_where_they_happened() -> None:
    def items() -> Iterator[int]:
        yield from range(100)
        raise RuntimeError("after a hundred")

    seen = []
    with pytest.raises(RuntimeError, match="after a hundred"):
        seen.extend(ahead(items()))
    assert seen == list(range(100))
    assert list(ahead(iter(range(10)))) == list(range(10))
    assert list(ahead(iter(()))) == []


def test_who_leaves_stops_the_making() -> None:
    made, over = [], threading.Event()

    def items() -> Iterator[int]:
        try:
            for number in range(10_000):
                made.append(number)
                yield number
        finally:
            over.set()

    found = ahead(items())
    assert next(found) == 0
    found.close()
    del found
    assert over.wait(PATIENCE_SECONDS)
    assert len(made) < 10
