"""Row groups read as they lie, against what an ordinary Parquet reader makes of the same objects."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.errors import CorruptObject
from actstore_storage.format import products
from actstore_storage.format.commit import Commit
from actstore_storage.parquet import writing as object_writer
from actstore_storage.parquet.reading import open_product
from actstore_storage.rows import memory as row_memory
from actstore_storage.rows.memory import Reading, RowMemory, elements, group_places
from actstore_storage.rows.reading import SiteRead
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.shard_writer import ShardWriter
from actstore_storage.runs.snapshot import Snapshot
from tests.storage.random_run import RandomRun, make_run, write_run

SITE = "resid_post.3"
GROUP_ROWS = 7


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of seven rows, and pages of a row or two, whose headers are not small beside them."""
    monkeypatch.setattr(products, "DENSE_GROUP_BYTES", GROUP_ROWS * 8 * 4)
    monkeypatch.setattr(object_writer, "PAGE_BYTES", 40)
    monkeypatch.setattr(row_memory, "_HEADERS_SHARE", 8)


def read(snapshot: Snapshot, commit: Commit, first: int, last: int, *, verify: bool = True) -> np.ndarray:
    """Through the second slot of a memory for two."""
    site = SiteRead(snapshot, snapshot.commits, SITE)
    with open_product(snapshot.bucket, commit, SITE) as file:
        places = {SITE: group_places(file.metadata)}
    memory = RowMemory([site], 2, last - first)
    starts = memory.fill(1, SITE, Reading(snapshot.bucket, commit, first, last, places, verify))
    return memory.take(SITE, starts)


def expected(snapshot: Snapshot, commit: Commit) -> np.ndarray:
    site = SiteRead(snapshot, snapshot.commits, SITE)
    with open_product(snapshot.bucket, commit, SITE) as file:
        raw = pa.concat_arrays(file.read()["activation"].chunks)
    return elements(site.column(commit, raw), site.dtype, site.width)


@pytest.mark.parametrize("store", ["local_bucket", "s3_bucket"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_are_those_of_a_parquet_reader(store: str, dtype: str, request: pytest.FixtureRequest) -> None:
    bucket: Bucket = request.getfixturevalue(store)
    write_run(bucket, make_run(3, sequences=12, sequences_per_shard=6, dtype=dtype))
    snapshot = open_run(bucket, "run")
    for commit in snapshot.commits:
        rows = expected(snapshot, commit)
        for first in range(0, len(rows), GROUP_ROWS):
            for last in {min(first + GROUP_ROWS, len(rows)), min(first + 3, len(rows))}:  # a row group, and part of one
                assert read(snapshot, commit, first, last).tobytes() == rows[first:last].tobytes()


def test_widened_rows_come_as_the_others(local_bucket: Bucket) -> None:
    run = make_run(3, sequences=12, sequences_per_shard=6, dtype="bfloat16")
    create_run(local_bucket, run.record)
    for shard, wide in ((0, ()), (1, (SITE,))):
        held = run.record.shard_sequences(shard)
        inside = (run.tokens.sequence >= held.start) & (run.tokens.sequence < held.stop)
        tokens, dense, norms, features = run.part(inside)
        if wide:
            dense[SITE] = np.random.default_rng(0).standard_normal(dense[SITE].shape, np.float32)
        with ShardWriter(local_bucket, run.record, shard, "attempt", wide) as writer:
            writer.add(tokens, dense, norms, features)
            assert writer.commit()
    snapshot = open_run(local_bucket, "run")
    for commit in snapshot.commits:
        rows = expected(snapshot, commit)
        assert rows.dtype == np.float32
        assert read(snapshot, commit, 0, GROUP_ROWS).tobytes() == rows[:GROUP_ROWS].tobytes()


@pytest.fixture
def run() -> RandomRun:
    return make_run(3, sequences=6, sequences_per_shard=6)


def test_damage_is_seen(run: RandomRun, local_bucket: Bucket) -> None:
    write_run(local_bucket, run)
    snapshot = open_run(local_bucket, "run")
    (commit,) = snapshot.commits
    with open_product(local_bucket, commit, SITE) as file:
        place = group_places(file.metadata)[1]
    key = commit.objects[SITE].key
    with local_bucket.open(key) as source:
        whole = source.read()
    first, last = place.first, place.last
    for at, checked_only in ((place.offset + 60, True), (place.offset, False), (place.offset + 1, False)):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        local_bucket.delete(key)
        with local_bucket.create(key) as target:
            target.write(bytes(damaged))
        with pytest.raises(CorruptObject, match=r"resid_post\.3.* is damaged: a page cannot be read"):
            read(snapshot, commit, first, last)
        if checked_only:  # its rows were verified before: the loader does not compute checksums again
            assert len(read(snapshot, commit, first, last, verify=False)) == GROUP_ROWS
        else:
            with pytest.raises(CorruptObject):
                read(snapshot, commit, first, last, verify=False)


def test_rows_that_the_footer_does_not_know(run: RandomRun, local_bucket: Bucket) -> None:
    write_run(local_bucket, run)
    snapshot = open_run(local_bucket, "run")
    (commit,) = snapshot.commits
    with open_product(local_bucket, commit, SITE) as file:
        place, *_ = group_places(file.metadata)
    site = SiteRead(snapshot, snapshot.commits, SITE)
    memory = RowMemory([site], 1, 2 * GROUP_ROWS)
    longer = replace(place, last=place.last + 1)
    reading = Reading(local_bucket, commit, 0, longer.last, {SITE: (longer,)}, verify=True)
    with pytest.raises(CorruptObject, match="7 rows, but the footer says 8"):
        memory.fill(0, SITE, reading)
