"""Captures: the workers' business. The service forwards."""

from collections.abc import Iterator

import grpc

from actstore_api.v1 import capture_pb2
from actstore_api.v1.service_pb2_grpc import CaptureServiceServicer
from actstore_service.gateway import Gateway


class CaptureService(CaptureServiceServicer):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def StartCapture(
        self, request: capture_pb2.StartCaptureRequest, context: grpc.ServicerContext
    ) -> capture_pb2.StartCaptureResponse:
        return self._gateway.answer(self._gateway.capture.StartCapture, request, context)

    def EstimateCapture(
        self, request: capture_pb2.EstimateCaptureRequest, context: grpc.ServicerContext
    ) -> capture_pb2.EstimateCaptureResponse:
        return self._gateway.answer(self._gateway.capture.EstimateCapture, request, context)

    def ListSources(
        self, request: capture_pb2.ListSourcesRequest, context: grpc.ServicerContext
    ) -> capture_pb2.ListSourcesResponse:
        return self._gateway.answer(self._gateway.capture.ListSources, request, context)

    def WatchCapture(
        self, request: capture_pb2.WatchCaptureRequest, context: grpc.ServicerContext
    ) -> Iterator[capture_pb2.WatchCaptureResponse]:
        return self._gateway.stream(self._gateway.capture.WatchCapture, request, context)

    def CancelCapture(
        self, request: capture_pb2.CancelCaptureRequest, context: grpc.ServicerContext
    ) -> capture_pb2.CancelCaptureResponse:
        return self._gateway.answer(self._gateway.capture.CancelCapture, request, context)

    def GetCaptureTotals(
        self, request: capture_pb2.GetCaptureTotalsRequest, context: grpc.ServicerContext
    ) -> capture_pb2.GetCaptureTotalsResponse:
        return self._gateway.answer(self._gateway.capture.GetCaptureTotals, request, context)
