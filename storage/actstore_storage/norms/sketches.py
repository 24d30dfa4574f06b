"""The sketches of norms of a run: each shard's own, and merged ones of checkpoints."""

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket, told_apart
from actstore_storage.bucket.side_by_side import read_side_by_side
from actstore_storage.errors import damaged
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import checkpoint_sketches_key
from actstore_storage.format.moments import NormMoments
from actstore_storage.format.products import NORM_SKETCHES, OF_SPECIFICATION
from actstore_storage.format.sketches import Sketches, told_of
from actstore_storage.format.specification import RunRecord
from actstore_storage.parquet.reading import open_product
from actstore_storage.runs.snapshot import Snapshot

# How a sentence about missing sketches begins, which may be false soon.
LOST = "merged sketches of the norms of run"


def shard_sketches(bucket: Bucket, commit: Commit, names: Sequence[str]) -> Sketches | None:
    """Reads a shard's sketches; None if it lacks one of the names, because it was captured before they were stored."""
    if NORM_SKETCHES not in commit.objects or any(name not in commit.norm_moments for name in names):
        return None
    with open_product(bucket, commit, NORM_SKETCHES) as file:
        found = _decoded(file, names)
    return _checked(found, commit.norm_moments, commit.objects[NORM_SKETCHES].key)


def checkpoint_sketches(
    bucket: Bucket,
    record: RunRecord,
    shards: range,
    moments: NormMoments,
    names: Sequence[str] | None = None,
) -> Sketches | None:
    """Reads the sketches of a checkpoint whose summary has these moments, as `shard_sketches`. No `names`:
    all of them.
    """
    key, names = checkpoint_sketches_key(record.run, shards), list(moments) if names is None else names
    try:
        with bucket.open(key) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            there, of = set(file.schema_arrow.names), (file.metadata.metadata or {}).get(OF_SPECIFICATION)
            lacking = [name for name in names if name not in there]
            found = {} if lacking else _decoded(file, names)
    except KeyError:
        return None
    except (pa.ArrowException, OSError) as error:
        raise told_apart(bucket, error, damaged(key, error)) from error
    if of != record.specification_sha256.encode():
        raise damaged(key, "it belongs to another specification")
    if lacking and all(name in moments for name in lacking):
        raise damaged(key, f"it has no sketch of {lacking[0]}")
    return None if lacking else _checked(found, moments, key)


def are_sketched(commits: Iterable[Commit], names: Iterable[str]) -> bool:
    """Whether a checkpoint of these shards has merged sketches: each shard has those of all names."""
    wanted = set(names)
    return bool(wanted) and all(
        NORM_SKETCHES in commit.objects and wanted <= commit.norm_moments.keys() for commit in commits
    )


def missing_sketches(snapshot: Snapshot) -> list[str]:
    """The keys of merged sketches that are missing; none for shards from before sketches existed.

    For each checkpoint without them it reads the commits, up to the first that has no sketches.
    """
    bucket, run, missing = snapshot.bucket, snapshot.record.run, []
    for part in snapshot.commits.checkpoints:
        key = checkpoint_sketches_key(run, part.shards)
        commits = part.commits(part.shards.start, part.shards.stop)
        if not bucket.exists(key) and are_sketched(commits, part.summary.norm_moments):
            missing.append(key)
    return missing


def lost_sketches(snapshot: Snapshot) -> str:
    """Describes the result of `missing_sketches` and what to do; empty if nothing is missing."""
    run, missing = snapshot.record.run, missing_sketches(snapshot)
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    if not missing:
        return ""
    return (
        f"{LOST} {run} are missing: {missing[0]}{more}. `actstore check {run}` lists all. "
        "Capturing the run again keeps its shards and writes the sketches again"
    )


def read_sketches(snapshot: Snapshot, names: Sequence[str]) -> list[Sketches] | None:
    """Reads the sketches of a whole snapshot, for all committed shards, in parts that are not merged. None if any of
    them lacks one of the names, or if merged sketches are missing (`missing_sketches`).
    """
    what = "sketches", *names
    kept = cast("list[Sketches] | None", snapshot.memory.find(what))
    if kept is None and (kept := _read_sketches(snapshot, names)) is not None:
        snapshot.memory.keep(what, kept, _bytes_of(kept))  # What is missing may be written again.
    return kept


def _read_sketches(snapshot: Snapshot, names: Sequence[str]) -> list[Sketches] | None:
    bucket = snapshot.bucket
    folded = read_side_by_side(
        lambda part: checkpoint_sketches(bucket, snapshot.record, part.shards, part.summary.norm_moments, names),
        snapshot.commits.checkpoints,
    )
    parts = list(folded)
    if any(part is None for part in parts):  # and the others need not be read
        return None
    parts += read_side_by_side(lambda commit: shard_sketches(bucket, commit, names), snapshot.commits.loose)
    found = [part for part in parts if part is not None]
    return found if found and len(found) == len(parts) else None


def _bytes_of(parts: Sequence[Sketches]) -> int:
    return sum(len(sketch) for part in parts for classes in part.values() for sketch in classes.values())


def _decoded(file: pq.ParquetFile, names: Sequence[str]) -> dict[str, dict[str, bytes]]:
    table = file.read(columns=["token_class", *names])
    classes = table["token_class"].to_pylist()
    return {
        name: {kept: sketch for kept, sketch in zip(classes, table[name].to_pylist(), strict=True) if sketch}
        for name in names
    }


def _checked(found: Sketches, moments: NormMoments, key: str) -> Sketches:
    for name, classes in found.items():
        expected = {
            token_class: (told.count, np.float32(told.minimum), np.float32(told.maximum))
            for token_class, told in moments.get(name, {}).items()
        }
        if {token_class: told_of(sketch) for token_class, sketch in classes.items()} != expected:
            raise damaged(
                key,
                f"its sketches of {name} cannot be read, or their count, minimum or maximum differs from the commit's "
                "statistics",
            )
    return found
