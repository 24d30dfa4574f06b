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
    ROW_COLUMN_SEQUENCE: _ClassVar[RowColumn]
    ROW_COLUMN_POSITION: _ClassVar[RowColumn]
    ROW_COLUMN_DOCUMENT: _ClassVar[RowColumn]
    ROW_COLUMN_TOKEN: _ClassVar[RowColumn]
    ROW_COLUMN_FLAGS: _ClassVar[RowColumn]
ROW_COLUMN_UNSPECIFIED: RowColumn
ROW_COLUMN_SEQUENCE: RowColumn
ROW_COLUMN_POSITION: RowColumn
ROW_COLUMN_DOCUMENT: RowColumn
ROW_COLUMN_TOKEN: RowColumn
ROW_COLUMN_FLAGS: RowColumn

class TokenSelection(_message.Message):
    __slots__ = ("sequences", "positions", "documents", "tokens")
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    sequences: _common_pb2.Range
    positions: _common_pb2.Range
    documents: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequences: _Optional[_Union[_common_pb2.Range, _Mapping]] = ..., positions: _Optional[_Union[_common_pb2.Range, _Mapping]] = ..., documents: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class RowColumns(_message.Message):
    __slots__ = ("columns",)
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    columns: _containers.RepeatedScalarFieldContainer[RowColumn]
    def __init__(self, columns: _Optional[_Iterable[_Union[RowColumn, str]]] = ...) -> None: ...

class ReadActivationsRequest(_message.Message):
    __slots__ = ("run", "sites", "columns", "where", "exclude")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    run: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    columns: RowColumns
    where: TokenSelection
    exclude: _common_pb2.Exclusion
    def __init__(self, run: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., columns: _Optional[_Union[RowColumns, _Mapping]] = ..., where: _Optional[_Union[TokenSelection, _Mapping]] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ...) -> None: ...

class ReadActivationsResponse(_message.Message):
    __slots__ = ("rows", "provenance")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    rows: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, rows: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...

class ReadTokensRequest(_message.Message):
    __slots__ = ("run", "where", "exclude")
    RUN_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    run: str
    where: TokenSelection
    exclude: _common_pb2.Exclusion
    def __init__(self, run: _Optional[str] = ..., where: _Optional[_Union[TokenSelection, _Mapping]] = ..., exclude: _Optional[_Union[_common_pb2.Exclusion, _Mapping]] = ...) -> None: ...

class ReadTokensResponse(_message.Message):
    __slots__ = ("rows", "provenance")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    rows: _common_pb2.Table
    provenance: _common_pb2.Provenance
    def __init__(self, rows: _Optional[_Union[_common_pb2.Table, _Mapping]] = ..., provenance: _Optional[_Union[_common_pb2.Provenance, _Mapping]] = ...) -> None: ...
