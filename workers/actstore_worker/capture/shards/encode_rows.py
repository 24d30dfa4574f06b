"""Encodes stored rows with SAEs: the features of a shard without its model.

Rows go through an SAE in the same batches as in a capture. If they are stored in the model's own dtype, the features
are bit for bit those of a capture that had the SAE from the start.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from actstore_storage.bucket import Bucket
from actstore_storage.errors import Conflict
from actstore_storage.format.commit import Commit
from actstore_storage.format.specification import RunRecord
from actstore_storage.parquet.reading import open_product
from actstore_storage.rows.memory import elements
from actstore_storage.rows.reading import DenseReader
from actstore_storage.runs.borrowed_shard import FeatureWriter
from actstore_storage.runs.feature_index import SparseFeatures
from actstore_storage.runs.opening import read_commit, read_record
from actstore_storage.runs.tokens import shard_tokens
from actstore_worker.capture.shards.shard import (
    capture_windows,
    changed_since_planned,
    features_in_order,
    lane_count,
    open_lanes,
)
from actstore_worker.datasets.batching import Batch, Window
from actstore_worker.datasets.sequences import TokenSequences
from actstore_worker.models.dtypes import TORCH_DTYPES
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.nonzeros import nonzero_features

# Windows of rows that are read and encoded ahead of the one that is being written.
_WINDOWS_AHEAD = 1


class RowsEncoder:
    """Holds SAEs on their device for all shards of one run over another run's rows.

    Errors: BadRequest RUN_MISMATCH if they are not the SAEs that the run adds. `check` is called before each batch, and
    raises an error to stop.
    """

    def __init__(
        self, bucket: Bucket, record: RunRecord, saes: tuple[SparseAutoencoder, ...], device: torch.device
    ) -> None:
        self._bucket, self._record, self._device = bucket, record, device
        self._base = _standing_base(bucket, record)
        known = len(self._base.specification.saes)
        wanted = {sae.name: sae.sha256 for sae in record.specification.saes[known:]}
        if {sae.name: sae.sha256 for sae in saes} != wanted:
            raise changed_since_planned(record.run, "one of its SAEs")
        self._saes = [sae.to(device) for sae in saes]
        self._threads, self._lanes = torch.get_num_threads(), lane_count(device)
        self.check: Callable[[], None] = lambda: None

    @property
    def dtype(self) -> str:
        """The dtype in which SAEs encode, whatever the rows are stored in."""
        return "float32"

    def writer(self, shard: int, attempt: str) -> FeatureWriter:
        return FeatureWriter(self._bucket, self._record, read_commit(self._bucket, self._base, shard), attempt)

    def stream(self, writer: FeatureWriter) -> None:
        """Writes everything that the run adds to the shard, in the order of its rows."""
        commit = writer.base
        tokens = shard_tokens(self._bucket, commit)
        flags = tokens["flags"].to_numpy()
        first = 0
        for window, features in self._encoded(commit, stored_sequences(tokens)):
            last = first + len(window.sequences.tokens)
            writer.add(flags[first:last], features)
            first = last

    def _encoded(
        self, commit: Commit, sequences: TokenSequences
    ) -> Iterator[tuple[Window, Mapping[str, SparseFeatures]]]:
        waiting: deque[tuple[Window, list[Future[dict[str, SparseFeatures]]]]] = deque()
        with open_lanes(self._lanes, self._threads) as lanes, ExitStack() as files:
            sites = dict.fromkeys(str(sae.site) for sae in self._saes)
            opened = {site: files.enter_context(open_product(self._bucket, commit, site)) for site in sites}
            readers = {site: DenseReader(file) for site, file in opened.items()}
            first = 0
            for window in capture_windows(self._record, sequences, self._device):
                last = first + len(window.sequences.tokens)
                rows = {site: self._rows(commit, site, reader.rows(first, last)) for site, reader in readers.items()}
                waiting.append((window, [lanes.submit(self._encode, batch, rows) for batch in window.batches]))
                first = last
                while len(waiting) > _WINDOWS_AHEAD:
                    yield _whole(*waiting.popleft())
            while waiting:
                yield _whole(*waiting.popleft())

    def _rows(self, commit: Commit, site: str, raw: pa.Array) -> "_SiteRows":
        dtype = commit.widened.get(site, self._base.specification.stored_dtype)
        return _SiteRows(elements(raw, dtype, self._base.dense_width(site)), dtype)

    def _encode(self, batch: Batch, rows: Mapping[str, "_SiteRows"]) -> dict[str, SparseFeatures]:
        self.check()
        own = {site: found.take(batch.rows).to(self._device) for site, found in rows.items()}
        with torch.inference_mode():
            return {sae.name: nonzero_features(sae, own[str(sae.site)]) for sae in self._saes}


def stored_sequences(tokens: pa.Table) -> TokenSequences:
    """Returns a shard's token rows as the sequences that were captured."""
    sequence = tokens["sequence"].to_numpy()
    starts = np.flatnonzero(np.diff(sequence, prepend=-1))
    offsets = np.append(starts, len(sequence))
    return TokenSequences(tokens["token"].to_numpy(), offsets, tokens["document"].to_numpy()[starts], sequence[starts])


@dataclass(frozen=True)
class _SiteRows:
    """A part of one site's stored rows; bfloat16 as its raw bits."""

    values: Shaped[NDArray[Any], "row width"]
    dtype: str

    def take(self, rows: Int[NDArray[np.int64], " chosen"]) -> Shaped[Tensor, "chosen width"]:
        """Returns rows in memory aligned by torch, like a model's output: sums may depend on alignment."""
        out = torch.empty(len(rows), self.values.shape[1], dtype=TORCH_DTYPES[self.dtype])
        held = out.view(torch.uint16) if self.dtype == "bfloat16" else out
        np.take(self.values, rows, axis=0, out=held.numpy(), mode="clip")  # Otherwise it copies twice.
        return out


def _whole(
    window: Window, batches: list[Future[dict[str, SparseFeatures]]]
) -> tuple[Window, dict[str, SparseFeatures]]:
    found = [(batch.rows, future.result()) for batch, future in zip(window.batches, batches, strict=True)]
    names = found[0][1]
    return window, {sae: features_in_order([(rows, features[sae]) for rows, features in found]) for sae in names}


def _standing_base(bucket: Bucket, record: RunRecord) -> RunRecord:
    """Opens the base run. Errors: RUN_NOT_FOUND; Conflict if the name now belongs to another run."""
    base = read_record(bucket, record.specification.rows_of)
    if not record.has_rows_of(base):
        raise Conflict(
            f"run {base.run}, whose rows run {record.run} uses, was removed and captured again with another "
            "specification",
            field="rows_of",
            value=base.run,
            allowed="remove this run and encode it again",
        )
    return base
