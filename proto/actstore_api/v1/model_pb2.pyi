from actstore_api.v1 import capture_pb2 as _capture_pb2
from actstore_api.v1 import common_pb2 as _common_pb2
from actstore_api.v1 import sae_pb2 as _sae_pb2
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

class TokeniseTextRequest(_message.Message):
    __slots__ = ("model", "text", "bos", "token_ids", "one_token")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    BOS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ONE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model: _capture_pb2.ModelReference
    text: str
    bos: _capture_pb2.BosPolicy
    token_ids: _common_pb2.TokenIds
    one_token: bool
    def __init__(self, model: _Optional[_Union[_capture_pb2.ModelReference, _Mapping]] = ..., text: _Optional[str] = ..., bos: _Optional[_Union[_capture_pb2.BosPolicy, str]] = ..., token_ids: _Optional[_Union[_common_pb2.TokenIds, _Mapping]] = ..., one_token: bool = ...) -> None: ...

class TokeniseTextResponse(_message.Message):
    __slots__ = ("tokens", "provenance")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    tokens: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, tokens: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class GetAttentionRequest(_message.Message):
    __slots__ = ("model", "text", "bos", "layers", "heads", "patterns", "token_ids")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    BOS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    PATTERNS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    model: _capture_pb2.ModelReference
    text: str
    bos: _capture_pb2.BosPolicy
    layers: _containers.RepeatedScalarFieldContainer[int]
    heads: _containers.RepeatedScalarFieldContainer[int]
    patterns: bool
    token_ids: _common_pb2.TokenIds
    def __init__(self, model: _Optional[_Union[_capture_pb2.ModelReference, _Mapping]] = ..., text: _Optional[str] = ..., bos: _Optional[_Union[_capture_pb2.BosPolicy, str]] = ..., layers: _Optional[_Iterable[int]] = ..., heads: _Optional[_Iterable[int]] = ..., patterns: bool = ..., token_ids: _Optional[_Union[_common_pb2.TokenIds, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("model", "bos", "tokens", "texts", "seed", "layers", "heads")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BOS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    model: _capture_pb2.ModelReference
    bos: _capture_pb2.BosPolicy
    tokens: int
    texts: int
    seed: int
    layers: _containers.RepeatedScalarFieldContainer[int]
    heads: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[_Union[_capture_pb2.ModelReference, _Mapping]] = ..., bos: _Optional[_Union[_capture_pb2.BosPolicy, str]] = ..., tokens: _Optional[int] = ..., texts: _Optional[int] = ..., seed: _Optional[int] = ..., layers: _Optional[_Iterable[int]] = ..., heads: _Optional[_Iterable[int]] = ...) -> None: ...

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
    __slots__ = ("model", "text", "bos", "site", "layers", "k", "target", "token_ids", "target_token")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    BOS_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model: _capture_pb2.ModelReference
    text: str
    bos: _capture_pb2.BosPolicy
    site: str
    layers: _containers.RepeatedScalarFieldContainer[int]
    k: int
    target: str
    token_ids: _common_pb2.TokenIds
    target_token: int
    def __init__(self, model: _Optional[_Union[_capture_pb2.ModelReference, _Mapping]] = ..., text: _Optional[str] = ..., bos: _Optional[_Union[_capture_pb2.BosPolicy, str]] = ..., site: _Optional[str] = ..., layers: _Optional[_Iterable[int]] = ..., k: _Optional[int] = ..., target: _Optional[str] = ..., token_ids: _Optional[_Union[_common_pb2.TokenIds, _Mapping]] = ..., target_token: _Optional[int] = ...) -> None: ...

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

class FeatureDirection(_message.Message):
    __slots__ = ("sae", "feature")
    SAE_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    sae: str
    feature: int
    def __init__(self, sae: _Optional[str] = ..., feature: _Optional[int] = ...) -> None: ...

class SteerTextRequest(_message.Message):
    __slots__ = ("model", "prompt", "bos", "vector", "feature", "site", "mode", "strength", "unit", "positions", "tokens", "temperature", "seed", "token_ids")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    BOS_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    model: _capture_pb2.ModelReference
    prompt: str
    bos: _capture_pb2.BosPolicy
    vector: _sae_pb2.Vector
    feature: FeatureDirection
    site: str
    mode: SteeringMode
    strength: float
    unit: StrengthUnit
    positions: SteeredPositions
    tokens: int
    temperature: float
    seed: int
    token_ids: _common_pb2.TokenIds
    def __init__(self, model: _Optional[_Union[_capture_pb2.ModelReference, _Mapping]] = ..., prompt: _Optional[str] = ..., bos: _Optional[_Union[_capture_pb2.BosPolicy, str]] = ..., vector: _Optional[_Union[_sae_pb2.Vector, _Mapping]] = ..., feature: _Optional[_Union[FeatureDirection, _Mapping]] = ..., site: _Optional[str] = ..., mode: _Optional[_Union[SteeringMode, str]] = ..., strength: _Optional[float] = ..., unit: _Optional[_Union[StrengthUnit, str]] = ..., positions: _Optional[_Union[SteeredPositions, str]] = ..., tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., token_ids: _Optional[_Union[_common_pb2.TokenIds, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("model", "texts", "bos", "sites", "layers", "heads", "ablation", "run", "run_tokens", "seed", "same_position", "token_ids")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    BOS_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    ABLATION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    RUN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAME_POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    model: _capture_pb2.ModelReference
    texts: _containers.RepeatedScalarFieldContainer[str]
    bos: _capture_pb2.BosPolicy
    sites: _containers.RepeatedScalarFieldContainer[str]
    layers: _containers.RepeatedScalarFieldContainer[int]
    heads: _containers.RepeatedScalarFieldContainer[int]
    ablation: SiteAblation
    run: str
    run_tokens: int
    seed: int
    same_position: bool
    token_ids: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenIds]
    def __init__(self, model: _Optional[_Union[_capture_pb2.ModelReference, _Mapping]] = ..., texts: _Optional[_Iterable[str]] = ..., bos: _Optional[_Union[_capture_pb2.BosPolicy, str]] = ..., sites: _Optional[_Iterable[str]] = ..., layers: _Optional[_Iterable[int]] = ..., heads: _Optional[_Iterable[int]] = ..., ablation: _Optional[_Union[SiteAblation, str]] = ..., run: _Optional[str] = ..., run_tokens: _Optional[int] = ..., seed: _Optional[int] = ..., same_position: bool = ..., token_ids: _Optional[_Iterable[_Union[_common_pb2.TokenIds, _Mapping]]] = ...) -> None: ...

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
    __slots__ = ("model", "clean", "corrupt", "bos", "layers", "draws", "seed", "clean_token_ids", "corrupt_token_ids")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    BOS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CLEAN_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    model: _capture_pb2.ModelReference
    clean: str
    corrupt: _containers.RepeatedScalarFieldContainer[str]
    bos: _capture_pb2.BosPolicy
    layers: _containers.RepeatedScalarFieldContainer[int]
    draws: int
    seed: int
    clean_token_ids: _common_pb2.TokenIds
    corrupt_token_ids: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenIds]
    def __init__(self, model: _Optional[_Union[_capture_pb2.ModelReference, _Mapping]] = ..., clean: _Optional[str] = ..., corrupt: _Optional[_Iterable[str]] = ..., bos: _Optional[_Union[_capture_pb2.BosPolicy, str]] = ..., layers: _Optional[_Iterable[int]] = ..., draws: _Optional[int] = ..., seed: _Optional[int] = ..., clean_token_ids: _Optional[_Union[_common_pb2.TokenIds, _Mapping]] = ..., corrupt_token_ids: _Optional[_Iterable[_Union[_common_pb2.TokenIds, _Mapping]]] = ...) -> None: ...

class CompareTokensResponse(_message.Message):
    __slots__ = ("tokens", "heads", "provenance")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    tokens: _common_pb2.Table
    heads: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, tokens: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., heads: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...
