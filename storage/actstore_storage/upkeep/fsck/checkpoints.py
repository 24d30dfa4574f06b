"""Compares checkpoints with the commits that they contain, and merged sketches with the commits' statistics."""

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter

import numpy as np

from actstore_storage.bucket import Bucket
from actstore_storage.errors import CorruptObject
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import (
    checkpoint_sketches_key,
    commit_key,
)
from actstore_storage.format.moments import Moments, NormMoments
from actstore_storage.format.sketches import NormSketches
from actstore_storage.format.specification import RunRecord
from actstore_storage.norms.sketches import are_sketched, checkpoint_sketches
from actstore_storage.runs.checkpoint import Checkpoint, Summary, smaller_checkpoints
from actstore_storage.runs.opening import read_commit
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.upkeep.fsck.finding import Finding

# The tolerance for a checkpoint's mean and standard deviation, as a fraction of the largest value, and for its
# geometric mean, as a fraction of itself: sums in another order differ by about 2^-53 per shard, 7e-12 over the largest
# checkpoint. Counts and extremes are exact.
MERGE_TOLERANCE = 1e-9
CHECKPOINT_AGAIN = "remove it: readers then use the commits, and capturing the run again writes the checkpoint again"
_COMMIT_AGAIN = "capturing the run again restores it"
_SKETCHES_AGAIN = "capturing the run again keeps its shards and merges their sketches again"
_NUMBERS = attrgetter(*(field.name for field in fields(Moments)))


def check_checkpoints(snapshot: Snapshot, commits: Sequence[Commit]) -> Iterator[Finding]:
    """Checks the checkpoints that are read, and those that larger ones have replaced."""
    for checkpoint in snapshot.commits.checkpoints:
        yield from _check_checkpoint(snapshot.bucket, snapshot.record, checkpoint)
    by_shard = {commit.shard: commit for commit in commits}
    read = [checkpoint.shards for checkpoint in snapshot.commits.checkpoints]
    for smaller in smaller_checkpoints(snapshot.bucket, snapshot.record, read):
        if isinstance(smaller, CorruptObject):
            yield Finding(
                "orphan", smaller.details["value"], f"{smaller.message}; a larger checkpoint covers its shards"
            )
            continue
        try:
            folded = list(smaller.commits(smaller.shards.start, smaller.shards.stop))
            unlike = [commit for commit in folded if commit != by_shard.get(commit.shard)]
            checkpoint_sketches(snapshot.bucket, snapshot.record, smaller.shards, smaller.summary.norm_moments)
        except CorruptObject as error:
            yield Finding("orphan", error.details["value"], f"{error.message}; a larger checkpoint covers its shards")
            continue
        if unlike:
            yield Finding(
                "orphan", smaller.key, f"shard {unlike[0].shard} differs from its commit; a larger checkpoint covers it"
            )


def _check_checkpoint(bucket: Bucket, record: RunRecord, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Its commits must equal the shards', and its statistics and merged sketches must match theirs."""
    commits = list(checkpoint.commits(checkpoint.shards.start, checkpoint.shards.stop))
    for folded in commits:
        key = commit_key(record.run, folded.shard)
        try:
            own = read_commit(bucket, record, folded.shard)
        except KeyError:
            yield Finding("missing", key, f"readers use the copy in {checkpoint.key}; {_COMMIT_AGAIN}")
        except CorruptObject as error:
            what = f"{error.message}; {checkpoint.key} has a copy: remove this one, and {_COMMIT_AGAIN}"
            yield Finding("unreadable", key, what)
        else:
            if own != folded:
                yield Finding("damaged", checkpoint.key, f"shard {folded.shard} differs from its commit")
    merged = merged_again(commits)
    for what in _unlike_commits(checkpoint, commits, merged):
        yield Finding("damaged", checkpoint.key, f"{what}; {CHECKPOINT_AGAIN}")
    if are_sketched(commits, merged):
        yield from _check_sketches(bucket, record, checkpoint.shards, merged)


def merged_again(commits: Iterable[Commit]) -> NormMoments:
    """Merges commits' moments of norms, by name and token class, in another way than Moments.merge: first the mean of
    all, then the squared distances from it, both between and within shards (the sums of squares of an analysis of
    variance).
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
    """Yields what differs between the checkpoint and its commits."""
    summary, expected = checkpoint.summary, [Summary.of(commit) for commit in commits]
    if checkpoint.tokens.tolist() != [commit.tokens for commit in commits]:
        yield "its numbers of tokens by shard differ from the commits'"
    for field in ("tokens_by_class", "non_finite"):
        total: Counter[str] = sum((Counter(getattr(one, field)) for one in expected), Counter())
        yield from _first_of(field, _unequal(getattr(summary, field), total))
    for field in dict.fromkeys(field for one in (summary, *expected) for field in one.how):
        values = summary.how.get(field, ())
        told = tuple(dict.fromkeys(value for one in expected for value in one.how.get(field, ())))
        if values != told:
            yield f"its {field} is {', '.join(values) or 'missing'}, but its commits say {', '.join(told)}"
    yield from _first_of("statistics of norms", _unlike_moments(summary.norm_moments, merged))


def _unequal(told: Mapping[str, int], expected: Mapping[str, int]) -> list[str]:
    """A name with count 0 may be left out."""
    names = [name for name in {**expected, **told} if told.get(name, 0) != expected.get(name, 0)]
    return [f"{name} is {told.get(name, 0)}, but {expected.get(name, 0)} in its commits" for name in names]


def _unlike_moments(told: NormMoments, expected: NormMoments) -> list[str]:
    """One sentence for each name and token class, about the first number that differs."""
    found = []
    for name in {**expected, **told}:
        own, other = told.get(name, {}), expected.get(name, {})
        for token_class in {**other, **own}:
            pair = own.get(token_class, Moments()), other.get(token_class, Moments())
            for what, value, right, allowed in _compared(*pair):
                if value != right and not abs(value - right) <= allowed:  # both may be minus infinity
                    found.append(
                        f"the {what} of {name} ({token_class}) is {value:.17g}, but {right:.17g} in its commits"
                    )
                    break
    return found


def _compared(told: Moments, expected: Moments) -> Iterator[tuple[str, float, float, float]]:
    """Yields the name of a number, both values, and the tolerance. Without values only the count is compared."""
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
        yield f"its {what} differ from its commits': {found[0]}{more}"


def _check_sketches(bucket: Bucket, record: RunRecord, shards: range, merged: NormMoments) -> Iterator[Finding]:
    """They must exist and be readable, with as many values as the commits say, and the same extremes."""
    key = checkpoint_sketches_key(record.run, shards)
    if not bucket.exists(key):
        yield Finding("missing", key, f"it should hold the merged norm sketches of its shards; {_SKETCHES_AGAIN}")
        return
    try:
        found = checkpoint_sketches(bucket, record, shards, merged)
    except CorruptObject as error:
        yield Finding("damaged", key, f"{error.message}; remove it, and {_SKETCHES_AGAIN}")
        return
    unread = [name for name in merged if not found or not _is_decoded(name, found[name])]
    if unread:
        what = f"sketches of {len(unread)} of {len(merged)} names cannot be read: {unread[0]}"
        yield Finding("damaged", key, f"{what}; remove it, and {_SKETCHES_AGAIN}")


def _is_decoded(name: str, sketches: Mapping[str, bytes]) -> bool:
    """Decoded by the package that made them, because readers use their own decoder."""
    try:
        NormSketches([name]).merge({name: sketches})
    except ValueError:
        return False
    return True
