"""Answers questions about the contents of a bucket: runs, models, SAEs."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from actstore_api.records import capture
from actstore_api.records.catalog import (
    GetRun,
    GetRunAnswer,
    ListModels,
    ListModelsAnswer,
    ListRuns,
    ListRunsAnswer,
    ListSaes,
    ListSaesAnswer,
    Model,
    Run,
    Sae,
    SaeAttachment,
)
from actstore_api.records.terms import ModelReference
from actstore_storage.answers.store import Store
from actstore_storage.format.records import fields_in_common
from actstore_storage.format.specification import RowFilter, RunRecord, Specification
from actstore_storage.registry.models import ModelRecord, list_models
from actstore_storage.registry.saes import list_saes
from actstore_storage.runs.snapshot import Snapshot


def list_runs(store: Store, _: ListRuns) -> ListRunsAnswer:
    """Every readable run, in order of name."""
    return ListRunsAnswer(runs=tuple(run_of(snapshot) for snapshot in store.readable_runs()))


def get_run(store: Store, question: GetRun) -> GetRunAnswer:
    """One run, as it is now."""
    return GetRunAnswer(run=run_of(store.snapshot(question.run)))


def models(store: Store, _: ListModels) -> ListModelsAnswer:
    """Every model that was used in a capture into the store."""
    return ListModelsAnswer(models=tuple(_model(found) for found in list_models(store.bucket)))


def saes(store: Store, _: ListSaes) -> ListSaesAnswer:
    """Every SAE that was used in a capture into the store, or trained from it."""
    return ListSaesAnswer(saes=tuple(Sae(**asdict(found)) for found in list_saes(store.bucket)))


ANSWERS: Mapping[type, Callable[[Store, Any], Any]] = {
    ListRuns: list_runs,
    GetRun: get_run,
    ListModels: models,
    ListSaes: saes,
}


def run_of(snapshot: Snapshot) -> Run:
    """The run as a record of the contract."""
    record = snapshot.record
    specification = record.specification
    return Run(
        name=record.run,
        specification=_specification(record),
        provenance=snapshot.provenance(tuple(sae.name for sae in specification.saes)),
        sequences_total=record.sequences_total,
        tokens_total=record.tokens_total,
        tokens_committed=snapshot.tokens_committed,
        dense_sites=specification.dense_sites,
        norm_sites=specification.norm_sites,
        saes=tuple(SaeAttachment(sae.name, sae.site, sae.d_sae) for sae in specification.saes),
        n_layers=record.layer_count,
        d_model=record.d_model,
    )


def _specification(record: RunRecord) -> capture.CaptureSpecification:
    """The run's specification, with every default filled in."""
    stored = record.specification
    own = {
        "run": record.run,
        "model": ModelReference(name=stored.model, revision=stored.model_revision),
        "dataset": _dataset(stored),
        "positions": capture.Positions(**fields_in_common(stored.positions, capture.Positions)),
        "saes": tuple(sae.name for sae in stored.saes),
        "sink_ratio": stored.sink_ratio or 0.0,
        "storage_dtype": stored.storage_dtype or None,
    }
    return capture.CaptureSpecification(**fields_in_common(stored, capture.CaptureSpecification) | own)


def _dataset(stored: Specification) -> capture.DatasetReference:
    own = {"name": stored.dataset, "row_filters": tuple(map(_row_filter, stored.row_filters))}
    return capture.DatasetReference(**fields_in_common(stored, capture.DatasetReference) | own)


def _row_filter(found: RowFilter) -> capture.RowFilter:
    comparison: Any = found.comparison
    values = found.value if isinstance(found.value, tuple) else (found.value,)
    return capture.RowFilter(column=found.column, comparison=comparison, values=values)


def _model(found: ModelRecord) -> Model:
    block: Any = found.block or None
    return Model(
        name=found.name,
        revision=found.revision,
        weights_sha256=found.weights_sha256,
        tokenizer_sha256=found.tokenizer_sha256,
        config_sha256=found.config_sha256,
        family=found.family,
        block=block,
        n_layers=found.layer_count,
        n_heads=found.head_count,
        d_model=found.d_model,
        d_vocab=found.vocabulary_size,
        n_ctx=found.context_length,
    )
