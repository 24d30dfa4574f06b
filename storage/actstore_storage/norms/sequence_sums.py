"""Sums of norms by sequence, for bootstrap resampling of means."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from actstore_storage.format.commit import Commit
from actstore_storage.format.products import TOKENS
from actstore_storage.format.sites import Site
from actstore_storage.norms.rows import KeptTokens, columns_of, read_shards, shard_values
from actstore_storage.parquet.reading import open_product
from actstore_storage.runs.snapshot import Snapshot

# The amount of text for the interval, evenly spread over larger runs. The interval is then the (wider) one of that much
# text.
INTERVAL_TOKENS, INTERVAL_SEQUENCES = 1_000_000, 20_000


@dataclass(frozen=True)
class SequenceSums:
    """For each sequence at each step: the sum of the norms of tokens that are not excluded, and their number."""

    sums: npt.NDArray[np.float64]  # [sequence, step]
    counts: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.sums)


@dataclass(frozen=True)
class Measured:
    """What is measured: a quantity, at these sites (of one kind, by layer), over the tokens that are not excluded."""

    sites: Sequence[Site]
    quantity: str
    kept: KeptTokens


def evenly_spread(snapshot: Snapshot, shards: npt.NDArray[np.int64]) -> list[int]:
    """Chooses evenly spaced shards with at most about INTERVAL_TOKENS and INTERVAL_SEQUENCES; at least one shard."""
    if not len(shards):
        return []
    record = snapshot.record
    per_shard = record.specification.sequences_per_shard
    tokens = max(1.0, record.tokens_total / record.sequences_total * per_shard)
    wanted = min(len(shards), max(1, int(min(INTERVAL_TOKENS / tokens, INTERVAL_SEQUENCES / per_shard))))
    chosen: list[int] = shards[(np.arange(wanted) * len(shards)) // wanted].tolist()
    return chosen


def sequence_sums(snapshot: Snapshot, shards: Sequence[int], measured: Measured) -> SequenceSums:
    """Sums the norms of each sequence of some shards."""
    parts = list(sums_of_shards(snapshot, snapshot.commits.of_each(shards), measured))
    return SequenceSums(np.concatenate([sums for sums, _ in parts]), np.concatenate([counts for _, counts in parts]))


Sums = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def sums_of_shards(snapshot: Snapshot, commits: Iterable[Commit], measured: Measured) -> Iterator[Sums]:
    """Sums the norms of each sequence, shard by shard."""
    columns = len(columns_of(snapshot, measured.quantity, measured.sites))
    return read_shards(snapshot, commits, columns, partial(_shard_sums, snapshot, measured))


def _shard_sums(snapshot: Snapshot, measured: Measured, commit: Commit) -> Sums:
    """[sequence, site], for all sequences of the shard. As in the commits' statistics, norms that are infinite or NaN
    are left out.
    """
    held, sites = snapshot.record.shard_sequences(commit.shard), measured.sites
    with open_product(snapshot.bucket, commit, TOKENS) as file:
        table = file.read(columns=["sequence", "position", "flags"], use_threads=False)
    tokens = {name: table[name].to_numpy() for name in table.column_names}
    kept = measured.kept.mask(tokens)
    number = tokens["sequence"][kept] - held.start
    tokens_kept = np.bincount(number, minlength=len(held))
    sums, counts = (np.zeros((len(held), len(sites))) for _ in range(2))
    for column, values in enumerate(shard_values(snapshot, commit, measured.quantity, sites)):
        own = values[kept]
        finite = np.isfinite(own)
        counts[:, column] = tokens_kept if finite.all() else np.bincount(number[finite], minlength=len(held))
        sums[:, column] = np.bincount(number, np.where(finite, own, 0), len(held))
    return sums, counts


def paired_sums(snapshots: Sequence[Snapshot], measured: Measured) -> SequenceSums:
    """Sums the norms of each sequence that all runs have; one column per run."""
    shards = snapshots[0].shards
    same = len({snapshot.record.specification.sequences_per_shard for snapshot in snapshots}) == 1
    for snapshot in snapshots[1:]:
        shards = np.intersect1d(shards, snapshot.shards)
    if not same or not len(shards):
        nothing = np.zeros((0, len(snapshots)))
        return SequenceSums(nothing, nothing)
    chosen = evenly_spread(snapshots[0], shards)
    parts = [sequence_sums(snapshot, chosen, measured) for snapshot in snapshots]
    return SequenceSums(
        np.concatenate([part.sums for part in parts], axis=1), np.concatenate([part.counts for part in parts], axis=1)
    )
