from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOKEN_CLASS_UNSPECIFIED: _ClassVar[TokenClass]
    TOKEN_CLASS_BOS: _ClassVar[TokenClass]
    TOKEN_CLASS_SPECIAL: _ClassVar[TokenClass]
    TOKEN_CLASS_SINK: _ClassVar[TokenClass]
TOKEN_CLASS_UNSPECIFIED: TokenClass
TOKEN_CLASS_BOS: TokenClass
TOKEN_CLASS_SPECIAL: TokenClass
TOKEN_CLASS_SINK: TokenClass

class Table(_message.Message):
    __slots__ = ("arrow_ipc_stream",)
    ARROW_IPC_STREAM_FIELD_NUMBER: _ClassVar[int]
    arrow_ipc_stream: bytes
    def __init__(self, arrow_ipc_stream: _Optional[bytes] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("model", "model_revision", "weights_sha256", "tokenizer_sha256", "sae_sha256", "dtype", "attention_implementation", "device", "run", "specification_sha256", "snapshot", "shards_committed", "shards_total", "code_version", "sink_ratio", "config_sha256")
    class SaeSha256Entry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    SAE_SHA256_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_IMPLEMENTATION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    SPECIFICATION_SHA256_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    SHARDS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    SHARDS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CODE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SINK_RATIO_FIELD_NUMBER: _ClassVar[int]
    CONFIG_SHA256_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_revision: str
    weights_sha256: str
    tokenizer_sha256: str
    sae_sha256: _containers.ScalarMap[str, str]
    dtype: str
    attention_implementation: str
    device: str
    run: str
    specification_sha256: str
    snapshot: str
    shards_committed: int
    shards_total: int
    code_version: str
    sink_ratio: float
    config_sha256: str
    def __init__(self, model: _Optional[str] = ..., model_revision: _Optional[str] = ..., weights_sha256: _Optional[str] = ..., tokenizer_sha256: _Optional[str] = ..., sae_sha256: _Optional[_Mapping[str, str]] = ..., dtype: _Optional[str] = ..., attention_implementation: _Optional[str] = ..., device: _Optional[str] = ..., run: _Optional[str] = ..., specification_sha256: _Optional[str] = ..., snapshot: _Optional[str] = ..., shards_committed: _Optional[int] = ..., shards_total: _Optional[int] = ..., code_version: _Optional[str] = ..., sink_ratio: _Optional[float] = ..., config_sha256: _Optional[str] = ...) -> None: ...

class Exclusion(_message.Message):
    __slots__ = ("classes",)
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedScalarFieldContainer[TokenClass]
    def __init__(self, classes: _Optional[_Iterable[_Union[TokenClass, str]]] = ...) -> None: ...
