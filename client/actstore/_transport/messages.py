"""Protobuf messages from and to the client's own types."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from actstore._errors import Fault, error_of
from actstore._patching.sweep import Sweep
from actstore._records import (
    CaptureProgress,
    CaptureSpecification,
    DatasetFiles,
    Positions,
    Prompt,
    PromptPair,
    Provenance,
    RowFilter,
    RowQuery,
    RunDescription,
    SaeAttachment,
    ShardFailure,
    Stretch,
    SweepAudit,
    SweepRequest,
    TakenRows,
    field_names,
)
from actstore._transport.base import Rows
from actstore_api.reasons import known_reason
from actstore_api.records.terms import Failure
from actstore_api.v1 import (
    activation_pb2,
    capture_pb2,
    catalog_pb2,
    common_pb2,
    patching_pb2,
)

# Of protobuf's wire format: the kind of bytes and messages, and the lengths of those that are of fixed length.
_LENGTH_DELIMITED, _FIXED_BYTES = 2, {1: 8, 5: 4}
_ROWS, _PROVENANCE = (
    activation_pb2.ReadActivationsResponse.DESCRIPTOR.fields_by_name[name].number for name in ("rows", "provenance")
)
_STREAM = common_pb2.Table.DESCRIPTOR.fields_by_name["arrow_ipc_stream"].number
BOS = {
    None: capture_pb2.BOS_POLICY_UNSPECIFIED,
    True: capture_pb2.BOS_POLICY_PREPEND,
    False: capture_pb2.BOS_POLICY_NONE,
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
_COMPARISONS_BACK = {number: comparison for comparison, number in _COMPARISONS.items()}
_VALUE_FIELDS = {str: "text", int: "integer", float: "real", bool: "truth"}
_BOS_BACK = {number: bos for bos, number in BOS.items()}
_CLASSES: Mapping[str, Any] = {
    name: common_pb2.TokenClass.Value(f"TOKEN_CLASS_{name.upper()}") for name in ("bos", "special", "sink")
}
COLUMNS: Mapping[str, Any] = {
    name: activation_pb2.RowColumn.Value(f"ROW_COLUMN_{name.upper()}")
    for name in ("sequence", "position", "document", "token", "flags")
}
_CLASSES_BACK = {number: name for name, number in _CLASSES.items()}
_DIRECTIONS = {"denoise": patching_pb2.PATCH_DIRECTION_DENOISE, "noise": patching_pb2.PATCH_DIRECTION_NOISE}


def table_of(message: common_pb2.Table) -> pa.Table:
    return pa.ipc.open_stream(message.arrow_ipc_stream).read_all()


def rows_of(messages: Iterator[bytes]) -> Rows:
    """The rows of a stream, of which the first message has the provenance.

    The messages are read here, because protobuf would copy each byte twice more; Arrow's tables lie in them.
    """
    tables, provenance = [], None
    for message in messages:
        fields = _fields(memoryview(message))
        if provenance is None:
            provenance = provenance_of(common_pb2.Provenance.FromString(bytes(fields.get(_PROVENANCE, b""))))
        stream = _fields(fields[_ROWS])[_STREAM]
        tables.append(pa.ipc.open_stream(pa.py_buffer(stream)).read_all())
    if provenance is None:
        raise Fault("the service ended a stream of rows without a first message")
    return pa.concat_tables(tables), provenance


def _fields(message: memoryview) -> dict[int, memoryview]:
    """By number, the fields of a protobuf message that are bytes or messages; other kinds are skipped."""
    found, place = {}, 0
    while place < len(message):
        tag, place = _varint(message, place)
        if tag & 7 == _LENGTH_DELIMITED:
            length, place = _varint(message, place)
            found[tag >> 3] = message[place : place + length]
            place += length
        elif tag & 7 in _FIXED_BYTES:
            place += _FIXED_BYTES[tag & 7]
        else:
            _, place = _varint(message, place)
    return found


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place


def origin_of(answer: Any) -> dict[str, Any]:
    excluded = tuple(sorted(_CLASSES_BACK[number] for number in answer.excluded))
    return {"excluded": excluded, "provenance": provenance_of(answer.provenance)}


def record_of(kind: type[Any], message: Any) -> Any:
    """A dataclass from the message with the same scalar fields."""
    return kind(**{name: getattr(message, name) for name in field_names(kind)})


def provenance_of(message: common_pb2.Provenance) -> Provenance:
    fields = {name: getattr(message, name) for name in field_names(Provenance)}
    apart = {"sae_sha256": dict(message.sae_sha256), "sink_ratio": _given(message, "sink_ratio")}
    return Provenance(**{**fields, **apart})


def exclusion_of(classes: Iterable[str]) -> common_pb2.Exclusion:
    return common_pb2.Exclusion(classes=[_CLASSES[name] for name in sorted(classes)])


def row_range(query: RowQuery) -> dict[str, Any]:
    """The fields that both requests for rows have."""
    kept = activation_pb2.TokenFilter(
        tokens=query.tokens,
        documents=query.documents,
        first_position=query.first_position,
        end_position=query.end_position,
        exclude=exclusion_of(query.exclude),
    )
    return {"first_sequence": query.first_sequence, "sequence_count": query.sequence_count, "filter": kept}


def run_of(message: catalog_pb2.Run) -> RunDescription:
    return RunDescription(
        name=message.name,
        specification=_specification_in(message.specification),
        provenance=provenance_of(message.provenance),
        sequences_total=message.sequences_total,
        tokens_total=message.tokens_total,
        tokens_committed=message.tokens_committed,
        dense_sites=tuple(message.dense_sites),
        norm_sites=tuple(message.norm_sites),
        saes=tuple(record_of(SaeAttachment, sae) for sae in message.saes),
        layer_count=message.layer_count,
        d_model=message.d_model,
    )


def _given(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _specification_in(message: capture_pb2.CaptureSpecification) -> CaptureSpecification:
    return CaptureSpecification(
        model=message.model.name,
        dataset=message.dataset.name,
        run=message.run,
        model_revision=message.model.revision,
        text_field=message.dataset.text_field,
        max_tokens=_given(message.dataset, "max_tokens"),
        context_length=_given(message, "context_length"),
        bos=_BOS_BACK[message.bos],
        dense_sites=tuple(message.dense_sites),
        norm_sites=tuple(message.norm_sites),
        saes=tuple(message.saes),
        dtype=message.dtype,
        sequences_per_shard=_given(message, "sequences_per_shard"),
        sequences_per_batch=_given(message, "sequences_per_batch"),
        storage_dtype=message.storage_dtype,
        widen_on_overflow=message.widen_on_overflow,
        packing=message.packing,
        positions=_positions_in(message.positions),
        tokens_field=message.dataset.tokens_field,
        row_filters=tuple(_row_filter_in(found) for found in message.dataset.filters),
        max_documents=_given(message.dataset, "max_documents"),
        sink_ratio=_given(message, "sink_ratio"),
        rows_of=message.rows_of,
        source_field=message.dataset.source_field,
    )


def _positions_in(message: capture_pb2.PositionSelection) -> Positions:
    match message.WhichOneof("kind"):
        case "last":
            return Positions.last()
        case "stride":
            return Positions.every(message.stride)
        case "random":
            return Positions.random(message.random.fraction, message.random.seed)
        case "feature":
            return Positions.active(message.feature.sae, message.feature.feature)
    return Positions()


def _positions_out(positions: Positions) -> capture_pb2.PositionSelection | None:
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


def _row_filter_in(message: capture_pb2.RowFilter) -> RowFilter:
    comparison = _COMPARISONS_BACK[message.comparison]
    values = tuple(getattr(value, value.WhichOneof("kind")) for value in message.values)
    return RowFilter(message.column, comparison, values if comparison in ("in", "not in") else values[0])


def _row_filter_out(found: RowFilter) -> capture_pb2.RowFilter:
    values = found.value if isinstance(found.value, tuple) else (found.value,)
    return capture_pb2.RowFilter(
        column=found.column,
        comparison=_COMPARISONS[found.comparison],
        values=[capture_pb2.FilterValue(**{_VALUE_FIELDS[type(value)]: value}) for value in values],
    )


def specification_out(specification: CaptureSpecification) -> capture_pb2.CaptureSpecification:
    return capture_pb2.CaptureSpecification(
        run=specification.run,
        model=capture_pb2.ModelReference(name=specification.model, revision=specification.model_revision),
        dataset=capture_pb2.DatasetReference(
            name=specification.dataset,
            text_field=specification.text_field,
            max_tokens=specification.max_tokens,
            tokens_field=specification.tokens_field,
            filters=[_row_filter_out(found) for found in specification.row_filters],
            max_documents=specification.max_documents,
            source_field=specification.source_field,
        ),
        context_length=specification.context_length,
        bos=BOS[specification.bos],
        dense_sites=specification.dense_sites,
        norm_sites=specification.norm_sites,
        saes=specification.saes,
        dtype=specification.dtype,
        sequences_per_shard=specification.sequences_per_shard,
        sequences_per_batch=specification.sequences_per_batch,
        storage_dtype=specification.storage_dtype,
        widen_on_overflow=specification.widen_on_overflow,
        packing=specification.packing,
        positions=_positions_out(specification.positions),
        sink_ratio=specification.sink_ratio,
        rows_of=specification.rows_of,
    )


def progress_of(message: capture_pb2.CaptureProgress) -> CaptureProgress:
    if message.state == capture_pb2.CAPTURE_STATE_FAILED:
        failed = message.failure
        causes = "".join(f"\n  shard {found.shard}: {found.failure.message}" for found in message.failed_shards)
        text = f"{failed.message}; all other shards are committed{causes}" if causes else failed.message
        raise error_of(Failure(known_reason(failed.reason), text, dict(failed.details)))
    state = capture_pb2.CaptureState.Name(message.state).removeprefix("CAPTURE_STATE_").lower()
    own = ("state", "failure", "failed_shards", "dataset_files")
    counts: dict[str, Any] = {name: getattr(message, name) for name in field_names(CaptureProgress) if name not in own}
    failed_shards = tuple(
        ShardFailure(found.shard, found.failure.reason, found.failure.message) for found in message.failed_shards
    )
    return CaptureProgress(
        state=state,
        failure=message.failure.message,
        failed_shards=failed_shards,
        dataset_files=dataset_files_of(message.dataset_files),
        **counts,
    )


def dataset_files_of(message: capture_pb2.DatasetFiles) -> DatasetFiles:
    return DatasetFiles(message.read, message.not_read, tuple(message.first_not_read))


def prompt_out(prompt: Prompt, text: str = "text", ids: str = "token_ids") -> dict[str, Any]:
    """The field of a request that has it."""
    return {text: prompt} if isinstance(prompt, str) else {ids: common_pb2.TokenIds(ids=prompt)}


def prompts_out(prompts: Sequence[Prompt], texts: str, ids: str = "token_ids") -> dict[str, Any]:
    """Likewise, of texts alone or of token ids alone."""
    if all(isinstance(prompt, str) for prompt in prompts):
        return {texts: prompts}
    return {ids: [common_pb2.TokenIds(ids=prompt) for prompt in prompts if not isinstance(prompt, str)]}


def sweep_out(request: SweepRequest) -> patching_pb2.RunSweepRequest:
    first, *others = request.pairs
    message = patching_pb2.RunSweepRequest(
        model=capture_pb2.ModelReference(name=request.model, revision=request.model_revision),
        **_pair_fields(first),
        sites=request.sites,
        layers=request.layers,
        heads=request.heads,
        directions=[_DIRECTIONS[name] for name in request.directions],
        only_positions=request.only_positions,
        more_pairs=[_pair_out(pair) for pair in others],
        joint=[
            patching_pb2.JointCells(
                name=name, cells=[patching_pb2.CellReference(site=site, position=position) for site, position in cells]
            )
            for name, cells in request.joint.items()
        ],
        bos=BOS[request.bos],
    )
    # What is usual stays unsaid, so that a service of before sweeps had more than that is asked what it knows.
    if request.positions != "each":
        positions: Any = patching_pb2.PatchPositions.Value(f"PATCH_POSITIONS_{request.positions.upper()}")
        message.positions = positions
    if request.source != "prompt":
        source: Any = patching_pb2.PatchSource.Value(f"PATCH_SOURCE_{request.source.upper()}")
        message.source = source
    if request.window_layers != 1:
        message.window_layers = request.window_layers
    if request.screen is not None:
        message.screen.CopyFrom(patching_pb2.Screen(**asdict(request.screen)))
    message.fresh = request.fresh
    message.MergeFrom(_further_sources(request))
    return message


def sweep_estimate_out(request: SweepRequest) -> patching_pb2.EstimateSweepRequest:
    return patching_pb2.EstimateSweepRequest(sweep=sweep_out(request))


def _further_sources(request: SweepRequest) -> patching_pb2.RunSweepRequest:
    """Of stored rows, features, spans and receivers; likewise."""
    message = patching_pb2.RunSweepRequest(
        source_run=request.source_run,
        source_seed=request.source_seed,
        sae=request.sae,
        features=request.features,
        spans=[
            patching_pb2.PatchSpan(name=name, clean=_range_out(clean), corrupt=_range_out(corrupt))
            for name, (clean, corrupt) in request.spans.items()
        ],
        receivers=request.receivers,
    )
    if request.source_run:
        message.source_exclude.CopyFrom(exclusion_of(request.source_exclude))
    if request.sae_error != "kept":
        error: Any = patching_pb2.SaeError.Value(f"SAE_ERROR_{request.sae_error.upper()}")
        message.sae_error = error
    if request.path_mlps != "recomputed":
        mlps: Any = patching_pb2.PathMlps.Value(f"PATH_MLPS_{request.path_mlps.upper()}")
        message.path_mlps = mlps
    return message


def _range_out(part: Stretch) -> patching_pb2.PromptRange:
    if isinstance(part, str):
        return patching_pb2.PromptRange(text=part)
    return patching_pb2.PromptRange(tokens=patching_pb2.TokenRange(first=part[0], end=part[1]))


def _pair_out(pair: PromptPair) -> patching_pb2.PromptPair:
    return patching_pb2.PromptPair(**_pair_fields(pair))


def _pair_fields(pair: PromptPair) -> dict[str, Any]:
    names = ("clean_answer", "corrupt_answer")
    answers = {
        name if isinstance(answer, str) else f"{name}_token": answer
        for name, answer in zip(names, pair.answers, strict=True)
    }
    prompts = prompt_out(pair.clean, "clean", "clean_token_ids") | prompt_out(
        pair.corrupt, "corrupt", "corrupt_token_ids"
    )
    return prompts | answers


def sweep_of(result: patching_pb2.SweepResult, request: SweepRequest, parts: Sequence[pa.Table] = ()) -> Sweep:
    """`parts`: the rows that came before. A service of before that was so has them all in the result."""
    taken = _taken_of(result.stored_rows) if result.HasField("stored_rows") else None
    return Sweep(
        table=pa.concat_tables(parts) if parts else table_of(result.cells),
        prompt_tokens=table_of(result.tokens),
        clean_logit_difference=result.clean_logit_difference,
        corrupt_logit_difference=result.corrupt_logit_difference,
        provenance=provenance_of(result.provenance),
        pairs=request.pairs,
        source=request.source,
        sae_error=request.sae_error if request.sae else "",
        receivers=request.receivers,
        path_mlps=request.path_mlps if request.receivers else "",
        # A service of before there were these sends none.
        baseline_table=table_of(result.baselines) if result.HasField("baselines") else pa.table({}),
        direct_table=table_of(result.direct) if result.HasField("direct") else pa.table({}),
        audit=_audit_of(result.audit),
        answer_texts=tuple(result.answers),
        stored_rows=taken,
        excluded=() if taken is None else taken.excluded,
    )


def _taken_of(message: patching_pb2.StoredRows) -> TakenRows:
    excluded = tuple(sorted(_CLASSES_BACK[number] for number in message.excluded))
    sink_ratio = _given(message, "sink_ratio")
    return TakenRows(message.run, message.used, message.read, message.stored, excluded, sink_ratio)


def _audit_of(message: patching_pb2.SweepAudit) -> SweepAudit:
    found = {name: getattr(message, name) for name in field_names(SweepAudit)}
    # Where nothing was ranked there is no number, and 0 would be one.
    return SweepAudit(**found | ({} if message.HasField("rank_agreement") else {"rank_agreement": None}))
