from actstore_api.v1 import capture_pb2 as _capture_pb2
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
    GROWTH_VERDICT_NONE: _ClassVar[GrowthVerdict]
    GROWTH_VERDICT_IRREGULAR: _ClassVar[GrowthVerdict]

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
GROWTH_VERDICT_NONE: GrowthVerdict
GROWTH_VERDICT_IRREGULAR: GrowthVerdict
SEPARABILITY_VERDICT_UNSPECIFIED: SeparabilityVerdict
SEPARABILITY_VERDICT_SEPARABLE: SeparabilityVerdict
SEPARABILITY_VERDICT_PARTLY: SeparabilityVerdict
SEPARABILITY_VERDICT_INSEPARABLE: SeparabilityVerdict

class GetNormProfileRequest(_message.Message):
    __slots__ = ("run", "sites", "exclude", "quantiles", "quantity", "by", "without_quantiles", "exclude_position_0", "bins", "edges", "more_runs", "steps", "exact", "sequences")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_QUANTILES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_POSITION_0_FIELD_NUMBER: _ClassVar[int]
    BINS_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    MORE_RUNS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    run: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    exclude: _common_pb2.Exclusion
    quantiles: _containers.RepeatedScalarFieldContainer[float]
    quantity: NormQuantity
    by: NormGrouping
    without_quantiles: bool
    exclude_position_0: bool
    bins: int
    edges: _containers.RepeatedScalarFieldContainer[float]
    more_runs: _containers.RepeatedScalarFieldContainer[str]
    steps: _containers.RepeatedScalarFieldContainer[float]
    exact: bool
    sequences: SequenceRange
    def __init__(self, run: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ..., quantiles: _Optional[_Iterable[float]] = ..., quantity: _Optional[_Union[NormQuantity, str]] = ..., by: _Optional[_Union[NormGrouping, str]] = ..., without_quantiles: bool = ..., exclude_position_0: bool = ..., bins: _Optional[int] = ..., edges: _Optional[_Iterable[float]] = ..., more_runs: _Optional[_Iterable[str]] = ..., steps: _Optional[_Iterable[float]] = ..., exact: bool = ..., sequences: _Optional[_Union[SequenceRange, _Mapping]] = ...) -> None: ...

class SequenceRange(_message.Message):
    __slots__ = ("first", "count")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    first: int
    count: int
    def __init__(self, first: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class GetNormProfileResponse(_message.Message):
    __slots__ = ("profile", "excluded", "provenance", "histogram", "excluded_position_0", "from_statistics", "warnings")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_POSITION_0_FIELD_NUMBER: _ClassVar[int]
    FROM_STATISTICS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    profile: _common_pb2.Table
    excluded: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenClass]
    provenance: _common_pb2.Provenance
    histogram: _common_pb2.Table
    excluded_position_0: bool
    from_statistics: bool
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, profile: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ..., histogram: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., excluded_position_0: bool = ..., from_statistics: bool = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class LayerRange(_message.Message):
    __slots__ = ("first", "last")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class FitGrowthRequest(_message.Message):
    __slots__ = ("run", "site", "layers", "exclude", "axis", "more_runs", "steps", "resamples", "seed", "quantity", "exclude_position_0")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    AXIS_FIELD_NUMBER: _ClassVar[int]
    MORE_RUNS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    RESAMPLES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_POSITION_0_FIELD_NUMBER: _ClassVar[int]
    run: str
    site: str
    layers: LayerRange
    exclude: _common_pb2.Exclusion
    axis: GrowthAxis
    more_runs: _containers.RepeatedScalarFieldContainer[str]
    steps: _containers.RepeatedScalarFieldContainer[float]
    resamples: int
    seed: int
    quantity: NormQuantity
    exclude_position_0: bool
    def __init__(self, run: _Optional[str] = ..., site: _Optional[str] = ..., layers: _Optional[_Union[LayerRange, _Mapping]] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ..., axis: _Optional[_Union[GrowthAxis, str]] = ..., more_runs: _Optional[_Iterable[str]] = ..., steps: _Optional[_Iterable[float]] = ..., resamples: _Optional[int] = ..., seed: _Optional[int] = ..., quantity: _Optional[_Union[NormQuantity, str]] = ..., exclude_position_0: bool = ...) -> None: ...

class Interval(_message.Message):
    __slots__ = ("low", "high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class FitGrowthResponse(_message.Message):
    __slots__ = ("site", "layers", "rate", "r_squared", "points", "excluded", "provenance", "axis", "rate_interval", "curvature", "curvature_interval", "bend", "verdict", "shapes", "block", "resamples", "seed", "sequences", "quantity", "warnings", "excluded_position_0", "median_ratio")
    SITE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    R_SQUARED_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    AXIS_FIELD_NUMBER: _ClassVar[int]
    RATE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    CURVATURE_FIELD_NUMBER: _ClassVar[int]
    CURVATURE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    BEND_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SHAPES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    RESAMPLES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_POSITION_0_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_RATIO_FIELD_NUMBER: _ClassVar[int]
    site: str
    layers: LayerRange
    rate: float
    r_squared: float
    points: _common_pb2.Table
    excluded: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenClass]
    provenance: _common_pb2.Provenance
    axis: GrowthAxis
    rate_interval: Interval
    curvature: float
    curvature_interval: Interval
    bend: float
    verdict: GrowthVerdict
    shapes: _common_pb2.Table
    block: str
    resamples: int
    seed: int
    sequences: int
    quantity: NormQuantity
    warnings: _containers.RepeatedScalarFieldContainer[str]
    excluded_position_0: bool
    median_ratio: float
    def __init__(self, site: _Optional[str] = ..., layers: _Optional[_Union[LayerRange, _Mapping]] = ..., rate: _Optional[float] = ..., r_squared: _Optional[float] = ..., points: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ..., axis: _Optional[_Union[GrowthAxis, str]] = ..., rate_interval: _Optional[_Union[Interval, _Mapping]] = ..., curvature: _Optional[float] = ..., curvature_interval: _Optional[_Union[Interval, _Mapping]] = ..., bend: _Optional[float] = ..., verdict: _Optional[_Union[GrowthVerdict, str]] = ..., shapes: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., block: _Optional[str] = ..., resamples: _Optional[int] = ..., seed: _Optional[int] = ..., sequences: _Optional[int] = ..., quantity: _Optional[_Union[NormQuantity, str]] = ..., warnings: _Optional[_Iterable[str]] = ..., excluded_position_0: bool = ..., median_ratio: _Optional[float] = ...) -> None: ...

class GetSeparabilityRequest(_message.Message):
    __slots__ = ("run", "more_runs", "steps", "site", "layers", "exclude", "quantity", "exclude_position_0")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MORE_RUNS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_POSITION_0_FIELD_NUMBER: _ClassVar[int]
    run: str
    more_runs: _containers.RepeatedScalarFieldContainer[str]
    steps: _containers.RepeatedScalarFieldContainer[float]
    site: str
    layers: LayerRange
    exclude: _common_pb2.Exclusion
    quantity: NormQuantity
    exclude_position_0: bool
    def __init__(self, run: _Optional[str] = ..., more_runs: _Optional[_Iterable[str]] = ..., steps: _Optional[_Iterable[float]] = ..., site: _Optional[str] = ..., layers: _Optional[_Union[LayerRange, _Mapping]] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ..., quantity: _Optional[_Union[NormQuantity, str]] = ..., exclude_position_0: bool = ...) -> None: ...

class GetSeparabilityResponse(_message.Message):
    __slots__ = ("site", "layers", "quantity", "layer_share", "checkpoint_share", "interaction_share", "explained", "rank_one", "miss", "verdict", "cells", "excluded", "provenance", "warnings", "excluded_position_0")
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
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_POSITION_0_FIELD_NUMBER: _ClassVar[int]
    site: str
    layers: LayerRange
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
    provenance: _common_pb2.Provenance
    warnings: _containers.RepeatedScalarFieldContainer[str]
    excluded_position_0: bool
    def __init__(self, site: _Optional[str] = ..., layers: _Optional[_Union[LayerRange, _Mapping]] = ..., quantity: _Optional[_Union[NormQuantity, str]] = ..., layer_share: _Optional[float] = ..., checkpoint_share: _Optional[float] = ..., interaction_share: _Optional[float] = ..., explained: _Optional[float] = ..., rank_one: _Optional[float] = ..., miss: _Optional[float] = ..., verdict: _Optional[_Union[SeparabilityVerdict, str]] = ..., cells: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., excluded: _Optional[_Iterable[_Union[_common_pb2.TokenClass, str]]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., excluded_position_0: bool = ...) -> None: ...

class GetWeightNormsRequest(_message.Message):
    __slots__ = ("model", "layers", "samples", "seed", "text", "bos", "run", "run_tokens", "token_ids")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    BOS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    RUN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    model: _capture_pb2.ModelReference
    layers: _containers.RepeatedScalarFieldContainer[int]
    samples: int
    seed: int
    text: str
    bos: _capture_pb2.BosPolicy
    run: str
    run_tokens: int
    token_ids: _common_pb2.TokenIds
    def __init__(self, model: _Optional[_Union[_capture_pb2.ModelReference, _Mapping]] = ..., layers: _Optional[_Iterable[int]] = ..., samples: _Optional[int] = ..., seed: _Optional[int] = ..., text: _Optional[str] = ..., bos: _Optional[_Union[_capture_pb2.BosPolicy, str]] = ..., run: _Optional[str] = ..., run_tokens: _Optional[int] = ..., token_ids: _Optional[_Union[_common_pb2.TokenIds, _Mapping]] = ...) -> None: ...

class GetWeightNormsResponse(_message.Message):
    __slots__ = ("weights", "sublayers", "provenance")
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    SUBLAYERS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    weights: _common_pb2.Table
    sublayers: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, weights: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., sublayers: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...
