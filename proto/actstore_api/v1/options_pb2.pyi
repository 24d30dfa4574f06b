from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
FORWARDED_FIELD_NUMBER: _ClassVar[int]
forwarded: _descriptor.FieldDescriptor
DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
deadline_seconds: _descriptor.FieldDescriptor
