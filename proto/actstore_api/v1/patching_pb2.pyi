from actstore_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PatchDirection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PATCH_DIRECTION_UNSPECIFIED: _ClassVar[PatchDirection]
    PATCH_DIRECTION_DENOISE: _ClassVar[PatchDirection]
    PATCH_DIRECTION_NOISE: _ClassVar[PatchDirection]

class PatchSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PATCH_SOURCE_UNSPECIFIED: _ClassVar[PatchSource]
    PATCH_SOURCE_PROMPT: _ClassVar[PatchSource]
    PATCH_SOURCE_ZERO: _ClassVar[PatchSource]
    PATCH_SOURCE_MEAN: _ClassVar[PatchSource]
    PATCH_SOURCE_RESAMPLE: _ClassVar[PatchSource]

class SaeError(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAE_ERROR_UNSPECIFIED: _ClassVar[SaeError]
    SAE_ERROR_KEPT: _ClassVar[SaeError]
    SAE_ERROR_DROPPED: _ClassVar[SaeError]
    SAE_ERROR_PATCHED: _ClassVar[SaeError]

class PatchPositions(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PATCH_POSITIONS_UNSPECIFIED: _ClassVar[PatchPositions]
    PATCH_POSITIONS_EACH: _ClassVar[PatchPositions]
    PATCH_POSITIONS_ALL: _ClassVar[PatchPositions]
    PATCH_POSITIONS_LAST: _ClassVar[PatchPositions]

class PathMlps(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PATH_MLPS_UNSPECIFIED: _ClassVar[PathMlps]
    PATH_MLPS_RECOMPUTED: _ClassVar[PathMlps]
    PATH_MLPS_FROZEN: _ClassVar[PathMlps]

class SweepKernel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SWEEP_KERNEL_UNSPECIFIED: _ClassVar[SweepKernel]
    SWEEP_KERNEL_RESUMED: _ClassVar[SweepKernel]
    SWEEP_KERNEL_FULL: _ClassVar[SweepKernel]
PATCH_DIRECTION_UNSPECIFIED: PatchDirection
PATCH_DIRECTION_DENOISE: PatchDirection
PATCH_DIRECTION_NOISE: PatchDirection
PATCH_SOURCE_UNSPECIFIED: PatchSource
PATCH_SOURCE_PROMPT: PatchSource
PATCH_SOURCE_ZERO: PatchSource
PATCH_SOURCE_MEAN: PatchSource
PATCH_SOURCE_RESAMPLE: PatchSource
SAE_ERROR_UNSPECIFIED: SaeError
SAE_ERROR_KEPT: SaeError
SAE_ERROR_DROPPED: SaeError
SAE_ERROR_PATCHED: SaeError
PATCH_POSITIONS_UNSPECIFIED: PatchPositions
PATCH_POSITIONS_EACH: PatchPositions
PATCH_POSITIONS_ALL: PatchPositions
PATCH_POSITIONS_LAST: PatchPositions
PATH_MLPS_UNSPECIFIED: PathMlps
PATH_MLPS_RECOMPUTED: PathMlps
PATH_MLPS_FROZEN: PathMlps
SWEEP_KERNEL_UNSPECIFIED: SweepKernel
SWEEP_KERNEL_RESUMED: SweepKernel
SWEEP_KERNEL_FULL: SweepKernel

class PromptPair(_message.Message):
    __slots__ = ("clean", "corrupt", "clean_answer", "corrupt_answer")
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    CLEAN_ANSWER_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_ANSWER_FIELD_NUMBER: _ClassVar[int]
    clean: _common_pb2.Prompt
    corrupt: _common_pb2.Prompt
    clean_answer: _common_pb2.TokenReference
    corrupt_answer: _common_pb2.TokenReference
    def __init__(self, clean: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., corrupt: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., clean_answer: _Optional[_Union[_common_pb2.TokenReference, _Mapping]] = ..., corrupt_answer: _Optional[_Union[_common_pb2.TokenReference, _Mapping]] = ...) -> None: ...

class CellReference(_message.Message):
    __slots__ = ("site", "position")
    SITE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    site: str
    position: int
    def __init__(self, site: _Optional[str] = ..., position: _Optional[int] = ...) -> None: ...

class PromptRange(_message.Message):
    __slots__ = ("tokens", "text")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    tokens: _common_pb2.Range
    text: str
    def __init__(self, tokens: _Optional[_Union[_common_pb2.Range, _Mapping]] = ..., text: _Optional[str] = ...) -> None: ...

class PatchSpan(_message.Message):
    __slots__ = ("name", "clean", "corrupt")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    name: str
    clean: PromptRange
    corrupt: PromptRange
    def __init__(self, name: _Optional[str] = ..., clean: _Optional[_Union[PromptRange, _Mapping]] = ..., corrupt: _Optional[_Union[PromptRange, _Mapping]] = ...) -> None: ...

class JointCells(_message.Message):
    __slots__ = ("name", "cells")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CELLS_FIELD_NUMBER: _ClassVar[int]
    name: str
    cells: _containers.RepeatedCompositeFieldContainer[CellReference]
    def __init__(self, name: _Optional[str] = ..., cells: _Optional[_Iterable[_Union[CellReference, _Mapping]]] = ...) -> None: ...

class Screen(_message.Message):
    __slots__ = ("exact_cells", "qk_correction", "grad_drop")
    EXACT_CELLS_FIELD_NUMBER: _ClassVar[int]
    QK_CORRECTION_FIELD_NUMBER: _ClassVar[int]
    GRAD_DROP_FIELD_NUMBER: _ClassVar[int]
    exact_cells: int
    qk_correction: bool
    grad_drop: bool
    def __init__(self, exact_cells: _Optional[int] = ..., qk_correction: bool = ..., grad_drop: bool = ...) -> None: ...

class StoredSource(_message.Message):
    __slots__ = ("run", "exclude", "seed")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    run: str
    exclude: _common_pb2.Exclusion
    seed: int
    def __init__(self, run: _Optional[str] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ..., seed: _Optional[int] = ...) -> None: ...

class RunSweepRequest(_message.Message):
    __slots__ = ("model", "pairs", "prepend_bos", "sites", "layers", "heads", "window_layers", "positions", "only_positions", "spans", "joint", "sae", "features", "sae_error", "directions", "source", "stored", "receivers", "path_mlps", "screen", "fresh")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    PREPEND_BOS_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_LAYERS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ONLY_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    JOINT_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    SAE_ERROR_FIELD_NUMBER: _ClassVar[int]
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    RECEIVERS_FIELD_NUMBER: _ClassVar[int]
    PATH_MLPS_FIELD_NUMBER: _ClassVar[int]
    SCREEN_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelReference
    pairs: _containers.RepeatedCompositeFieldContainer[PromptPair]
    prepend_bos: bool
    sites: _containers.RepeatedScalarFieldContainer[str]
    layers: _containers.RepeatedScalarFieldContainer[int]
    heads: _containers.RepeatedScalarFieldContainer[int]
    window_layers: int
    positions: PatchPositions
    only_positions: _containers.RepeatedScalarFieldContainer[int]
    spans: _containers.RepeatedCompositeFieldContainer[PatchSpan]
    joint: _containers.RepeatedCompositeFieldContainer[JointCells]
    sae: str
    features: _containers.RepeatedScalarFieldContainer[int]
    sae_error: SaeError
    directions: _containers.RepeatedScalarFieldContainer[PatchDirection]
    source: PatchSource
    stored: StoredSource
    receivers: _containers.RepeatedScalarFieldContainer[str]
    path_mlps: PathMlps
    screen: Screen
    fresh: bool
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelReference, _Mapping]] = ..., pairs: _Optional[_Iterable[_Union[PromptPair, _Mapping]]] = ..., prepend_bos: bool = ..., sites: _Optional[_Iterable[str]] = ..., layers: _Optional[_Iterable[int]] = ..., heads: _Optional[_Iterable[int]] = ..., window_layers: _Optional[int] = ..., positions: _Optional[_Union[PatchPositions, str]] = ..., only_positions: _Optional[_Iterable[int]] = ..., spans: _Optional[_Iterable[_Union[PatchSpan, _Mapping]]] = ..., joint: _Optional[_Iterable[_Union[JointCells, _Mapping]]] = ..., sae: _Optional[str] = ..., features: _Optional[_Iterable[int]] = ..., sae_error: _Optional[_Union[SaeError, str]] = ..., directions: _Optional[_Iterable[_Union[PatchDirection, str]]] = ..., source: _Optional[_Union[PatchSource, str]] = ..., stored: _Optional[_Union[StoredSource, _Mapping]] = ..., receivers: _Optional[_Iterable[str]] = ..., path_mlps: _Optional[_Union[PathMlps, str]] = ..., screen: _Optional[_Union[Screen, _Mapping]] = ..., fresh: bool = ...) -> None: ...

class SweepProgress(_message.Message):
    __slots__ = ("cells_done", "cells_total", "waits_for")
    CELLS_DONE_FIELD_NUMBER: _ClassVar[int]
    CELLS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    cells_done: int
    cells_total: int
    waits_for: str
    def __init__(self, cells_done: _Optional[int] = ..., cells_total: _Optional[int] = ..., waits_for: _Optional[str] = ...) -> None: ...

class SweepAudit(_message.Message):
    __slots__ = ("audited_cells", "largest_error", "noise_floor", "tolerance", "kernel", "token_layers", "token_layers_full", "rank_agreement", "cached")
    AUDITED_CELLS_FIELD_NUMBER: _ClassVar[int]
    LARGEST_ERROR_FIELD_NUMBER: _ClassVar[int]
    NOISE_FLOOR_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LAYERS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LAYERS_FULL_FIELD_NUMBER: _ClassVar[int]
    RANK_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    audited_cells: int
    largest_error: float
    noise_floor: float
    tolerance: float
    kernel: SweepKernel
    token_layers: float
    token_layers_full: float
    rank_agreement: float
    cached: bool
    def __init__(self, audited_cells: _Optional[int] = ..., largest_error: _Optional[float] = ..., noise_floor: _Optional[float] = ..., tolerance: _Optional[float] = ..., kernel: _Optional[_Union[SweepKernel, str]] = ..., token_layers: _Optional[float] = ..., token_layers_full: _Optional[float] = ..., rank_agreement: _Optional[float] = ..., cached: bool = ...) -> None: ...

class SweepCells(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _common_pb2.Table
    def __init__(self, rows: _Optional[_Union[_common_pb2.Table, _Mapping]] = ...) -> None: ...

class SweepResult(_message.Message):
    __slots__ = ("tokens", "clean_answer", "corrupt_answer", "clean_logit_difference", "corrupt_logit_difference", "baselines", "direct", "stored_rows", "audit", "provenance")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CLEAN_ANSWER_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_ANSWER_FIELD_NUMBER: _ClassVar[int]
    CLEAN_LOGIT_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_LOGIT_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    BASELINES_FIELD_NUMBER: _ClassVar[int]
    DIRECT_FIELD_NUMBER: _ClassVar[int]
    STORED_ROWS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    tokens: _common_pb2.Table
    clean_answer: str
    corrupt_answer: str
    clean_logit_difference: float
    corrupt_logit_difference: float
    baselines: _common_pb2.Table
    direct: _common_pb2.Table
    stored_rows: TakenRows
    audit: SweepAudit
    provenance: _common_pb2.Provenance
    def __init__(self, tokens: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., clean_answer: _Optional[str] = ..., corrupt_answer: _Optional[str] = ..., clean_logit_difference: _Optional[float] = ..., corrupt_logit_difference: _Optional[float] = ..., baselines: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., direct: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., stored_rows: _Optional[_Union[TakenRows, _Mapping]] = ..., audit: _Optional[_Union[SweepAudit, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class TakenRows(_message.Message):
    __slots__ = ("run", "used", "read", "stored", "excluded", "sink_ratio")
    RUN_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    SINK_RATIO_FIELD_NUMBER: _ClassVar[int]
    run: str
    used: int
    read: int
    stored: int
    excluded: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenClass]
    sink_ratio: float
    def __init__(self, run: _Optional[str] = ..., used: _Optional[int] = ..., read: _Optional[int] = ..., stored: _Optional[int] = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., sink_ratio: _Optional[float] = ...) -> None: ...

class RunSweepResponse(_message.Message):
    __slots__ = ("progress", "cells", "result")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CELLS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    progress: SweepProgress
    cells: SweepCells
    result: SweepResult
    def __init__(self, progress: _Optional[_Union[SweepProgress, _Mapping]] = ..., cells: _Optional[_Union[SweepCells, _Mapping]] = ..., result: _Optional[_Union[SweepResult, _Mapping]] = ...) -> None: ...

class EstimateSweepRequest(_message.Message):
    __slots__ = ("sweep",)
    SWEEP_FIELD_NUMBER: _ClassVar[int]
    sweep: RunSweepRequest
    def __init__(self, sweep: _Optional[_Union[RunSweepRequest, _Mapping]] = ...) -> None: ...

class SweepEstimate(_message.Message):
    __slots__ = ("cells", "token_layers", "token_layers_full", "bytes", "seconds", "cached")
    CELLS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LAYERS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LAYERS_FULL_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    cells: int
    token_layers: float
    token_layers_full: float
    bytes: int
    seconds: float
    cached: bool
    def __init__(self, cells: _Optional[int] = ..., token_layers: _Optional[float] = ..., token_layers_full: _Optional[float] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., cached: bool = ...) -> None: ...

class EstimateSweepResponse(_message.Message):
    __slots__ = ("estimate",)
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    estimate: SweepEstimate
    def __init__(self, estimate: _Optional[_Union[SweepEstimate, _Mapping]] = ...) -> None: ...
