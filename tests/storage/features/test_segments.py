"""Segments of the index by themselves: which row groups a question looks into, and what it asks a bucket for."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.errors import CorruptObject
from actstore_storage.features import segments
from actstore_storage.features.reader import FeatureReader
from actstore_storage.features.segments import StoredList, read_segment
from actstore_storage.format.keys import segment_key
from actstore_storage.format.records import canonical_json
from actstore_storage.runs.opening import open_run
from tests.run_state import merge_index
from tests.storage.random_run import SAE, make_run, write_run

RUN = make_run(7, sequences=6, longest=9, sequences_per_shard=2)
GROUP_ROWS = 4


class LookedInto:
    """Activations in row groups, of which it keeps those that were looked into."""

    def __init__(self, rows: np.ndarray) -> None:
        self._groups = [rows[start : start + GROUP_ROWS] for start in range(0, len(rows), GROUP_ROWS)]
        self.places = SimpleNamespace(highest=np.array([group.max() for group in self._groups]))
        self.seen: list[int] = []

    def activations(self, group: int) -> np.ndarray:
        self.seen.append(group)
        return self._groups[group]


@pytest.mark.parametrize("first", range(6))
def test_a_place_is_found_in_one_row_group_or_in_the_last_two(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies around the stretch: rows that are larger than all of it, before and after."""
    monkeypatch.setattr(segments, "SEGMENT_GROUP_ROWS", GROUP_ROWS)
    for count in range(1, 19):
        own = np.arange(count, 0, -1) // 2 + 1.0
        file = LookedInto(np.concatenate([np.full(first, 99.0), own, np.full(7, 77.0)]))
        stretch = StoredList(file, first, count, own[0])
        last_group = (first + count - 1) // GROUP_ROWS
        for value in np.arange(0, 12, 0.5):
            for place, passes in ((stretch.above, own > value), (stretch.at_least, own >= value)):
                file.seen.clear()
                assert place(value) == passes.sum()
                into_the_last = first + passes.sum() >= last_group * GROUP_ROWS > first
                assert len(file.seen) == (1 + into_the_last if passes.any() else 0)


@pytest.fixture
def merged(local_bucket: Bucket) -> Bucket:
    write_run(local_bucket, RUN)
    assert merge_index(local_bucket, "run", SAE, "merge", part_rows=30)
    return local_bucket


def test_of_a_complete_run_no_segments_are_listed(merged: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = open_run(merged, "run")
    monkeypatch.setattr(merged, "keys", None)
    [reader] = FeatureReader(snapshot, SAE).segments
    assert reader.segment.shards == range(3)


def test_damage_of_a_segment_says_whose_index_it_is(merged: Bucket) -> None:
    snapshot = open_run(merged, "run")
    segment = read_segment(snapshot, SAE, range(3))
    assert len(segment.parts) > 1
    merged.delete(segment.parts[0].object.key)
    with pytest.raises(CorruptObject, match="run run, index of sae"):
        FeatureReader(snapshot, SAE).ranking(1, frozenset()).all()


def test_a_manifest_without_its_hash_is_damaged(merged: Bucket) -> None:
    key = segment_key("run", SAE, range(3))
    fields = json.loads(merged.get(key))
    del fields["record_sha256"]
    merged.delete(key)
    merged.put(key, canonical_json(fields))
    with pytest.raises(CorruptObject) as caught:
        read_segment(open_run(merged, "run"), SAE, range(3))
    assert caught.value.details["value"] == key
