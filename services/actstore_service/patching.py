"""Patch sweeps: the workers' business. The service forwards."""

from collections.abc import Iterator

import grpc

from actstore_api.v1 import patching_pb2
from actstore_api.v1.service_pb2_grpc import PatchingServiceServicer
from actstore_service.gateway import Gateway


class PatchingService(PatchingServiceServicer):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def EstimateSweep(
        self, request: patching_pb2.EstimateSweepRequest, context: grpc.ServicerContext
    ) -> patching_pb2.EstimateSweepResponse:
        return self._gateway.answer(self._gateway.patching.EstimateSweep, request, context)

    def RunSweep(
        self, request: patching_pb2.RunSweepRequest, context: grpc.ServicerContext
    ) -> Iterator[patching_pb2.RunSweepResponse]:
        return self._gateway.stream(self._gateway.patching.RunSweep, request, context)
