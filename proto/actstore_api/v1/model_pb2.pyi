from actstore_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SteeringMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEERING_MODE_UNSPECIFIED: _ClassVar[SteeringMode]
    STEERING_MODE_ADD: _ClassVar[SteeringMode]
    STEERING_MODE_SET: _ClassVar[SteeringMode]
    STEERING_MODE_PROJECT_OUT: _ClassVar[SteeringMode]

class StrengthUnit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STRENGTH_UNIT_UNSPECIFIED: _ClassVar[StrengthUnit]
    STRENGTH_UNIT_MEAN_NORM: _ClassVar[StrengthUnit]
    STRENGTH_UNIT_ABSOLUTE: _ClassVar[StrengthUnit]

class SteeredPositions(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEERED_POSITIONS_UNSPECIFIED: _ClassVar[SteeredPositions]
    STEERED_POSITIONS_ALL: _ClassVar[SteeredPositions]
    STEERED_POSITIONS_PROMPT: _ClassVar[SteeredPositions]
    STEERED_POSITIONS_GENERATED: _ClassVar[SteeredPositions]

class SiteAblation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SITE_ABLATION_UNSPECIFIED: _ClassVar[SiteAblation]
    SITE_ABLATION_ZERO: _ClassVar[SiteAblation]
    SITE_ABLATION_MEAN: _ClassVar[SiteAblation]
    SITE_ABLATION_RESAMPLE: _ClassVar[SiteAblation]
STEERING_MODE_UNSPECIFIED: SteeringMode
STEERING_MODE_ADD: SteeringMode
STEERING_MODE_SET: SteeringMode
STEERING_MODE_PROJECT_OUT: SteeringMode
STRENGTH_UNIT_UNSPECIFIED: StrengthUnit
STRENGTH_UNIT_MEAN_NORM: StrengthUnit
STRENGTH_UNIT_ABSOLUTE: StrengthUnit
STEERED_POSITIONS_UNSPECIFIED: SteeredPositions
STEERED_POSITIONS_ALL: SteeredPositions
STEERED_POSITIONS_PROMPT: SteeredPositions
STEERED_POSITIONS_GENERATED: SteeredPositions
SITE_ABLATION_UNSPECIFIED: SiteAblation
SITE_ABLATION_ZERO: SiteAblation
SITE_ABLATION_MEAN: SiteAblation
SITE_ABLATION_RESAMPLE: SiteAblation

class TokenizeTextRequest(_message.Message):
    __slots__ = ("model", "text", "prepend_bos", "one_token")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PREPEND_BOS_FIELD_NUMBER: _ClassVar[int]
    ONE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelReference
    text: _common_pb2.Prompt
    prepend_bos: bool
    one_token: bool
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelReference, _Mapping]] = ..., text: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., prepend_bos: bool = ..., one_token: bool = ...) -> None: ...

class TokenizeTextResponse(_message.Message):
    __slots__ = ("tokens", "provenance")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    tokens: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, tokens: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class GetAttentionRequest(_message.Message):
    __slots__ = ("model", "text", "prepend_bos", "layers", "heads", "patterns")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PREPEND_BOS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    PATTERNS_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelReference
    text: _common_pb2.Prompt
    prepend_bos: bool
    layers: _containers.RepeatedScalarFieldContainer[int]
    heads: _containers.RepeatedScalarFieldContainer[int]
    patterns: bool
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelReference, _Mapping]] = ..., text: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., prepend_bos: bool = ..., layers: _Optional[_Iterable[int]] = ..., heads: _Optional[_Iterable[int]] = ..., patterns: bool = ...) -> None: ...

class GetAttentionResponse(_message.Message):
    __slots__ = ("heads", "patterns", "tokens", "provenance")
    HEADS_FIELD_NUMBER: _ClassVar[int]
    PATTERNS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    heads: _common_pb2.Table
    patterns: _common_pb2.Table
    tokens: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, heads: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., patterns: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., tokens: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class GetInductionScoresRequest(_message.Message):
    __slots__ = ("model", "prepend_bos", "tokens", "texts", "seed", "layers", "heads")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PREPEND_BOS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelReference
    prepend_bos: bool
    tokens: int
    texts: int
    seed: int
    layers: _containers.RepeatedScalarFieldContainer[int]
    heads: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelReference, _Mapping]] = ..., prepend_bos: bool = ..., tokens: _Optional[int] = ..., texts: _Optional[int] = ..., seed: _Optional[int] = ..., layers: _Optional[_Iterable[int]] = ..., heads: _Optional[_Iterable[int]] = ...) -> None: ...

class GetInductionScoresResponse(_message.Message):
    __slots__ = ("heads", "tokens", "loss_first", "loss_second", "provenance")
    HEADS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIRST_FIELD_NUMBER: _ClassVar[int]
    LOSS_SECOND_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    heads: _common_pb2.Table
    tokens: int
    loss_first: float
    loss_second: float
    provenance: _common_pb2.Provenance
    def __init__(self, heads: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., tokens: _Optional[int] = ..., loss_first: _Optional[float] = ..., loss_second: _Optional[float] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class GetTextLensRequest(_message.Message):
    __slots__ = ("model", "text", "prepend_bos", "site", "layers", "k", "target")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PREPEND_BOS_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelReference
    text: _common_pb2.Prompt
    prepend_bos: bool
    site: str
    layers: _containers.RepeatedScalarFieldContainer[int]
    k: int
    target: _common_pb2.TokenReference
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelReference, _Mapping]] = ..., text: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., prepend_bos: bool = ..., site: _Optional[str] = ..., layers: _Optional[_Iterable[int]] = ..., k: _Optional[int] = ..., target: _Optional[_Union[_common_pb2.TokenReference, _Mapping]] = ...) -> None: ...

class GetTextLensResponse(_message.Message):
    __slots__ = ("tops", "positions", "tokens", "provenance")
    TOPS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    tops: _common_pb2.Table
    positions: _common_pb2.Table
    tokens: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, tops: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., positions: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., tokens: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class SteerTextRequest(_message.Message):
    __slots__ = ("model", "prompt", "prepend_bos", "vector", "feature", "site", "mode", "strength", "unit", "positions", "max_new_tokens", "temperature", "seed")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PREPEND_BOS_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelReference
    prompt: _common_pb2.Prompt
    prepend_bos: bool
    vector: _common_pb2.Vector
    feature: _common_pb2.SaeFeature
    site: str
    mode: SteeringMode
    strength: float
    unit: StrengthUnit
    positions: SteeredPositions
    max_new_tokens: int
    temperature: float
    seed: int
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelReference, _Mapping]] = ..., prompt: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., prepend_bos: bool = ..., vector: _Optional[_Union[_common_pb2.Vector, _Mapping]] = ..., feature: _Optional[_Union[_common_pb2.SaeFeature, _Mapping]] = ..., site: _Optional[str] = ..., mode: _Optional[_Union[SteeringMode, str]] = ..., strength: _Optional[float] = ..., unit: _Optional[_Union[StrengthUnit, str]] = ..., positions: _Optional[_Union[SteeredPositions, str]] = ..., max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class SteerTextResponse(_message.Message):
    __slots__ = ("tokens", "prompt", "steered_text", "unsteered_text", "site", "mean_norm", "strength", "provenance")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    STEERED_TEXT_FIELD_NUMBER: _ClassVar[int]
    UNSTEERED_TEXT_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    MEAN_NORM_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    tokens: _common_pb2.Table
    prompt: _common_pb2.Table
    steered_text: str
    unsteered_text: str
    site: str
    mean_norm: float
    strength: float
    provenance: _common_pb2.Provenance
    def __init__(self, tokens: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., prompt: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., steered_text: _Optional[str] = ..., unsteered_text: _Optional[str] = ..., site: _Optional[str] = ..., mean_norm: _Optional[float] = ..., strength: _Optional[float] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class AblateSitesRequest(_message.Message):
    __slots__ = ("model", "texts", "prepend_bos", "sites", "layers", "heads", "ablation", "stored", "seed", "same_position")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    PREPEND_BOS_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    ABLATION_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAME_POSITION_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelReference
    texts: _containers.RepeatedCompositeFieldContainer[_common_pb2.Prompt]
    prepend_bos: bool
    sites: _containers.RepeatedScalarFieldContainer[str]
    layers: _containers.RepeatedScalarFieldContainer[int]
    heads: _containers.RepeatedScalarFieldContainer[int]
    ablation: SiteAblation
    stored: _common_pb2.StoredSample
    seed: int
    same_position: bool
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelReference, _Mapping]] = ..., texts: _Optional[_Iterable[_Union[_common_pb2.Prompt, _Mapping]]] = ..., prepend_bos: bool = ..., sites: _Optional[_Iterable[str]] = ..., layers: _Optional[_Iterable[int]] = ..., heads: _Optional[_Iterable[int]] = ..., ablation: _Optional[_Union[SiteAblation, str]] = ..., stored: _Optional[_Union[_common_pb2.StoredSample, _Mapping]] = ..., seed: _Optional[int] = ..., same_position: bool = ...) -> None: ...

class AblateSitesResponse(_message.Message):
    __slots__ = ("effects", "texts", "loss", "tokens", "provenance")
    EFFECTS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    effects: _common_pb2.Table
    texts: _common_pb2.Table
    loss: float
    tokens: int
    provenance: _common_pb2.Provenance
    def __init__(self, effects: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., texts: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., loss: _Optional[float] = ..., tokens: _Optional[int] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class CompareTokensRequest(_message.Message):
    __slots__ = ("model", "clean", "corrupt", "prepend_bos", "layers", "draws", "seed")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    PREPEND_BOS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelReference
    clean: _common_pb2.Prompt
    corrupt: _containers.RepeatedCompositeFieldContainer[_common_pb2.Prompt]
    prepend_bos: bool
    layers: _containers.RepeatedScalarFieldContainer[int]
    draws: int
    seed: int
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelReference, _Mapping]] = ..., clean: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., corrupt: _Optional[_Iterable[_Union[_common_pb2.Prompt, _Mapping]]] = ..., prepend_bos: bool = ..., layers: _Optional[_Iterable[int]] = ..., draws: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class CompareTokensResponse(_message.Message):
    __slots__ = ("tokens", "heads", "provenance")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    tokens: _common_pb2.Table
    heads: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, tokens: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., heads: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class GetWeightNormsRequest(_message.Message):
    __slots__ = ("model", "layers", "samples", "seed", "text", "prepend_bos", "stored")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PREPEND_BOS_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelReference
    layers: _containers.RepeatedScalarFieldContainer[int]
    samples: int
    seed: int
    text: _common_pb2.Prompt
    prepend_bos: bool
    stored: _common_pb2.StoredSample
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelReference, _Mapping]] = ..., layers: _Optional[_Iterable[int]] = ..., samples: _Optional[int] = ..., seed: _Optional[int] = ..., text: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., prepend_bos: bool = ..., stored: _Optional[_Union[_common_pb2.StoredSample, _Mapping]] = ...) -> None: ...

class GetWeightNormsResponse(_message.Message):
    __slots__ = ("weights", "sublayers", "provenance")
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    SUBLAYERS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    weights: _common_pb2.Table
    sublayers: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, weights: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., sublayers: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...
