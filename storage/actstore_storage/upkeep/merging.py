"""Merging the shards' by-feature indexes into fewer, larger segments, while readers go on.

A merge is planned once, its parts are written independently, side by side, and a manifest makes them visible. What they
hold is a function of the shards alone: two who merge the same write the same, and one manifest stands.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.bucket import FETCH_THREADS, Bucket
from actstore_storage.errors import CorruptObject, NotThere
from actstore_storage.features.entries import COLUMNS, Entries
from actstore_storage.features.ranking import Ranking, SortedRun
from actstore_storage.features.reader import FeatureReader, ShardFeature, rows_of_feature, shard_statistics, with_tokens
from actstore_storage.features.segments import (
    ClassCounts,
    Part,
    Segment,
    SegmentReader,
    chosen_segments,
    listed_segments,
)
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import index_product, merge_folder, segment_key, segment_object_key, wanted_key
from actstore_storage.format.products import (
    SEGMENT_FORMAT,
    STATISTICS_FORMAT,
    TOKEN_COUNTS_FORMAT,
    ObjectFormat,
    ObjectRecord,
)
from actstore_storage.format.tokens import TOKEN_CLASSES, numbers_of_names, token_classes
from actstore_storage.parquet.reading import open_product, open_record
from actstore_storage.parquet.writing import open_object
from actstore_storage.rows.reading import shard_tokens
from actstore_storage.runs.feature_index import sorted_order
from actstore_storage.runs.opening import list_runs, open_run, read_record
from actstore_storage.runs.snapshot import Snapshot

# Shards that become one segment while a run is being captured: of so many smaller ones at a time.
FAN_IN = 16
# What a complete run's last merge is made of at most: of more sources, each part would open all of them, so that whole
# blocks are merged before.
LAST_FAN_IN = 64
# Nonzeros of one part, which is sorted in memory: some 100 bytes each. A feature that has more is a part by itself, and
# is merged in pieces of so many.
PART_ROWS = 1 << 21


@dataclass(frozen=True)
class Merge:
    """What is to be merged, in words that travel: parts are numbered, and each is a range of features."""

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
    """What would make reading cheaper now: of a complete run one segment of everything, else whole blocks of shards.

    Smaller ones come first, and are to be done first: larger ones are made of them. `attempt` names the objects; two
    who plan at once take different ones.
    """
    planned = []
    for block in due_blocks(snapshot, sae):
        counts = Sources(snapshot, sae, block).counts
        ranges = tuple(feature_ranges(counts.count.sum(axis=1), part_rows))
        planned.append(Merge(snapshot.record.run, sae, block.start, block.stop, attempt, ranges))
    return planned


def due_blocks(snapshot: Snapshot, sae: str) -> list[range]:
    """The shards of each merge that is due. None: this snapshot's index is as good as it gets."""
    listed = listed_segments(snapshot.bucket, snapshot.record.run, sae)
    blocks = _blocks(snapshot, sae)
    return [block for block in blocks if not any(_is_inside(block, other) for other in listed)]


def merge_part(bucket: Bucket, merge: Merge, number: int) -> Part:
    """Writes one part; nobody sees it before `finish_merge`."""
    sources = Sources(open_run(bucket, merge.run), merge.sae, merge.shards)
    first, end = merge.features[number]
    if end == first + 1 and sources.count_of(first) > PART_ROWS:
        rows = sources.rows_in_order(first)
    else:
        feature, entries = sources.rows(first, end)
        order = _by_class(feature, entries)
        rows = iter([(feature[order], entries.take(order))])
    columns = (
        [pa.array(feature), *(pa.array(getattr(entries, name)) for name in COLUMNS)] for feature, entries in rows
    )
    return Part(first, end, _write(bucket, merge, f"part-{number:05d}", SEGMENT_FORMAT, columns))


def finish_merge(bucket: Bucket, merge: Merge, parts: Sequence[Part]) -> bool:
    """True: this merge is the segment. False: another one stands, and these objects are gone."""
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
    """Removes what was written of a merge that nobody will finish."""
    for key in bucket.keys(merge_folder(merge.run, merge.sae, merge.shards, merge.attempt)):
        bucket.delete(key)


def runs_to_merge(bucket: Bucket, most: int) -> list[str]:
    """Complete runs of which some SAE's features are not yet one segment; in order of name, at most so many.

    Two small requests a run, and its opening where a segment is missing. Runs that are being captured are left out, and
    so are those that cannot be read: whoever opens one is told.
    """
    runs = list_runs(bucket)
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        lacking = list(pool.map(partial(_lacks_segment, bucket), runs))
    return list(islice((run for run, lacks in zip(runs, lacking, strict=True) if lacks and _rests(bucket, run)), most))


def merge_index(bucket: Bucket, run: str, sae: str, attempt: str, part_rows: int = PART_ROWS) -> int:
    """Every merge that is due, here and now, one part after another; answers how many segments were written."""
    done = 0
    while merges := plan_merges(open_run(bucket, run), sae, f"{attempt}-{done}", part_rows):
        for merge in merges:
            done += finish_merge(bucket, merge, [merge_part(bucket, merge, i) for i in range(len(merge.features))])
    return done


def token_counts(snapshot: Snapshot, sae: str) -> dict[str, npt.NDArray[np.int64]]:
    """By token class: how often each token id occurs in the snapshot's text."""
    reader = FeatureReader(snapshot, sae)
    found = _TokenCounts()
    for segment in reader.segments:
        found.add_segment(snapshot.bucket, segment.segment)
    for commit in reader.loose:
        found.add_shard(snapshot, commit)
    return found.by_class


class Sources:
    """What a range of shards is made of now: the largest segments inside it, and its other shards."""

    def __init__(self, snapshot: Snapshot, sae: str, shards: range) -> None:
        self._snapshot, self._sae = snapshot, sae
        d_sae = snapshot.sae(sae).d_sae
        inside = [segment for segment in chosen_segments(snapshot, sae) if _is_inside(segment.shards, shards)]
        held = [segment.shards for segment in inside]
        loose = [one for one in snapshot.commits.of_shards(shards) if not any(one.shard in block for block in held)]
        found: list[SegmentReader | Commit] = [SegmentReader(snapshot.bucket, segment, d_sae) for segment in inside]
        # In order of shard, so that a stable sort leaves ties in order of sequence.
        self._sources = sorted([*found, *loose], key=_first_shard)
        self._d_sae = d_sae

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def counts(self) -> ClassCounts:
        found = ClassCounts.none(self._d_sae)
        for source in self._sources:
            if isinstance(source, Commit):
                found.add(shard_statistics(self._snapshot, source, self._sae))
            else:
                found.count[:] += source.counts.count
                found.sum[:] += source.counts.sum
                np.maximum(found.maximum, source.counts.maximum, out=found.maximum)
        return found

    def rows(self, first: int, end: int) -> tuple[npt.NDArray[np.int32], Entries]:
        """Of features `first` to before `end`: each row's feature, and the rows; by source."""
        parts = [self._rows_of(source, first, end) for source in self._sources]
        feature = np.concatenate([np.empty(0, np.int32), *(feature for feature, _ in parts)])
        return feature, Entries.concatenated([entries for _, entries in parts])

    def count_of(self, feature: int) -> int:
        return sum(run.count for _, run in self._runs(feature))

    def rows_in_order(self, feature: int) -> Iterator[tuple[npt.NDArray[np.int32], Entries]]:
        """Of one feature, as a part has them; a piece at a time, where all would not fit into memory."""
        runs = self._runs(feature)
        for number in range(len(TOKEN_CLASSES)):
            ranking = Ranking([run for its, run in runs if its == number])
            for entries in ranking.chunks(0.0, PART_ROWS):
                yield np.full(len(entries), feature, np.int32), entries

    def token_counts(self) -> dict[str, npt.NDArray[np.int64]]:
        found = _TokenCounts()
        for source in self._sources:
            if isinstance(source, Commit):
                found.add_shard(self._snapshot, source)
            else:
                found.add_segment(self._snapshot.bucket, source.segment)
        return found.by_class

    def _runs(self, feature: int) -> list[tuple[int, SortedRun]]:
        found: list[tuple[int, SortedRun]] = []
        for source in self._sources:
            if isinstance(source, Commit):
                found += ShardFeature(self._snapshot, source, self._sae, feature).runs()
            else:
                found += source.runs(feature)
        return found

    def _rows_of(self, source: "SegmentReader | Commit", first: int, end: int) -> tuple[npt.NDArray[np.int32], Entries]:
        bucket = self._snapshot.bucket
        if isinstance(source, Commit):
            with open_product(bucket, source, index_product(self._sae)) as file:
                found = rows_of_feature(file, first, end)
            return found["feature"].to_numpy(), with_tokens(found, shard_tokens(bucket, source))
        tables = []
        for part in source.segment.parts:
            if part.first_feature < end and first < part.end_feature:
                with open_record(bucket, part.object, source.segment.owner) as file:
                    tables.append(rows_of_feature(file, first, end))
        table = pa.concat_tables(tables)
        return table["feature"].to_numpy(), Entries(*(table[name].to_numpy() for name in COLUMNS))


class _TokenCounts:
    def __init__(self) -> None:
        self.by_class = {name: np.zeros(0, np.int64) for name in TOKEN_CLASSES}

    def add_shard(self, snapshot: Snapshot, commit: Commit) -> None:
        tokens = shard_tokens(snapshot.bucket, commit)
        for name, mask in token_classes(tokens["flags"].to_numpy()).items():
            self._add(name, np.bincount(tokens["token"].to_numpy()[mask]))

    def add_segment(self, bucket: Bucket, segment: Segment) -> None:
        with open_record(bucket, segment.token_counts, segment.owner) as file:
            table = file.read()
        number = numbers_of_names(table["token_class"].to_numpy())
        token, count = table["token"].to_numpy(), table["count"].to_numpy()
        for place, name in enumerate(TOKEN_CLASSES):
            here = number == place
            if here.any():
                self._add(name, np.bincount(token[here], count[here]).astype(np.int64))

    def _add(self, name: str, counts: npt.NDArray[np.int64]) -> None:
        held = self.by_class[name]
        size = max(len(held), len(counts))
        self.by_class[name] = np.pad(held, (0, size - len(held))) + np.pad(counts, (0, size - len(counts)))


def _blocks(snapshot: Snapshot, sae: str) -> list[range]:
    """Smaller ones first."""
    everything = range(snapshot.record.shards_total)
    if not snapshot.complete:
        return _whole_blocks(snapshot)
    if len(Sources(snapshot, sae, everything)) > LAST_FAN_IN:
        return list(dict.fromkeys([*_whole_blocks(snapshot), everything]))
    return [everything] if everything else []


def _whole_blocks(snapshot: Snapshot) -> list[range]:
    blocks, size, total = [], FAN_IN, snapshot.record.shards_total
    while size <= total:
        for start in range(0, total - size + 1, size):
            first, last = np.searchsorted(snapshot.shards, [start, start + size])
            if last - first == size:
                blocks.append(range(start, start + size))
        size *= FAN_IN
    return blocks


def _lacks_segment(bucket: Bucket, run: str) -> bool:
    try:
        record = read_record(bucket, run)
    except (NotThere, CorruptObject):
        return False
    everything = range(record.shards_total)
    saes = record.specification.saes
    return any(everything and everything not in listed_segments(bucket, run, sae.name) for sae in saes)


def _rests(bucket: Bucket, run: str) -> bool:
    """Whether it is complete, and nobody captures it."""
    try:
        return not bucket.exists(wanted_key(run)) and open_run(bucket, run).complete
    except (NotThere, CorruptObject):
        return False


def feature_ranges(counts: npt.NDArray[np.int64], part_rows: int) -> list[tuple[int, int]]:
    """Stretches of features with about `part_rows` nonzeros; a feature lies in one part, however large."""
    ends = np.cumsum(counts)
    ranges, first, d_sae = [], 0, len(counts)
    while first < d_sae:
        before = int(ends[first - 1]) if first else 0
        end = min(d_sae, max(first + 1, int(np.searchsorted(ends, before + part_rows, side="right"))))
        ranges.append((first, end))
        first = end
    return ranges


def _by_class(feature: npt.NDArray[np.int32], entries: Entries) -> npt.NDArray[np.int64]:
    """By feature, token class, activation descending; ties stay as they came."""
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


def _is_inside(inner: range, outer: range) -> bool:
    return inner.start >= outer.start and inner.stop <= outer.stop


def _first_shard(source: "SegmentReader | Commit") -> int:
    return source.shard if isinstance(source, Commit) else source.segment.first_shard
