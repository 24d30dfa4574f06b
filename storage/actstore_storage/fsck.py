"""Is everything in the bucket that the commits say, and nothing else?"""

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
from datasketches import kll_floats_sketch

from actstore_storage.bucket import Bucket
from actstore_storage.checkpoint import Checkpoint, Summary
from actstore_storage.commit import Commit, Moments, ObjectRecord
from actstore_storage.errors import CorruptObject
from actstore_storage.index_merge import due_blocks
from actstore_storage.index_segments import Segment, listed_segments, read_segment
from actstore_storage.kept import is_kept, read_kept, remove_kept, remove_unnamed, unnamed
from actstore_storage.layout import (
    KEPT,
    RUNS,
    checkpoint_sketches_key,
    data_folder,
    index_product,
    indexes_folder,
    kept_folder,
    kept_key,
    run_key,
    segment_key,
    wanted_key,
)
from actstore_storage.products import NORM_SKETCHES, NORMS, POSITIONS, TOKENS
from actstore_storage.runs import open_run, read_commit
from actstore_storage.sketches import NormSketches, Sketches, are_sketched, checkpoint_sketches
from actstore_storage.snapshot import Snapshot
from actstore_storage.specification import RunRecord

_READ_BYTES = 1 << 22
_OF_FEATURES = ("features-", "index-", "statistics-")
_THREADS = 8
# Of a checkpoint's mean and standard deviation, as a share of the largest value's size, and of its geometric mean, as a
# share of itself: sums in another order are off by some 2^-53 a shard, 7e-12 over the largest checkpoint. Counts and
# extremes are exact.
MERGE_TOLERANCE = 1e-9
_CHECKPOINT_AGAIN = "once it is removed, readers take the commits, which a capture of the run folds again"
_SKETCHES_AGAIN = "capturing the run again, which keeps its shards, merges theirs anew"

_Merged = Mapping[str, Mapping[str, Moments]]
_NUMBERS = attrgetter(*(field.name for field in fields(Moments)))


@dataclass(frozen=True)
class Finding:
    """`kind`: damaged (not as recorded), missing, orphan (named by no commit and no index, of an index whose shards a
    larger one holds, or of an answer that was kept and is not whole), unreadable, or removed.
    """

    kind: str
    key: str
    what: str


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
        return all(finding.kind in ("orphan", "removed") for finding in self.findings)


def check_runs(bucket: Bucket, run: str | None = None, *, quick: bool = False, remove_orphans: bool = False) -> Verdict:
    """One run, or all of them and the kept answers: checksums and row counts, checkpoints and their sketches of norms
    against commits, orphans.

    `quick` leaves out the checksums and row counts, which read every byte. What is left reads each commit twice, alone
    and in its checkpoint, and of each checkpoint the merged sketches, some 3 kB for each name of norms and token class;
    all commits of a run, and those of a checkpoint beside them, are in memory: with norms of every layer of a model of
    26 layers some 150 kB each. Orphans are removed only from runs that nobody is asked to capture, and of indexes only
    where no merge is due: those of work under way look the same.
    Errors: RUN_NOT_FOUND; StoreError.
    """
    verdicts = [_check_run(bucket, name, quick, remove_orphans) for name in ([run] if run else _runs(bucket))]
    answers = [] if run else bucket.folders(KEPT)
    kept = [found for sha256 in answers for found in _check_kept(bucket, sha256, quick, remove_orphans)]
    return Verdict(
        len(verdicts),
        sum(each.shards for each in verdicts),
        sum(each.objects for each in verdicts),
        sum(each.bytes for each in verdicts),
        (*(finding for each in verdicts for finding in each.findings), *kept),
    )


def _check_kept(bucket: Bucket, sha256: str, quick: bool, remove: bool) -> Iterator[Finding]:
    """An answer that is not whole is made again when it is asked for, so it takes space and does no harm."""
    if not bucket.keys(kept_folder(sha256)):
        return  # some stores show an emptied folder for a while
    if not (is_kept(bucket, sha256) if quick else read_kept(bucket, sha256)):
        what = "an answer that was kept, and is not whole"
        if remove:
            yield from (Finding("removed", key, what) for key in remove_kept(bucket, sha256))
        else:
            yield Finding("orphan", kept_key(sha256), what)
        return
    found = remove_unnamed(bucket, sha256) if remove else unnamed(bucket, sha256)
    yield from (Finding("removed" if remove else "orphan", key, "nothing names it") for key in found)


def _runs(bucket: Bucket) -> list[str]:
    """Whole or not; some stores show the folder of a run that was removed for a while."""
    return [name for name in bucket.folders(RUNS) if bucket.keys(f"{RUNS}/{name}")]


def _check_run(bucket: Bucket, run: str, quick: bool, remove_orphans: bool) -> Verdict:
    if not bucket.exists(run_key(run)) and bucket.keys(f"{RUNS}/{run}"):
        left = Finding("unreadable", run_key(run), "gone, and objects of the run are not: `actstore rm` ends that")
        return Verdict(1, 0, 0, 0, (left,))
    try:
        snapshot = open_run(bucket, run)
        commits = list(snapshot.commits)
    except CorruptObject as error:
        return Verdict(1, 0, 0, 0, (Finding("unreadable", error.details["value"], error.message),))
    findings: list[Finding] = []
    for checkpoint in snapshot.commits.checkpoints:
        findings += _check_checkpoint(bucket, snapshot.record, checkpoint)
    segments = _segments(snapshot, findings)
    owners: list[Commit | Segment] = [*commits, *segments.values()]
    items = [item for owner in owners for item in _objects(owner)]
    if not quick:
        with ThreadPoolExecutor(_THREADS) as pool:
            checked = pool.map(lambda item: list(_check_object(bucket, item)), items)
            findings += [found for part in checked for found in part]
        findings += [found for commit in commits for found in _check_rows(commit)]
        findings += [found for key, segment in segments.items() for found in _check_segment(snapshot, key, segment)]
    used = {key: segment for key, segment in segments.items() if not _is_superseded(segment, segments)}
    naming: list[Commit | Segment] = [*commits, *used.values()]
    named = {item.key for owner in naming for item in _objects(owner)} | set(used)
    findings += _orphans(snapshot, named, remove_orphans, findings)
    return Verdict(1, len(commits), len(items), sum(item.bytes for item in items), tuple(findings))


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
        failure = bucket.store_error(error) if isinstance(error, OSError) else None
        if failure is not None:
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
        try:
            own = read_commit(bucket, record, folded.shard)
        except KeyError:
            yield Finding("missing", checkpoint.key, f"the commit of shard {folded.shard}, which it holds")
        else:
            if own != folded:
                yield Finding("damaged", checkpoint.key, f"shard {folded.shard} is not as its commit")
    merged = merged_again(commits)
    for what in _unlike_commits(checkpoint, commits, merged):
        yield Finding("damaged", checkpoint.key, f"{what}; {_CHECKPOINT_AGAIN}")
    if are_sketched(commits, merged):
        yield from _check_sketches(bucket, record.run, checkpoint.shards, merged)


def merged_again(commits: Iterable[Commit]) -> _Merged:
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


def _unlike_commits(checkpoint: Checkpoint, commits: Sequence[Commit], merged: _Merged) -> Iterator[str]:
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


def _unlike_moments(told: _Merged, expected: _Merged) -> list[str]:
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


def _check_sketches(bucket: Bucket, run: str, shards: range, merged: _Merged) -> Iterator[Finding]:
    """They are there, can be read, and are of as many values as the commits tell of, with the same extremes."""
    key = checkpoint_sketches_key(run, shards)
    if not bucket.exists(key):
        yield Finding("missing", key, f"its shards all have sketches of norms, merged here; {_SKETCHES_AGAIN}")
        return
    try:
        found = checkpoint_sketches(bucket, run, shards, merged, list(merged))
    except CorruptObject as error:
        yield Finding("damaged", key, f"{error.message}; once it is removed, {_SKETCHES_AGAIN}")
        return
    unread = [name for name in merged if not found or not _is_decoded(name, found[name])]
    if unread:
        what = f"sketches of {len(unread)} of {len(merged)} names cannot be read: {unread[0]}"
        yield Finding("damaged", key, f"{what}; once it is removed, {_SKETCHES_AGAIN}")
    elif found:
        what = "least or largest values of sketches"
        unlike = _first_of(what, list(_unlike_extremes(found, merged)))
        yield from (Finding("damaged", key, f"{one}; once it is removed, {_SKETCHES_AGAIN}") for one in unlike)


def _unlike_extremes(found: Sketches, merged: _Merged) -> Iterator[str]:
    for name, classes in merged.items():
        for token_class, moments in classes.items():
            sketch = kll_floats_sketch.deserialize(found[name][token_class])
            own = sketch.get_min_value(), sketch.get_max_value()
            expected = np.float32(moments.minimum), np.float32(moments.maximum)
            for what, value, right in zip(("minimum", "maximum"), own, expected, strict=True):
                if value != right:
                    yield f"the {what} of {name} ({token_class}) is {value:.9g}, and of its commits {right:.9g}"


def _is_decoded(name: str, sketches: Mapping[str, bytes]) -> bool:
    """By the package that made them: a reader takes them apart by itself."""
    try:
        NormSketches([name]).merge({name: sketches})
    except (RuntimeError, ValueError, IndexError):
        return False
    return True


def _orphans(snapshot: Snapshot, named: set[str], remove: bool, found: list[Finding]) -> list[Finding]:
    bucket, run = snapshot.bucket, snapshot.record.run
    of_data = [key for key in bucket.keys(data_folder(run)) if key not in named]
    of_indexes = [key for key in bucket.keys(indexes_folder(run)) if key not in named]
    # Manifests first, so that no reader finds one whose objects are gone.
    of_indexes.sort(key=lambda key: not key.endswith(".json"))
    remove = remove and not any(finding.kind == "unreadable" for finding in found)
    captured = "the run is being captured" if bucket.exists(wanted_key(run)) else ""
    merged = captured or (
        "its index is not merged to the end" if remove and of_indexes and _merges_due(snapshot) else ""
    )
    return [
        *(_orphan(bucket, key, remove, captured) for key in of_data),
        *(_orphan(bucket, key, remove, merged) for key in of_indexes),
    ]


def _orphan(bucket: Bucket, key: str, remove: bool, working: str) -> Finding:
    if working:
        return Finding("orphan", key, f"nothing names it, and {working}: it may be under way")
    if not remove:
        return Finding("orphan", key, "nothing names it")
    bucket.delete(key)
    return Finding("removed", key, "nothing names it")


def _merges_due(snapshot: Snapshot) -> bool:
    return any(due_blocks(snapshot, sae.name) for sae in snapshot.record.specification.saes)
