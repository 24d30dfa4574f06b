"""Rows of a stored run as replacements for a prompt's activations: their mean, or some drawn at random."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actstore_api.records.patching import PatchSource, StoredSource, TakenRows
from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_storage.format.tokens import kept_classes
from actstore_storage.rows.reading import dense_matrix, read_activations
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import TokenFilter
from actstore_storage.runs.tokens import dense_token_rows, shard_tokens
from actstore_worker.models.dtypes import TORCH_DTYPES
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.kernels.recording import Recording

# If a run has more rows than a sweep reads, this many shards are read, evenly spread. Each is opened once per site.
SHARDS_MAX = 16


@dataclass(frozen=True)
class StoredRows:
    """Replacement rows. `rows` has one row for each position of the longest prompt."""

    taken: TakenRows
    rows: Mapping[Site, Float[Tensor, "position width"]]

    def instead(self, recording: Recording) -> Recording:
        """Returns the same run with these rows as its activations."""
        length = len(recording.tokens)
        return replace(recording, activations={site: rows[:length] for site, rows in self.rows.items()})


@dataclass(frozen=True)
class _Stretch:
    """Consecutive sequences of one shard: its rows of the run in total, and those of tokens that are not excluded."""

    keep: TokenFilter
    read: int
    kept: int


@dataclass(frozen=True)
class StoredReading:
    """A run whose rows are read site by site, because that may take a while."""

    model: LanguageModel
    taken: TakenRows
    _snapshot: Snapshot
    _stretches: Sequence[_Stretch]
    _length: int
    # Indices among the rows that are not excluded; the same tokens at all sites. None: the mean is used.
    _drawn: Int[npt.NDArray[np.int64], " position"] | None

    @classmethod
    def begin(
        cls, bucket: Bucket, model: LanguageModel, asked: StoredSource, source: PatchSource, length: int, most: int
    ) -> "StoredReading":
        """Starts reading. With source `mean`: the mean of at most about `most` rows, at each of `length` positions;
        with `resample`, that many of these rows, drawn at random.

        Errors: as `check_stored_rows`, and BadRequest NOTHING_LEFT if all rows are excluded.
        """
        snapshot = check_stored_rows(bucket, model, (), asked)
        stretches = list(_stretches(snapshot, asked.exclude, most))
        kept, read = (sum(counts) for counts in zip((0, 0), *((one.kept, one.read) for one in stretches), strict=True))
        if not kept:
            raise _nothing_left(asked)
        drawn = _drawn(asked.seed, kept, length) if source == "resample" else None
        used = kept if drawn is None else len(drawn)
        sinks_above = snapshot.record.specification.sinks_above
        taken = TakenRows(asked.run, used, read, snapshot.tokens_committed, asked.exclude, sinks_above)
        return cls(model, taken, snapshot, stretches, length, drawn)

    def rows(self, site: Site) -> Float[Tensor, "position width"]:
        """Reads the rows of a site. If the run stores single heads of it, the values of the other heads are undefined,
        and are never used.

        Errors: BadRequest SITE_UNKNOWN for a site that the run does not store.
        """
        there = self._snapshot.record.specification.dense_sites
        heads = [replace(site, head=head) for head in range(self.model.head_counts.get(site.kind, 0))]
        if str(site) in there or not any(str(head) in there for head in heads):
            found = self._read(site)
        else:
            parts = {head: self._read(head) for head in heads if str(head) in there}
            blank = np.full_like(next(iter(parts.values())), np.nan)
            found = np.concatenate([parts.get(head, blank) for head in heads], axis=1)
        rows = torch.from_numpy(found).to(self.model.device, TORCH_DTYPES[self.model.dtype])
        return rows.expand(self._length, -1)

    def _read(self, site: Site) -> Float[npt.NDArray[np.float32], "row width"]:
        read = (self._snapshot, str(site), self._stretches)
        return _mean(*read) if self._drawn is None else _picked(*read, self._drawn)


def check_stored_rows(bucket: Bucket, model: LanguageModel, sites: Iterable[Site], asked: StoredSource) -> Snapshot:
    """Opens the run and checks that it has what the request needs.

    Errors: NotThere if there is no such run; BadRequest RUN_MISMATCH for other weights or another dtype, SITE_UNKNOWN
    for a site that it does not store, NOTHING_LEFT for a run without rows.
    """
    kept_classes(asked.exclude)  # Refuses other sites.
    snapshot = open_run(bucket, asked.run)
    _check_model(snapshot, model)
    for site in sites:
        _check_stored(snapshot, site)
    if not snapshot.tokens_committed:
        raise _nothing_left(asked)
    return snapshot


def _nothing_left(asked: StoredSource) -> BadRequest:
    return BadRequest(
        f"run {asked.run} has no stored row that is not excluded",
        reason="NOTHING_LEFT",
        field="stored.run",
        value=asked.run,
        allowed="a run with rows of other tokens than " + (", ".join(sorted(asked.exclude)) or "none"),
    )


def _stretches(snapshot: Snapshot, exclude: frozenset[str], most: int) -> Iterator[_Stretch]:
    """Returns all sequences; or the first ones of evenly spread shards, with about `most` rows in total and at least
    one each.
    """
    shards = snapshot.shards
    everything = snapshot.tokens_committed <= most
    chosen = shards if everything else shards[np.arange(count := min(SHARDS_MAX, len(shards))) * len(shards) // count]
    for shard in chosen.tolist():
        (commit,) = snapshot.commits.of_shards(range(shard, shard + 1))
        tokens = shard_tokens(snapshot.bucket, commit)
        rows = dense_token_rows(snapshot.bucket, commit, tokens.num_rows)
        sequence = tokens["sequence"].to_numpy()[rows]
        if not len(sequence):
            continue
        room = len(sequence) if everything else max(1, most // len(chosen))
        end = int(sequence[-1]) + 1 if room >= len(sequence) else max(int(sequence[room]), int(sequence[0]) + 1)
        keep = TokenFilter(first_sequence=int(sequence[0]), end_sequence=end, exclude=exclude)
        yield _Stretch(keep, int((sequence < end).sum()), int(keep.mask(tokens)[rows].sum()))


def _matrices(
    snapshot: Snapshot, name: str, stretches: Iterable[_Stretch]
) -> Iterator[Float[npt.NDArray[np.float32], "row width"]]:
    width = snapshot.record.dense_width(name)
    for stretch in stretches:
        for batch in read_activations(snapshot, name, stretch.keep, columns=()):
            column = batch["activation"]
            yield dense_matrix(column, _dtype(column.type.byte_width, width, snapshot), width)


def _mean(snapshot: Snapshot, name: str, stretches: Iterable[_Stretch]) -> npt.NDArray[np.float32]:
    total, rows = np.zeros((1, snapshot.record.dense_width(name))), 0
    for matrix in _matrices(snapshot, name, stretches):
        total += matrix.sum(axis=0, dtype=np.float64)
        rows += len(matrix)
    return (total / rows).astype(np.float32)


def _picked(
    snapshot: Snapshot, name: str, stretches: Iterable[_Stretch], drawn: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Returns the drawn rows, in the order of the draw, from all rows that are not excluded."""
    found = np.zeros((len(drawn), snapshot.record.dense_width(name)), np.float32)
    first = 0
    for matrix in _matrices(snapshot, name, stretches):
        here = (drawn >= first) & (drawn < first + len(matrix))
        found[here] = matrix[drawn[here] - first]
        first += len(matrix)
    return found


def _drawn(seed: int, total: int, count: int) -> npt.NDArray[np.int64]:
    """Draws without replacement if there are enough rows."""
    return np.random.default_rng(seed).choice(total, count, replace=total < count)


def _dtype(row_bytes: int, width: int, snapshot: Snapshot) -> str:
    """Returns the dtype: float32 if any shard had to widen the site."""
    return "float32" if row_bytes == 4 * width else snapshot.record.specification.stored_dtype


def _check_stored(snapshot: Snapshot, site: Site) -> None:
    there = snapshot.record.specification.dense_sites
    if site.kind == "pattern" or not {str(site), str(site.whole)} & {*there}:
        why = (
            "attention weights of other prompts do not apply to these prompts' tokens"
            if site.kind == "pattern"
            else "not stored"
        )
        raise BadRequest(
            f"run {snapshot.record.run} has no usable rows of {site}: {why}",
            reason="SITE_UNKNOWN",
            field="sites",
            value=str(site),
            allowed=there or "none: this run was captured without dense sites",
        )


def _check_model(snapshot: Snapshot, model: LanguageModel) -> None:
    asked = snapshot.record.specification
    for field, captured, there in (
        ("weights_sha256", asked.weights_sha256, model.weights_sha256),
        ("config_sha256", asked.config_sha256 or model.config_sha256, model.config_sha256),
        ("dtype", asked.dtype, model.dtype),
    ):
        if captured != there:
            raise BadRequest(
                f"run {snapshot.record.run} was captured from model {asked.model!r} with {field} {captured}, but "
                "this is "
                f"{model.name!r} with {there}: its rows are not activations of this model",
                reason="RUN_MISMATCH",
                field="stored.run",
                value=captured,
                allowed=there,
            )
