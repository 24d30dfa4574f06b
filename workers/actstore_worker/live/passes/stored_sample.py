"""Samples of a run's stored sequences, spread evenly over committed shards, as batches for a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from actstore_api.records.terms import StoredSample
from actstore_storage.errors import BadRequest
from actstore_storage.format.tokens import BOS, SPECIAL
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.tokens import shard_tokens
from actstore_worker.datasets.batching import by_length


@dataclass(frozen=True)
class StoredSequence:
    """A sequence of a run. `kept`: the tokens that are neither BOS nor special."""

    tokens: Int[NDArray[np.int32], " position"]
    kept: Bool[NDArray[np.bool_], " position"]


@dataclass(frozen=True)
class Batch:
    """Sequences side by side, padded on the right with token 0, which is not `inside`."""

    ids: Int[Tensor, "batch position"]
    inside: Bool[Tensor, "batch position"]
    kept: Bool[Tensor, "batch position"]


def check_sample(asked: StoredSample, most: int) -> None:
    """Refuse a sample of no token, or of more than `most`.

    Errors: BadRequest, LIMIT_EXCEEDED.
    """
    if not 1 <= asked.tokens <= most:
        raise BadRequest(
            f"a sample has 1 to {most} stored tokens, not {asked.tokens}",
            reason="LIMIT_EXCEEDED" if asked.tokens else "ARGUMENT_INVALID",
            field="stored.tokens",
            value=asked.tokens,
            allowed=f"1 to {most}",
        )


def sample_sequences(snapshot: Snapshot, tokens: int) -> list[StoredSequence]:
    """Read whole sequences with about this many tokens; at least one, at most all.

    Errors: BadRequest NOTHING_LEFT for a run without a committed token other than BOS and special ones.
    """
    numbers = _spread(snapshot, tokens)
    size = snapshot.record.specification.sequences_per_shard
    found: list[StoredSequence] = []
    for shard in np.unique(numbers // size).tolist():
        found += _of_shard(snapshot, shard, numbers[numbers // size == shard])
    if not any(sequence.kept.any() for sequence in found):
        raise BadRequest(
            f"run {snapshot.record.run} has no committed token yet other than BOS and special ones",
            reason="NOTHING_LEFT",
            field="run",
            value=snapshot.record.run,
            allowed="a run with committed text",
        )
    return found


def batches(sequences: Sequence[StoredSequence], tokens: int, device: torch.device) -> Iterator[Batch]:
    """Group sequences of similar length into batches of at most this many tokens, padding included, or of
    one sequence.
    """
    for group in by_length([len(sequence.tokens) for sequence in sequences], tokens):
        yield _padded([sequences[index] for index in group], device)


def _spread(snapshot: Snapshot, tokens: int) -> Int[NDArray[np.int64], " sequence"]:
    """Returns indices of sequences, ascending, evenly spaced among those in committed shards."""
    size, shards = snapshot.record.specification.sequences_per_shard, snapshot.shards
    if not len(shards):
        return np.zeros(0, np.int64)
    last = snapshot.record.shard_sequences(int(shards[-1]))  # The last shard may be shorter than the others.
    there = (len(shards) - 1) * size + len(last)
    wanted = min(there, max(1, round(tokens * there / max(1, snapshot.tokens_committed))))
    places = (np.arange(wanted) * there) // wanted
    numbers: Int[NDArray[np.int64], " sequence"] = shards[places // size] * size + places % size
    return numbers


def _of_shard(snapshot: Snapshot, shard: int, numbers: Int[NDArray[np.int64], " sequence"]) -> list[StoredSequence]:
    (commit,) = snapshot.commits.of_shards(range(shard, shard + 1))
    table = shard_tokens(snapshot.bucket, commit)
    sequence, token, flags = (table[name].to_numpy() for name in ("sequence", "token", "flags"))
    starts, stops = np.searchsorted(sequence, numbers), np.searchsorted(sequence, numbers, side="right")
    spans = [slice(first, last) for first, last in zip(starts.tolist(), stops.tolist(), strict=True)]
    return [StoredSequence(token[span], (flags[span] & (BOS | SPECIAL)) == 0) for span in spans]


def _padded(rows: Sequence[StoredSequence], device: torch.device) -> Batch:
    shape = len(rows), max(len(row.tokens) for row in rows)
    ids, inside, kept = np.zeros(shape, np.int64), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for number, row in enumerate(rows):
        ids[number, : len(row.tokens)], inside[number, : len(row.tokens)] = row.tokens, True
        kept[number, : len(row.tokens)] = row.kept
    return Batch(*(torch.from_numpy(array).to(device) for array in (ids, inside, kept)))
