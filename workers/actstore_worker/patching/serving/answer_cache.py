"""Caches answers of sweeps in the bucket, so that a repeated request gets them at once, from any replica.

The cache key covers everything that affects the answer: the request and the tokens that are read, hashes of weights,
tokenizer, SAE and stored run, the limits that select audited cells, and the versions of code.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import torch

from actstore_api.records.patching import RunSweep, SweepAudit, SweepProgress, SweepResult, TakenRows
from actstore_api.records.terms import Provenance
from actstore_storage.errors import ActstoreError, StoreError
from actstore_storage.runs.opening import open_run
from actstore_storage.upkeep.answer_cache import KeptAnswer, KeptLimits, is_kept, keep, read_kept
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.inputs.supplies import Supplies
from actstore_worker.patching.legs import ROWS_AT_ONCE
from actstore_worker.patching.plan import size_of
from actstore_worker.patching.updates import NOTHING_CHECKED, CheckedCells, Finished, SweepUpdate
from actstore_worker.provenance import versions

_log = logging.getLogger(__name__)
_CELLS = "cells"
_TABLES = ("tokens", "baselines", "direct")


class AnswerCache:
    """A store that fails causes no errors: an answer that cannot be read is computed, and one that cannot be written is
    not cached.
    """

    def __init__(self, supplies: Supplies, limits: PatchingLimits) -> None:
        self._supplies, self._bucket, self._limits = supplies, supplies.bucket, limits

    def key(self, model: LanguageModel, request: RunSweep, kernel: str) -> str | None:
        """Returns the cache key; None for a request that will be refused, because running it reports the error."""
        try:
            parts: list[Any] = [*_of_model(model, kernel), *self._of_pairs(model, request)]
            parts += [*self._of_supplies(request), *self._of_limits()]
        except ActstoreError:
            return None
        asked = asdict(replace(request, fresh=False))
        text = json.dumps([asked, parts], sort_keys=True, default=sorted)  # Sets have no order.
        return hashlib.sha256(text.encode()).hexdigest()

    def has(self, key: str | None) -> bool:
        try:
            return key is not None and is_kept(self._bucket, key)
        except StoreError:
            return False

    def find(self, key: str, finished: Finished) -> list[SweepUpdate]:
        """Yields the whole cached answer, without what is already finished of the same request; or nothing."""
        try:
            found = read_kept(self._bucket, key)
        except StoreError as error:
            _log.warning("cached answers cannot be read: %s", error.for_log)
            return []
        return [] if found is None else list(_updates(found, finished))

    def keep(self, key: str, parts: Sequence[pa.Table], end: SweepResult, *, fresh: bool) -> None:
        """Caches the answer, unless it is too large."""
        cells = pa.concat_tables(parts)
        if cells.nbytes > self._limits.kept_bytes:
            return
        record = {"audit": asdict(end.audit), "provenance": asdict(end.provenance), **_numbers(end)}
        tables = {_CELLS: cells, **{name: getattr(end, name) for name in _TABLES}}
        try:
            keep(self._bucket, key, KeptAnswer(record, tables), replace=fresh, limits=self._all_kept)
        except StoreError as error:
            _log.warning("an answer could not be cached: %s", error.for_log)

    @property
    def _all_kept(self) -> KeptLimits:
        limits = self._limits
        return KeptLimits(limits.kept_answers, limits.kept_total_bytes, limits.kept_days)

    def _of_pairs(self, model: LanguageModel, request: RunSweep) -> Iterator[dict[str, Any]]:
        """Returns the tokens that are read, independent of how texts, spans and answers are tokenized."""
        yield from map(asdict, size_of(model, request, self._limits).pairs)

    def _of_supplies(self, request: RunSweep) -> Iterator[str]:
        if request.sae:
            yield self._supplies.find_sae(request.sae).sha256
        if request.stored is not None:
            snapshot = open_run(self._bucket, request.stored.run)
            yield from (snapshot.record.specification_sha256, snapshot.name)

    def _of_limits(self) -> tuple[int, ...]:
        return self._limits.audited_cells, self._limits.tokens_per_slice, self._limits.stored_rows


def _of_model(model: LanguageModel, kernel: str) -> tuple[str, ...]:
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type
    hashes = model.weights_sha256, model.config_sha256, model.tokenizer_sha256
    return *versions().values(), *hashes, model.dtype, model.attention_implementation, device, kernel


def _numbers(end: SweepResult) -> dict[str, Any]:
    taken = end.stored_rows
    return {
        "clean_answer": end.clean_answer,
        "corrupt_answer": end.corrupt_answer,
        "clean_logit_difference": end.clean_logit_difference,
        "corrupt_logit_difference": end.corrupt_logit_difference,
        "stored_rows": None if taken is None else {**asdict(taken), "excluded": sorted(taken.excluded)},
    }


def _updates(kept: KeptAnswer, finished: Finished) -> Iterator[SweepUpdate]:
    record, cells = dict(kept.record), kept.tables[_CELLS]
    audit, taken, provenance = (record.pop(name) for name in ("audit", "stored_rows", "provenance"))
    origin, begin = Provenance(**provenance), 0 if finished.rows is None else finished.rows.num_rows
    finished.check_goes_on(origin)
    for first in range(begin, cells.num_rows, ROWS_AT_ONCE):
        yield CheckedCells(cells.slice(first, ROWS_AT_ONCE), NOTHING_CHECKED, origin)
    computed = cells.num_rows - cells["logit_difference"].null_count
    yield SweepProgress(computed, computed)
    yield SweepResult(
        **record,
        **{name: kept.tables[name] for name in _TABLES},
        audit=replace(SweepAudit(**audit), cached=True),
        provenance=origin,
        stored_rows=None if taken is None else TakenRows(**{**taken, "excluded": frozenset(taken["excluded"])}),
    )
