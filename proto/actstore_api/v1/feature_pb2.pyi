from actstore_api.v1 import activation_pb2 as _activation_pb2
from actstore_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SampleMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAMPLE_METHOD_UNSPECIFIED: _ClassVar[SampleMethod]
    SAMPLE_METHOD_TOP: _ClassVar[SampleMethod]
    SAMPLE_METHOD_RANGE: _ClassVar[SampleMethod]
    SAMPLE_METHOD_RANK: _ClassVar[SampleMethod]
    SAMPLE_METHOD_QUANTILE: _ClassVar[SampleMethod]
    SAMPLE_METHOD_ACTIVATING: _ClassVar[SampleMethod]
    SAMPLE_METHOD_POSITIONS: _ClassVar[SampleMethod]

class FeatureStatistic(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_STATISTIC_UNSPECIFIED: _ClassVar[FeatureStatistic]
    FEATURE_STATISTIC_DENSITY: _ClassVar[FeatureStatistic]
    FEATURE_STATISTIC_ACTIVE_TOKENS: _ClassVar[FeatureStatistic]
    FEATURE_STATISTIC_MAXIMUM: _ClassVar[FeatureStatistic]
    FEATURE_STATISTIC_MEAN_WHEN_ACTIVE: _ClassVar[FeatureStatistic]
    FEATURE_STATISTIC_TOKEN_R2: _ClassVar[FeatureStatistic]

class ActiveFeatureOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTIVE_FEATURE_ORDER_UNSPECIFIED: _ClassVar[ActiveFeatureOrder]
    ACTIVE_FEATURE_ORDER_MEAN: _ClassVar[ActiveFeatureOrder]
    ACTIVE_FEATURE_ORDER_MAXIMUM: _ClassVar[ActiveFeatureOrder]
    ACTIVE_FEATURE_ORDER_ACTIVE_TOKENS: _ClassVar[ActiveFeatureOrder]
    ACTIVE_FEATURE_ORDER_LIFT: _ClassVar[ActiveFeatureOrder]
SAMPLE_METHOD_UNSPECIFIED: SampleMethod
SAMPLE_METHOD_TOP: SampleMethod
SAMPLE_METHOD_RANGE: SampleMethod
SAMPLE_METHOD_RANK: SampleMethod
SAMPLE_METHOD_QUANTILE: SampleMethod
SAMPLE_METHOD_ACTIVATING: SampleMethod
SAMPLE_METHOD_POSITIONS: SampleMethod
FEATURE_STATISTIC_UNSPECIFIED: FeatureStatistic
FEATURE_STATISTIC_DENSITY: FeatureStatistic
FEATURE_STATISTIC_ACTIVE_TOKENS: FeatureStatistic
FEATURE_STATISTIC_MAXIMUM: FeatureStatistic
FEATURE_STATISTIC_MEAN_WHEN_ACTIVE: FeatureStatistic
FEATURE_STATISTIC_TOKEN_R2: FeatureStatistic
ACTIVE_FEATURE_ORDER_UNSPECIFIED: ActiveFeatureOrder
ACTIVE_FEATURE_ORDER_MEAN: ActiveFeatureOrder
ACTIVE_FEATURE_ORDER_MAXIMUM: ActiveFeatureOrder
ACTIVE_FEATURE_ORDER_ACTIVE_TOKENS: ActiveFeatureOrder
ACTIVE_FEATURE_ORDER_LIFT: ActiveFeatureOrder

class GetFeatureStatisticsRequest(_message.Message):
    __slots__ = ("run", "sae", "feature", "bins", "exclude")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    BINS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    run: str
    sae: str
    feature: int
    bins: int
    exclude: _common_pb2.Exclusion
    def __init__(self, run: _Optional[str] = ..., sae: _Optional[str] = ..., feature: _Optional[int] = ..., bins: _Optional[int] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ...) -> None: ...

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

class SampleExamplesRequest(_message.Message):
    __slots__ = ("run", "sae", "features", "method", "k", "bins", "threshold", "seed", "tokens_before", "tokens_after", "exclude", "where")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    BINS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_AFTER_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    run: str
    sae: str
    features: _containers.RepeatedScalarFieldContainer[int]
    method: SampleMethod
    k: int
    bins: int
    threshold: float
    seed: int
    tokens_before: int
    tokens_after: int
    exclude: _common_pb2.Exclusion
    where: _activation_pb2.TokenSelection
    def __init__(self, run: _Optional[str] = ..., sae: _Optional[str] = ..., features: _Optional[_Iterable[int]] = ..., method: _Optional[_Union[SampleMethod, str]] = ..., k: _Optional[int] = ..., bins: _Optional[int] = ..., threshold: _Optional[float] = ..., seed: _Optional[int] = ..., tokens_before: _Optional[int] = ..., tokens_after: _Optional[int] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ..., where: _Optional[_Union[_activation_pb2.TokenSelection, _Mapping]] = ...) -> None: ...

class SampleExamplesResponse(_message.Message):
    __slots__ = ("examples", "excluded", "provenance")
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    examples: _common_pb2.Table
    excluded: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenClass]
    provenance: _common_pb2.Provenance
    def __init__(self, examples: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class ReadFeatureRequest(_message.Message):
    __slots__ = ("run", "sae", "feature", "threshold", "exclude", "where")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    run: str
    sae: str
    feature: int
    threshold: float
    exclude: _common_pb2.Exclusion
    where: _activation_pb2.TokenSelection
    def __init__(self, run: _Optional[str] = ..., sae: _Optional[str] = ..., feature: _Optional[int] = ..., threshold: _Optional[float] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ..., where: _Optional[_Union[_activation_pb2.TokenSelection, _Mapping]] = ...) -> None: ...

class ReadFeatureResponse(_message.Message):
    __slots__ = ("rows", "provenance")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    rows: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, rows: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class StatisticBound(_message.Message):
    __slots__ = ("statistic", "low", "high")
    STATISTIC_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    statistic: FeatureStatistic
    low: float
    high: float
    def __init__(self, statistic: _Optional[_Union[FeatureStatistic, str]] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class FindFeaturesRequest(_message.Message):
    __slots__ = ("run", "sae", "features", "bounds", "order", "ascending", "k", "with_token_r2", "exclude")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    ASCENDING_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    WITH_TOKEN_R2_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    run: str
    sae: str
    features: _containers.RepeatedScalarFieldContainer[int]
    bounds: _containers.RepeatedCompositeFieldContainer[StatisticBound]
    order: FeatureStatistic
    ascending: bool
    k: int
    with_token_r2: bool
    exclude: _common_pb2.Exclusion
    def __init__(self, run: _Optional[str] = ..., sae: _Optional[str] = ..., features: _Optional[_Iterable[int]] = ..., bounds: _Optional[_Iterable[_Union[StatisticBound, _Mapping]]] = ..., order: _Optional[_Union[FeatureStatistic, str]] = ..., ascending: bool = ..., k: _Optional[int] = ..., with_token_r2: bool = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ...) -> None: ...

class FindFeaturesResponse(_message.Message):
    __slots__ = ("features", "excluded", "provenance")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    features: _common_pb2.Table
    excluded: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenClass]
    provenance: _common_pb2.Provenance
    def __init__(self, features: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class GetActiveFeaturesRequest(_message.Message):
    __slots__ = ("run", "sae", "order", "k", "exclude", "where")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    run: str
    sae: str
    order: ActiveFeatureOrder
    k: int
    exclude: _common_pb2.Exclusion
    where: _activation_pb2.TokenSelection
    def __init__(self, run: _Optional[str] = ..., sae: _Optional[str] = ..., order: _Optional[_Union[ActiveFeatureOrder, str]] = ..., k: _Optional[int] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ..., where: _Optional[_Union[_activation_pb2.TokenSelection, _Mapping]] = ...) -> None: ...

class GetActiveFeaturesResponse(_message.Message):
    __slots__ = ("features", "excluded", "provenance")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    features: _common_pb2.Table
    excluded: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenClass]
    provenance: _common_pb2.Provenance
    def __init__(self, features: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class GetCofiringFeaturesRequest(_message.Message):
    __slots__ = ("run", "sae", "feature", "k", "least_tokens", "exclude")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    LEAST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    run: str
    sae: str
    feature: int
    k: int
    least_tokens: int
    exclude: _common_pb2.Exclusion
    def __init__(self, run: _Optional[str] = ..., sae: _Optional[str] = ..., feature: _Optional[int] = ..., k: _Optional[int] = ..., least_tokens: _Optional[int] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ...) -> None: ...

class GetCofiringFeaturesResponse(_message.Message):
    __slots__ = ("features", "excluded", "provenance")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    features: _common_pb2.Table
    excluded: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenClass]
    provenance: _common_pb2.Provenance
    def __init__(self, features: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...
