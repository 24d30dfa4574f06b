"""Lists of the runs in the store, and of what a capture can name."""

from collections.abc import Generator, Mapping
from dataclasses import asdict, fields
from typing import Any

import pyarrow as pa

from actstore._answer import Listing, Table
from actstore._errors import ActstoreError, NotFound
from actstore._runs.specification import dataset_name
from actstore._transport.base import Backend
from actstore_api.records.capture import (
    CaptureProgress,
    ListSources,
    ListSourcesAnswer,
    WatchCapture,
    WatchCaptureAnswer,
)
from actstore_api.records.catalog import ListModels, ListRuns, ListRunsAnswer, ListSaes, Model, Run, Sae


class Listings:
    """Lists of what a lab has."""

    _backend: Backend

    def models(self) -> Table:
        """List the models that a capture can name, a row for each revision.

        Returns:
            Columns: name, revision, loaded (whether a capture into this store has loaded it, which found the columns
            after `family`), available (whether the workers have the files now; None if they were not asked, because
            this is a bucket or they do not answer), family (transformers' model_type), weights_sha256,
            tokenizer_sha256, config_sha256, block, n_layers, n_heads, d_model, d_vocab and n_ctx.
        """
        sources, note = self._sources()
        loaded = {(model.name, model.revision): asdict(model) for model in self._backend.ask(ListModels()).models}
        found = {} if sources is None else {(one.name, one.revision): one.family for one in sources.models}
        rows = [
            {"name": key[0], "revision": key[1], "family": found.get(key)}
            | loaded.get(key, {})
            | {"loaded": key in loaded, "available": None if sources is None else key in found}
            for key in sorted({*loaded, *found})
        ]
        columns = {"name": str, "revision": str, "loaded": bool, "available": bool, "family": str}
        return _listing("models", rows, columns | _column_types(Model), note)

    def saes(self) -> Table:
        """List the sparse autoencoders that a capture can name.

        Returns:
            Columns: name, loaded and available, as in `models`; then what a capture found: sha256, architecture, site,
            d_in, d_sae and model.
        """
        sources, note = self._sources()
        loaded = {sae.name: asdict(sae) for sae in self._backend.ask(ListSaes()).saes}
        found = () if sources is None else sources.saes
        rows = [
            {"name": name}
            | loaded.get(name, {})
            | {"loaded": name in loaded, "available": None if sources is None else name in found}
            for name in sorted({*loaded, *found})
        ]
        columns = {"name": str, "loaded": bool, "available": bool}
        return _listing("SAEs", rows, columns | _column_types(Sae), note)

    def datasets(self) -> Table:
        """List the datasets that a capture can name. Only through a service, not on a bucket.

        A capture can also name a path below one of them.

        Returns:
            Column name: files and folders with documents, at the top of the workers' dataset folders and stores.

        Raises:
            BadRequest: The lab is a bucket.
        """
        sources: ListSourcesAnswer = self._backend.ask(ListSources())
        return _listing("datasets", [{"name": name} for name in sources.datasets], {"name": str}, _of_listed(sources))

    def _sources(self) -> tuple[ListSourcesAnswer | None, str]:
        """What the workers find, or None if nobody can be asked; and a note for whoever reads the list."""
        try:
            sources: ListSourcesAnswer = self._backend.ask(ListSources())
        except ActstoreError as error:
            if error.reason not in ("NEEDS_SERVICE", "WORKERS_UNAVAILABLE"):
                raise
            why = "a bucket knows no more" if error.reason == "NEEDS_SERVICE" else error.message
            return None, f"those that captures have loaded; the workers were not asked for others: {why}"
        return sources, _of_listed(sources)

    def runs(self) -> Table:
        """List the runs in the store, complete or not. `lab.run(name)` opens one.

        Returns:
            Columns: name, model, dataset, complete, tokens_committed, tokens_total, dense_sites and saes.
        """
        found: ListRunsAnswer = self._backend.ask(ListRuns())
        return _listing("runs", [_run_row(run) for run in found.runs], RUN_COLUMNS)

    def captures(self) -> Table:
        """List the captures that run, or wait in the queue for their start. Only through a service.

        Returns:
            Columns: run; state (running, queued or paused); position (from 1), captures_ahead (of yours) and
            expected_start_seconds (None if no speed was measured yet) of one that is queued; shards_committed,
            shards_total, tokens_committed and tokens_total.

        Raises:
            BadRequest: The lab is a bucket with a run that is not complete.
        """
        found: ListRunsAnswer = self._backend.ask(ListRuns())
        news = [_news(self._backend, run.name) for run in found.runs if not run.complete]
        rows = [_capture_row(each) for each in news if each is not None and not each.ended]
        return _listing("captures", rows, CAPTURE_COLUMNS)


_ARROW_TYPES = {str: pa.string(), int: pa.int64(), bool: pa.bool_(), float: pa.float64()}
CAPTURE_COLUMNS = {
    "run": str,
    "state": str,
    "position": int,
    "captures_ahead": int,
    "expected_start_seconds": float,
    "shards_committed": int,
    "shards_total": int,
    "tokens_committed": int,
    "tokens_total": int,
}
RUN_COLUMNS = {
    "name": str,
    "model": str,
    "dataset": str,
    "complete": bool,
    "tokens_committed": int,
    "tokens_total": int,
    "dense_sites": str,
    "saes": str,
}


def _run_row(run: Run) -> dict[str, object]:
    return {
        "name": run.name,
        "model": run.provenance.model,
        "dataset": dataset_name(run.specification),
        "complete": run.complete,
        "tokens_committed": run.tokens_committed,
        "tokens_total": run.tokens_total,
        "dense_sites": ", ".join(run.dense_sites),
        "saes": ", ".join(sae.name for sae in run.saes),
    }


def _news(backend: Backend, run: str) -> CaptureProgress | None:
    """The progress of a capture now. None: nobody captures the run."""
    told = backend.listen(WatchCapture(run))
    try:
        answer: WatchCaptureAnswer | None = next(told, None)
    except NotFound:
        return None
    finally:
        if isinstance(told, Generator):
            told.close()  # Nothing more is asked of the service.
    return None if answer is None else answer.progress


def _capture_row(news: CaptureProgress) -> dict[str, Any]:
    place = {} if news.queue is None else {**asdict(news.queue), "state": "queued"}
    return {**asdict(news), **place}


def _column_types(kind: type[Any]) -> dict[str, type]:
    """What is no whole number is a word."""
    return {field.name: int if field.type is int else str for field in fields(kind)}


def _listing(kind: str, rows: list[dict[str, Any]], columns: Mapping[str, type], note: str = "") -> Table:
    """What a row does not have is None."""
    found = {name: pa.array([row.get(name) for row in rows], _ARROW_TYPES[of]) for name, of in columns.items()}
    return Listing(kind=kind, note=note, table=pa.table(found))


def _of_listed(sources: ListSourcesAnswer) -> str:
    more = ["there are more; only the first are listed"] if sources.truncated else []
    more += ["names of the Hugging Face hub are allowed, and not listed"] if sources.hub_allowed else []
    return "; ".join(more)
