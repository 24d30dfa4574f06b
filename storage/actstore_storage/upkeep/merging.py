"""Merges the shards' indexes by feature into fewer, larger segments, while readers continue.

A merge is planned once, its parts are written independently and in parallel, and a manifest makes them visible. Their
contents depend only on the shards: two processes that merge the same write the same, and one manifest succeeds.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice, repeat, takewhile
from operator import mul

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.bucket import FETCH_THREADS, Bucket
from actstore_storage.errors import CorruptObject, NotThere
from actstore_storage.features.entries import COLUMNS, Entries
from actstore_storage.features.segments import (
    ClassCounts,
    Part,
    Segment,
    listed_segments,
)
from actstore_storage.features.sources import PART_ROWS, Sources, feature_ranges
from actstore_storage.format.blocks import aligned_blocks, holds_all, is_inside
from actstore_storage.format.keys import merge_folder, segment_key, segment_object_key, wanted_key
from actstore_storage.format.products import (
    SEGMENT_FORMAT,
    STATISTICS_FORMAT,
    TOKEN_COUNTS_FORMAT,
    ObjectFormat,
    ObjectRecord,
)
from actstore_storage.format.tokens import TOKEN_CLASSES, token_classes
from actstore_storage.parquet.writing import open_object
from actstore_storage.runs.feature_index import sorted_order
from actstore_storage.runs.opening import list_runs, open_run, read_record
from actstore_storage.runs.snapshot import Snapshot

# Shards that become one segment during a capture: this many smaller ones at a time.
FAN_IN = 16
# The most sources of a complete run's last merge: each part has to open all of them, so with more, whole blocks are
# merged before.
LAST_FAN_IN = 64


@dataclass(frozen=True)
class Merge:
    """A planned merge as plain values: parts are numbered, and each is a range of features."""

    run: str
    sae: str
    first_shard: int
    end_shard: int
    attempt: str
    features: tuple[tuple[int, int], ...]

    @property
    def shards(self) -> range:
        return range(self.first_shard, self.end_shard)


def plan_merges(snapshot: Snapshot, sae: str, attempt: str, part_rows: int = PART_ROWS) -> list[Merge]:
    """Plans the merges that would make reading cheaper: for a complete run one segment of everything, else whole blocks
    of shards.

    Smaller ones come first, and must be done first, because larger ones are made of them. `attempt` names the objects;
    two processes that plan at once use different ones.
    """
    planned = []
    for block in due_blocks(snapshot, sae):
        counts = Sources(snapshot, sae, block).counts
        ranges = tuple(feature_ranges(counts.count.sum(axis=1), part_rows))
        planned.append(Merge(snapshot.record.run, sae, block.start, block.stop, attempt, ranges))
    return planned


def due_blocks(snapshot: Snapshot, sae: str) -> list[range]:
    """The shards of each merge that is due. None: this snapshot's index needs no merge."""
    listed = listed_segments(snapshot.bucket, snapshot.record.run, sae)
    blocks = _blocks(snapshot, sae)
    return [block for block in blocks if not any(is_inside(block, other) for other in listed)]


def merge_part(bucket: Bucket, merge: Merge, number: int) -> Part:
    """Writes one part; it is not visible before `finish_merge`."""
    sources = Sources(open_run(bucket, merge.run), merge.sae, merge.shards)
    first, end = merge.features[number]
    if end == first + 1 and sources.count_of(first) > PART_ROWS:
        rows = sources.rows_in_order(first, PART_ROWS)
    else:
        feature, entries = sources.rows(first, end)
        order = _by_class(feature, entries)
        rows = iter([(feature[order], entries.take(order))])
    columns = (
        [pa.array(feature), *(pa.array(getattr(entries, name)) for name in COLUMNS)] for feature, entries in rows
    )
    return Part(first, end, _write(bucket, merge, f"part-{number:05d}", SEGMENT_FORMAT, columns))


def finish_merge(bucket: Bucket, merge: Merge, parts: Sequence[Part]) -> bool:
    """Makes a merge visible. True: it is the segment. False: another one exists, and these objects were removed."""
    snapshot = open_run(bucket, merge.run)
    sources = Sources(snapshot, merge.sae, merge.shards)
    segment = Segment(
        merge.run,
        merge.sae,
        snapshot.record.specification_sha256,
        merge.first_shard,
        merge.end_shard,
        tuple(parts),
        _write(bucket, merge, "statistics", STATISTICS_FORMAT, [_statistics_columns(sources.counts)]),
        _write(bucket, merge, "token-counts", TOKEN_COUNTS_FORMAT, [_token_columns(sources.token_counts())]),
    )
    won = bucket.put_if_absent(segment_key(merge.run, merge.sae, merge.shards), segment.to_json())
    if not won:
        for record in segment.objects:
            bucket.delete(record.key)
    return won


def abandon_merge(bucket: Bucket, merge: Merge) -> None:
    """Removes the objects of a merge that will not be finished."""
    for key in bucket.keys(merge_folder(merge.run, merge.sae, merge.shards, merge.attempt)):
        bucket.delete(key)


def runs_to_merge(bucket: Bucket, most: int) -> list[str]:
    """Names complete runs with an SAE whose features are not in one segment yet; in order of name, at most this many.

    It needs two small requests per run, and opens it if a segment is missing. Runs that are being captured are left
    out, and so are those that cannot be read, because opening them reports the error.
    """
    runs = list_runs(bucket)
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        lacking = list(pool.map(partial(_lacks_segment, bucket), runs))
    return list(islice((run for run, lacks in zip(runs, lacking, strict=True) if lacks and _rests(bucket, run)), most))


def _blocks(snapshot: Snapshot, sae: str) -> list[range]:
    """Smaller ones first."""
    total = snapshot.record.shards_total
    whole = [block for block in aligned_blocks(total, _sizes(total)) if holds_all(snapshot.shards, block)]
    if not snapshot.complete:
        return whole
    everything = range(total)
    if len(Sources(snapshot, sae, everything)) > LAST_FAN_IN:
        return list(dict.fromkeys([*whole, everything]))
    return [everything] if everything else []


def _sizes(total: int) -> Iterator[int]:
    """Sizes of blocks, in shards: FAN_IN to the power of 1, 2 and so on, up to `total`."""
    return takewhile(lambda size: size <= total, accumulate(repeat(FAN_IN), mul))


def _lacks_segment(bucket: Bucket, run: str) -> bool:
    try:
        record = read_record(bucket, run)
    except (NotThere, CorruptObject):
        return False
    everything = range(record.shards_total)
    saes = record.specification.saes
    return any(everything and everything not in listed_segments(bucket, run, sae.name) for sae in saes)


def _rests(bucket: Bucket, run: str) -> bool:
    """Whether it is complete and not being captured."""
    try:
        return not bucket.exists(wanted_key(run)) and open_run(bucket, run).complete
    except (NotThere, CorruptObject):
        return False


def _by_class(feature: npt.NDArray[np.int32], entries: Entries) -> npt.NDArray[np.int64]:
    """By feature, token class, activation descending; ties stay in their order."""
    number = np.zeros(len(entries), np.uint64)
    for place, mask in enumerate(token_classes(entries.flags).values()):
        number[mask] = place
    descending = np.uint64(0xFFFFFFFF) - entries.activation.view(np.uint32).astype(np.uint64)
    keys = (feature.astype(np.uint64) << np.uint64(34)) | (number << np.uint64(32)) | descending
    return sorted_order(keys, bits=34 + int(feature.max(initial=1)).bit_length())


def _write(
    bucket: Bucket, merge: Merge, name: str, layout: ObjectFormat, columns: Iterable[list[pa.Array]]
) -> ObjectRecord:
    key = segment_object_key(merge.run, merge.sae, merge.shards, merge.attempt, name)
    with ThreadPoolExecutor(1, "digest") as digester, open_object(bucket, key, layout, digester) as item:
        for rows in columns:
            item.write(rows)
        return item.finish(f"{merge.run}/{merge.sae}/{merge.first_shard:08d}-{merge.end_shard - 1:08d}/{name}")


def _statistics_columns(counts: ClassCounts) -> list[pa.Array]:
    feature, number = np.nonzero(counts.count)
    names = pa.array(TOKEN_CLASSES).take(pa.array(number))
    values = (counts.count, counts.maximum, counts.sum)
    return [pa.array(feature.astype(np.int32)), names, *(pa.array(value[feature, number]) for value in values)]


def _token_columns(by_class: dict[str, npt.NDArray[np.int64]]) -> list[pa.Array]:
    found = [(np.flatnonzero(counts), name, counts[counts > 0]) for name, counts in by_class.items()]
    names = [name for token, name, _ in found for _ in range(len(token))]
    token = np.concatenate([token for token, _, _ in found]).astype(np.int32)
    return [pa.array(token), pa.array(names, pa.string()), pa.array(np.concatenate([counts for *_, counts in found]))]
