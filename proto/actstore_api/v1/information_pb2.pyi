from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServiceInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServiceInfoResponse(_message.Message):
    __slots__ = ("info",)
    INFO_FIELD_NUMBER: _ClassVar[int]
    info: ServiceInfo
    def __init__(self, info: _Optional[_Union[ServiceInfo, _Mapping]] = ...) -> None: ...

class GetWorkersInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetWorkersInfoResponse(_message.Message):
    __slots__ = ("info",)
    INFO_FIELD_NUMBER: _ClassVar[int]
    info: WorkersInfo
    def __init__(self, info: _Optional[_Union[WorkersInfo, _Mapping]] = ...) -> None: ...

class ServiceInfo(_message.Message):
    __slots__ = ("version", "api_level", "oldest_client_level", "formats_read", "capabilities", "limits", "roles", "workers")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    API_LEVEL_FIELD_NUMBER: _ClassVar[int]
    OLDEST_CLIENT_LEVEL_FIELD_NUMBER: _ClassVar[int]
    FORMATS_READ_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    version: str
    api_level: int
    oldest_client_level: int
    formats_read: _containers.RepeatedScalarFieldContainer[int]
    capabilities: Capabilities
    limits: ServiceLimits
    roles: _containers.RepeatedScalarFieldContainer[str]
    workers: WorkersInfo
    def __init__(self, version: _Optional[str] = ..., api_level: _Optional[int] = ..., oldest_client_level: _Optional[int] = ..., formats_read: _Optional[_Iterable[int]] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., limits: _Optional[_Union[ServiceLimits, _Mapping]] = ..., roles: _Optional[_Iterable[str]] = ..., workers: _Optional[_Union[WorkersInfo, _Mapping]] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("workers", "request_ids", "retry_delay")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    workers: bool
    request_ids: bool
    retry_delay: bool
    def __init__(self, workers: bool = ..., request_ids: bool = ..., retry_delay: bool = ...) -> None: ...

class ServiceLimits(_message.Message):
    __slots__ = ("request_bytes", "response_bytes", "calls", "streams", "stalled_seconds")
    REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    STALLED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    request_bytes: int
    response_bytes: int
    calls: int
    streams: int
    stalled_seconds: float
    def __init__(self, request_bytes: _Optional[int] = ..., response_bytes: _Optional[int] = ..., calls: _Optional[int] = ..., streams: _Optional[int] = ..., stalled_seconds: _Optional[float] = ...) -> None: ...

class WorkersInfo(_message.Message):
    __slots__ = ("version", "api_level", "formats_read", "format_written")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    API_LEVEL_FIELD_NUMBER: _ClassVar[int]
    FORMATS_READ_FIELD_NUMBER: _ClassVar[int]
    FORMAT_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    version: str
    api_level: int
    formats_read: _containers.RepeatedScalarFieldContainer[int]
    format_written: int
    def __init__(self, version: _Optional[str] = ..., api_level: _Optional[int] = ..., formats_read: _Optional[_Iterable[int]] = ..., format_written: _Optional[int] = ...) -> None: ...
