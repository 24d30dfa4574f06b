from actstore_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FeatureReference(_message.Message):
    __slots__ = ("run", "sae", "feature")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    run: str
    sae: str
    feature: int
    def __init__(self, run: _Optional[str] = ..., sae: _Optional[str] = ..., feature: _Optional[int] = ...) -> None: ...

class GetTopExamplesRequest(_message.Message):
    __slots__ = ("feature", "k", "tokens_before", "tokens_after", "exclude")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    TOKENS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_AFTER_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    feature: FeatureReference
    k: int
    tokens_before: int
    tokens_after: int
    exclude: _common_pb2.Exclusion
    def __init__(self, feature: _Optional[_Union[FeatureReference, _Mapping]] = ..., k: _Optional[int] = ..., tokens_before: _Optional[int] = ..., tokens_after: _Optional[int] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ...) -> None: ...

class GetTopExamplesResponse(_message.Message):
    __slots__ = ("examples", "excluded", "provenance")
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    examples: _common_pb2.Table
    excluded: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenClass]
    provenance: _common_pb2.Provenance
    def __init__(self, examples: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class GetFeatureStatisticsRequest(_message.Message):
    __slots__ = ("feature", "bins", "exclude")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    BINS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    feature: FeatureReference
    bins: int
    exclude: _common_pb2.Exclusion
    def __init__(self, feature: _Optional[_Union[FeatureReference, _Mapping]] = ..., bins: _Optional[int] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ...) -> None: ...

class GetFeatureStatisticsResponse(_message.Message):
    __slots__ = ("tokens", "active_tokens", "density", "maximum", "mean_when_active", "histogram", "excluded", "provenance")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DENSITY_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    MEAN_WHEN_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    active_tokens: int
    density: float
    maximum: float
    mean_when_active: float
    histogram: _common_pb2.Table
    excluded: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenClass]
    provenance: _common_pb2.Provenance
    def __init__(self, tokens: _Optional[int] = ..., active_tokens: _Optional[int] = ..., density: _Optional[float] = ..., maximum: _Optional[float] = ..., mean_when_active: _Optional[float] = ..., histogram: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...
