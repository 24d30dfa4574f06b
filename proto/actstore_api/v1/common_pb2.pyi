from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]
    DTYPE_BFLOAT16: _ClassVar[Dtype]
    DTYPE_FLOAT16: _ClassVar[Dtype]

class BlockWiring(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BLOCK_WIRING_UNSPECIFIED: _ClassVar[BlockWiring]
    BLOCK_WIRING_PRE_LN: _ClassVar[BlockWiring]
    BLOCK_WIRING_POST_LN: _ClassVar[BlockWiring]
    BLOCK_WIRING_PARALLEL: _ClassVar[BlockWiring]

class TokenClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOKEN_CLASS_UNSPECIFIED: _ClassVar[TokenClass]
    TOKEN_CLASS_BOS: _ClassVar[TokenClass]
    TOKEN_CLASS_SPECIAL: _ClassVar[TokenClass]
    TOKEN_CLASS_SINK: _ClassVar[TokenClass]
DTYPE_UNSPECIFIED: Dtype
DTYPE_FLOAT32: Dtype
DTYPE_BFLOAT16: Dtype
DTYPE_FLOAT16: Dtype
BLOCK_WIRING_UNSPECIFIED: BlockWiring
BLOCK_WIRING_PRE_LN: BlockWiring
BLOCK_WIRING_POST_LN: BlockWiring
BLOCK_WIRING_PARALLEL: BlockWiring
TOKEN_CLASS_UNSPECIFIED: TokenClass
TOKEN_CLASS_BOS: TokenClass
TOKEN_CLASS_SPECIAL: TokenClass
TOKEN_CLASS_SINK: TokenClass

class Table(_message.Message):
    __slots__ = ("arrow_ipc_stream",)
    ARROW_IPC_STREAM_FIELD_NUMBER: _ClassVar[int]
    arrow_ipc_stream: bytes
    def __init__(self, arrow_ipc_stream: _Optional[bytes] = ...) -> None: ...

class ModelReference(_message.Message):
    __slots__ = ("name", "revision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: str
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class TokenReference(_message.Message):
    __slots__ = ("text", "id")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    text: str
    id: int
    def __init__(self, text: _Optional[str] = ..., id: _Optional[int] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("first", "end")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    first: int
    end: int
    def __init__(self, first: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class SaeFeature(_message.Message):
    __slots__ = ("sae", "feature")
    SAE_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    sae: str
    feature: int
    def __init__(self, sae: _Optional[str] = ..., feature: _Optional[int] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("elements",)
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    elements: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, elements: _Optional[_Iterable[float]] = ...) -> None: ...

class StoredSample(_message.Message):
    __slots__ = ("run", "tokens")
    RUN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    run: str
    tokens: int
    def __init__(self, run: _Optional[str] = ..., tokens: _Optional[int] = ...) -> None: ...

class Exclusion(_message.Message):
    __slots__ = ("classes",)
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedScalarFieldContainer[TokenClass]
    def __init__(self, classes: _Optional[_Iterable[_Union[TokenClass, str]]] = ...) -> None: ...

class Failure(_message.Message):
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

class Provenance(_message.Message):
    __slots__ = ("model", "model_revision", "weights_sha256", "tokenizer_sha256", "config_sha256", "sae_sha256", "dtype", "attention_implementation", "device", "code_version", "run", "specification_sha256", "snapshot", "shards_committed", "shards_total", "sink_ratio")
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
    CONFIG_SHA256_FIELD_NUMBER: _ClassVar[int]
    SAE_SHA256_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_IMPLEMENTATION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CODE_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    SPECIFICATION_SHA256_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    SHARDS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    SHARDS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SINK_RATIO_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_revision: str
    weights_sha256: str
    tokenizer_sha256: str
    config_sha256: str
    sae_sha256: _containers.ScalarMap[str, str]
    dtype: Dtype
    attention_implementation: str
    device: str
    code_version: str
    run: str
    specification_sha256: str
    snapshot: str
    shards_committed: int
    shards_total: int
    sink_ratio: float
    def __init__(self, model: _Optional[str] = ..., model_revision: _Optional[str] = ..., weights_sha256: _Optional[str] = ..., tokenizer_sha256: _Optional[str] = ..., config_sha256: _Optional[str] = ..., sae_sha256: _Optional[_Mapping[str, str]] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., attention_implementation: _Optional[str] = ..., device: _Optional[str] = ..., code_version: _Optional[str] = ..., run: _Optional[str] = ..., specification_sha256: _Optional[str] = ..., snapshot: _Optional[str] = ..., shards_committed: _Optional[int] = ..., shards_total: _Optional[int] = ..., sink_ratio: _Optional[float] = ...) -> None: ...
