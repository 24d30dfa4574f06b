"""Stored rows, in messages of bounded size."""

from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import pyarrow as pa

from actstore_api.v1 import activation_pb2
from actstore_api.v1.service_pb2_grpc import ActivationServiceServicer
from actstore_service import wire
from actstore_storage.bucket import Bucket
from actstore_storage.rows import read_activations, read_tokens
from actstore_storage.runs import open_run
from actstore_storage.snapshot import Snapshot


class ActivationService(ActivationServiceServicer):
    def __init__(self, bucket: Bucket, batch_bytes: int) -> None:
        self._bucket = bucket
        self._batch_bytes = batch_bytes

    def ReadActivations(
        self, request: activation_pb2.ReadActivationsRequest, context: grpc.ServicerContext
    ) -> Iterator[activation_pb2.ReadActivationsResponse]:
        snapshot = open_run(self._bucket, request.run)
        batches = read_activations(snapshot, request.site, **_range(request))
        return self._messages(snapshot, batches, activation_pb2.ReadActivationsResponse)

    def ReadTokens(
        self, request: activation_pb2.ReadTokensRequest, context: grpc.ServicerContext
    ) -> Iterator[activation_pb2.ReadTokensResponse]:
        snapshot = open_run(self._bucket, request.run)
        return self._messages(snapshot, read_tokens(snapshot, **_range(request)), activation_pb2.ReadTokensResponse)

    def _messages(self, snapshot: Snapshot, batches: Iterable[pa.RecordBatch], response: type[Any]) -> Iterator[Any]:
        """Provenance comes with the first message, and without rows where there are none."""
        provenance = wire.provenance_message(snapshot.provenance())
        parts = (part for batch in batches for part in wire.slices(batch, self._batch_bytes))
        first = next(parts, None)
        yield response(rows=None if first is None else wire.table_message(first), provenance=provenance)
        for part in parts:
            yield response(rows=wire.table_message(part))


def _range(request: Any) -> dict[str, int]:
    return {"first_sequence": request.first_sequence, **wire.given(request, "sequence_count")}
