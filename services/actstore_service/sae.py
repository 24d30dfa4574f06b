"""What an SAE says of a text given now: the workers' business. The service forwards."""

import grpc

from actstore_api.v1 import sae_pb2
from actstore_api.v1.service_pb2_grpc import SaeServiceServicer
from actstore_service.gateway import Gateway


class SaeService(SaeServiceServicer):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def EncodeText(
        self, request: sae_pb2.EncodeTextRequest, context: grpc.ServicerContext
    ) -> sae_pb2.EncodeTextResponse:
        answer: sae_pb2.EncodeTextResponse = self._gateway.answer(self._gateway.sae.EncodeText, request, context)
        return answer

    def GetLogitLens(
        self, request: sae_pb2.GetLogitLensRequest, context: grpc.ServicerContext
    ) -> sae_pb2.GetLogitLensResponse:
        answer: sae_pb2.GetLogitLensResponse = self._gateway.answer(self._gateway.sae.GetLogitLens, request, context)
        return answer

    def AblateText(
        self, request: sae_pb2.AblateTextRequest, context: grpc.ServicerContext
    ) -> sae_pb2.AblateTextResponse:
        answer: sae_pb2.AblateTextResponse = self._gateway.answer(self._gateway.sae.AblateText, request, context)
        return answer

    def AblateDirection(
        self, request: sae_pb2.AblateDirectionRequest, context: grpc.ServicerContext
    ) -> sae_pb2.AblateDirectionResponse:
        answer: sae_pb2.AblateDirectionResponse = self._gateway.answer(
            self._gateway.sae.AblateDirection, request, context
        )
        return answer

    def FindNeighbours(
        self, request: sae_pb2.FindNeighboursRequest, context: grpc.ServicerContext
    ) -> sae_pb2.FindNeighboursResponse:
        answer: sae_pb2.FindNeighboursResponse = self._gateway.answer(
            self._gateway.sae.FindNeighbours, request, context
        )
        return answer

    def CheckSae(self, request: sae_pb2.CheckSaeRequest, context: grpc.ServicerContext) -> sae_pb2.CheckSaeResponse:
        answer: sae_pb2.CheckSaeResponse = self._gateway.answer(self._gateway.sae.CheckSae, request, context)
        return answer
