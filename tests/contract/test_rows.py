"""Rows that are encoded by hand are those that protobuf would have made of their record."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore_api.codec import decode, message_of
from actstore_api.records.activation import ReadActivationsAnswer, ReadTokensAnswer
from actstore_api.records.feature import ReadFeatureAnswer
from actstore_api.records.terms import Provenance
from actstore_api.rows import decode_rows, encode_rows
from actstore_api.shape import Unreadable
from tests.contract.any_records import any_record

ANSWERS = (ReadActivationsAnswer, ReadTokensAnswer, ReadFeatureAnswer)
TWO_ROWS = pa.RecordBatch.from_pydict({"token": [1, 2]})


@given(
    rows=st.integers(0, 3000),
    width=st.integers(1, 40),
    provenance=any_record(Provenance),
)
def test_protobuf_reads_them_and_so_does_who_reads_rows(rows: int, width: int, provenance: Provenance) -> None:
    batch = pa.RecordBatch.from_pydict(
        {"token": pa.array(range(rows), pa.int32()), "activation": pa.array([b"x" * width] * rows, pa.binary(width))}
    )
    table = pa.Table.from_batches([batch])
    for said in (provenance, None):
        for kind in ANSWERS:
            message = message_of(kind).FromString(encode_rows(batch, said))
            assert decode(kind, message) == kind(table, said)
    assert decode_rows([encode_rows(batch, provenance), encode_rows(batch)]) == (
        pa.concat_tables([table, table]),
        provenance,
    )


def a_provenance(model: str) -> Provenance:
    return Provenance(
        model=model,
        weights_sha256="",
        tokenizer_sha256="",
        dtype="float16",
        attention_implementation="",
        device="cpu",
        code_version="1",
    )


@pytest.mark.parametrize("length", range(100, 130))
def test_a_length_of_one_byte_and_of_two(length: int) -> None:
    provenance = a_provenance("m" * length)
    assert decode_rows([encode_rows(TWO_ROWS, provenance)])[1] == provenance


def test_fields_of_later_versions_are_skipped() -> None:
    number, fixed_8, fixed_4, text = b"\x18\x96\x01", b"\x21" + b"\xff" * 8, b"\x2d" + b"\xff" * 4, b"\x32\x02hi"
    later = number + fixed_8 + fixed_4 + text
    provenance = a_provenance("m")
    table, told = decode_rows([later + encode_rows(TWO_ROWS, provenance) + later])
    assert (table, told) == (pa.Table.from_batches([TWO_ROWS]), provenance)


def test_a_stream_without_a_message_is_no_answer() -> None:
    with pytest.raises(Unreadable, match="ended before its first message"):
        decode_rows([])


def test_a_stream_says_where_it_comes_from() -> None:
    with pytest.raises(Unreadable, match="dtype") as refused:
        decode_rows([encode_rows(TWO_ROWS)])
    assert refused.value.field == "dtype"
