"""Patch sweeps: the workers' business. The service forwards, and counts what sweeps say of themselves."""

from collections.abc import Iterator

import grpc

from actstore_api.reasons import from_status
from actstore_api.v1 import patching_pb2
from actstore_api.v1.service_pb2_grpc import PatchingServiceServicer
from actstore_service.failures import ForwardedError
from actstore_service.gateway import Gateway
from actstore_service.metrics import SweepMetrics


class PatchingService(PatchingServiceServicer):
    def __init__(self, gateway: Gateway, metrics: SweepMetrics) -> None:
        self._gateway, self._metrics = gateway, metrics

    def EstimateSweep(
        self, request: patching_pb2.EstimateSweepRequest, context: grpc.ServicerContext
    ) -> patching_pb2.EstimateSweepResponse:
        return self._gateway.answer(self._gateway.patching.EstimateSweep, request, context)

    def RunSweep(
        self, request: patching_pb2.RunSweepRequest, context: grpc.ServicerContext
    ) -> Iterator[patching_pb2.RunSweepResponse]:
        cells = 0
        try:
            for update in self._gateway.stream(self._gateway.patching.RunSweep, request, context):
                cells = update.progress.cells_done if update.HasField("progress") else cells
                if update.HasField("result"):
                    self._metrics.ended(update.result.audit, cells)
                yield update
        except ForwardedError as error:
            failure = from_status(error.status)
            if failure is not None and failure.reason == "AUDIT_FAILED":
                self._metrics.audit_failed()
            raise
