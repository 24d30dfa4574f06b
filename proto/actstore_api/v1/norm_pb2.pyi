from actstore_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetNormProfileRequest(_message.Message):
    __slots__ = ("run", "sites", "exclude", "quantiles")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    run: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    exclude: _common_pb2.Exclusion
    quantiles: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, run: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ..., quantiles: _Optional[_Iterable[float]] = ...) -> None: ...

class GetNormProfileResponse(_message.Message):
    __slots__ = ("profile", "excluded", "provenance")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    profile: _common_pb2.Table
    excluded: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenClass]
    provenance: _common_pb2.Provenance
    def __init__(self, profile: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class LayerRange(_message.Message):
    __slots__ = ("first", "last")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class FitGrowthRequest(_message.Message):
    __slots__ = ("run", "site", "layers", "exclude")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    run: str
    site: str
    layers: LayerRange
    exclude: _common_pb2.Exclusion
    def __init__(self, run: _Optional[str] = ..., site: _Optional[str] = ..., layers: _Optional[_Union[LayerRange, _Mapping]] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ...) -> None: ...

class FitGrowthResponse(_message.Message):
    __slots__ = ("site", "layers", "rate", "r_squared", "points", "excluded", "provenance")
    SITE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    R_SQUARED_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    site: str
    layers: LayerRange
    rate: float
    r_squared: float
    points: _common_pb2.Table
    excluded: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenClass]
    provenance: _common_pb2.Provenance
    def __init__(self, site: _Optional[str] = ..., layers: _Optional[_Union[LayerRange, _Mapping]] = ..., rate: _Optional[float] = ..., r_squared: _Optional[float] = ..., points: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...
