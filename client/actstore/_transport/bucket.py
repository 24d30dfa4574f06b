"""Asking a bucket by itself, without a service: the one file of the client that imports actstore_storage."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actstore._errors import ActstoreError, error_of, refused
from actstore._features.stored import FeatureStatistics
from actstore._model_questions import ModelQuestion
from actstore._norms.profile import POSITION_0, Growth, GrowthQuestion, NormProfile, ProfileQuestion
from actstore._norms.separability import Separability, SeparabilityQuestion
from actstore._patching.sweep import Sweep, SweptCells
from actstore._questions import (
    ActiveQuestion,
    CofiringQuestion,
    FeatureQuestion,
    FindQuestion,
    Found,
    RowsQuestion,
    SampleQuestion,
)
from actstore._records import (
    CaptureEstimate,
    CaptureProgress,
    CaptureSpecification,
    ModelDescription,
    Positions,
    Provenance,
    RowFilter,
    RowQuery,
    RunDescription,
    S3Access,
    SaeAttachment,
    SaeDescription,
    Sources,
    SweepEstimate,
    SweepProgress,
    SweepRequest,
    field_names,
)
from actstore._transport.base import Backend, Question, Rows
from actstore._verdict import Verdict
from actstore_api.records.terms import Failure
from actstore_storage import errors
from actstore_storage.bucket import Bucket, access, opening
from actstore_storage.features import coactivity, sampling
from actstore_storage.features import examples as windows
from actstore_storage.features import statistics as features
from actstore_storage.features import table as feature_table
from actstore_storage.norms import growth, growth_shapes, revisions, separability
from actstore_storage.norms import profile as norms
from actstore_storage.registry import models, saes
from actstore_storage.rows import export
from actstore_storage.rows import reading as rows
from actstore_storage.runs import opening as runs
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import EVERY_ROW, TokenFilter
from actstore_storage.upkeep import fsck, removal


class BucketBackend(Backend):
    def __init__(self, address: str, s3: S3Access | None) -> None:
        opened_with = access.S3Access(**asdict(s3)) if s3 else None
        with _in_our_words():
            self._opened = opening.open_bucket(address, opened_with)
        self.address = self._opened.address
        self._checked = False

    @property
    def _bucket(self) -> Bucket:
        """Looked at when it is first asked: of a mistyped folder every answer would be empty."""
        if not self._checked:
            runs.check_store(self._opened)
            self._checked = True
        return self._opened

    def close(self) -> None:
        """Nothing is held open between calls."""

    def list_runs(self) -> list[RunDescription]:
        with _in_our_words():
            return [_run(snapshot) for snapshot in runs.readable_runs(self._bucket)]

    def get_run(self, run: str) -> RunDescription:
        with _in_our_words():
            return _run(runs.open_run(self._bucket, run))

    def list_models(self) -> list[ModelDescription]:
        with _in_our_words():
            return [_record(ModelDescription, model) for model in models.list_models(self._bucket)]

    def list_sources(self) -> Sources:
        message = f"what the workers find is known to a service, and {self.address} is a bucket without one"
        raise refused(message, "address", self.address, "host:port of a service", "NEEDS_SERVICE")

    def list_saes(self) -> list[SaeDescription]:
        with _in_our_words():
            return [_record(SaeDescription, sae) for sae in saes.list_saes(self._bucket)]

    def norm_profile(self, question: ProfileQuestion) -> NormProfile:
        chosen: dict[str, Any] = {} if question.quantiles is None else {"quantiles": question.quantiles}
        asked = norms.ProfileQuestion(
            sites=question.sites,
            quantity=question.quantity,
            by=question.by,
            exclude=question.exclude,
            exclude_position_0=question.exclude_position_0,
            exact=question.exact,
            sequences=question.sequences,
            **chosen,
        )
        with self._snapshots((question.run, *question.more_runs)) as snapshots:
            found = revisions.norms_of_runs(
                snapshots, asked, steps=question.steps, bins=question.bins, edges=question.edges
            )
            return NormProfile(
                table=found.profile,
                run=question.run,
                quantity=question.quantity,
                by=question.by,
                histogram=found.histogram,
                from_statistics=found.from_statistics,
                fit=self.fit_growth,
                more_runs=question.more_runs,
                warnings=found.warnings,
                **_origin(snapshots[0], _left_out(question)),
            )

    def fit_growth(self, question: GrowthQuestion) -> Growth:
        first, *more = question.runs
        asked: dict[str, Any] = {
            "site": question.site,
            "exclude": question.exclude,
            "exclude_position_0": question.exclude_position_0,
            "bootstrap": growth.Bootstrap(question.resamples, question.seed),
            "quantity": question.quantity,
        }
        with self._snapshot(first) as snapshot:
            if question.axis == growth.CHECKPOINT:
                snapshots = [snapshot, *(runs.open_run(self._bucket, run) for run in more)]
                fitted = growth.fit_growth_over_checkpoints(snapshots, steps=question.steps, **asked)
            else:
                fitted = growth.fit_growth(snapshot, layers=question.layers, **asked)
            return Growth(
                table=fitted.points,
                axis=fitted.axis,
                site=fitted.site,
                layers=(fitted.first_layer, fitted.last_layer),
                block=fitted.block,
                resamples=fitted.bootstrap.resamples,
                seed=fitted.bootstrap.seed,
                sequences=fitted.sequences,
                quantity=fitted.quantity,
                **_fit_fields(fitted.fit),
                warnings=fitted.warnings,
                **_origin(snapshot, _left_out(question)),
            )

    def separability(self, question: SeparabilityQuestion) -> Separability:
        with self._snapshots(question.runs) as snapshots:
            found = separability.separability(
                snapshots,
                site=question.site,
                layers=question.layers,
                steps=question.steps,
                exclude=question.exclude,
                exclude_position_0=question.exclude_position_0,
                quantity=question.quantity,
            )
            shares, numbers = found.shares, found.cells["layer"]
            return Separability(
                table=found.cells,
                site=found.site,
                layers=(numbers[0].as_py(), numbers[-1].as_py()),
                quantity=found.quantity,
                layer_share=shares.layer,
                checkpoint_share=shares.checkpoint,
                interaction_share=shares.interaction,
                explained=shares.explained,
                rank_one=shares.rank_one,
                miss=shares.miss,
                verdict=shares.verdict,
                warnings=found.warnings,
                **_origin(snapshots[0], _left_out(question)),
            )

    def feature_statistics(
        self, run: str, sae: str, feature: int, exclude: frozenset[str], bins: int
    ) -> FeatureStatistics:
        with self._snapshot(run) as snapshot:
            found = features.feature_statistics(snapshot, sae, feature, bins=bins, exclude=exclude)
            return FeatureStatistics(
                table=found.histogram,
                sae=sae,
                feature=feature,
                tokens=found.tokens,
                active_tokens=found.active_tokens,
                density=found.density,
                maximum=found.maximum,
                mean_when_active=found.mean_when_active,
                **_origin(snapshot, exclude, (sae,)),
            )

    def ask(self, question: Question) -> Found:
        if isinstance(question, ModelQuestion):
            raise self._needs_service(f"a question to the model {question.model}")
        if not isinstance(question, FeatureQuestion):
            raise self._needs_service(f"a question to the SAE {question.sae}")
        with self._snapshot(question.run) as snapshot:
            table = _FEATURE_ANSWERS[type(question)](snapshot, question)
            return Found(table=table, **_origin(snapshot, question.exclude, (question.sae,)))

    def read_feature(self, question: RowsQuestion) -> Rows:
        with self._snapshot(question.run) as snapshot:
            batches = features.feature_rows(
                snapshot, question.sae, question.feature, threshold=question.threshold, **_which_tokens(question)
            )
            return pa.Table.from_batches(list(batches)), _provenance(snapshot, (question.sae,))

    def read_activations(self, run: str, query: RowQuery) -> Rows:
        sites = query.sites[0] if len(query.sites) == 1 else query.sites
        with self._snapshot(run) as snapshot:
            batches = rows.read_activations(snapshot, sites, _filter(query), query.columns)
            return pa.Table.from_batches(list(batches)), _provenance(snapshot, ())

    def read_tokens(self, run: str, query: RowQuery) -> Rows:
        with self._snapshot(run) as snapshot:
            batches = rows.read_tokens(snapshot, _filter(query))
            return pa.Table.from_batches(list(batches)), _provenance(snapshot, ())

    def check_runs(self, run: str | None, quick: bool, remove_orphans: bool) -> Verdict:
        with _in_our_words():
            found = fsck.check_runs(self._bucket, run, quick=quick, remove_orphans=remove_orphans)
        findings = pa.table({name: [getattr(one, name) for one in found.findings] for name in ("kind", "key", "what")})
        return Verdict(
            table=findings,
            sound=found.sound,
            runs=found.runs,
            shards=found.shards,
            objects=found.objects,
            bytes=found.bytes,
        )

    def remove_run(self, run: str, force: bool) -> int:
        with _in_our_words():
            return removal.remove_run(self._bucket, run, force=force)

    def export(self, run: str, site: str, layout: str, folder: Path) -> int:
        """How many files, or contexts, were written."""
        with self._snapshot(run) as snapshot:
            if layout == "saelens":
                return export.export_saelens(snapshot, site, folder)
            return len(export.export_safetensors(snapshot, site, folder))

    def estimate_capture(self, specification: CaptureSpecification) -> CaptureEstimate:  # noqa: ARG002
        raise self._needs_service("estimating a capture")

    def start_capture(self, specification: CaptureSpecification) -> str:  # noqa: ARG002
        raise self._needs_service("capture")

    def watch_capture(self, run: str) -> Iterator[CaptureProgress]:  # noqa: ARG002
        raise self._needs_service("watching a capture")

    def cancel_capture(self, run: str) -> CaptureProgress:  # noqa: ARG002
        raise self._needs_service("cancelling a capture")

    def run_sweep(self, request: SweepRequest) -> Iterator[SweepProgress | SweptCells | Sweep]:  # noqa: ARG002
        raise self._needs_service("patch")

    def estimate_sweep(self, request: SweepRequest) -> SweepEstimate:  # noqa: ARG002
        raise self._needs_service("patch")

    def _needs_service(self, call: str) -> ActstoreError:
        message = f"{call} runs a model, and {self.address} is a bucket without a service"
        return refused(message, "address", self.address, "host:port of a service", "NEEDS_SERVICE")

    @contextmanager
    def _snapshot(self, run: str) -> Iterator[Snapshot]:
        """What is committed now; each call reads its own."""
        with self._snapshots((run,)) as [snapshot]:
            yield snapshot

    @contextmanager
    def _snapshots(self, names: Sequence[str]) -> Iterator[list[Snapshot]]:
        with _in_our_words():
            yield [runs.open_run(self._bucket, run) for run in names]


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except errors.ActstoreError as error:
        raise error_of(Failure(error.reason, error.message, error.details)) from None


def _record(kind: type[Any], record: object) -> Any:
    """A dataclass from the storage library's with the same fields."""
    return kind(**{name: getattr(record, name) for name in field_names(kind)})


def _provenance(snapshot: Snapshot, saes: tuple[str, ...]) -> Provenance:
    provenance: Provenance = _record(Provenance, snapshot.provenance(saes))
    return provenance


def _origin(snapshot: Snapshot, exclude: frozenset[str], saes: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"excluded": tuple(sorted(exclude)), "provenance": _provenance(snapshot, saes)}


def _left_out(question: ProfileQuestion | GrowthQuestion | SeparabilityQuestion) -> frozenset[str]:
    return question.exclude | ({POSITION_0} if question.exclude_position_0 else set())


def _fit_fields(fit: growth_shapes.GrowthFit) -> dict[str, Any]:
    found = {name: value for name, value in vars(fit).items() if name not in ("fitted", "ratios")}
    return {**found, "median_ratio": fit.ratios.median}


def fit_steps(steps: Sequence[float], values: Sequence[float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the store's fit says of any norms: columns of its points, and a Growth's fields."""
    with _in_our_words():
        fit = growth_shapes.fit_steps(np.array(steps, np.float64), np.array(values, np.float64))
    return {"fitted": fit.fitted, **fit.ratios.columns()}, _fit_fields(fit)


def _run(snapshot: Snapshot) -> RunDescription:
    record = snapshot.record
    asked = record.specification
    specification = CaptureSpecification(
        model=asked.model,
        dataset=asked.dataset,
        run=record.run,
        model_revision=asked.model_revision,
        text_field=asked.text_field,
        max_tokens=asked.max_tokens,
        context_length=asked.context_length,
        bos=asked.prepend_bos,
        dense_sites=asked.dense_sites,
        norm_sites=asked.norm_sites,
        saes=tuple(sae.name for sae in asked.saes),
        dtype=asked.dtype,
        sequences_per_shard=asked.sequences_per_shard,
        sequences_per_batch=asked.sequences_per_batch,
        storage_dtype=asked.storage_dtype,
        widen_on_overflow=asked.widen_on_overflow,
        packing=asked.packing,
        positions=_record(Positions, asked.positions),
        tokens_field=asked.tokens_field,
        row_filters=tuple(_record(RowFilter, found) for found in asked.row_filters),
        max_documents=asked.max_documents,
        sink_ratio=asked.sink_ratio or 0.0,
        rows_of=asked.rows_of,
        source_field=asked.source_field,
    )
    return RunDescription(
        name=record.run,
        specification=specification,
        provenance=_provenance(snapshot, tuple(sae.name for sae in asked.saes)),
        sequences_total=record.sequences_total,
        tokens_total=record.tokens_total,
        tokens_committed=snapshot.tokens_committed,
        dense_sites=asked.dense_sites,
        norm_sites=asked.norm_sites,
        saes=tuple(SaeAttachment(sae.name, sae.site, sae.d_sae) for sae in asked.saes),
        layer_count=record.layer_count,
        d_model=record.d_model,
    )


def _filter(query: RowQuery) -> TokenFilter:
    return TokenFilter(**{field.name: getattr(query, field.name) for field in fields(TokenFilter)})


def _which_tokens(question: FeatureQuestion) -> dict[str, Any]:
    return {"exclude": question.exclude, "keep": _filter(question.where) if question.where else None}


def _sample(snapshot: Snapshot, question: SampleQuestion) -> pa.Table:
    sample = sampling.Sample(question.method, question.k, question.bins, question.threshold, question.seed)
    window = windows.Window(question.tokens_before, question.tokens_after)
    return sampling.sample_many(
        snapshot, question.sae, question.features, sample, window=window, **_which_tokens(question)
    )


def _find(snapshot: Snapshot, question: FindQuestion) -> pa.Table:
    search = feature_table.FeatureSearch(
        question.bounds, question.order, question.ascending, question.k, question.features, question.with_token_r2
    )
    return feature_table.feature_table(snapshot, question.sae, search, exclude=question.exclude)


def _active(snapshot: Snapshot, question: ActiveQuestion) -> pa.Table:
    keep = _filter(question.where) if question.where else EVERY_ROW
    return coactivity.active_features(
        snapshot, question.sae, keep, k=question.k, order=question.order, exclude=question.exclude
    )


def _cofiring(snapshot: Snapshot, question: CofiringQuestion) -> pa.Table:
    return coactivity.cofiring_features(
        snapshot,
        question.sae,
        question.feature,
        k=question.k,
        least_tokens=question.least_tokens,
        exclude=question.exclude,
    )


_FEATURE_ANSWERS: Mapping[type[FeatureQuestion], Callable[[Snapshot, Any], pa.Table]] = {
    SampleQuestion: _sample,
    FindQuestion: _find,
    ActiveQuestion: _active,
    CofiringQuestion: _cofiring,
}
