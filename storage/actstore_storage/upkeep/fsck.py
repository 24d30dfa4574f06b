"""Is everything in the bucket that its records say, and nothing else? Of runs; the rest is in fsck_store.py."""

import hashlib
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from operator import attrgetter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket, told_apart
from actstore_storage.errors import CorruptObject, damaged
from actstore_storage.features.segments import Segment, listed_segments, read_segment
from actstore_storage.format.blocks import named_block
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import (
    RUNS,
    checkpoint_key,
    checkpoint_sketches_key,
    checkpoints_folder,
    commit_key,
    data_folder,
    index_product,
    indexes_folder,
    run_key,
    sae_products,
    segment_key,
    wanted_key,
)
from actstore_storage.format.moments import Moments, NormMoments
from actstore_storage.format.products import NORM_SKETCHES, NORMS, POSITIONS, TOKENS, ObjectRecord
from actstore_storage.format.sketches import NormSketches
from actstore_storage.format.specification import RunRecord
from actstore_storage.norms.sketches import are_sketched, checkpoint_sketches
from actstore_storage.runs.checkpoint import Checkpoint, Summary, smaller_checkpoints
from actstore_storage.runs.opening import open_run, read_commit
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.upkeep.fsck_store import Finding, check_beside_runs
from actstore_storage.upkeep.merging import due_blocks

_READ_BYTES = 1 << 22
_OF_FEATURES = ("features-", "index-", "statistics-")
_THREADS = 8
# Of a checkpoint's mean and standard deviation, as a share of the largest value's size, and of its geometric mean, as a
# share of itself: sums in another order are off by some 2^-53 a shard, 7e-12 over the largest checkpoint. Counts and
# extremes are exact.
MERGE_TOLERANCE = 1e-9
_CHECKPOINT_AGAIN = "once it is removed, readers take the commits, which a capture of the run folds again"
_COMMIT_AGAIN = "capturing the run again puts it back"
_SHARD_AGAIN = "once it is removed, capturing the run again captures the shard anew"
_SHARD_ANEW = "capturing the run again captures it anew"
_CHECKPOINT_ANEW = "readers take smaller ones and commits, which capturing the run again folds"
_SKETCHES_AGAIN = "capturing the run again, which keeps its shards, merges theirs anew"

_NUMBERS = attrgetter(*(field.name for field in fields(Moments)))


@dataclass(frozen=True)
class Verdict:
    """What was looked at, and what is wrong with it."""

    runs: int
    shards: int
    objects: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Orphans take space and do no harm."""
        return all(finding.kind in ("orphan", "unknown", "removed") for finding in self.findings)


def check_runs(bucket: Bucket, run: str | None = None, *, quick: bool = False, remove_orphans: bool = False) -> Verdict:
    """One run, or all that is in the bucket: records against their hashes, checksums and row counts, checkpoints and
    their sketches of norms against commits, commits that are gone, orphans, keys that are not ours; of the whole bucket
    also models, tokens' texts, SAEs and their files, trainings, wanted captures and kept answers.

    `quick` leaves out the checksums and row counts, which read every byte. What is left reads each commit twice, alone
    and in its checkpoint, and of each checkpoint the merged sketches, some 3 kB for each name of norms and token class;
    all commits of a run, and those of a checkpoint beside them, are in memory: with norms of every layer of a model of
    26 layers some 150 kB each. Orphans are removed only from runs that nobody is asked to capture, and of indexes only
    where no merge is due: those of work under way look the same.
    Errors: RUN_NOT_FOUND; StoreError.
    """
    records: list[RunRecord] = []
    names = [run] if run else _runs(bucket)
    verdicts = [_check_run(bucket, name, quick, remove_orphans, records) for name in names]
    beside = () if run else tuple(check_beside_runs(bucket, records, quick, remove_orphans))
    return Verdict(
        len(verdicts),
        sum(each.shards for each in verdicts),
        sum(each.objects for each in verdicts),
        sum(each.bytes for each in verdicts),
        (*(finding for each in verdicts for finding in each.findings), *beside),
    )


def _runs(bucket: Bucket) -> list[str]:
    """Whole or not; some stores show the folder of a run that was removed for a while."""
    return [name for name in bucket.folders(RUNS) if bucket.keys(f"{RUNS}/{name}")]


def _check_run(bucket: Bucket, run: str, quick: bool, remove_orphans: bool, records: list[RunRecord]) -> Verdict:
    """`records`: gets the run's, where it can be read."""
    keys = bucket.keys(f"{RUNS}/{run}")
    if keys and run_key(run) not in keys:
        left = Finding("unreadable", run_key(run), "gone, and objects of the run are not: `actstore rm` ends that")
        return Verdict(1, 0, 0, 0, (left,))
    unreadable: list[CorruptObject] = []
    try:
        snapshot = open_run(bucket, run, unreadable)
    except CorruptObject as error:
        return Verdict(1, 0, 0, 0, (Finding("unreadable", error.details["value"], error.message),))
    commits = list(snapshot.commits)
    records.append(snapshot.record)
    findings = [Finding("unreadable", error.details["value"], _remedied(error, run)) for error in unreadable]
    findings += _check_record(snapshot, commits)
    findings += _check_checkpoints(snapshot, commits)
    segments = _segments(snapshot, findings)
    owners: list[Commit | Segment] = [*commits, *segments.values()]
    items = [item for owner in owners for item in _objects(owner)]
    if not quick:
        findings += _check_contents(snapshot, commits, segments, items)
    used = {key: segment for key, segment in segments.items() if not _is_superseded(segment, segments)}
    naming: list[Commit | Segment] = [*commits, *used.values()]
    named = {item.key for owner in naming for item in _objects(owner)} | set(used)
    findings += _orphans(snapshot, [key for key in keys if key not in named], remove_orphans, findings)
    return Verdict(1, len(commits), len(items), sum(item.bytes for item in items), tuple(dict.fromkeys(findings)))


def _check_contents(
    snapshot: Snapshot, commits: Sequence[Commit], segments: Mapping[str, Segment], items: Sequence[ObjectRecord]
) -> Iterator[Finding]:
    """What reads every byte."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(lambda item: list(_check_object(snapshot.bucket, item)), items):
            yield from found
    for commit in commits:
        yield from _check_rows(commit)
    for key, segment in segments.items():
        yield from _check_segment(snapshot, key, segment)


def _remedied(error: CorruptObject, run: str) -> str:
    if error.details["value"].startswith(f"{checkpoints_folder(run)}/"):
        return f"{error.message}; {_CHECKPOINT_AGAIN}"
    return f"{error.message}; {_SHARD_AGAIN}"


def _check_record(snapshot: Snapshot, commits: Sequence[Commit]) -> Iterator[Finding]:
    """What it says of sequences and tokens is what its shards have: records of before they had hashes may be wrong."""
    record = snapshot.record
    for commit in commits:
        expected = len(record.shard_sequences(commit.shard))
        if commit.sequences != expected:
            what = f"shard {commit.shard} has {commit.sequences} sequences, and by the run's record {expected}"
            yield Finding("damaged", run_key(record.run), what)
            return
    tokens = sum(commit.tokens for commit in commits)
    if snapshot.complete and tokens != record.tokens_total:
        what = f"it says {record.tokens_total} tokens, and its shards have {tokens}"
        yield Finding("damaged", run_key(record.run), what)


def _check_checkpoints(snapshot: Snapshot, commits: Sequence[Commit]) -> Iterator[Finding]:
    for checkpoint in snapshot.commits.checkpoints:
        yield from _check_checkpoint(snapshot.bucket, snapshot.record, checkpoint)
    by_shard = {commit.shard: commit for commit in commits}
    read = [checkpoint.shards for checkpoint in snapshot.commits.checkpoints]
    for smaller in smaller_checkpoints(snapshot.bucket, snapshot.record, read):
        if isinstance(smaller, CorruptObject):
            yield Finding("orphan", smaller.details["value"], f"{smaller.message}; a larger one holds its shards")
            continue
        try:
            folded = list(smaller.commits(smaller.shards.start, smaller.shards.stop))
            unlike = [commit for commit in folded if commit != by_shard.get(commit.shard)]
            checkpoint_sketches(snapshot.bucket, snapshot.record, smaller.shards, smaller.summary.norm_moments)
        except CorruptObject as error:
            yield Finding("orphan", error.details["value"], f"{error.message}; a larger one holds its shards")
            continue
        if unlike:
            yield Finding("orphan", smaller.key, f"shard {unlike[0].shard} is not as its commit; a larger one holds it")


def _objects(owner: Commit | Segment) -> list[ObjectRecord]:
    return owner.objects if isinstance(owner, Segment) else list(owner.objects.values())


def _segments(snapshot: Snapshot, findings: list[Finding]) -> dict[str, Segment]:
    """The run's merged indexes, by the keys of their manifests."""
    run, found = snapshot.record.run, {}
    for sae in snapshot.record.specification.saes:
        for shards in listed_segments(snapshot.bucket, run, sae.name):
            key = segment_key(run, sae.name, shards)
            try:
                found[key] = read_segment(snapshot, sae.name, shards)
            except CorruptObject as error:
                findings.append(Finding("unreadable", key, error.message))
    return found


def _is_superseded(segment: Segment, segments: dict[str, Segment]) -> bool:
    shards = segment.shards
    larger = (other.shards for other in segments.values() if other.sae == segment.sae and other.shards != shards)
    return any(other.start <= shards.start and shards.stop <= other.stop for other in larger)


def _check_segment(snapshot: Snapshot, key: str, segment: Segment) -> Iterator[Finding]:
    """It has as many rows as its shards' own indexes."""
    merged = sum(part.object.rows for part in segment.parts)
    product = index_product(segment.sae)
    shards = sum(commit.objects[product].rows for commit in snapshot.commits.of_shards(segment.shards))
    if merged != shards:
        yield Finding("damaged", key, f"it has {merged} rows, and its shards' indexes {shards}")


def _check_object(bucket: Bucket, item: ObjectRecord) -> Iterator[Finding]:
    digest = hashlib.sha256()
    try:
        with bucket.open(item.key) as source:
            size = source.size()
            while chunk := source.read(_READ_BYTES):
                digest.update(chunk)
            if size != item.bytes or digest.hexdigest() != item.sha256:
                yield Finding("damaged", item.key, f"it has {size} bytes of another SHA-256 than its commit says")
                return
            source.seek(0)
            rows = pq.ParquetFile(source).metadata.num_rows
    except KeyError:
        yield Finding("missing", item.key, "its commit names it")
    except (pa.ArrowException, OSError) as error:
        failure = told_apart(bucket, error, damaged(item.key, error))
        if not isinstance(failure, CorruptObject):
            raise failure from error
        yield Finding("damaged", item.key, str(error).strip())
    else:
        if rows != item.rows:
            yield Finding("damaged", item.key, f"it has {rows} rows, and its commit says {item.rows}")


def _check_rows(commit: Commit) -> Iterator[Finding]:
    """Tokens, norms and dense rows are of the same tokens."""
    dense = commit.objects[POSITIONS].rows if POSITIONS in commit.objects else commit.tokens
    for product, item in commit.objects.items():
        if product in (TOKENS, NORMS):
            expected = commit.tokens
        elif product in (POSITIONS, NORM_SKETCHES) or product.startswith(_OF_FEATURES):
            continue
        else:
            expected = dense
        if item.rows != expected:
            yield Finding("damaged", item.key, f"it has {item.rows} rows, and its shard {expected} tokens")


def _check_checkpoint(bucket: Bucket, record: RunRecord, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Its commits are the shards', and what it says of them together is what they say, and so are merged sketches."""
    commits = list(checkpoint.commits(checkpoint.shards.start, checkpoint.shards.stop))
    for folded in commits:
        key = commit_key(record.run, folded.shard)
        try:
            own = read_commit(bucket, record, folded.shard)
        except KeyError:
            yield Finding("missing", key, f"{checkpoint.key} holds it, and readers have it from there; {_COMMIT_AGAIN}")
        except CorruptObject as error:
            what = f"{error.message}; {checkpoint.key} holds it: once it is removed, {_COMMIT_AGAIN}"
            yield Finding("unreadable", key, what)
        else:
            if own != folded:
                yield Finding("damaged", checkpoint.key, f"shard {folded.shard} is not as its commit")
    merged = merged_again(commits)
    for what in _unlike_commits(checkpoint, commits, merged):
        yield Finding("damaged", checkpoint.key, f"{what}; {_CHECKPOINT_AGAIN}")
    if are_sketched(commits, merged):
        yield from _check_sketches(bucket, record, checkpoint.shards, merged)


def merged_again(commits: Iterable[Commit]) -> NormMoments:
    """Their moments of norms, by name and token class, not by Moments.merge: the mean of all first, then the squares
    of all distances from it, those between shards beside those within (the sums of squares of an analysis of variance).
    """
    found: dict[str, dict[str, array[float]]] = {}
    for commit in commits:
        for name, classes in commit.norm_moments.items():
            of_name = found.setdefault(name, defaultdict(lambda: array("d")))
            for token_class, moments in classes.items():
                of_name[token_class].extend(_NUMBERS(moments))
    return {name: {kept: _merged(parts) for kept, parts in classes.items()} for name, classes in found.items()}


def _merged(parts: "array[float]") -> Moments:
    counts, means, m2, minima, maxima, log_sums = np.frombuffer(parts).reshape(-1, 6).T
    count, first = counts.sum(), means[0]
    mean = first + counts @ (means - first) / count
    total = m2.sum() + counts @ np.square(means - mean)
    numbers = (float(one) for one in (mean, total, minima.min(), maxima.max(), log_sums.sum()))
    return Moments(int(count), *numbers)


def _unlike_commits(checkpoint: Checkpoint, commits: Sequence[Commit], merged: NormMoments) -> Iterator[str]:
    """What the checkpoint says of its commits that they do not."""
    summary, expected = checkpoint.summary, [Summary.of(commit) for commit in commits]
    if checkpoint.tokens.tolist() != [commit.tokens for commit in commits]:
        yield "its shards' numbers of tokens are not their commits'"
    for field in ("tokens_by_class", "non_finite"):
        total: Counter[str] = sum((Counter(getattr(one, field)) for one in expected), Counter())
        yield from _first_of(field, _unequal(getattr(summary, field), total))
    for field in dict.fromkeys(field for one in (summary, *expected) for field in one.how):
        values = summary.how.get(field, ())
        told = tuple(dict.fromkeys(value for one in expected for value in one.how.get(field, ())))
        if values != told:
            yield f"its {field} is {', '.join(values) or 'not told'}, and its commits' {', '.join(told)}"
    yield from _first_of("statistics of norms", _unlike_moments(summary.norm_moments, merged))


def _unequal(told: Mapping[str, int], expected: Mapping[str, int]) -> list[str]:
    """A name that has none may be left out."""
    names = [name for name in {**expected, **told} if told.get(name, 0) != expected.get(name, 0)]
    return [f"{name} has {told.get(name, 0)}, and in its commits {expected.get(name, 0)}" for name in names]


def _unlike_moments(told: NormMoments, expected: NormMoments) -> list[str]:
    """A sentence for each name and token class, of the first number that differs."""
    found = []
    for name in {**expected, **told}:
        own, other = told.get(name, {}), expected.get(name, {})
        for token_class in {**other, **own}:
            pair = own.get(token_class, Moments()), other.get(token_class, Moments())
            for what, value, right, allowed in _compared(*pair):
                if value != right and not abs(value - right) <= allowed:  # both may be minus infinity
                    found.append(
                        f"the {what} of {name} ({token_class}) is {value:.17g}, and of its commits {right:.17g}"
                    )
                    break
    return found


def _compared(told: Moments, expected: Moments) -> Iterator[tuple[str, float, float, float]]:
    """What it is, both numbers, and by how much these may differ. Of no values there is nothing but their count."""
    yield "count", told.count, expected.count, 0
    if not expected.count:
        return
    yield "minimum", told.minimum, expected.minimum, 0
    yield "maximum", told.maximum, expected.maximum, 0
    allowed = MERGE_TOLERANCE * max(abs(expected.minimum), abs(expected.maximum))
    yield "mean", told.mean, expected.mean, allowed
    told_deviation, deviation = (math.sqrt(max(0.0, one.variance)) for one in (told, expected))
    yield "standard deviation", told_deviation, deviation, allowed
    yield "log_sum", told.log_sum, expected.log_sum, MERGE_TOLERANCE * expected.count


def _first_of(what: str, found: Sequence[str]) -> Iterator[str]:
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        yield f"its {what} are not its commits': {found[0]}{more}"


def _check_sketches(bucket: Bucket, record: RunRecord, shards: range, merged: NormMoments) -> Iterator[Finding]:
    """They are there, and can be read: of as many values as the commits tell of, with the same extremes."""
    key = checkpoint_sketches_key(record.run, shards)
    if not bucket.exists(key):
        yield Finding("missing", key, f"its shards all have sketches of norms, merged here; {_SKETCHES_AGAIN}")
        return
    try:
        found = checkpoint_sketches(bucket, record, shards, merged)
    except CorruptObject as error:
        yield Finding("damaged", key, f"{error.message}; once it is removed, {_SKETCHES_AGAIN}")
        return
    unread = [name for name in merged if not found or not _is_decoded(name, found[name])]
    if unread:
        what = f"sketches of {len(unread)} of {len(merged)} names cannot be read: {unread[0]}"
        yield Finding("damaged", key, f"{what}; once it is removed, {_SKETCHES_AGAIN}")


def _is_decoded(name: str, sketches: Mapping[str, bytes]) -> bool:
    """By the package that made them: a reader takes them apart by itself."""
    try:
        NormSketches([name]).merge({name: sketches})
    except ValueError:
        return False
    return True


def _orphans(snapshot: Snapshot, unnamed: Sequence[str], remove: bool, found: Sequence[Finding]) -> list[Finding]:
    """Of the run's keys, those that no commit and no index names, and what they tell."""
    bucket, run = snapshot.bucket, snapshot.record.run
    unreadable = {finding.key for finding in found if finding.kind == "unreadable"}
    of_data = [key for key in unnamed if key.startswith(f"{data_folder(run)}/")]
    of_indexes = [key for key in unnamed if key.startswith(f"{indexes_folder(run)}/")]
    others = [key for key in unnamed if not key.startswith((f"{data_folder(run)}/", f"{indexes_folder(run)}/"))]
    # Manifests first, so that no reader finds one whose objects are gone.
    of_indexes.sort(key=lambda key: not key.endswith(".json"))
    captured = "the run is being captured" if bucket.exists(wanted_key(run)) else ""
    gone = [] if captured else _gone_commits(snapshot, of_data, found)
    may_be_named = {finding.key for finding in gone} | unreadable
    of_data = [key for key in of_data if commit_key(run, _shard_of(key)) not in may_be_named]
    remove = remove and not unreadable
    merged = captured or (
        "its index is not merged to the end" if remove and of_indexes and _merges_due(snapshot) else ""
    )
    return [
        *gone,
        *(_orphan(bucket, key, remove, captured) for key in of_data),
        *(_orphan(bucket, key, remove, merged) for key in of_indexes if key not in unreadable),
        *_unknown_keys(snapshot, others),
    ]


def _gone_commits(snapshot: Snapshot, of_data: Sequence[str], found: Sequence[Finding]) -> list[Finding]:
    """Commits that something else tells of: an index of their shards, or a whole attempt at one.

    A checkpoint of a shard tells, too, and its reader has the commit from there.
    """
    run, there = snapshot.record.run, set(snapshot.shards.tolist())
    told = {finding.key for finding in found}
    gone: dict[int, str] = {}
    for sae in snapshot.record.specification.saes:
        for shards in listed_segments(snapshot.bucket, run, sae.name):
            gone |= {shard: segment_key(run, sae.name, shards) for shard in shards if shard not in there}
    expected = _products(snapshot.record)
    attempts: dict[str, set[str]] = defaultdict(set)
    for key in of_data:
        folder, _, name = key.rpartition("/")
        attempts[folder].add(name.removesuffix(".parquet"))
    for folder, products in attempts.items():
        shard = _shard_of(f"{folder}/")
        if shard not in there and shard < snapshot.record.shards_total and expected <= products:
            gone.setdefault(shard, folder)
    return [
        Finding("missing", key, f"{gone[shard]} holds the shard, whose commit is gone or was never made; {_SHARD_ANEW}")
        for shard in sorted(gone)
        if (key := commit_key(run, shard)) not in told
    ]


def _products(record: RunRecord) -> set[str]:
    """What each attempt at a shard of the run writes, whatever the model."""
    asked = record.specification
    if asked.rows_of:  # of SAEs that the other run had, nothing lies here, and the last is one that it had not
        return set(sae_products(asked.saes[-1].name))
    return {TOKENS, *asked.dense_sites, *(product for sae in asked.saes for product in sae_products(sae.name))}


def _shard_of(key: str) -> int:
    """Of a key below `data/`; -1 for what no attempt writes."""
    digits = key.split("/")[3].partition("-")[0]
    return int(digits) if digits.isdigit() else -1


def _unknown_keys(snapshot: Snapshot, keys: Sequence[str]) -> Iterator[Finding]:
    run, shards, there = snapshot.record.run, snapshot.record.shards_total, set(keys)
    for key in keys:
        name = key.rpartition("/")[2]
        stem = name.partition(".")[0]
        if key == run_key(run):
            continue
        if stem.isdigit() and int(stem) < shards and key == commit_key(run, int(stem)):
            continue
        block = named_block(stem)
        if block is not None and block.stop <= shards:
            if key == checkpoint_key(run, block):
                continue
            if key == checkpoint_sketches_key(run, block):
                if checkpoint_key(run, block) not in there:
                    yield Finding("orphan", key, f"the checkpoint beside it is gone: {_CHECKPOINT_ANEW}")
                continue
        yield Finding("unknown", key, "actstore writes nothing under such a name")


def _orphan(bucket: Bucket, key: str, remove: bool, working: str) -> Finding:
    if working:
        return Finding("orphan", key, f"nothing names it, and {working}: it may be under way")
    if not remove:
        return Finding("orphan", key, "nothing names it")
    bucket.delete(key)
    return Finding("removed", key, "nothing names it")


def _merges_due(snapshot: Snapshot) -> bool:
    return any(due_blocks(snapshot, sae.name) for sae in snapshot.record.specification.saes)
