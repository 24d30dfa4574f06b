"""Checks a whole bucket: whether everything exists as its records say, and nothing else."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket, told_apart
from actstore_storage.errors import CorruptObject, damaged
from actstore_storage.features.segments import Segment, listed_segments, read_segment
from actstore_storage.format.blocks import is_inside
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import (
    RUNS,
    checkpoints_folder,
    index_product,
    run_key,
    segment_key,
)
from actstore_storage.format.products import NORM_SKETCHES, NORMS, POSITIONS, TOKENS, ObjectRecord
from actstore_storage.format.specification import RunRecord
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.upkeep.fsck.beside_runs import check_beside_runs
from actstore_storage.upkeep.fsck.checkpoints import CHECKPOINT_AGAIN, check_checkpoints
from actstore_storage.upkeep.fsck.finding import Finding, Verdict
from actstore_storage.upkeep.fsck.orphans import check_unnamed

_READ_BYTES = 1 << 22
_OF_FEATURES = ("features-", "index-", "statistics-")
_THREADS = 8
_SHARD_AGAIN = "remove it and capture the run again to capture this shard again"


def check_runs(bucket: Bucket, run: str | None = None, *, quick: bool = False, remove_orphans: bool = False) -> Verdict:
    """Checks one run, or everything in the bucket: records against their hashes, checksums and row counts, checkpoints
    and their norm sketches against commits, missing commits, orphans, unknown keys; for the whole bucket also models,
    token texts, SAEs and their files, trainings, requested captures and cached answers.

    `quick` omits the checksums and row counts, which read every byte. The rest reads each commit twice, alone and in
    its checkpoint, and for each checkpoint the merged sketches, about 3 kB for each name of norms and token class. All
    commits of a run, and those of a checkpoint, are in memory: with norms of every layer of a model with 26 layers
    about 150 kB each. Orphans are removed only from runs without a capture request, and from indexes only if no merge
    is due: unfinished work looks the same. Errors: RUN_NOT_FOUND; StoreError.
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
    """Complete or not; some stores list the folder of a removed run for a while."""
    return [name for name in bucket.folders(RUNS) if bucket.keys(f"{RUNS}/{name}")]


def _check_run(bucket: Bucket, run: str, quick: bool, remove_orphans: bool, records: list[RunRecord]) -> Verdict:
    """`records`: the run's record is added to it, if it can be read."""
    keys = bucket.keys(f"{RUNS}/{run}")
    if keys and run_key(run) not in keys:
        left = Finding(
            "unreadable", run_key(run), "other objects of the run still exist: `actstore remove` removes them"
        )
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
    findings += check_checkpoints(snapshot, commits)
    segments = _segments(snapshot, findings)
    owners: list[Commit | Segment] = [*commits, *segments.values()]
    items = [item for owner in owners for item in _objects(owner)]
    if not quick:
        findings += _check_contents(snapshot, commits, segments, items)
    used = {key: segment for key, segment in segments.items() if not _is_superseded(segment, segments)}
    naming: list[Commit | Segment] = [*commits, *used.values()]
    named = {item.key for owner in naming for item in _objects(owner)} | set(used)
    findings += check_unnamed(snapshot, [key for key in keys if key not in named], remove_orphans, findings)
    return Verdict(1, len(commits), len(items), sum(item.bytes for item in items), tuple(dict.fromkeys(findings)))


def _check_contents(
    snapshot: Snapshot, commits: Sequence[Commit], segments: Mapping[str, Segment], items: Sequence[ObjectRecord]
) -> Iterator[Finding]:
    """The checks that read every byte."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(lambda item: list(_check_object(snapshot.bucket, item)), items):
            yield from found
    for commit in commits:
        yield from _check_rows(commit)
    for key, segment in segments.items():
        yield from _check_segment(snapshot, key, segment)


def _remedied(error: CorruptObject, run: str) -> str:
    if error.details["value"].startswith(f"{checkpoints_folder(run)}/"):
        return f"{error.message}; {CHECKPOINT_AGAIN}"
    return f"{error.message}; {_SHARD_AGAIN}"


def _check_record(snapshot: Snapshot, commits: Sequence[Commit]) -> Iterator[Finding]:
    """Its numbers of sequences and tokens must be those of its shards: records without hashes may be wrong."""
    record = snapshot.record
    for commit in commits:
        expected = len(record.shard_sequences(commit.shard))
        if commit.sequences != expected:
            what = f"shard {commit.shard} has {commit.sequences} sequences, but the run's record says {expected}"
            yield Finding("damaged", run_key(record.run), what)
            return
    tokens = sum(commit.tokens for commit in commits)
    if snapshot.complete and tokens != record.tokens_total:
        what = f"it says {record.tokens_total} tokens, but its shards have {tokens}"
        yield Finding("damaged", run_key(record.run), what)


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
    return any(is_inside(shards, other) for other in larger)


def _check_segment(snapshot: Snapshot, key: str, segment: Segment) -> Iterator[Finding]:
    """It must have as many rows as its shards' own indexes."""
    merged = sum(part.object.rows for part in segment.parts)
    product = index_product(segment.sae)
    shards = sum(commit.objects[product].rows for commit in snapshot.commits.of_shards(segment.shards))
    if merged != shards:
        yield Finding("damaged", key, f"it has {merged} rows, but its shards' indexes have {shards}")


def _check_object(bucket: Bucket, item: ObjectRecord) -> Iterator[Finding]:
    digest = hashlib.sha256()
    try:
        with bucket.open(item.key) as source:
            size = source.size()
            while chunk := source.read(_READ_BYTES):
                digest.update(chunk)
            if size != item.bytes or digest.hexdigest() != item.sha256:
                yield Finding("damaged", item.key, f"its size ({size} bytes) or its SHA-256 differs from its commit's")
                return
            source.seek(0)
            rows = pq.ParquetFile(source).metadata.num_rows
    except KeyError:
        yield Finding("missing", item.key, "its commit refers to it")
    except (pa.ArrowException, OSError) as error:
        failure = told_apart(bucket, error, damaged(item.key, error))
        if not isinstance(failure, CorruptObject):
            raise failure from error
        yield Finding("damaged", item.key, str(error).strip())
    else:
        if rows != item.rows:
            yield Finding("damaged", item.key, f"it has {rows} rows, but its commit says {item.rows}")


def _check_rows(commit: Commit) -> Iterator[Finding]:
    """Tokens, norms and dense rows must have the same number of rows."""
    dense = commit.objects[POSITIONS].rows if POSITIONS in commit.objects else commit.tokens
    for product, item in commit.objects.items():
        if product in (TOKENS, NORMS):
            expected = commit.tokens
        elif product in (POSITIONS, NORM_SKETCHES) or product.startswith(_OF_FEATURES):
            continue
        else:
            expected = dense
        if item.rows != expected:
            yield Finding("damaged", item.key, f"it has {item.rows} rows, but its shard has {expected} tokens")
