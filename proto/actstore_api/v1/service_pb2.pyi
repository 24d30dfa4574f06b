from actstore_api.v1 import activation_pb2 as _activation_pb2
from actstore_api.v1 import capture_pb2 as _capture_pb2
from actstore_api.v1 import catalog_pb2 as _catalog_pb2
from actstore_api.v1 import feature_pb2 as _feature_pb2
from actstore_api.v1 import information_pb2 as _information_pb2
from actstore_api.v1 import model_pb2 as _model_pb2
from actstore_api.v1 import norm_pb2 as _norm_pb2
from actstore_api.v1 import options_pb2 as _options_pb2
from actstore_api.v1 import patching_pb2 as _patching_pb2
from actstore_api.v1 import sae_pb2 as _sae_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
