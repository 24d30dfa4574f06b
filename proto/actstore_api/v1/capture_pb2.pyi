from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BosPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BOS_POLICY_UNSPECIFIED: _ClassVar[BosPolicy]
    BOS_POLICY_PREPEND: _ClassVar[BosPolicy]
    BOS_POLICY_NONE: _ClassVar[BosPolicy]

class CaptureState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAPTURE_STATE_UNSPECIFIED: _ClassVar[CaptureState]
    CAPTURE_STATE_PREPARING: _ClassVar[CaptureState]
    CAPTURE_STATE_RUNNING: _ClassVar[CaptureState]
    CAPTURE_STATE_COMPLETE: _ClassVar[CaptureState]
    CAPTURE_STATE_CANCELLED: _ClassVar[CaptureState]
    CAPTURE_STATE_FAILED: _ClassVar[CaptureState]
BOS_POLICY_UNSPECIFIED: BosPolicy
BOS_POLICY_PREPEND: BosPolicy
BOS_POLICY_NONE: BosPolicy
CAPTURE_STATE_UNSPECIFIED: CaptureState
CAPTURE_STATE_PREPARING: CaptureState
CAPTURE_STATE_RUNNING: CaptureState
CAPTURE_STATE_COMPLETE: CaptureState
CAPTURE_STATE_CANCELLED: CaptureState
CAPTURE_STATE_FAILED: CaptureState

class ModelReference(_message.Message):
    __slots__ = ("name", "revision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: str
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class DatasetReference(_message.Message):
    __slots__ = ("name", "text_field", "max_tokens")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    name: str
    text_field: str
    max_tokens: int
    def __init__(self, name: _Optional[str] = ..., text_field: _Optional[str] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class CaptureSpecification(_message.Message):
    __slots__ = ("run", "model", "dataset", "context_length", "bos", "dense_sites", "norm_sites", "saes", "dtype", "sequences_per_shard", "sequences_per_batch")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    BOS_FIELD_NUMBER: _ClassVar[int]
    DENSE_SITES_FIELD_NUMBER: _ClassVar[int]
    NORM_SITES_FIELD_NUMBER: _ClassVar[int]
    SAES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_PER_SHARD_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_PER_BATCH_FIELD_NUMBER: _ClassVar[int]
    run: str
    model: ModelReference
    dataset: DatasetReference
    context_length: int
    bos: BosPolicy
    dense_sites: _containers.RepeatedScalarFieldContainer[str]
    norm_sites: _containers.RepeatedScalarFieldContainer[str]
    saes: _containers.RepeatedScalarFieldContainer[str]
    dtype: str
    sequences_per_shard: int
    sequences_per_batch: int
    def __init__(self, run: _Optional[str] = ..., model: _Optional[_Union[ModelReference, _Mapping]] = ..., dataset: _Optional[_Union[DatasetReference, _Mapping]] = ..., context_length: _Optional[int] = ..., bos: _Optional[_Union[BosPolicy, str]] = ..., dense_sites: _Optional[_Iterable[str]] = ..., norm_sites: _Optional[_Iterable[str]] = ..., saes: _Optional[_Iterable[str]] = ..., dtype: _Optional[str] = ..., sequences_per_shard: _Optional[int] = ..., sequences_per_batch: _Optional[int] = ...) -> None: ...

class CaptureFailure(_message.Message):
    __slots__ = ("reason", "message", "details")
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    details: _containers.ScalarMap[str, str]
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., details: _Optional[_Mapping[str, str]] = ...) -> None: ...

class CaptureProgress(_message.Message):
    __slots__ = ("run", "state", "shards_committed", "shards_total", "tokens_committed", "tokens_total", "elapsed_seconds", "failure")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SHARDS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    SHARDS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    run: str
    state: CaptureState
    shards_committed: int
    shards_total: int
    tokens_committed: int
    tokens_total: int
    elapsed_seconds: float
    failure: CaptureFailure
    def __init__(self, run: _Optional[str] = ..., state: _Optional[_Union[CaptureState, str]] = ..., shards_committed: _Optional[int] = ..., shards_total: _Optional[int] = ..., tokens_committed: _Optional[int] = ..., tokens_total: _Optional[int] = ..., elapsed_seconds: _Optional[float] = ..., failure: _Optional[_Union[CaptureFailure, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("captures_running", "captures_complete", "captures_failed", "captures_cancelled", "shards_committed", "tokens_committed", "bytes_committed")
    CAPTURES_RUNNING_FIELD_NUMBER: _ClassVar[int]
    CAPTURES_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    CAPTURES_FAILED_FIELD_NUMBER: _ClassVar[int]
    CAPTURES_CANCELLED_FIELD_NUMBER: _ClassVar[int]
    SHARDS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    BYTES_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    captures_running: int
    captures_complete: int
    captures_failed: int
    captures_cancelled: int
    shards_committed: int
    tokens_committed: int
    bytes_committed: int
    def __init__(self, captures_running: _Optional[int] = ..., captures_complete: _Optional[int] = ..., captures_failed: _Optional[int] = ..., captures_cancelled: _Optional[int] = ..., shards_committed: _Optional[int] = ..., tokens_committed: _Optional[int] = ..., bytes_committed: _Optional[int] = ...) -> None: ...
