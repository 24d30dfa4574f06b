from actstore_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FeatureSide(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_SIDE_UNSPECIFIED: _ClassVar[FeatureSide]
    FEATURE_SIDE_DECODER: _ClassVar[FeatureSide]
    FEATURE_SIDE_ENCODER: _ClassVar[FeatureSide]

class TextAblation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TEXT_ABLATION_UNSPECIFIED: _ClassVar[TextAblation]
    TEXT_ABLATION_DELETE: _ClassVar[TextAblation]
    TEXT_ABLATION_ZERO_EMBEDDING: _ClassVar[TextAblation]
    TEXT_ABLATION_ZERO_RESIDUAL: _ClassVar[TextAblation]
    TEXT_ABLATION_MEAN_RESIDUAL: _ClassVar[TextAblation]
FEATURE_SIDE_UNSPECIFIED: FeatureSide
FEATURE_SIDE_DECODER: FeatureSide
FEATURE_SIDE_ENCODER: FeatureSide
TEXT_ABLATION_UNSPECIFIED: TextAblation
TEXT_ABLATION_DELETE: TextAblation
TEXT_ABLATION_ZERO_EMBEDDING: TextAblation
TEXT_ABLATION_ZERO_RESIDUAL: TextAblation
TEXT_ABLATION_MEAN_RESIDUAL: TextAblation

class EncodeTextRequest(_message.Message):
    __slots__ = ("model", "sae", "text", "prepend_bos")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PREPEND_BOS_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelReference
    sae: str
    text: _common_pb2.Prompt
    prepend_bos: bool
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelReference, _Mapping]] = ..., sae: _Optional[str] = ..., text: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., prepend_bos: bool = ...) -> None: ...

class EncodeTextResponse(_message.Message):
    __slots__ = ("tokens", "activations", "provenance")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    tokens: _common_pb2.Table
    activations: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, tokens: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., activations: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class GetLogitLensRequest(_message.Message):
    __slots__ = ("model", "sae", "features", "side", "fold_norm", "longest_unembedding", "k")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    FOLD_NORM_FIELD_NUMBER: _ClassVar[int]
    LONGEST_UNEMBEDDING_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelReference
    sae: str
    features: _containers.RepeatedScalarFieldContainer[int]
    side: FeatureSide
    fold_norm: bool
    longest_unembedding: float
    k: int
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelReference, _Mapping]] = ..., sae: _Optional[str] = ..., features: _Optional[_Iterable[int]] = ..., side: _Optional[_Union[FeatureSide, str]] = ..., fold_norm: bool = ..., longest_unembedding: _Optional[float] = ..., k: _Optional[int] = ...) -> None: ...

class GetLogitLensResponse(_message.Message):
    __slots__ = ("tokens", "masked_tokens", "provenance")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MASKED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    tokens: _common_pb2.Table
    masked_tokens: int
    provenance: _common_pb2.Provenance
    def __init__(self, tokens: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., masked_tokens: _Optional[int] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class AblateTextRequest(_message.Message):
    __slots__ = ("model", "sae", "feature", "text", "prepend_bos", "position", "ablation", "pairs", "first_ablated")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PREPEND_BOS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ABLATION_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    FIRST_ABLATED_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelReference
    sae: str
    feature: int
    text: _common_pb2.Prompt
    prepend_bos: bool
    position: int
    ablation: TextAblation
    pairs: bool
    first_ablated: int
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelReference, _Mapping]] = ..., sae: _Optional[str] = ..., feature: _Optional[int] = ..., text: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., prepend_bos: bool = ..., position: _Optional[int] = ..., ablation: _Optional[_Union[TextAblation, str]] = ..., pairs: bool = ..., first_ablated: _Optional[int] = ...) -> None: ...

class AblateTextResponse(_message.Message):
    __slots__ = ("effects", "tokens", "position", "activation", "provenance")
    EFFECTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    effects: _common_pb2.Table
    tokens: _common_pb2.Table
    position: int
    activation: float
    provenance: _common_pb2.Provenance
    def __init__(self, effects: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., tokens: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., position: _Optional[int] = ..., activation: _Optional[float] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class AblateDirectionRequest(_message.Message):
    __slots__ = ("model", "sae", "feature", "text", "prepend_bos")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PREPEND_BOS_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelReference
    sae: str
    feature: int
    text: _common_pb2.Prompt
    prepend_bos: bool
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelReference, _Mapping]] = ..., sae: _Optional[str] = ..., feature: _Optional[int] = ..., text: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., prepend_bos: bool = ...) -> None: ...

class AblateDirectionResponse(_message.Message):
    __slots__ = ("tokens", "provenance")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    tokens: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, tokens: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class FindNeighborsRequest(_message.Message):
    __slots__ = ("sae", "feature", "vector", "side", "k")
    SAE_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    sae: str
    feature: int
    vector: _common_pb2.Vector
    side: FeatureSide
    k: int
    def __init__(self, sae: _Optional[str] = ..., feature: _Optional[int] = ..., vector: _Optional[_Union[_common_pb2.Vector, _Mapping]] = ..., side: _Optional[_Union[FeatureSide, str]] = ..., k: _Optional[int] = ...) -> None: ...

class FindNeighborsResponse(_message.Message):
    __slots__ = ("features", "provenance")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    features: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, features: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class CheckSaeRequest(_message.Message):
    __slots__ = ("run", "sae", "tokens")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    run: str
    sae: str
    tokens: int
    def __init__(self, run: _Optional[str] = ..., sae: _Optional[str] = ..., tokens: _Optional[int] = ...) -> None: ...

class CheckSaeResponse(_message.Message):
    __slots__ = ("quantities", "warnings", "provenance")
    QUANTITIES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    quantities: _common_pb2.Table
    warnings: _containers.RepeatedScalarFieldContainer[str]
    provenance: _common_pb2.Provenance
    def __init__(self, quantities: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...
