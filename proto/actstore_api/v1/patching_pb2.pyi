from actstore_api.v1 import capture_pb2 as _capture_pb2
from actstore_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PatchDirection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PATCH_DIRECTION_UNSPECIFIED: _ClassVar[PatchDirection]
    PATCH_DIRECTION_DENOISE: _ClassVar[PatchDirection]
    PATCH_DIRECTION_NOISE: _ClassVar[PatchDirection]
PATCH_DIRECTION_UNSPECIFIED: PatchDirection
PATCH_DIRECTION_DENOISE: PatchDirection
PATCH_DIRECTION_NOISE: PatchDirection

class RunSweepRequest(_message.Message):
    __slots__ = ("model", "clean", "corrupt", "clean_answer", "corrupt_answer", "sites", "layers", "directions", "bos")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    CLEAN_ANSWER_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_ANSWER_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    BOS_FIELD_NUMBER: _ClassVar[int]
    model: _capture_pb2.ModelReference
    clean: str
    corrupt: str
    clean_answer: str
    corrupt_answer: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    layers: _containers.RepeatedScalarFieldContainer[int]
    directions: _containers.RepeatedScalarFieldContainer[PatchDirection]
    bos: _capture_pb2.BosPolicy
    def __init__(self, model: _Optional[_Union[_capture_pb2.ModelReference, _Mapping]] = ..., clean: _Optional[str] = ..., corrupt: _Optional[str] = ..., clean_answer: _Optional[str] = ..., corrupt_answer: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., layers: _Optional[_Iterable[int]] = ..., directions: _Optional[_Iterable[_Union[PatchDirection, str]]] = ..., bos: _Optional[_Union[_capture_pb2.BosPolicy, str]] = ...) -> None: ...

class SweepProgress(_message.Message):
    __slots__ = ("cells_done", "cells_total")
    CELLS_DONE_FIELD_NUMBER: _ClassVar[int]
    CELLS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    cells_done: int
    cells_total: int
    def __init__(self, cells_done: _Optional[int] = ..., cells_total: _Optional[int] = ...) -> None: ...

class SweepResult(_message.Message):
    __slots__ = ("cells", "tokens", "clean_logit_difference", "corrupt_logit_difference", "provenance")
    CELLS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CLEAN_LOGIT_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_LOGIT_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    cells: _common_pb2.Table
    tokens: _common_pb2.Table
    clean_logit_difference: float
    corrupt_logit_difference: float
    provenance: _common_pb2.Provenance
    def __init__(self, cells: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., tokens: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., clean_logit_difference: _Optional[float] = ..., corrupt_logit_difference: _Optional[float] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class RunSweepResponse(_message.Message):
    __slots__ = ("progress", "result")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    progress: SweepProgress
    result: SweepResult
    def __init__(self, progress: _Optional[_Union[SweepProgress, _Mapping]] = ..., result: _Optional[_Union[SweepResult, _Mapping]] = ...) -> None: ...
