"""Captures one shard: runs batches through the model, and writes what the run stores to the bucket.

Norms and features are computed where the model runs; only stored data leaves the device. Writing happens on the calling
thread while the next batches are computed.

On a CPU a batch is split over lanes, each with its share of torch's threads, instead of running whole on all of them:
threads that split every small operation mostly wait for each other, and half a batch fits better into a core's cache.
The bundled model's forward pass took 17 us per token in two lanes and 19 to 22 without, on two idle cores.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from actstore_storage.errors import BadRequest
from actstore_storage.format.norm_columns import columns_beside
from actstore_storage.format.positions import selected
from actstore_storage.format.sites import Site, parse_site
from actstore_storage.format.specification import DTYPES, RunRecord
from actstore_storage.runs.feature_index import SparseFeatures
from actstore_storage.runs.shard_writer import ShardWriter, TokenRows
from actstore_worker.capture.shards.host_copies import HostCopies, OnHost
from actstore_worker.capture.shards.norms import BatchNorms
from actstore_worker.capture.shards.overflow import check_norms, stored_bits
from actstore_worker.capture.shards.sinks import with_sinks
from actstore_worker.datasets.batching import Batch, Window, windows
from actstore_worker.datasets.sequences import TokenSequences
from actstore_worker.models.dtypes import TORCH_DTYPES
from actstore_worker.models.model import LanguageModel, share_weights
from actstore_worker.models.taps import See, visit
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.nonzeros import nonzero_features

# Each lane holds a batch's activations.
LANES_MAX = 8
# On a CPU a batch runs in this many parts, which the lanes take in turn.
_CPU_PARTS = 2
# Captured batches that wait for the writer, in addition to those in the lanes.
_BATCHES_WAITING = 2
# Sequences are sorted by length among this many batches, unless their rows would exceed this size.
_WINDOW_BATCHES, _WINDOW_BYTES = 8, 256 << 20


@dataclass
class CapturedBatch:
    """What a run stores of a batch, in its order. `chosen` are the rows that dense sites store (None: all)."""

    batch: Batch
    tokens: TokenRows
    dense: dict[str, OnHost] = field(default_factory=dict)
    norms: dict[str, OnHost] = field(default_factory=dict)
    features: dict[str, SparseFeatures] = field(default_factory=dict)
    chosen: NDArray[np.int64] | None = None


class ShardCapture:
    """Holds a model and SAEs on their device for all shards of one run.

    Errors: BadRequest RUN_MISMATCH if they are not those of the run's specification. `check` is called before each
    batch, and raises an error to stop: the writer then removes the attempt.
    """

    def __init__(self, model: LanguageModel, saes: tuple[SparseAutoencoder, ...], record: RunRecord) -> None:
        asked = record.specification
        found = {sae.name: sae.sha256 for sae in saes}
        if found != {sae.name: sae.sha256 for sae in asked.saes}:
            raise changed_since_planned(record.run, "one of its SAEs")
        if not asked.made_by(model.weights_sha256, model.config_sha256) or model.dtype != asked.dtype:
            raise changed_since_planned(record.run, f"model {model.name} in {model.dtype}")
        if model.tokenizer_sha256 != asked.tokenizer_sha256:
            raise changed_since_planned(record.run, f"the tokenizer of model {model.name}")
        self._record, self._bos_id, self._special_ids = record, model.bos_id, model.special_ids
        self._device, self._threads, self._causal = model.device, torch.get_num_threads(), model.family.causal
        self._lanes = lane_count(model.device)
        self._head_counts = model.head_counts
        self._copies = HostCopies(model.device)
        # Hooks belong to a module, so each lane needs its own; the weights are shared.
        self._models: SimpleQueue[LanguageModel] = SimpleQueue()
        for _ in range(self._lanes):
            self._models.put(share_weights(model) if self._lanes > 1 else model)
        self._dense = {parse_site(site) for site in asked.dense_sites}
        self._norms = {parse_site(site) for site in asked.norm_sites}
        self.norm_columns = columns_beside(asked.norm_sites, model.kinds)
        self._saes: dict[Site, list[SparseAutoencoder]] = {}
        for sae in saes:
            self._saes.setdefault(sae.site, []).append(sae.to(model.device))
        self._sites = self._dense | self._norms | self._saes.keys()
        self.check: Callable[[], None] = lambda: None

    @property
    def dtype(self) -> str:
        return self._record.specification.dtype

    def stream(self, writer: ShardWriter, sequences: TokenSequences, widened: Iterable[str] = ()) -> None:
        """Writes everything that the run stores of `sequences`, in their order, to a writer that is not committed yet.

        Errors: OverflowRefused for a value that the stored dtype cannot hold, at a site that is not `widened`.
        """
        wide = frozenset(widened)
        with open_lanes(self._lanes, self._threads) as lanes:
            waiting: deque[tuple[Window, list[Future[CapturedBatch]]]] = deque()
            in_flight = 0
            for window in capture_windows(self._record, sequences, self._device):
                waiting.append((window, [lanes.submit(self.capture, batch, wide) for batch in window.batches]))
                in_flight += len(window.batches)
                while in_flight > self._lanes + _BATCHES_WAITING and len(waiting) > 1:
                    in_flight -= len(waiting[0][1])
                    self._write(writer, *waiting.popleft())
            while waiting:
                self._write(writer, *waiting.popleft())

    def capture(self, batch: Batch, widened: frozenset[str] = frozenset()) -> CapturedBatch:
        """Runs one forward pass. Padding takes part in it, changes nothing, and is left out of all products."""
        self.check()
        captured = CapturedBatch(batch, batch.sequences.rows(self._bos_id, self._special_ids))
        inside = None if batch.inside.all() else torch.from_numpy(batch.inside).to(self._device)
        take = _TakeRows(inside)
        wanted = self._by_place(captured)
        held: dict[Site, Tensor] = {}

        def keep_norms(column: str, norms: Float[Tensor, "batch position"]) -> None:
            captured.norms[column] = self._copies.start(take.rows(norms))

        norms = BatchNorms(self._norms, self.norm_columns, keep_norms)

        def see(site: Site, tensor: Float[Tensor, "batch position width"]) -> None:
            norms.see(site, tensor)
            if site in self._saes or site in self._dense:
                rows = take.rows(tensor)
                for sae in self._saes.get(site, ()):
                    captured.features[sae.name] = nonzero_features(sae, rows.to(self._device))
                if site in self._dense:
                    held[site] = rows if wanted is None else rows[wanted.to(rows.device)]
                    if not self._chosen_by_feature:
                        self._keep(site, held.pop(site), captured, widened)

        self._visit(batch, inside, see)
        if self._chosen_by_feature:
            captured.chosen = self._by_feature(captured)
            rows_kept = torch.from_numpy(captured.chosen).to(self._device)
            for site, rows in held.items():
                self._keep(site, rows[rows_kept.to(rows.device)], captured, widened)
        return captured

    def _visit(self, batch: Batch, inside: Bool[Tensor, "batch position"] | None, see: See) -> None:
        model = self._models.get()
        try:
            ids = torch.from_numpy(batch.ids).to(self._device)
            positions = None if batch.position_ids is None else torch.from_numpy(batch.position_ids).to(self._device)
            visit(model, ids, None if self._causal else inside, self._sites, see, positions)
        finally:
            self._models.put(model)

    @property
    def _chosen_by_feature(self) -> bool:
        return bool(self._dense) and self._record.specification.positions.kind == "feature"

    def _by_place(self, captured: CapturedBatch) -> Tensor | None:
        """Returns which rows are selected before the model runs; also into `captured`. None: all, or not known yet."""
        positions = self._record.specification.positions
        if not self._dense or positions.kind in ("all", "feature"):
            return None
        # `last` uses where the sequence number changes, which works in any order of whole sequences.
        captured.chosen = np.flatnonzero(selected(positions, captured.tokens.sequence, captured.tokens.position))
        return torch.from_numpy(captured.chosen).to(self._device)

    def _by_feature(self, captured: CapturedBatch) -> NDArray[np.int64]:
        positions = self._record.specification.positions
        sparse = captured.features[positions.sae].finite()
        return np.unique(sparse.row[sparse.feature == positions.feature])

    def _keep(
        self, site: Site, rows: Float[Tensor, "row width"], captured: CapturedBatch, widened: frozenset[str]
    ) -> None:
        asked, name = self._record.specification, str(site)
        if site.kind == "pattern":
            rows = self._over_context(site, rows)
        dtype = TORCH_DTYPES["float32" if name in widened else asked.stored_dtype]
        tokens, chosen = captured.tokens, captured.chosen

        def place(row: int) -> tuple[int, int]:
            return _place(tokens, row if chosen is None else int(chosen[row]))

        captured.dense[name] = self._copies.start(stored_bits(rows, dtype, name, place))

    def _over_context(self, site: Site, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """Attention weights over the whole context: zeros beyond the batch's longest sequence."""
        heads = self._head_counts[site.kind] if site.head is None else 1
        weights = rows.unflatten(-1, (heads, -1))
        missing = self._record.specification.context_length - weights.shape[-1]
        return torch.nn.functional.pad(weights, (0, missing)).flatten(1)

    def _write(self, writer: ShardWriter, window: Window, batches: list[Future[CapturedBatch]]) -> None:
        found = [future.result() for future in batches]
        parts = [_Finished.of(part, self._record.specification.sink_ratio) for part in found]
        if self._record.specification.dtype == "float16":
            for part in parts:
                check_norms(part.norms, map(str, self._norms), partial(_place, part.tokens))
        in_order = len(parts) == 1 and bool((np.diff(parts[0].rows) == 1).all())
        writer.add(*(parts[0] if in_order else _in_order(window, parts)).arguments)


def _place(tokens: TokenRows, row: int) -> tuple[int, int]:
    """Returns sequence and position."""
    return int(tokens.sequence[row]), int(tokens.position[row])


def lane_count(device: torch.device) -> int:
    return min(torch.get_num_threads(), LANES_MAX) if device.type == "cpu" else 1


@contextmanager
def open_lanes(lanes: int, threads: int) -> Iterator[ThreadPoolExecutor]:
    """Opens threads that share torch's threads. Torch counts its own by thread, MKL for the process: hence the end."""
    share = (threads // lanes,)
    try:
        with ThreadPoolExecutor(lanes, "lane", torch.set_num_threads, share) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)


def capture_windows(record: RunRecord, sequences: TokenSequences, device: torch.device) -> Iterator[Window]:
    """Returns which sequences share a batch, as decided by the specification only.

    The number of lanes does not matter: a shard has the same bits if a worker with fewer cores captures it again.
    """
    asked = record.specification
    size = -(-asked.sequences_per_batch // (_CPU_PARTS if device.type == "cpu" else 1))
    row_bytes = sum(DTYPES[asked.stored_dtype] * record.dense_width(site) for site in asked.dense_sites)
    sequence_bytes = max(1, asked.context_length * row_bytes)
    most = max(1, min(_WINDOW_BATCHES, _WINDOW_BYTES // (sequence_bytes * asked.sequences_per_batch)))
    window = most * asked.sequences_per_batch
    return windows(sequences, window, size, asked.context_length if asked.packing else None)


@dataclass(frozen=True)
class _TakeRows:
    """Takes the rows of a batch's tokens from its tensors of vectors, or of one number per token."""

    inside: Bool[Tensor, "batch position"] | None

    def rows(self, tensor: Float[Tensor, "batch position ..."]) -> Float[Tensor, "row ..."]:
        return tensor.flatten(0, 1) if self.inside is None else tensor[self.inside.to(tensor.device)]


@dataclass(frozen=True)
class _Finished:
    """A part of the shard in the form that ShardWriter takes; `rows` are the indices of its rows in the window."""

    rows: NDArray[np.int64]
    tokens: TokenRows
    dense: dict[str, NDArray[Any]]
    norms: dict[str, NDArray[np.float32]]
    features: dict[str, SparseFeatures]
    chosen: NDArray[np.int64] | None

    @classmethod
    def of(cls, part: CapturedBatch, sink_ratio: float | None) -> "_Finished":
        norms = {site: copy.wait() for site, copy in part.norms.items()}
        tokens = with_sinks(part.tokens, part.batch.sequences.offsets, norms, sink_ratio)
        dense = {site: copy.wait() for site, copy in part.dense.items()}
        return cls(part.batch.rows, tokens, dense, norms, part.features, part.chosen)

    @property
    def arguments(self) -> tuple[Any, ...]:
        chosen = None if self.chosen is None else self.chosen.astype(np.int32)
        return self.tokens, self.dense, self.norms, self.features, chosen


def _in_order(window: Window, parts: list[_Finished]) -> _Finished:
    """Puts the parts' rows into the order of the window's sequences. Each row is copied once."""
    size = len(window.sequences.tokens)
    every = [part.rows for part in parts]
    tokens = {
        name: _scattered(size, every, [getattr(part.tokens, name) for part in parts])
        for name in TokenRows.__dataclass_fields__
    }
    norms = {site: _scattered(size, every, [part.norms[site] for part in parts]) for site in parts[0].norms}
    saes = parts[0].features
    features = {sae: features_in_order([(part.rows, part.features[sae]) for part in parts]) for sae in saes}
    chosen, places, dense_size = None, every, size
    if parts[0].chosen is not None:
        picked = [part.rows[part.chosen] for part in parts if part.chosen is not None]
        chosen = np.sort(np.concatenate(picked))
        places, dense_size = [np.searchsorted(chosen, rows) for rows in picked], len(chosen)
    dense = {site: _scattered(dense_size, places, [part.dense[site] for part in parts]) for site in parts[0].dense}
    return _Finished(np.arange(size), TokenRows(**tokens), dense, norms, features, chosen)


def _scattered(size: int, places: list[NDArray[np.int64]], values: list[NDArray[Any]]) -> NDArray[Any]:
    out = np.empty((size, *values[0].shape[1:]), values[0].dtype)
    for place, value in zip(places, values, strict=True):
        out[place] = value
    return out


def features_in_order(parts: list[tuple[NDArray[np.int64], SparseFeatures]]) -> SparseFeatures:
    """Joins features of parts, each with the indices of its rows."""
    row = np.concatenate([rows[sparse.row] for rows, sparse in parts])
    order = np.argsort(row, kind="stable")  # Within a row the features already ascend.
    feature = np.concatenate([sparse.feature for _, sparse in parts])
    activation = np.concatenate([sparse.activation for _, sparse in parts])
    return SparseFeatures(row[order], feature[order], activation[order])


def changed_since_planned(run: str, what: str) -> BadRequest:
    return BadRequest(
        f"the files of {what} changed after run {run} was planned",
        reason="RUN_MISMATCH",
        field="run",
        value=run,
        allowed="the files as they were at the start of the run, or a new run",
    )
