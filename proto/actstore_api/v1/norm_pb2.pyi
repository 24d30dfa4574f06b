from actstore_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NormQuantity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NORM_QUANTITY_UNSPECIFIED: _ClassVar[NormQuantity]
    NORM_QUANTITY_L2: _ClassVar[NormQuantity]
    NORM_QUANTITY_RMS: _ClassVar[NormQuantity]
    NORM_QUANTITY_STANDARD_DEVIATION: _ClassVar[NormQuantity]
    NORM_QUANTITY_CENTRED_L2: _ClassVar[NormQuantity]
    NORM_QUANTITY_COSINE_TO_STREAM: _ClassVar[NormQuantity]
    NORM_QUANTITY_COSINE_TO_NEXT: _ClassVar[NormQuantity]
    NORM_QUANTITY_SHARE_OF_STREAM: _ClassVar[NormQuantity]
    NORM_QUANTITY_RELATIVE_INCREASE: _ClassVar[NormQuantity]

class NormGrouping(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NORM_GROUPING_UNSPECIFIED: _ClassVar[NormGrouping]
    NORM_GROUPING_LAYER: _ClassVar[NormGrouping]
    NORM_GROUPING_SITE: _ClassVar[NormGrouping]
    NORM_GROUPING_TOKEN_CLASS: _ClassVar[NormGrouping]
    NORM_GROUPING_POSITION: _ClassVar[NormGrouping]
    NORM_GROUPING_DOCUMENT: _ClassVar[NormGrouping]
    NORM_GROUPING_TOKEN: _ClassVar[NormGrouping]
    NORM_GROUPING_CHECKPOINT: _ClassVar[NormGrouping]

class GrowthAxis(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GROWTH_AXIS_UNSPECIFIED: _ClassVar[GrowthAxis]
    GROWTH_AXIS_LAYER: _ClassVar[GrowthAxis]
    GROWTH_AXIS_CHECKPOINT: _ClassVar[GrowthAxis]

class GrowthVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GROWTH_VERDICT_UNSPECIFIED: _ClassVar[GrowthVerdict]
    GROWTH_VERDICT_EXPONENTIAL: _ClassVar[GrowthVerdict]
    GROWTH_VERDICT_FASTER: _ClassVar[GrowthVerdict]
    GROWTH_VERDICT_SLOWER: _ClassVar[GrowthVerdict]
    GROWTH_VERDICT_IRREGULAR: _ClassVar[GrowthVerdict]
    GROWTH_VERDICT_NONE: _ClassVar[GrowthVerdict]

class SeparabilityVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEPARABILITY_VERDICT_UNSPECIFIED: _ClassVar[SeparabilityVerdict]
    SEPARABILITY_VERDICT_SEPARABLE: _ClassVar[SeparabilityVerdict]
    SEPARABILITY_VERDICT_PARTLY: _ClassVar[SeparabilityVerdict]
    SEPARABILITY_VERDICT_INSEPARABLE: _ClassVar[SeparabilityVerdict]
NORM_QUANTITY_UNSPECIFIED: NormQuantity
NORM_QUANTITY_L2: NormQuantity
NORM_QUANTITY_RMS: NormQuantity
NORM_QUANTITY_STANDARD_DEVIATION: NormQuantity
NORM_QUANTITY_CENTRED_L2: NormQuantity
NORM_QUANTITY_COSINE_TO_STREAM: NormQuantity
NORM_QUANTITY_COSINE_TO_NEXT: NormQuantity
NORM_QUANTITY_SHARE_OF_STREAM: NormQuantity
NORM_QUANTITY_RELATIVE_INCREASE: NormQuantity
NORM_GROUPING_UNSPECIFIED: NormGrouping
NORM_GROUPING_LAYER: NormGrouping
NORM_GROUPING_SITE: NormGrouping
NORM_GROUPING_TOKEN_CLASS: NormGrouping
NORM_GROUPING_POSITION: NormGrouping
NORM_GROUPING_DOCUMENT: NormGrouping
NORM_GROUPING_TOKEN: NormGrouping
NORM_GROUPING_CHECKPOINT: NormGrouping
GROWTH_AXIS_UNSPECIFIED: GrowthAxis
GROWTH_AXIS_LAYER: GrowthAxis
GROWTH_AXIS_CHECKPOINT: GrowthAxis
GROWTH_VERDICT_UNSPECIFIED: GrowthVerdict
GROWTH_VERDICT_EXPONENTIAL: GrowthVerdict
GROWTH_VERDICT_FASTER: GrowthVerdict
GROWTH_VERDICT_SLOWER: GrowthVerdict
GROWTH_VERDICT_IRREGULAR: GrowthVerdict
GROWTH_VERDICT_NONE: GrowthVerdict
SEPARABILITY_VERDICT_UNSPECIFIED: SeparabilityVerdict
SEPARABILITY_VERDICT_SEPARABLE: SeparabilityVerdict
SEPARABILITY_VERDICT_PARTLY: SeparabilityVerdict
SEPARABILITY_VERDICT_INSEPARABLE: SeparabilityVerdict

class Quantiles(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class GetNormProfileRequest(_message.Message):
    __slots__ = ("runs", "steps", "sites", "quantity", "by", "sequences", "exclude", "exclude_position_0", "quantiles", "bins", "edges", "exact")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_POSITION_0_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    BINS_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedScalarFieldContainer[str]
    steps: _containers.RepeatedScalarFieldContainer[float]
    sites: _containers.RepeatedScalarFieldContainer[str]
    quantity: NormQuantity
    by: NormGrouping
    sequences: _common_pb2.Range
    exclude: _common_pb2.Exclusion
    exclude_position_0: bool
    quantiles: Quantiles
    bins: int
    edges: _containers.RepeatedScalarFieldContainer[float]
    exact: bool
    def __init__(self, runs: _Optional[_Iterable[str]] = ..., steps: _Optional[_Iterable[float]] = ..., sites: _Optional[_Iterable[str]] = ..., quantity: _Optional[_Union[NormQuantity, str]] = ..., by: _Optional[_Union[NormGrouping, str]] = ..., sequences: _Optional[_Union[_common_pb2.Range, _Mapping]] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ..., exclude_position_0: bool = ..., quantiles: _Optional[_Union[Quantiles, _Mapping]] = ..., bins: _Optional[int] = ..., edges: _Optional[_Iterable[float]] = ..., exact: bool = ...) -> None: ...

class GetNormProfileResponse(_message.Message):
    __slots__ = ("profile", "histogram", "from_statistics", "excluded", "excluded_position_0", "warnings", "provenance")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    FROM_STATISTICS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_POSITION_0_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    profile: _common_pb2.Table
    histogram: _common_pb2.Table
    from_statistics: bool
    excluded: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenClass]
    excluded_position_0: bool
    warnings: _containers.RepeatedScalarFieldContainer[str]
    provenance: _common_pb2.Provenance
    def __init__(self, profile: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., histogram: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., from_statistics: bool = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., excluded_position_0: bool = ..., warnings: _Optional[_Iterable[str]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class FitGrowthRequest(_message.Message):
    __slots__ = ("runs", "steps", "axis", "site", "layers", "quantity", "exclude", "exclude_position_0", "resamples", "seed")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    AXIS_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_POSITION_0_FIELD_NUMBER: _ClassVar[int]
    RESAMPLES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedScalarFieldContainer[str]
    steps: _containers.RepeatedScalarFieldContainer[float]
    axis: GrowthAxis
    site: str
    layers: _common_pb2.Range
    quantity: NormQuantity
    exclude: _common_pb2.Exclusion
    exclude_position_0: bool
    resamples: int
    seed: int
    def __init__(self, runs: _Optional[_Iterable[str]] = ..., steps: _Optional[_Iterable[float]] = ..., axis: _Optional[_Union[GrowthAxis, str]] = ..., site: _Optional[str] = ..., layers: _Optional[_Union[_common_pb2.Range, _Mapping]] = ..., quantity: _Optional[_Union[NormQuantity, str]] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ..., exclude_position_0: bool = ..., resamples: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class Interval(_message.Message):
    __slots__ = ("low", "high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class FitGrowthResponse(_message.Message):
    __slots__ = ("axis", "site", "layers", "quantity", "block", "verdict", "rate", "rate_interval", "r_squared", "curvature", "curvature_interval", "bend", "median_ratio", "points", "shapes", "resamples", "seed", "sequences", "excluded", "excluded_position_0", "warnings", "provenance")
    AXIS_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    RATE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    R_SQUARED_FIELD_NUMBER: _ClassVar[int]
    CURVATURE_FIELD_NUMBER: _ClassVar[int]
    CURVATURE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    BEND_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_RATIO_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    SHAPES_FIELD_NUMBER: _ClassVar[int]
    RESAMPLES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_POSITION_0_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    axis: GrowthAxis
    site: str
    layers: _common_pb2.Range
    quantity: NormQuantity
    block: _common_pb2.BlockWiring
    verdict: GrowthVerdict
    rate: float
    rate_interval: Interval
    r_squared: float
    curvature: float
    curvature_interval: Interval
    bend: float
    median_ratio: float
    points: _common_pb2.Table
    shapes: _common_pb2.Table
    resamples: int
    seed: int
    sequences: int
    excluded: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenClass]
    excluded_position_0: bool
    warnings: _containers.RepeatedScalarFieldContainer[str]
    provenance: _common_pb2.Provenance
    def __init__(self, axis: _Optional[_Union[GrowthAxis, str]] = ..., site: _Optional[str] = ..., layers: _Optional[_Union[_common_pb2.Range, _Mapping]] = ..., quantity: _Optional[_Union[NormQuantity, str]] = ..., block: _Optional[_Union[_common_pb2.BlockWiring, str]] = ..., verdict: _Optional[_Union[GrowthVerdict, str]] = ..., rate: _Optional[float] = ..., rate_interval: _Optional[_Union[Interval, _Mapping]] = ..., r_squared: _Optional[float] = ..., curvature: _Optional[float] = ..., curvature_interval: _Optional[_Union[Interval, _Mapping]] = ..., bend: _Optional[float] = ..., median_ratio: _Optional[float] = ..., points: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., shapes: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., resamples: _Optional[int] = ..., seed: _Optional[int] = ..., sequences: _Optional[int] = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., excluded_position_0: bool = ..., warnings: _Optional[_Iterable[str]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class GetSeparabilityRequest(_message.Message):
    __slots__ = ("runs", "steps", "site", "layers", "quantity", "exclude", "exclude_position_0")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_POSITION_0_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedScalarFieldContainer[str]
    steps: _containers.RepeatedScalarFieldContainer[float]
    site: str
    layers: _common_pb2.Range
    quantity: NormQuantity
    exclude: _common_pb2.Exclusion
    exclude_position_0: bool
    def __init__(self, runs: _Optional[_Iterable[str]] = ..., steps: _Optional[_Iterable[float]] = ..., site: _Optional[str] = ..., layers: _Optional[_Union[_common_pb2.Range, _Mapping]] = ..., quantity: _Optional[_Union[NormQuantity, str]] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ..., exclude_position_0: bool = ...) -> None: ...

class GetSeparabilityResponse(_message.Message):
    __slots__ = ("site", "layers", "quantity", "layer_share", "checkpoint_share", "interaction_share", "explained", "rank_one", "miss", "verdict", "cells", "excluded", "excluded_position_0", "warnings", "provenance")
    SITE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    LAYER_SHARE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_SHARE_FIELD_NUMBER: _ClassVar[int]
    INTERACTION_SHARE_FIELD_NUMBER: _ClassVar[int]
    EXPLAINED_FIELD_NUMBER: _ClassVar[int]
    RANK_ONE_FIELD_NUMBER: _ClassVar[int]
    MISS_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    CELLS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_POSITION_0_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    site: str
    layers: _common_pb2.Range
    quantity: NormQuantity
    layer_share: float
    checkpoint_share: float
    interaction_share: float
    explained: float
    rank_one: float
    miss: float
    verdict: SeparabilityVerdict
    cells: _common_pb2.Table
    excluded: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenClass]
    excluded_position_0: bool
    warnings: _containers.RepeatedScalarFieldContainer[str]
    provenance: _common_pb2.Provenance
    def __init__(self, site: _Optional[str] = ..., layers: _Optional[_Union[_common_pb2.Range, _Mapping]] = ..., quantity: _Optional[_Union[NormQuantity, str]] = ..., layer_share: _Optional[float] = ..., checkpoint_share: _Optional[float] = ..., interaction_share: _Optional[float] = ..., explained: _Optional[float] = ..., rank_one: _Optional[float] = ..., miss: _Optional[float] = ..., verdict: _Optional[_Union[SeparabilityVerdict, str]] = ..., cells: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., excluded_position_0: bool = ..., warnings: _Optional[_Iterable[str]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...
