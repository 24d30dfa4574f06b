from actstore_api.v1 import capture_pb2 as _capture_pb2
from actstore_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Run(_message.Message):
    __slots__ = ("name", "specification", "provenance", "sequences_total", "tokens_total", "tokens_committed", "dense_sites", "norm_sites", "saes", "n_layers", "d_model")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPECIFICATION_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    DENSE_SITES_FIELD_NUMBER: _ClassVar[int]
    NORM_SITES_FIELD_NUMBER: _ClassVar[int]
    SAES_FIELD_NUMBER: _ClassVar[int]
    N_LAYERS_FIELD_NUMBER: _ClassVar[int]
    D_MODEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    specification: _capture_pb2.CaptureSpecification
    provenance: _common_pb2.Provenance
    sequences_total: int
    tokens_total: int
    tokens_committed: int
    dense_sites: _containers.RepeatedScalarFieldContainer[str]
    norm_sites: _containers.RepeatedScalarFieldContainer[str]
    saes: _containers.RepeatedCompositeFieldContainer[SaeAttachment]
    n_layers: int
    d_model: int
    def __init__(self, name: _Optional[str] = ..., specification: _Optional[_Union[_capture_pb2.CaptureSpecification, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ..., sequences_total: _Optional[int] = ..., tokens_total: _Optional[int] = ..., tokens_committed: _Optional[int] = ..., dense_sites: _Optional[_Iterable[str]] = ..., norm_sites: _Optional[_Iterable[str]] = ..., saes: _Optional[_Iterable[_Union[SaeAttachment, _Mapping]]] = ..., n_layers: _Optional[int] = ..., d_model: _Optional[int] = ...) -> None: ...

class SaeAttachment(_message.Message):
    __slots__ = ("name", "site", "d_sae")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    D_SAE_FIELD_NUMBER: _ClassVar[int]
    name: str
    site: str
    d_sae: int
    def __init__(self, name: _Optional[str] = ..., site: _Optional[str] = ..., d_sae: _Optional[int] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "revision", "weights_sha256", "tokenizer_sha256", "config_sha256", "family", "block", "n_layers", "n_heads", "d_model", "d_vocab", "n_ctx")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    CONFIG_SHA256_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    N_LAYERS_FIELD_NUMBER: _ClassVar[int]
    N_HEADS_FIELD_NUMBER: _ClassVar[int]
    D_MODEL_FIELD_NUMBER: _ClassVar[int]
    D_VOCAB_FIELD_NUMBER: _ClassVar[int]
    N_CTX_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: str
    weights_sha256: str
    tokenizer_sha256: str
    config_sha256: str
    family: str
    block: _common_pb2.BlockWiring
    n_layers: int
    n_heads: int
    d_model: int
    d_vocab: int
    n_ctx: int
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[str] = ..., weights_sha256: _Optional[str] = ..., tokenizer_sha256: _Optional[str] = ..., config_sha256: _Optional[str] = ..., family: _Optional[str] = ..., block: _Optional[_Union[_common_pb2.BlockWiring, str]] = ..., n_layers: _Optional[int] = ..., n_heads: _Optional[int] = ..., d_model: _Optional[int] = ..., d_vocab: _Optional[int] = ..., n_ctx: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Sae(_message.Message):
    __slots__ = ("name", "sha256", "architecture", "site", "d_in", "d_sae", "model")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    D_IN_FIELD_NUMBER: _ClassVar[int]
    D_SAE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: str
    architecture: str
    site: str
    d_in: int
    d_sae: int
    model: str
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ..., architecture: _Optional[str] = ..., site: _Optional[str] = ..., d_in: _Optional[int] = ..., d_sae: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...

class ListSaesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSaesResponse(_message.Message):
    __slots__ = ("saes",)
    SAES_FIELD_NUMBER: _ClassVar[int]
    saes: _containers.RepeatedCompositeFieldContainer[Sae]
    def __init__(self, saes: _Optional[_Iterable[_Union[Sae, _Mapping]]] = ...) -> None: ...
