"""Folds commits into checkpoints, and merges their shards' sketches.

Checkpoints have whole blocks of 256, 4,096 and 65,536 shards, and in a complete run the remaining shards at its end.
"""

from collections.abc import Iterable, Iterator, Sequence

from actstore_storage.bucket.side_by_side import read_side_by_side
from actstore_storage.errors import CorruptObject
from actstore_storage.format.blocks import aligned_blocks, holds_all, is_inside, largest_apart
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import (
    checkpoint_key,
    checkpoint_sketches_key,
    commit_key,
    commits_folder,
)
from actstore_storage.format.sketches import NormSketches, Sketches
from actstore_storage.norms.sketches import are_sketched, checkpoint_sketches, missing_sketches, shard_sketches
from actstore_storage.runs.checkpoint import (
    Checkpoint,
    Summary,
    encoded_checkpoint,
    listed_checkpoints,
    open_checkpoint,
)
from actstore_storage.runs.snapshot import Snapshot

BLOCKS = (256, 4096, 65_536)


def fold_commits(snapshot: Snapshot) -> list[str]:
    """Writes each missing checkpoint that the snapshot's commits fill; in a complete run, missing commits that
    checkpoints contain; and missing merged sketches.

    Returns the new objects' keys, without those of new checkpoints' sketches.

    Two processes at once write the same. Errors: StoreError; CorruptObject for sketches that cannot be read.
    """
    written = []
    there = set(listed_checkpoints(snapshot.bucket, snapshot.record.run))
    for block in _blocks(snapshot):
        covered = any(is_inside(block, other) for other in there)
        if covered or not holds_all(snapshot.shards, block):
            continue
        key, commits = checkpoint_key(snapshot.record.run, block), list(snapshot.commits.of_shards(block))
        summary = Summary.merged([Summary.of(commit) for commit in commits])
        # First, so that a checkpoint without sketches is one whose shards have none.
        _put_sketches(snapshot, block, commits, list(summary.norm_moments), there)
        snapshot.bucket.put_if_absent(key, encoded_checkpoint(commits, summary))
        written.append(key)
        there.add(block)
    return written + _restored_commits(snapshot) + _mended_sketches(snapshot, there)


def _restored_commits(snapshot: Snapshot) -> list[str]:
    """Missing commits of a complete run that a checkpoint contains; while a run grows, they are not listed."""
    bucket, run = snapshot.bucket, snapshot.record.run
    if not snapshot.complete:
        return []
    there = set(bucket.keys(commits_folder(run)))
    gone = [shard for shard in snapshot.shards.tolist() if commit_key(run, shard) not in there]
    commits = ((commit_key(run, commit.shard), commit) for commit in snapshot.commits.of_each(gone))
    return [key for key, commit in commits if bucket.put_if_absent(key, commit.to_json())]


def _mended_sketches(snapshot: Snapshot, there: Iterable[range]) -> list[str]:
    """Last, so that a damaged shard whose sketches cannot be written prevents nothing else."""
    missing, written = missing_sketches(snapshot), []
    for part in snapshot.commits.checkpoints:
        key = checkpoint_sketches_key(snapshot.record.run, part.shards)
        if key in missing:
            commits = list(part.commits(part.shards.start, part.shards.stop))
            if _put_sketches(snapshot, part.shards, commits, list(part.summary.norm_moments), there):
                written.append(key)
    return written


def _put_sketches(
    snapshot: Snapshot, block: range, commits: Sequence[Commit], names: Sequence[str], there: Iterable[range]
) -> bool:
    """The block's sketches, if its shards have any; from existing smaller checkpoints inside it that have theirs, or,
    if those are damaged, from the shards.
    """
    bucket, record = snapshot.bucket, snapshot.record
    inside = [other for other in there if is_inside(other, block) and other != block]
    smaller = [other for other in inside if bucket.exists(checkpoint_sketches_key(record.run, other))]
    try:
        sketches = _merged_sketches(snapshot, commits, names, smaller)
    except CorruptObject:
        if not smaller:
            raise
        sketches = _merged_sketches(snapshot, commits, names, ())
    if sketches is None:
        return False
    encoded = sketches.encoded(record.specification_sha256)
    return bucket.put_if_absent(checkpoint_sketches_key(record.run, block), encoded)


def _blocks(snapshot: Snapshot) -> Iterator[range]:
    """Blocks of all shards, committed or not, smaller ones first; the remaining ones at the end if the run
    is complete.
    """
    total = snapshot.record.shards_total
    yield from aligned_blocks(total, BLOCKS)
    if snapshot.complete and total % BLOCKS[0]:
        yield range(total - total % BLOCKS[0], total)


def _merged_sketches(
    snapshot: Snapshot, commits: Sequence[Commit], names: Sequence[str], smaller: Sequence[range]
) -> NormSketches | None:
    """Sketches of the commits, from `smaller` checkpoints if possible; None without norms, or if a commit has none.

    Errors: CorruptObject for sketches that cannot be merged.
    """
    if not are_sketched(commits, names):
        return None
    bucket, record = snapshot.bucket, snapshot.record
    folded = [open_checkpoint(bucket, record, block) for block in largest_apart(smaller)]
    loose = [commit for commit in commits if not any(commit.shard in part.shards for part in folded)]
    merged = NormSketches(names)

    def read(part: Checkpoint | Commit) -> Sketches | None:
        if isinstance(part, Commit):
            return shard_sketches(bucket, part, names)
        return checkpoint_sketches(bucket, record, part.shards, part.summary.norm_moments, names)

    parts: list[Checkpoint | Commit] = [*folded, *loose]
    for found in read_side_by_side(read, parts):
        if found is None:
            return None
        _merge(merged, found, record.run)
    return merged


def _merge(merged: NormSketches, found: Sketches, run: str) -> None:
    try:
        merged.merge(found)
    except ValueError as error:
        message = f"run {run}: norm sketches cannot be merged: {error}"
        raise CorruptObject(message, field="run", value=run) from error
