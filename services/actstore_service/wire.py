"""Messages from and to storage's dataclasses and Arrow tables."""

from collections.abc import Collection, Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from actstore_api.v1 import capture_pb2, catalog_pb2, common_pb2
from actstore_storage.errors import BadRequest
from actstore_storage.format.specification import Positions, RowFilter, Specification
from actstore_storage.format.tokens import DEFAULT_EXCLUSION
from actstore_storage.registry.models import ModelRecord
from actstore_storage.registry.saes import SaeModelRecord
from actstore_storage.runs.snapshot import Provenance, Snapshot
from actstore_storage.runs.token_filter import TokenFilter

TOKEN_CLASSES = {
    common_pb2.TOKEN_CLASS_BOS: "bos",
    common_pb2.TOKEN_CLASS_SPECIAL: "special",
    common_pb2.TOKEN_CLASS_SINK: "sink",
}


_COMPARISONS = {
    "==": capture_pb2.COMPARISON_EQUAL,
    "!=": capture_pb2.COMPARISON_NOT_EQUAL,
    "<": capture_pb2.COMPARISON_LESS,
    "<=": capture_pb2.COMPARISON_LESS_OR_EQUAL,
    ">": capture_pb2.COMPARISON_GREATER,
    ">=": capture_pb2.COMPARISON_GREATER_OR_EQUAL,
    "in": capture_pb2.COMPARISON_IN,
    "not in": capture_pb2.COMPARISON_NOT_IN,
}
_VALUE_FIELDS = {str: "text", int: "integer", float: "real", bool: "truth"}


def given(request: Any, *names: str) -> dict[str, Any]:
    """The optional fields that a request sets; storage knows the defaults of the others."""
    return {name: getattr(request, name) for name in names if request.HasField(name)}


def excluded_classes(request: Any, default: frozenset[str] = DEFAULT_EXCLUSION) -> frozenset[str]:
    """Absent: the default, BOS. Present and empty: none."""
    if not request.HasField("exclude"):
        return default
    for number in request.exclude.classes:
        if number not in TOKEN_CLASSES:
            raise BadRequest(
                f"token class {number} cannot be excluded",
                field="exclude",
                value=number,
                allowed=[common_pb2.TokenClass.Name(known) for known in TOKEN_CLASSES],
            )
    return frozenset(TOKEN_CLASSES[number] for number in request.exclude.classes)


def token_selection(request: Any) -> TokenFilter | None:
    """The request's `selection`; None where it is absent."""
    if not request.HasField("selection"):
        return None
    asked = request.selection
    return token_filter(asked, asked)


def token_filter(message: Any, sequences: Any) -> TokenFilter:
    """Of a message with `filter`, and one that says which sequences."""
    asked = message.filter
    return TokenFilter(
        first_sequence=sequences.first_sequence,
        tokens=tuple(asked.tokens),
        documents=tuple(asked.documents),
        exclude=excluded_classes(asked, default=frozenset()),
        **given(sequences, "sequence_count"),
        **given(asked, "first_position", "end_position"),
    )


def token_classes(names: Collection[str]) -> list[common_pb2.TokenClass]:
    return [number for number, name in TOKEN_CLASSES.items() if name in names]


def table_message(table: pa.Table | pa.RecordBatch) -> common_pb2.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return common_pb2.Table(arrow_ipc_stream=sink.getvalue().to_pybytes())


def slices(batch: pa.RecordBatch, bytes_max: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of about `bytes_max` bytes at most; one batch at least, for the schema's sake."""
    rows_max = max(1, batch.num_rows * bytes_max // max(1, batch.nbytes))
    for first in range(0, max(1, batch.num_rows), rows_max):
        yield batch.slice(first, rows_max)


def provenance_message(provenance: Provenance) -> common_pb2.Provenance:
    return common_pb2.Provenance(**asdict(provenance))


def model_message(record: ModelRecord) -> catalog_pb2.Model:
    return catalog_pb2.Model(**asdict(record))


def sae_message(record: SaeModelRecord) -> catalog_pb2.Sae:
    return catalog_pb2.Sae(**asdict(record))


def run_message(snapshot: Snapshot) -> catalog_pb2.Run:
    record = snapshot.record
    specification = record.specification
    return catalog_pb2.Run(
        name=record.run,
        specification=_specification_message(record.run, specification),
        provenance=provenance_message(snapshot.provenance(tuple(sae.name for sae in specification.saes))),
        sequences_total=record.sequences_total,
        tokens_total=record.tokens_total,
        tokens_committed=snapshot.tokens_committed,
        dense_sites=specification.dense_sites,
        norm_sites=specification.norm_sites,
        saes=[catalog_pb2.SaeAttachment(name=sae.name, site=sae.site, d_sae=sae.d_sae) for sae in specification.saes],
        layer_count=record.layer_count,
        d_model=record.d_model,
    )


def _specification_message(run: str, specification: Specification) -> capture_pb2.CaptureSpecification:
    return capture_pb2.CaptureSpecification(
        run=run,
        model=capture_pb2.ModelReference(name=specification.model, revision=specification.model_revision),
        dataset=capture_pb2.DatasetReference(
            name=specification.dataset,
            text_field=specification.text_field,
            max_tokens=specification.max_tokens,
            tokens_field=specification.tokens_field,
            filters=[_row_filter_message(found) for found in specification.row_filters],
            max_documents=specification.max_documents,
            source_field=specification.source_field,
        ),
        context_length=specification.context_length,
        bos=capture_pb2.BOS_POLICY_PREPEND if specification.prepend_bos else capture_pb2.BOS_POLICY_NONE,
        dense_sites=specification.dense_sites,
        norm_sites=specification.norm_sites,
        saes=[sae.name for sae in specification.saes],
        dtype=specification.dtype,
        sequences_per_shard=specification.sequences_per_shard,
        sequences_per_batch=specification.sequences_per_batch,
        storage_dtype=specification.storage_dtype,
        widen_on_overflow=specification.widen_on_overflow,
        packing=specification.packing,
        positions=_positions_message(specification.positions),
        sink_ratio=specification.sink_ratio or 0.0,
        rows_of=specification.rows_of,
    )


def _positions_message(positions: Positions) -> capture_pb2.PositionSelection | None:
    match positions.kind:
        case "last":
            return capture_pb2.PositionSelection(last=True)
        case "stride":
            return capture_pb2.PositionSelection(stride=positions.stride)
        case "fraction":
            random = capture_pb2.RandomFraction(fraction=positions.fraction, seed=positions.seed)
            return capture_pb2.PositionSelection(random=random)
        case "feature":
            feature = capture_pb2.FeaturePositions(sae=positions.sae, feature=positions.feature)
            return capture_pb2.PositionSelection(feature=feature)
    return None


def _row_filter_message(found: RowFilter) -> capture_pb2.RowFilter:
    values = found.value if isinstance(found.value, tuple) else (found.value,)
    return capture_pb2.RowFilter(
        column=found.column,
        comparison=_COMPARISONS[found.comparison],
        values=[capture_pb2.FilterValue(**{_VALUE_FIELDS[type(value)]: value}) for value in values],
    )
