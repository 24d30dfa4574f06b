from actstore_api.v1 import common_pb2 as _common_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReadActivationsRequest(_message.Message):
    __slots__ = ("run", "site", "first_sequence", "sequence_count")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    run: str
    site: str
    first_sequence: int
    sequence_count: int
    def __init__(self, run: _Optional[str] = ..., site: _Optional[str] = ..., first_sequence: _Optional[int] = ..., sequence_count: _Optional[int] = ...) -> None: ...

class ReadActivationsResponse(_message.Message):
    __slots__ = ("rows", "provenance")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    rows: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, rows: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class ReadTokensRequest(_message.Message):
    __slots__ = ("run", "first_sequence", "sequence_count")
    RUN_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    run: str
    first_sequence: int
    sequence_count: int
    def __init__(self, run: _Optional[str] = ..., first_sequence: _Optional[int] = ..., sequence_count: _Optional[int] = ...) -> None: ...

class ReadTokensResponse(_message.Message):
    __slots__ = ("rows", "provenance")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    rows: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, rows: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...
