"""Answers on what a bucket has: runs, models, SAEs."""

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
from actstore_storage.format.specification import RowFilter, RunRecord, Specification
from actstore_storage.registry.models import ModelRecord, list_models
from actstore_storage.registry.saes import list_saes
from actstore_storage.runs.opening import readable_runs
from actstore_storage.runs.snapshot import Snapshot


def list_runs(store: Store, _: ListRuns) -> ListRunsAnswer:
    """Every run that opens, in order of name."""
    return ListRunsAnswer(runs=tuple(run_of(snapshot) for snapshot in readable_runs(store.bucket)))


def get_run(store: Store, question: GetRun) -> GetRunAnswer:
    """One run, as it is now."""
    return GetRunAnswer(run=run_of(store.snapshot(question.run)))


def models(store: Store, _: ListModels) -> ListModelsAnswer:
    """Every model that a capture into the store has loaded."""
    return ListModelsAnswer(models=tuple(_model(found) for found in list_models(store.bucket)))


def saes(store: Store, _: ListSaes) -> ListSaesAnswer:
    """Every SAE that a capture into the store has loaded."""
    return ListSaesAnswer(saes=tuple(Sae(**asdict(found)) for found in list_saes(store.bucket)))


ANSWERS: Mapping[type, Callable[[Store, Any], Any]] = {
    ListRuns: list_runs,
    GetRun: get_run,
    ListModels: models,
    ListSaes: saes,
}


def run_of(snapshot: Snapshot) -> Run:
    """The run as the contract tells of it."""
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


# What a request and the stored specification say in the same words.
_ALIKE = (
    "context_length",
    "prepend_bos",
    "dense_sites",
    "norm_sites",
    "sequences_per_shard",
    "sequences_per_batch",
    "widen_on_overflow",
    "packing",
    "rows_of",
)


def _specification(record: RunRecord) -> capture.CaptureSpecification:
    """What the run was asked for, with every default filled in."""
    stored = record.specification
    alike: dict[str, Any] = {name: getattr(stored, name) for name in _ALIKE}
    dtypes: dict[str, Any] = {"dtype": stored.dtype, "storage_dtype": stored.storage_dtype or None}
    positions: dict[str, Any] = asdict(stored.positions)
    return capture.CaptureSpecification(
        run=record.run,
        model=ModelReference(name=stored.model, revision=stored.model_revision),
        dataset=_dataset(stored),
        positions=capture.Positions(**positions),
        saes=tuple(sae.name for sae in stored.saes),
        sink_ratio=stored.sink_ratio or 0.0,
        **alike,
        **dtypes,
    )


def _dataset(stored: Specification) -> capture.DatasetReference:
    return capture.DatasetReference(
        name=stored.dataset,
        text_field=stored.text_field,
        tokens_field=stored.tokens_field,
        source_field=stored.source_field,
        row_filters=tuple(_row_filter(found) for found in stored.row_filters),
        max_documents=stored.max_documents,
        max_tokens=stored.max_tokens,
    )


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
