"""Feeds stored rows to a trainer: an endless sequence of batches on its device, read ahead by one."""

from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from actstore_storage.errors import BadRequest
from actstore_storage.rows.loader import HeldOut, LoadedBatch, TrainingLoader
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.models.dtypes import as_tensor
from actstore_worker.training.recipe import Training

_Served = tuple[Tensor, Mapping[str, Any]]


class RowFeed:
    """An iterator of float32 batches, each of `training.batch_rows` rows. It is a context manager, because it has a
    thread.

    An epoch's last batch is left out if it is smaller, because schedules count steps. `state()` belongs to the last
    batch that was returned; a feed that starts with it returns the next one.

    Errors, from `next`: BadRequest for rows that are not finite, and for a run with too few rows for one batch.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        training: Training,
        device: torch.device,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._training, self._device = training, device
        self._loader = rows_of(snapshot, training)
        # The commits of most runs say that there is no such row, so rows need no check.
        self._look = snapshot.commits.summary.non_finite.get(training.site, 0) > 0
        self._state: Mapping[str, Any] = self._loader.state() if state is None else state
        self._loader.resume(self._state)
        self._thread = ThreadPoolExecutor(1, "rows")
        self._batches = self._serve()
        self._coming: Future[_Served] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.submit(self._batches.close).result()
        self._thread.shutdown()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Float[Tensor, "row d_in"]:
        coming = self._coming or self._thread.submit(next, self._batches)
        rows, self._state = coming.result()
        self._coming = self._thread.submit(next, self._batches)
        return rows

    def state(self) -> Mapping[str, Any]:
        return self._state

    def _serve(self) -> Generator[_Served, None, None]:
        while True:
            served = 0
            for batch in self._loader:
                if len(batch.sites[self._training.site]) == self._training.batch_rows:
                    served += 1
                    yield self._on_device(batch), self._loader.state()
            if not served:
                raise BadRequest(
                    f"run {self._training.run} has fewer rows to train on than one batch of "
                    f"{self._training.batch_rows}",
                    field="batch_rows",
                    value=self._training.batch_rows,
                    allowed="fewer rows, or a larger run",
                )

    def _on_device(self, batch: LoadedBatch) -> Tensor:
        site = self._training.site
        rows = as_tensor(batch.sites[site], batch.dtypes[site])
        if self._device.type == "cuda":
            rows = rows.pin_memory().to(self._device, non_blocking=True)
        if self._look and not bool(rows.isfinite().all()):
            raise BadRequest(
                f"rows of {site} in run {self._training.run} have elements that are infinite or NaN",
                field="site",
                value=site,
                allowed="finite rows: use a dtype that can hold the site's values, or `exclude` the tokens with such "
                "rows",
            )
        return rows.float()


def rows_of(snapshot: Snapshot, training: Training, *, held_out: bool = False) -> TrainingLoader:
    """The rows for training, or the held-out ones."""
    return TrainingLoader(
        snapshot,
        [training.site],
        batch_rows=training.batch_rows,
        seed=training.seed,
        exclude=frozenset(training.exclude),
        held_out=HeldOut(training.held_out_every, alone=held_out),
    )
