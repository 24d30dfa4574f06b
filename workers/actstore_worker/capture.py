"""Captures one shard: batches through the model, and what the run stores of them into the bucket.

Norms and features are computed where the model runs; only what is stored leaves the device. Writing happens on the
calling thread while the next batches are on their way.

On a CPU a batch is split over lanes, each with its share of torch's threads, instead of running whole on all of them:
threads that split every small operation mostly wait for each other, and half a batch fits better into a core's cache.
The bundled model's forward pass took 17 us a token in two lanes and 19 to 22 without, on two idle cores.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from actstore_storage.bucket import Bucket
from actstore_storage.feature_index import SparseFeatures
from actstore_storage.shard import ShardWriter, TokenRows
from actstore_storage.sites import Site, parse_site
from actstore_storage.specification import RunRecord
from actstore_worker.forward import visit
from actstore_worker.model import LanguageModel, share_weights
from actstore_worker.nonzeros import nonzero_features
from actstore_worker.sae import SparseAutoencoder
from actstore_worker.sequences import TokenSequences

# Each lane holds a batch's activations.
LANES_MAX = 8
# Captured parts of batches that wait for the writer, beside those in the lanes.
_PARTS_WAITING = 2


@dataclass
class CapturedBatch:
    """One batch as ShardWriter takes it."""

    tokens: TokenRows
    dense: dict[str, NDArray[Any]] = field(default_factory=dict)
    norms: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    features: dict[str, SparseFeatures] = field(default_factory=dict)

    def add_to(self, writer: ShardWriter) -> None:
        writer.add(self.tokens, self.dense, self.norms, self.features)


class ShardCapture:
    """Holds a model and SAEs on their device for any number of shards of one run.

    Raises ValueError where they are not the ones that the run's specification names.
    """

    def __init__(self, model: LanguageModel, saes: tuple[SparseAutoencoder, ...], record: RunRecord) -> None:
        asked = record.specification
        found = {sae.name: sae.sha256 for sae in saes}
        if found != {sae.name: sae.sha256 for sae in asked.saes}:
            raise ValueError(f"run {record.run} has other SAEs than {sorted(found)}, or other weights in them")
        if (model.weights_sha256, model.dtype) != (asked.weights_sha256, asked.dtype):
            raise ValueError(f"run {record.run} was not planned with these weights of {model.name} in {model.dtype}")
        self._record, self._bos_id, self._special_ids = record, model.bos_id, model.special_ids
        self._device, self._threads = model.device, torch.get_num_threads()
        self._lanes = min(self._threads, LANES_MAX) if model.device.type == "cpu" else 1
        # Hooks belong to a module, so each lane needs one of its own; the weights are shared.
        self._models: SimpleQueue[LanguageModel] = SimpleQueue()
        for _ in range(self._lanes):
            self._models.put(share_weights(model))
        self._dense = {parse_site(site) for site in asked.dense_sites}
        self._norms = {parse_site(site) for site in asked.norm_sites}
        self._saes: dict[Site, list[SparseAutoencoder]] = {}
        for sae in saes:
            self._saes.setdefault(sae.site, []).append(sae.to(model.device))
        self._sites = self._dense | self._norms | self._saes.keys()

    def run(self, bucket: Bucket, shard: int, sequences: TokenSequences, attempt: str) -> bool:
        """Capture the shard's sequences, which `sequences` holds among others. True: this attempt's commit won."""
        with ShardWriter(bucket, self._record, shard, attempt) as writer:
            self.stream(writer, sequences.select(self._record.shard_sequences(shard)))
            return writer.commit()

    def stream(self, writer: ShardWriter, sequences: TokenSequences) -> None:
        """Everything that the run stores of `sequences`, in their order, to a writer that is not yet committed."""
        # The lanes share a batch: all of them together then hold no more than one pass over it would.
        size = -(-self._record.specification.sequences_per_batch // self._lanes)
        with self._open_lanes() as lanes:
            waiting: deque[Future[CapturedBatch]] = deque()
            for part in sequences.batches(size):
                waiting.append(lanes.submit(self.capture, part))
                if len(waiting) > self._lanes + _PARTS_WAITING:
                    waiting.popleft().result().add_to(writer)
            while waiting:
                waiting.popleft().result().add_to(writer)

    def capture(self, batch: TokenSequences) -> CapturedBatch:
        """One forward pass. Padding on the right takes part in it, changes nothing, and is left out of all products."""
        captured = CapturedBatch(batch.rows(self._bos_id, self._special_ids))
        ids, inside = batch.padded()
        mask = None if inside.all() else torch.from_numpy(inside).to(self._device)
        shared: dict[int, tuple[Tensor, NDArray[np.float32]]] = {}

        def see(site: Site, tensor: Float[Tensor, "batch position d_model"]) -> None:
            rows = tensor.flatten(0, 1) if mask is None else None
            if site in self._norms:
                captured.norms[str(site)] = _norms(tensor, mask, shared)
            if site in self._dense or site in self._saes:
                rows = tensor[mask] if rows is None else rows
                self._keep_rows(site, rows, captured)

        model = self._models.get()
        try:
            visit(model, torch.from_numpy(ids).to(self._device), None, self._sites, see)
        finally:
            self._models.put(model)
        return captured

    @contextmanager
    def _open_lanes(self) -> Iterator[ThreadPoolExecutor]:
        """Threads for `capture`. Torch counts its own threads by thread, MKL for all at once: hence the end."""
        share = (self._threads // self._lanes,)
        try:
            with ThreadPoolExecutor(self._lanes, "lane", torch.set_num_threads, share) as lanes:
                yield lanes
        finally:
            torch.set_num_threads(self._threads)

    def _keep_rows(self, site: Site, rows: Float[Tensor, "row d_model"], captured: CapturedBatch) -> None:
        if site in self._dense:
            captured.dense[str(site)] = raw_bits(rows)
        for sae in self._saes.get(site, ()):
            captured.features[sae.name] = nonzero_features(sae, rows)


def raw_bits(rows: Float[Tensor, "row d_model"]) -> NDArray[Any]:
    """As NumPy holds them; bfloat16, which it does not know, as uint16."""
    rows = rows.contiguous()
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).cpu().numpy()


def _norms(
    tensor: Float[Tensor, "batch position d_model"],
    mask: Bool[Tensor, "batch position"] | None,
    shared: dict[int, tuple[Tensor, NDArray[np.float32]]],
) -> NDArray[np.float32]:
    """L2, in float32 whatever the model computes in. resid_post and the next resid_pre are one tensor, so one norm.

    `shared` holds the tensor beside its norm: an address means nothing once the tensor is gone.
    """
    if id(tensor) not in shared:
        norms = torch.linalg.vector_norm(tensor, dim=-1, dtype=torch.float32)
        shared.clear()
        shared[id(tensor)] = tensor, (norms.flatten() if mask is None else norms[mask]).cpu().numpy()
    return shared[id(tensor)][1]
