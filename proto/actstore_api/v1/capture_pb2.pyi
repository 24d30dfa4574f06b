from actstore_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Comparison(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPARISON_UNSPECIFIED: _ClassVar[Comparison]
    COMPARISON_EQUAL: _ClassVar[Comparison]
    COMPARISON_NOT_EQUAL: _ClassVar[Comparison]
    COMPARISON_LESS: _ClassVar[Comparison]
    COMPARISON_LESS_OR_EQUAL: _ClassVar[Comparison]
    COMPARISON_GREATER: _ClassVar[Comparison]
    COMPARISON_GREATER_OR_EQUAL: _ClassVar[Comparison]
    COMPARISON_IN: _ClassVar[Comparison]
    COMPARISON_NOT_IN: _ClassVar[Comparison]

class CaptureState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAPTURE_STATE_UNSPECIFIED: _ClassVar[CaptureState]
    CAPTURE_STATE_RUNNING: _ClassVar[CaptureState]
    CAPTURE_STATE_PAUSED: _ClassVar[CaptureState]
    CAPTURE_STATE_COMPLETE: _ClassVar[CaptureState]
    CAPTURE_STATE_CANCELLED: _ClassVar[CaptureState]
    CAPTURE_STATE_FAILED: _ClassVar[CaptureState]

class CaptureClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAPTURE_CLASS_UNSPECIFIED: _ClassVar[CaptureClass]
    CAPTURE_CLASS_INTERACTIVE: _ClassVar[CaptureClass]
    CAPTURE_CLASS_BULK: _ClassVar[CaptureClass]
COMPARISON_UNSPECIFIED: Comparison
COMPARISON_EQUAL: Comparison
COMPARISON_NOT_EQUAL: Comparison
COMPARISON_LESS: Comparison
COMPARISON_LESS_OR_EQUAL: Comparison
COMPARISON_GREATER: Comparison
COMPARISON_GREATER_OR_EQUAL: Comparison
COMPARISON_IN: Comparison
COMPARISON_NOT_IN: Comparison
CAPTURE_STATE_UNSPECIFIED: CaptureState
CAPTURE_STATE_RUNNING: CaptureState
CAPTURE_STATE_PAUSED: CaptureState
CAPTURE_STATE_COMPLETE: CaptureState
CAPTURE_STATE_CANCELLED: CaptureState
CAPTURE_STATE_FAILED: CaptureState
CAPTURE_CLASS_UNSPECIFIED: CaptureClass
CAPTURE_CLASS_INTERACTIVE: CaptureClass
CAPTURE_CLASS_BULK: CaptureClass

class DatasetReference(_message.Message):
    __slots__ = ("name", "text_field", "tokens_field", "source_field", "row_filters", "max_documents", "max_tokens")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_FIELD_NUMBER: _ClassVar[int]
    ROW_FILTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    name: str
    text_field: str
    tokens_field: str
    source_field: str
    row_filters: _containers.RepeatedCompositeFieldContainer[RowFilter]
    max_documents: int
    max_tokens: int
    def __init__(self, name: _Optional[str] = ..., text_field: _Optional[str] = ..., tokens_field: _Optional[str] = ..., source_field: _Optional[str] = ..., row_filters: _Optional[_Iterable[_Union[RowFilter, _Mapping]]] = ..., max_documents: _Optional[int] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class DatasetFiles(_message.Message):
    __slots__ = ("read", "not_read", "first_not_read")
    READ_FIELD_NUMBER: _ClassVar[int]
    NOT_READ_FIELD_NUMBER: _ClassVar[int]
    FIRST_NOT_READ_FIELD_NUMBER: _ClassVar[int]
    read: int
    not_read: int
    first_not_read: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, read: _Optional[int] = ..., not_read: _Optional[int] = ..., first_not_read: _Optional[_Iterable[str]] = ...) -> None: ...

class RowFilter(_message.Message):
    __slots__ = ("column", "comparison", "values")
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    column: str
    comparison: Comparison
    values: _containers.RepeatedCompositeFieldContainer[FilterValue]
    def __init__(self, column: _Optional[str] = ..., comparison: _Optional[_Union[Comparison, str]] = ..., values: _Optional[_Iterable[_Union[FilterValue, _Mapping]]] = ...) -> None: ...

class FilterValue(_message.Message):
    __slots__ = ("text", "integer", "real", "truth")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    text: str
    integer: int
    real: float
    truth: bool
    def __init__(self, text: _Optional[str] = ..., integer: _Optional[int] = ..., real: _Optional[float] = ..., truth: bool = ...) -> None: ...

class PositionSelection(_message.Message):
    __slots__ = ("last", "stride", "random", "feature")
    LAST_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    RANDOM_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    last: bool
    stride: int
    random: RandomFraction
    feature: _common_pb2.SaeFeature
    def __init__(self, last: bool = ..., stride: _Optional[int] = ..., random: _Optional[_Union[RandomFraction, _Mapping]] = ..., feature: _Optional[_Union[_common_pb2.SaeFeature, _Mapping]] = ...) -> None: ...

class RandomFraction(_message.Message):
    __slots__ = ("fraction", "seed")
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    fraction: float
    seed: int
    def __init__(self, fraction: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class CaptureSpecification(_message.Message):
    __slots__ = ("run", "model", "dataset", "rows_of", "context_length", "prepend_bos", "packing", "dense_sites", "positions", "norm_sites", "saes", "sink_ratio", "dtype", "storage_dtype", "widen_on_overflow", "sequences_per_shard", "sequences_per_batch")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    ROWS_OF_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PREPEND_BOS_FIELD_NUMBER: _ClassVar[int]
    PACKING_FIELD_NUMBER: _ClassVar[int]
    DENSE_SITES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    NORM_SITES_FIELD_NUMBER: _ClassVar[int]
    SAES_FIELD_NUMBER: _ClassVar[int]
    SINK_RATIO_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    STORAGE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    WIDEN_ON_OVERFLOW_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_PER_SHARD_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_PER_BATCH_FIELD_NUMBER: _ClassVar[int]
    run: str
    model: _common_pb2.ModelReference
    dataset: DatasetReference
    rows_of: str
    context_length: int
    prepend_bos: bool
    packing: bool
    dense_sites: _containers.RepeatedScalarFieldContainer[str]
    positions: PositionSelection
    norm_sites: _containers.RepeatedScalarFieldContainer[str]
    saes: _containers.RepeatedScalarFieldContainer[str]
    sink_ratio: float
    dtype: _common_pb2.Dtype
    storage_dtype: _common_pb2.Dtype
    widen_on_overflow: bool
    sequences_per_shard: int
    sequences_per_batch: int
    def __init__(self, run: _Optional[str] = ..., model: _Optional[_Union[_common_pb2.ModelReference, _Mapping]] = ..., dataset: _Optional[_Union[DatasetReference, _Mapping]] = ..., rows_of: _Optional[str] = ..., context_length: _Optional[int] = ..., prepend_bos: bool = ..., packing: bool = ..., dense_sites: _Optional[_Iterable[str]] = ..., positions: _Optional[_Union[PositionSelection, _Mapping]] = ..., norm_sites: _Optional[_Iterable[str]] = ..., saes: _Optional[_Iterable[str]] = ..., sink_ratio: _Optional[float] = ..., dtype: _Optional[_Union[_common_pb2.Dtype, str]] = ..., storage_dtype: _Optional[_Union[_common_pb2.Dtype, str]] = ..., widen_on_overflow: bool = ..., sequences_per_shard: _Optional[int] = ..., sequences_per_batch: _Optional[int] = ...) -> None: ...

class CaptureProgress(_message.Message):
    __slots__ = ("run", "state", "shards_committed", "shards_total", "tokens_committed", "tokens_total", "elapsed_seconds", "failure", "failed_shards", "dataset_files", "queue", "waits_for")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SHARDS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    SHARDS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    FAILED_SHARDS_FIELD_NUMBER: _ClassVar[int]
    DATASET_FILES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    run: str
    state: CaptureState
    shards_committed: int
    shards_total: int
    tokens_committed: int
    tokens_total: int
    elapsed_seconds: float
    failure: _common_pb2.Failure
    failed_shards: _containers.RepeatedCompositeFieldContainer[ShardFailure]
    dataset_files: DatasetFiles
    queue: QueuePlace
    waits_for: str
    def __init__(self, run: _Optional[str] = ..., state: _Optional[_Union[CaptureState, str]] = ..., shards_committed: _Optional[int] = ..., shards_total: _Optional[int] = ..., tokens_committed: _Optional[int] = ..., tokens_total: _Optional[int] = ..., elapsed_seconds: _Optional[float] = ..., failure: _Optional[_Union[_common_pb2.Failure, _Mapping]] = ..., failed_shards: _Optional[_Iterable[_Union[ShardFailure, _Mapping]]] = ..., dataset_files: _Optional[_Union[DatasetFiles, _Mapping]] = ..., queue: _Optional[_Union[QueuePlace, _Mapping]] = ..., waits_for: _Optional[str] = ...) -> None: ...

class QueuePlace(_message.Message):
    __slots__ = ("position", "captures_ahead", "expected_start_seconds")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CAPTURES_AHEAD_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_START_SECONDS_FIELD_NUMBER: _ClassVar[int]
    position: int
    captures_ahead: int
    expected_start_seconds: float
    def __init__(self, position: _Optional[int] = ..., captures_ahead: _Optional[int] = ..., expected_start_seconds: _Optional[float] = ...) -> None: ...

class ShardFailure(_message.Message):
    __slots__ = ("shard", "failure")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    shard: int
    failure: _common_pb2.Failure
    def __init__(self, shard: _Optional[int] = ..., failure: _Optional[_Union[_common_pb2.Failure, _Mapping]] = ...) -> None: ...

class CaptureEstimate(_message.Message):
    __slots__ = ("documents", "sequences", "tokens", "shards", "bytes_by_product", "bytes", "seconds", "documents_with_bos", "dataset_files")
    class BytesByProductEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_BY_PRODUCT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_WITH_BOS_FIELD_NUMBER: _ClassVar[int]
    DATASET_FILES_FIELD_NUMBER: _ClassVar[int]
    documents: int
    sequences: int
    tokens: int
    shards: int
    bytes_by_product: _containers.ScalarMap[str, int]
    bytes: int
    seconds: float
    documents_with_bos: int
    dataset_files: DatasetFiles
    def __init__(self, documents: _Optional[int] = ..., sequences: _Optional[int] = ..., tokens: _Optional[int] = ..., shards: _Optional[int] = ..., bytes_by_product: _Optional[_Mapping[str, int]] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., documents_with_bos: _Optional[int] = ..., dataset_files: _Optional[_Union[DatasetFiles, _Mapping]] = ...) -> None: ...

class EstimateCaptureRequest(_message.Message):
    __slots__ = ("specification",)
    SPECIFICATION_FIELD_NUMBER: _ClassVar[int]
    specification: CaptureSpecification
    def __init__(self, specification: _Optional[_Union[CaptureSpecification, _Mapping]] = ...) -> None: ...

class EstimateCaptureResponse(_message.Message):
    __slots__ = ("estimate",)
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    estimate: CaptureEstimate
    def __init__(self, estimate: _Optional[_Union[CaptureEstimate, _Mapping]] = ...) -> None: ...

class StartCaptureRequest(_message.Message):
    __slots__ = ("specification",)
    SPECIFICATION_FIELD_NUMBER: _ClassVar[int]
    specification: CaptureSpecification
    def __init__(self, specification: _Optional[_Union[CaptureSpecification, _Mapping]] = ...) -> None: ...

class StartCaptureResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class ListSourcesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FoundModel(_message.Message):
    __slots__ = ("name", "revision", "family")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: str
    family: str
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[str] = ..., family: _Optional[str] = ...) -> None: ...

class ListSourcesResponse(_message.Message):
    __slots__ = ("models", "saes", "datasets", "hub_allowed", "truncated")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    SAES_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    HUB_ALLOWED_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[FoundModel]
    saes: _containers.RepeatedScalarFieldContainer[str]
    datasets: _containers.RepeatedScalarFieldContainer[str]
    hub_allowed: bool
    truncated: bool
    def __init__(self, models: _Optional[_Iterable[_Union[FoundModel, _Mapping]]] = ..., saes: _Optional[_Iterable[str]] = ..., datasets: _Optional[_Iterable[str]] = ..., hub_allowed: bool = ..., truncated: bool = ...) -> None: ...

class WatchCaptureRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class WatchCaptureResponse(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: CaptureProgress
    def __init__(self, progress: _Optional[_Union[CaptureProgress, _Mapping]] = ...) -> None: ...

class CancelCaptureRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class CancelCaptureResponse(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: CaptureProgress
    def __init__(self, progress: _Optional[_Union[CaptureProgress, _Mapping]] = ...) -> None: ...

class GetCaptureTotalsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCaptureTotalsResponse(_message.Message):
    __slots__ = ("captures_running", "captures_complete", "captures_failed", "captures_cancelled", "shards_committed", "tokens_committed", "bytes_committed", "queues", "principals")
    CAPTURES_RUNNING_FIELD_NUMBER: _ClassVar[int]
    CAPTURES_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    CAPTURES_FAILED_FIELD_NUMBER: _ClassVar[int]
    CAPTURES_CANCELLED_FIELD_NUMBER: _ClassVar[int]
    SHARDS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    BYTES_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    QUEUES_FIELD_NUMBER: _ClassVar[int]
    PRINCIPALS_FIELD_NUMBER: _ClassVar[int]
    captures_running: int
    captures_complete: int
    captures_failed: int
    captures_cancelled: int
    shards_committed: int
    tokens_committed: int
    bytes_committed: int
    queues: _containers.RepeatedCompositeFieldContainer[QueueTotals]
    principals: _containers.RepeatedCompositeFieldContainer[PrincipalTotals]
    def __init__(self, captures_running: _Optional[int] = ..., captures_complete: _Optional[int] = ..., captures_failed: _Optional[int] = ..., captures_cancelled: _Optional[int] = ..., shards_committed: _Optional[int] = ..., tokens_committed: _Optional[int] = ..., bytes_committed: _Optional[int] = ..., queues: _Optional[_Iterable[_Union[QueueTotals, _Mapping]]] = ..., principals: _Optional[_Iterable[_Union[PrincipalTotals, _Mapping]]] = ...) -> None: ...

class QueueTotals(_message.Message):
    __slots__ = ("capture_class", "captures_queued", "oldest_seconds", "captures_started", "waited_seconds")
    CAPTURE_CLASS_FIELD_NUMBER: _ClassVar[int]
    CAPTURES_QUEUED_FIELD_NUMBER: _ClassVar[int]
    OLDEST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CAPTURES_STARTED_FIELD_NUMBER: _ClassVar[int]
    WAITED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    capture_class: CaptureClass
    captures_queued: int
    oldest_seconds: float
    captures_started: int
    waited_seconds: float
    def __init__(self, capture_class: _Optional[_Union[CaptureClass, str]] = ..., captures_queued: _Optional[int] = ..., oldest_seconds: _Optional[float] = ..., captures_started: _Optional[int] = ..., waited_seconds: _Optional[float] = ...) -> None: ...

class PrincipalTotals(_message.Message):
    __slots__ = ("principal", "device_seconds")
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    principal: str
    device_seconds: float
    def __init__(self, principal: _Optional[str] = ..., device_seconds: _Optional[float] = ...) -> None: ...
