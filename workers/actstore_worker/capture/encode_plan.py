"""Plans a run over another run's rows: finds and checks the SAEs that encode them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from actstore_api.records.capture import CaptureSpecification, DatasetReference
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket import Bucket, check_name
from actstore_storage.errors import BadRequest
from actstore_storage.format.records import fields_in_common
from actstore_storage.format.specification import RunRecord, SaeRecord, Specification
from actstore_storage.runs.opening import open_run
from actstore_worker.capture.plan import default_run_name
from actstore_worker.capture.planning.estimates import check_run_bytes, feature_bytes
from actstore_worker.capture.planning.options import row_filters, stored_positions
from actstore_worker.capture.run_plan import PlanSettings, RunPlan
from actstore_worker.capture.shards.tasks import EncodeTask
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.provenance import code_version
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.formats.loading import load_sae

# Fields that a run over another run's rows has itself.
_OWN = frozenset({"run", "saes", "rows_of"})
_NOTHING_ASKED = CaptureSpecification()


@dataclass(frozen=True, kw_only=True)
class EncodePlan(RunPlan):
    """A run over another run's rows. `saes` are those that the other run does not have. No document is read, and no
    model is run.
    """

    @property
    def model_to_register(self) -> None:
        return None

    @property
    def flops_per_token(self) -> float:
        """The operations of the encoders only."""
        return 2.0 * sum(sae.d_in * sae.d_sae for sae in self.saes)

    def task(self, shard: int, attempt: str) -> EncodeTask:
        return EncodeTask(self.record, self.sae_paths, shard, attempt)


def plan_encoding(
    request: CaptureSpecification, bucket: Bucket, catalog: ModelCatalog, settings: PlanSettings
) -> EncodePlan:
    """Plans the run. Errors: BadRequest or NotThere with field, value and what is allowed."""
    if request.run:
        check_name(request.run, "run")
    base = _complete_run(bucket, request.rows_of)
    _check_taken_over(request, base.specification)
    known = {sae.name for sae in base.specification.saes}
    paths = {name: catalog.find_sae(name) for name in dict.fromkeys(request.saes) if name not in known}
    if not paths:
        raise BadRequest(
            f"run {base.run} already has the features of "
            f"{', '.join(request.saes) or 'no SAE, and the request has no SAE'}",
            field="saes",
            value=request.saes,
            allowed="at least one SAE that the run does not have",
        )
    saes = tuple(_stored_sae(bucket, path, name, base) for name, path in paths.items())
    record = _record(request, base, saes, settings.device)
    sizes = feature_bytes(saes, base.tokens_total)
    check_run_bytes(sizes, settings.run_bytes_max)
    return EncodePlan(record=record, sae_paths=paths, saes=saes, bytes_by_product=sizes)


def _stored_sae(bucket: Bucket, path: Path, name: str, base: RunRecord) -> SparseAutoencoder:
    bucket.check()
    sae = load_sae(path, name)
    _check_stored(sae, base)
    return sae


def _record(
    request: CaptureSpecification, base: RunRecord, saes: Sequence[SparseAutoencoder], device: str
) -> RunRecord:
    """The record of a run with the base run's rows and features, and those of the additional SAEs."""
    added = [SaeRecord(sae.name, sae.sha256, str(sae.site), sae.d_sae) for sae in saes]
    specification = base.borrow_rows(added)
    return replace(
        base,
        run=request.run or default_run_name(specification),
        specification=specification,
        specification_sha256=specification.sha256,
        device=device,
        code_version=code_version(),
    )


def _complete_run(bucket: Bucket, run: str) -> RunRecord:
    snapshot = open_run(bucket, run)
    if not snapshot.complete:
        raise BadRequest(
            f"run {run} has {len(snapshot.commits)} of its {snapshot.record.shards_total} shards",
            field="rows_of",
            value=run,
            allowed="a complete run: finish its capture first",
        )
    return snapshot.record


def _check_taken_over(request: CaptureSpecification, standing: Specification) -> None:
    """Checks that all other fields of the request match the other run."""
    for field, asked, stands in _said(request, standing):
        if asked != stands:
            message = f"{field} is {asked!r}, but run {request.rows_of} was captured with {stands!r}"
            raise BadRequest(message, field=field, value=asked, allowed=f"{stands!r}, or leave it out")


def _said(request: CaptureSpecification, standing: Specification) -> Iterator[tuple[str, Any, Any]]:
    """Yields what the request sets explicitly: the field, its value, and the other run's value."""
    for name in (field.name for field in fields(CaptureSpecification)):
        asked = getattr(request, name)
        if name in _OWN or asked == getattr(_NOTHING_ASKED, name):
            continue
        if name == "model":
            yield from _said_of_model(asked, standing)
        elif name == "dataset":
            yield from _said_of_dataset(asked, standing)
        elif name == "positions":
            yield name, stored_positions(asked), standing.positions
        elif name == "sink_ratio":
            yield name, asked, standing.sink_ratio or 0.0
        else:
            yield name, asked, getattr(standing, name)


def _said_of_model(asked: ModelReference, standing: Specification) -> Iterator[tuple[str, Any, Any]]:
    yield "model", asked.name, standing.model
    if asked.revision:
        yield "model.revision", asked.revision, standing.model_revision


def _said_of_dataset(asked: DatasetReference, standing: Specification) -> Iterator[tuple[str, Any, Any]]:
    yield "dataset", asked.name, standing.dataset
    for name, stands in fields_in_common(standing, DatasetReference).items():
        value = getattr(asked, name)
        if name != "row_filters" and value != getattr(DatasetReference, name):
            yield f"dataset.{name}", value, stands
    if asked.row_filters:
        yield "dataset.row_filters", row_filters(asked), standing.row_filters


def _check_stored(sae: SparseAutoencoder, base: RunRecord) -> None:
    """Checks that the run has the rows that the SAE reads, for every token."""
    asked, site = base.specification, str(sae.site)
    if site not in asked.dense_sites:
        raise BadRequest(
            f"SAE {sae.name!r} reads {site}, whose rows run {base.run} does not store",
            reason="SITE_UNKNOWN",
            field="saes",
            value=sae.name,
            allowed=asked.dense_sites or "none: this run was captured without dense sites",
        )
    if asked.positions.kind != "all":
        raise BadRequest(
            f"run {base.run} stores rows of some tokens only ({asked.positions.kind}), but features are computed on "
            "every token",
            field="rows_of",
            value=base.run,
            allowed="a run that stores rows of all positions",
        )
    if sae.d_in != base.dense_width(site):
        raise BadRequest(
            f"SAE {sae.name!r} reads rows of {sae.d_in} elements, but those of {site} in run {base.run} have "
            f"{base.dense_width(site)}",
            reason="SAE_MISMATCH",
            field="d_in",
            value=sae.d_in,
            allowed=base.dense_width(site),
        )
