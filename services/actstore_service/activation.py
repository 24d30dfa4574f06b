"""Stored rows, in messages of bounded size."""

from collections.abc import Iterator, Sequence

import grpc

from actstore_api.v1 import activation_pb2
from actstore_api.v1.service_pb2_grpc import ActivationServiceServicer
from actstore_service import wire
from actstore_service.encoded import row_messages
from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_storage.parquet.row_cache import RowCache
from actstore_storage.rows.reading import read_activations, read_tokens
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.tokens import TOKEN_COLUMNS

_COLUMNS = {activation_pb2.RowColumn.Value(f"ROW_COLUMN_{name.upper()}"): name for name in TOKEN_COLUMNS}


class ActivationService(ActivationServiceServicer):
    def __init__(self, bucket: Bucket, batch_bytes: int, held: RowCache) -> None:
        self._bucket, self._batch_bytes, self._held = bucket, batch_bytes, held

    def ReadActivations(
        self, request: activation_pb2.ReadActivationsRequest, context: grpc.ServicerContext
    ) -> Iterator[activation_pb2.ReadActivationsResponse]:
        snapshot = open_run(self._bucket, request.run)
        sites = [request.site, *request.more_sites] if request.more_sites else request.site
        keep = wire.token_filter(request, request)
        batches = read_activations(snapshot, sites, keep, _columns(request.columns), self._held)
        return row_messages(snapshot, batches, self._batch_bytes, activation_pb2.ReadActivationsResponse)

    def ReadTokens(
        self, request: activation_pb2.ReadTokensRequest, context: grpc.ServicerContext
    ) -> Iterator[activation_pb2.ReadTokensResponse]:
        snapshot = open_run(self._bucket, request.run)
        batches = read_tokens(snapshot, wire.token_filter(request, request), self._held)
        return row_messages(snapshot, batches, self._batch_bytes, activation_pb2.ReadTokensResponse)


def _columns(numbers: Sequence[int]) -> tuple[str, ...]:
    """Nothing asked: all of them."""
    for number in numbers:
        if number != activation_pb2.ROW_COLUMN_NONE and number not in _COLUMNS:
            allowed = [activation_pb2.RowColumn.Name(known) for known in _COLUMNS]
            raise BadRequest(f"rows have no column {number}", field="columns", value=number, allowed=allowed)
    if activation_pb2.ROW_COLUMN_NONE in numbers:
        return ()
    return tuple(name for number, name in _COLUMNS.items() if not numbers or number in numbers)
