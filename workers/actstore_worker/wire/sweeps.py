"""Between the api's messages of sweeps and the workers' own types."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from actstore_api.v1 import common_pb2, patching_pb2
from actstore_storage.errors import BadRequest
from actstore_storage.format.tokens import DEFAULT_EXCLUSION
from actstore_worker.patching.inputs.request import (
    JointCells,
    PromptPair,
    SaeFeatures,
    Screen,
    Span,
    StoredSource,
    Stretch,
    SweepRequest,
)
from actstore_worker.patching.inputs.stored_rows import TakenRows
from actstore_worker.patching.serving.estimate import SweepEstimate
from actstore_worker.patching.sweep import SweepCells, SweepProgress, SweepUpdate
from actstore_worker.wire.capture import (
    answer_of,
    given,
    prepend_bos,
    prompt_of,
    provenance_message,
    required,
    table_message,
)

_DIRECTIONS: Mapping[int, str] = {
    patching_pb2.PATCH_DIRECTION_DENOISE: "denoise",
    patching_pb2.PATCH_DIRECTION_NOISE: "noise",
}
_POSITIONS: Mapping[int, str] = {
    patching_pb2.PATCH_POSITIONS_UNSPECIFIED: "each",
    patching_pb2.PATCH_POSITIONS_EACH: "each",
    patching_pb2.PATCH_POSITIONS_ALL: "all",
    patching_pb2.PATCH_POSITIONS_LAST: "last",
}
_SOURCES: Mapping[int, str] = {
    patching_pb2.PATCH_SOURCE_UNSPECIFIED: "prompt",
    patching_pb2.PATCH_SOURCE_PROMPT: "prompt",
    patching_pb2.PATCH_SOURCE_ZERO: "zero",
    patching_pb2.PATCH_SOURCE_MEAN: "mean",
    patching_pb2.PATCH_SOURCE_RESAMPLE: "resample",
}
_SAE_ERRORS: Mapping[int, str] = {
    patching_pb2.SAE_ERROR_UNSPECIFIED: "kept",
    patching_pb2.SAE_ERROR_KEPT: "kept",
    patching_pb2.SAE_ERROR_DROPPED: "dropped",
    patching_pb2.SAE_ERROR_PATCHED: "patched",
}
_PATH_MLPS: Mapping[int, str] = {
    patching_pb2.PATH_MLPS_UNSPECIFIED: "recomputed",
    patching_pb2.PATH_MLPS_RECOMPUTED: "recomputed",
    patching_pb2.PATH_MLPS_FROZEN: "frozen",
}
_TOKEN_CLASSES: Mapping[int, str] = {
    common_pb2.TOKEN_CLASS_BOS: "bos",
    common_pb2.TOKEN_CLASS_SPECIAL: "special",
    common_pb2.TOKEN_CLASS_SINK: "sink",
}


def sweep_request(message: patching_pb2.RunSweepRequest) -> SweepRequest:
    """Errors: BadRequest for an absent model, or an enum value that this version does not know."""
    window = given(message, "window_layers")
    return SweepRequest(
        model=required(message.model.name, "model"),
        revision=message.model.revision,
        pairs=(_pair(message), *map(_pair, message.more_pairs)),
        sites=tuple(message.sites),
        layers=tuple(message.layers),
        heads=tuple(message.heads),
        directions=tuple(_known(value, _DIRECTIONS, "directions") for value in message.directions),
        positions=_known(message.positions, _POSITIONS, "positions"),
        only_positions=tuple(message.only_positions),
        window_layers=1 if window is None else window,
        source=_known(message.source, _SOURCES, "source"),
        joint=tuple(
            JointCells(found.name, tuple((cell.site, cell.position) for cell in found.cells)) for found in message.joint
        ),
        screen=_screen(message.screen) if message.HasField("screen") else None,
        prepend_bos=prepend_bos(message.bos),
        stored=_stored(message),
        features=_features(message),
        receivers=tuple(message.receivers),
        path_mlps=_known(message.path_mlps, _PATH_MLPS, "path_mlps"),
        fresh=message.fresh,
        spans=tuple(
            Span(span.name, _stretch(span.clean, span.name), _stretch(span.corrupt, span.name))
            for span in message.spans
        ),
    )


def sweep_response(update: SweepUpdate) -> patching_pb2.RunSweepResponse:
    if isinstance(update, SweepProgress):
        progress = patching_pb2.SweepProgress(cells_done=update.cells_done, cells_total=update.cells_total)
        return patching_pb2.RunSweepResponse(progress=progress)
    if isinstance(update, SweepCells):
        return patching_pb2.RunSweepResponse(cells=patching_pb2.SweepCells(rows=table_message(update.rows)))
    result = patching_pb2.SweepResult(
        tokens=table_message(update.tokens),
        baselines=table_message(update.baselines),
        direct=table_message(update.direct),
        clean_logit_difference=update.clean_logit_difference,
        corrupt_logit_difference=update.corrupt_logit_difference,
        audit=patching_pb2.SweepAudit(**asdict(update.audit)),
        provenance=provenance_message(update.provenance),
        stored_rows=None if update.taken is None else _taken_message(update.taken),
        answers=update.answers,
    )
    return patching_pb2.RunSweepResponse(result=result)


def estimate_message(estimate: SweepEstimate) -> patching_pb2.EstimateSweepResponse:
    return patching_pb2.EstimateSweepResponse(estimate=patching_pb2.SweepEstimate(**asdict(estimate)))


def _screen(message: patching_pb2.Screen) -> Screen:
    return Screen(message.exact_cells, message.qk_correction, message.grad_drop)


def _stored(message: patching_pb2.RunSweepRequest) -> StoredSource | None:
    """None where no run is named."""
    exclude = DEFAULT_EXCLUSION
    if message.HasField("source_exclude"):
        classes = (_known(number, _TOKEN_CLASSES, "source_exclude") for number in message.source_exclude.classes)
        exclude = frozenset(classes)
    return StoredSource(message.source_run, exclude, message.source_seed) if message.source_run else None


def _taken_message(taken: TakenRows) -> patching_pb2.StoredRows:
    excluded: Any = [number for number, name in _TOKEN_CLASSES.items() if name in taken.excluded]
    return patching_pb2.StoredRows(
        run=taken.run,
        used=taken.used,
        read=taken.read,
        stored=taken.stored,
        excluded=excluded,
        sink_ratio=taken.sink_ratio,
    )


def _features(message: patching_pb2.RunSweepRequest) -> SaeFeatures | None:
    """Errors: BadRequest for what is said of features where no SAE is named."""
    if message.sae:
        return SaeFeatures(message.sae, tuple(message.features), _known(message.sae_error, _SAE_ERRORS, "sae_error"))
    if message.features or message.sae_error:
        field = "features" if message.features else "sae_error"
        raise BadRequest(f"{field} are an SAE's, and none is named", field="sae", value="", allowed="an SAE's name")
    return None


def _stretch(message: patching_pb2.PromptRange, name: str) -> Stretch:
    where = message.WhichOneof("where")
    if where is None:
        raise BadRequest(f"span {name!r} does not say where it is", field="spans", value=name, allowed="tokens or text")
    return message.text if where == "text" else (message.tokens.first, message.tokens.end)


def _pair(message: patching_pb2.PromptPair | patching_pb2.RunSweepRequest) -> PromptPair:
    return PromptPair(
        prompt_of(message, "clean", "clean_token_ids"),
        prompt_of(message, "corrupt", "corrupt_token_ids"),
        answer_of(message, "clean_answer", "clean_answer_token"),
        answer_of(message, "corrupt_answer", "corrupt_answer_token"),
    )


def _known(value: int, known: Mapping[int, str], field: str) -> str:
    if value not in known:
        raise BadRequest(f"{field}: {value} is not known", field=field, value=value, allowed=known.values())
    return known[value]
