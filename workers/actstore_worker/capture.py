"""Captures one shard: batches through the model, and what the run stores of them into the bucket.

Norms and features are computed where the model runs; only what is stored leaves the device. Writing happens on a second
thread while the model is at the next batch, at most `_BATCHES_WAITING` behind.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
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
from actstore_worker.model import LanguageModel
from actstore_worker.nonzeros import nonzero_features
from actstore_worker.sae import SparseAutoencoder
from actstore_worker.sequences import TokenSequences

_BATCHES_WAITING = 2


@dataclass
class CapturedBatch:
    """One batch as ShardWriter takes it."""

    tokens: TokenRows
    dense: dict[str, NDArray[Any]] = field(default_factory=dict)
    norms: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    features: dict[str, SparseFeatures] = field(default_factory=dict)


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
        self._model, self._record = model, record
        self._dense = {parse_site(site) for site in asked.dense_sites}
        self._norms = {parse_site(site) for site in asked.norm_sites}
        self._saes: dict[Site, list[SparseAutoencoder]] = {}
        for sae in saes:
            self._saes.setdefault(sae.site, []).append(sae.to(model.device))
        self._sites = self._dense | self._norms | self._saes.keys()

    def run(self, bucket: Bucket, shard: int, sequences: TokenSequences, attempt: str) -> bool:
        """Capture the shard's sequences, which `sequences` holds among others. True: this attempt's commit won."""
        own = sequences.select(self._record.shard_sequences(shard))
        with ShardWriter(bucket, self._record, shard, attempt) as writer, ThreadPoolExecutor(1, "write") as thread:
            waiting: list[Future[None]] = []
            for batch in own.batches(self._record.specification.sequences_per_batch):
                waiting.append(thread.submit(_add, writer, self.capture(batch)))
                if len(waiting) > _BATCHES_WAITING:
                    waiting.pop(0).result()
            for written in waiting:
                written.result()
            return writer.commit()

    def capture(self, batch: TokenSequences) -> CapturedBatch:
        """One forward pass. Padding on the right takes part in it, changes nothing, and is left out of all products."""
        captured = CapturedBatch(batch.rows(self._model.bos_id, self._model.special_ids))
        ids, inside = batch.padded()
        mask = None if inside.all() else torch.from_numpy(inside).to(self._model.device)
        shared: dict[int, tuple[Tensor, NDArray[np.float32]]] = {}

        def see(site: Site, tensor: Float[Tensor, "batch position d_model"]) -> None:
            rows = tensor.flatten(0, 1) if mask is None else None
            if site in self._norms:
                captured.norms[str(site)] = _norms(tensor, mask, shared)
            if site in self._dense or site in self._saes:
                rows = tensor[mask] if rows is None else rows
                self._keep_rows(site, rows, captured)

        visit(self._model, torch.from_numpy(ids).to(self._model.device), None, self._sites, see)
        return captured

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


def _add(writer: ShardWriter, batch: CapturedBatch) -> None:
    dense: Mapping[str, NDArray[Any]] = batch.dense
    writer.add(batch.tokens, dense, batch.norms, batch.features)
