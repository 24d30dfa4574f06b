"""A record is read where every field is there, of its type, and no other is: at any depth."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from actstore_storage.errors import CorruptObject
from actstore_storage.features.segments import Part, Segment
from actstore_storage.format.commit import Commit
from actstore_storage.format.moments import Moments
from actstore_storage.format.products import ObjectRecord
from actstore_storage.format.records import seal
from actstore_storage.format.specification import RunRecord
from tests.storage.random_run import make_run

OBJECT = ObjectRecord("runs/run/data/0-a/tokens.parquet", 10, 4, "a" * 64)
COMMIT = Commit(
    run="run",
    shard=0,
    attempt="a",
    specification_sha256="f" * 64,
    sequences=1,
    tokens_by_class={"text": 4},
    objects={"tokens": OBJECT},
    norm_moments={"resid_post.0": {"text": Moments(4, 1.0, 0.5, 0.0, 2.0, float("-inf"))}},
    non_finite={},
    attention_implementation="sdpa",
    device="cpu",
    code_version="1",
)
SEGMENT = Segment("run", "sae", "f" * 64, 0, 4, (Part(0, 8, OBJECT),), OBJECT, OBJECT)

Change = Callable[[dict[str, Any]], object]
INJURIES: dict[str, tuple[bytes, Change]] = {
    "a word for a number": (COMMIT.to_json(), lambda fields: fields.update(shard="zero")),
    "a fraction for a whole number": (COMMIT.to_json(), lambda fields: fields.update(sequences=1.5)),
    "a truth for a number": (COMMIT.to_json(), lambda fields: fields.update(sequences=True)),
    "a list for a map": (COMMIT.to_json(), lambda fields: fields.update(norm_moments=[])),
    "a field too few": (COMMIT.to_json(), lambda fields: fields.pop("device")),
    "a field too many": (COMMIT.to_json(), lambda fields: fields.update(more=1)),
    "a field too many in an object": (COMMIT.to_json(), lambda fields: fields["objects"]["tokens"].update(more=1)),
    "a field too many in a statistic": (
        COMMIT.to_json(),
        lambda fields: fields["norm_moments"]["resid_post.0"]["text"].update(more=1),
    ),
    "a part's word for a number": (SEGMENT.to_json(), lambda fields: fields["parts"][0].update(first_feature="0")),
    "a field too many in a part's object": (
        SEGMENT.to_json(),
        lambda fields: fields["parts"][0]["object"].update(more=1),
    ),
    "a run's word for a number": (make_run(1).record.to_json(), lambda fields: fields.update(tokens_total="many")),
}
READERS: dict[str, Callable[[bytes, str], object]] = {
    "attempt": Commit.from_json,
    "parts": Segment.from_json,
    "specification": RunRecord.from_json,
}


def read(fields: dict[str, Any], data: bytes) -> object:
    [reader] = [reader for name, reader in READERS.items() if name in fields]
    return reader(data, "key")


@pytest.mark.parametrize("name", INJURIES)
def test_a_record_of_other_types_is_damaged(name: str) -> None:
    data, change = INJURIES[name]
    fields = json.loads(data)
    del fields["record_sha256"]
    read(fields, seal(fields))
    change(fields)
    with pytest.raises(CorruptObject, match="key is damaged"):
        read({**fields}, seal(fields))


@pytest.mark.parametrize("record", [COMMIT, SEGMENT, make_run(1).record], ids=lambda record: type(record).__name__)
def test_what_is_read_is_written_the_same(record: Commit | Segment | RunRecord) -> None:
    data = record.to_json()
    found = type(record).from_json(data, "key")
    assert found == record
    assert found.to_json() == data
