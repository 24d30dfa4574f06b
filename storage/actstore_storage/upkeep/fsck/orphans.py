"""Finds keys of a run that nothing refers to, and missing commits whose data still exists."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from actstore_storage.bucket import Bucket
from actstore_storage.features.segments import listed_segments
from actstore_storage.format.blocks import named_block
from actstore_storage.format.keys import (
    checkpoint_key,
    checkpoint_sketches_key,
    commit_key,
    data_folder,
    indexes_folder,
    run_key,
    sae_products,
    segment_key,
    wanted_key,
)
from actstore_storage.format.products import TOKENS
from actstore_storage.format.specification import RunRecord
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.upkeep.fsck.finding import Finding
from actstore_storage.upkeep.merging import due_blocks

_SHARD_ANEW = "capturing the run again captures the shard again"
_CHECKPOINT_ANEW = "readers use smaller checkpoints and commits, and capturing the run again writes it again"


def check_unnamed(snapshot: Snapshot, unnamed: Sequence[str], remove: bool, found: Sequence[Finding]) -> list[Finding]:
    """Checks the run's keys that no commit and no index refers to, and what they reveal about missing commits."""
    bucket, run = snapshot.bucket, snapshot.record.run
    unreadable = {finding.key for finding in found if finding.kind == "unreadable"}
    of_data = [key for key in unnamed if key.startswith(f"{data_folder(run)}/")]
    of_indexes = [key for key in unnamed if key.startswith(f"{indexes_folder(run)}/")]
    others = [key for key in unnamed if not key.startswith((f"{data_folder(run)}/", f"{indexes_folder(run)}/"))]
    # Manifests first, so that no reader finds one whose objects are removed.
    of_indexes.sort(key=lambda key: not key.endswith(".json"))
    captured = "the run is being captured" if bucket.exists(wanted_key(run)) else ""
    gone = [] if captured else _gone_commits(snapshot, of_data, found)
    may_be_named = {finding.key for finding in gone} | unreadable
    of_data = [key for key in of_data if commit_key(run, _shard_of(key)) not in may_be_named]
    remove = remove and not unreadable
    merged = captured or (
        "its feature index is still being merged" if remove and of_indexes and _merges_due(snapshot) else ""
    )
    return [
        *gone,
        *(_orphan(bucket, key, remove, captured) for key in of_data),
        *(_orphan(bucket, key, remove, merged) for key in of_indexes if key not in unreadable),
        *_unknown_keys(snapshot, others),
    ]


def _gone_commits(snapshot: Snapshot, of_data: Sequence[str], found: Sequence[Finding]) -> list[Finding]:
    """Missing commits that something else gives evidence of: an index of their shards, or a complete attempt at one.

    A checkpoint of a shard is evidence, too, but readers then use the commit in it.
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
        Finding(
            "missing",
            key,
            f"{gone[shard]} has this shard's data, but its commit was lost or never written; {_SHARD_ANEW}",
        )
        for shard in sorted(gone)
        if (key := commit_key(run, shard)) not in told
    ]


def _products(record: RunRecord) -> set[str]:
    """The objects that each attempt at a shard of the run writes, whatever the model."""
    asked = record.specification
    if asked.rows_of:  # the other run's SAEs have no objects here, and the last SAE is a new one
        return set(sae_products(asked.saes[-1].name))
    return {TOKENS, *asked.dense_sites, *(product for sae in asked.saes for product in sae_products(sae.name))}


def _shard_of(key: str) -> int:
    """The shard of a key below `data/`; -1 for one that no attempt writes."""
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
                    yield Finding("orphan", key, f"its checkpoint is missing: {_CHECKPOINT_ANEW}")
                continue
        yield Finding("unknown", key, "actstore writes no object with such a name")


def _orphan(bucket: Bucket, key: str, remove: bool, working: str) -> Finding:
    if working:
        return Finding("orphan", key, f"no commit or index refers to it, but {working}, so it may still be in use")
    if not remove:
        return Finding("orphan", key, "no commit or index refers to it")
    bucket.delete(key)
    return Finding("removed", key, "no commit or index refers to it")


def _merges_due(snapshot: Snapshot) -> bool:
    return any(due_blocks(snapshot, sae.name) for sae in snapshot.record.specification.saes)
