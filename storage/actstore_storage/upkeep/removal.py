"""Removes a run from the bucket."""

from concurrent.futures import ThreadPoolExecutor

from actstore_storage.bucket import FETCH_THREADS, Bucket
from actstore_storage.errors import Conflict, NotThere
from actstore_storage.format.keys import (
    RUNS,
    checkpoints_folder,
    commits_folder,
    data_folder,
    indexes_folder,
    queued_key,
    run_key,
    wanted_key,
)
from actstore_storage.runs.opening import list_runs, runs_over


def remove_run(bucket: Bucket, run: str, *, force: bool = False) -> int:
    """Removes a run, and returns the number of removed objects. From its first step on nobody can open the run; after
    an interruption, the same call removes the rest.

    Errors: RUN_NOT_FOUND; Conflict, unless `force` is set, for a run that is being captured, whose capture then fails,
    and for one whose rows other runs use, which then lose them.
    """
    if not bucket.keys(f"{RUNS}/{run}"):
        allowed = list_runs(bucket) or "none: this store has no runs"
        raise NotThere(f"there is no run {run!r}", field="run", value=run, allowed=allowed)
    if bucket.exists(wanted_key(run)) and not force:
        raise Conflict(
            f"run {run} is being captured",
            field="run",
            value=run,
            allowed="cancel the capture first, or pass force, which makes the capture fail",
        )
    if not force and (others := runs_over(bucket, run)):
        raise Conflict(
            f"run {run} holds rows that other runs use: {', '.join(others)}",
            field="run",
            value=run,
            allowed="remove those runs first, or pass force, which deletes the rows they use",
        )
    bucket.delete(wanted_key(run))
    bucket.delete(queued_key(run))
    removed = 0
    # What makes the run visible is removed first, its data last. Commits are removed before checkpoints, which are made
    # of them.
    bucket.delete(run_key(run))
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        for folder in (commits_folder(run), checkpoints_folder(run), indexes_folder(run), data_folder(run)):
            removed += len(list(pool.map(bucket.delete, bucket.keys(folder))))
    return removed + 1
