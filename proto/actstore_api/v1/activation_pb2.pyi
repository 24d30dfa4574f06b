from actstore_api.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RowColumn(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROW_COLUMN_UNSPECIFIED: _ClassVar[RowColumn]
    ROW_COLUMN_NONE: _ClassVar[RowColumn]
    ROW_COLUMN_SEQUENCE: _ClassVar[RowColumn]
    ROW_COLUMN_POSITION: _ClassVar[RowColumn]
    ROW_COLUMN_DOCUMENT: _ClassVar[RowColumn]
    ROW_COLUMN_TOKEN: _ClassVar[RowColumn]
    ROW_COLUMN_FLAGS: _ClassVar[RowColumn]
ROW_COLUMN_UNSPECIFIED: RowColumn
ROW_COLUMN_NONE: RowColumn
ROW_COLUMN_SEQUENCE: RowColumn
ROW_COLUMN_POSITION: RowColumn
ROW_COLUMN_DOCUMENT: RowColumn
ROW_COLUMN_TOKEN: RowColumn
ROW_COLUMN_FLAGS: RowColumn

class TokenFilter(_message.Message):
    __slots__ = ("tokens", "documents", "first_position", "end_position", "exclude")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    END_POSITION_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    documents: _containers.RepeatedScalarFieldContainer[int]
    first_position: int
    end_position: int
    exclude: _common_pb2.Exclusion
    def __init__(self, tokens: _Optional[_Iterable[int]] = ..., documents: _Optional[_Iterable[int]] = ..., first_position: _Optional[int] = ..., end_position: _Optional[int] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ...) -> None: ...

class ReadActivationsRequest(_message.Message):
    __slots__ = ("run", "site", "first_sequence", "sequence_count", "more_sites", "columns", "filter")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    MORE_SITES_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    run: str
    site: str
    first_sequence: int
    sequence_count: int
    more_sites: _containers.RepeatedScalarFieldContainer[str]
    columns: _containers.RepeatedScalarFieldContainer[RowColumn]
    filter: TokenFilter
    def __init__(self, run: _Optional[str] = ..., site: _Optional[str] = ..., first_sequence: _Optional[int] = ..., sequence_count: _Optional[int] = ..., more_sites: _Optional[_Iterable[str]] = ..., columns: _Optional[_Iterable[_Union[RowColumn, str]]] = ..., filter: _Optional[_Union[TokenFilter, _Mapping]] = ...) -> None: ...

class ReadActivationsResponse(_message.Message):
    __slots__ = ("rows", "provenance")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    rows: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, rows: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class ReadTokensRequest(_message.Message):
    __slots__ = ("run", "first_sequence", "sequence_count", "filter")
    RUN_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    run: str
    first_sequence: int
    sequence_count: int
    filter: TokenFilter
    def __init__(self, run: _Optional[str] = ..., first_sequence: _Optional[int] = ..., sequence_count: _Optional[int] = ..., filter: _Optional[_Union[TokenFilter, _Mapping]] = ...) -> None: ...

class ReadTokensResponse(_message.Message):
    __slots__ = ("rows", "provenance")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    rows: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, rows: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...
