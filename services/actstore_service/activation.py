"""Stored rows, in messages of bounded size."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grpc
import pyarrow as pa

from actstore_api.v1 import activation_pb2
from actstore_api.v1.service_pb2_grpc import ActivationServiceServicer
from actstore_service import wire
from actstore_service.encoded import ahead, rows_message
from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_storage.rows import TOKEN_COLUMNS, TokenFilter, read_activations, read_tokens
from actstore_storage.runs import open_run
from actstore_storage.snapshot import Snapshot

_COLUMNS = {activation_pb2.RowColumn.Value(f"ROW_COLUMN_{name.upper()}"): name for name in TOKEN_COLUMNS}


class ActivationService(ActivationServiceServicer):
    def __init__(self, bucket: Bucket, batch_bytes: int) -> None:
        self._bucket = bucket
        self._batch_bytes = batch_bytes

    def ReadActivations(
        self, request: activation_pb2.ReadActivationsRequest, context: grpc.ServicerContext
    ) -> Iterator[activation_pb2.ReadActivationsResponse]:
        snapshot = open_run(self._bucket, request.run)
        sites = [request.site, *request.more_sites] if request.more_sites else request.site
        batches = read_activations(snapshot, sites, _filter(request), _columns(request.columns))
        return self._messages(snapshot, batches, activation_pb2.ReadActivationsResponse)

    def ReadTokens(
        self, request: activation_pb2.ReadTokensRequest, context: grpc.ServicerContext
    ) -> Iterator[activation_pb2.ReadTokensResponse]:
        snapshot = open_run(self._bucket, request.run)
        return self._messages(snapshot, read_tokens(snapshot, _filter(request)), activation_pb2.ReadTokensResponse)

    def _messages(self, snapshot: Snapshot, batches: Iterable[pa.RecordBatch], response: type[Any]) -> Iterator[Any]:
        """Provenance comes with the first message; its rows may be none, for their schema."""
        first: bytes = response(provenance=wire.provenance_message(snapshot.provenance())).SerializeToString()
        parts = (part for batch in batches for part in wire.slices(batch, self._batch_bytes))
        return ahead(rows_message(part, b"" if number else first) for number, part in enumerate(parts))


def _filter(request: Any) -> TokenFilter:
    asked = request.filter
    return TokenFilter(
        first_sequence=request.first_sequence,
        tokens=tuple(asked.tokens),
        documents=tuple(asked.documents),
        exclude=wire.excluded_classes(asked, default=frozenset()),
        **wire.given(request, "sequence_count"),
        **wire.given(asked, "first_position", "end_position"),
    )


def _columns(numbers: Sequence[int]) -> tuple[str, ...]:
    """Nothing asked: all of them."""
    for number in numbers:
        if number != activation_pb2.ROW_COLUMN_NONE and number not in _COLUMNS:
            allowed = [activation_pb2.RowColumn.Name(known) for known in _COLUMNS]
            raise BadRequest(f"rows have no column {number}", field="columns", value=number, allowed=allowed)
    if activation_pb2.ROW_COLUMN_NONE in numbers:
        return ()
    return tuple(name for number, name in _COLUMNS.items() if not numbers or number in numbers)
