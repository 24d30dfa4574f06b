"""What tests ask of a run, or do to it, that nothing else does."""

from actstore_storage.bucket import Bucket
from actstore_storage.features.sources import PART_ROWS
from actstore_storage.format.keys import commits_folder
from actstore_storage.runs.opening import open_run
from actstore_storage.upkeep.merging import finish_merge, merge_part, plan_merges


def committed_shards(bucket: Bucket, run: str) -> set[int]:
    """The shards that have a commit; none of a run that is not there."""
    keys = bucket.keys(commits_folder(run))
    return {int(key.rpartition("/")[2].removesuffix(".json")) for key in keys}


def merge_index(bucket: Bucket, run: str, sae: str, attempt: str, part_rows: int = PART_ROWS) -> int:
    """Every merge that is due, here and now, one part after another; answers how many segments were written."""
    done = 0
    while merges := plan_merges(open_run(bucket, run), sae, f"{attempt}-{done}", part_rows):
        for merge in merges:
            done += finish_merge(bucket, merge, [merge_part(bucket, merge, i) for i in range(len(merge.features))])
    return done
