"""What a model does with a text given now: the workers' business. The service forwards."""

import grpc

from actstore_api.v1 import model_pb2
from actstore_api.v1.service_pb2_grpc import ModelServiceServicer
from actstore_service.gateway import Gateway


class ModelService(ModelServiceServicer):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def TokeniseText(
        self, request: model_pb2.TokeniseTextRequest, context: grpc.ServicerContext
    ) -> model_pb2.TokeniseTextResponse:
        answer: model_pb2.TokeniseTextResponse = self._gateway.answer(
            self._gateway.model.TokeniseText, request, context
        )
        return answer

    def GetAttention(
        self, request: model_pb2.GetAttentionRequest, context: grpc.ServicerContext
    ) -> model_pb2.GetAttentionResponse:
        answer: model_pb2.GetAttentionResponse = self._gateway.answer(
            self._gateway.model.GetAttention, request, context
        )
        return answer

    def GetInductionScores(
        self, request: model_pb2.GetInductionScoresRequest, context: grpc.ServicerContext
    ) -> model_pb2.GetInductionScoresResponse:
        answer: model_pb2.GetInductionScoresResponse = self._gateway.answer(
            self._gateway.model.GetInductionScores, request, context
        )
        return answer

    def GetTextLens(
        self, request: model_pb2.GetTextLensRequest, context: grpc.ServicerContext
    ) -> model_pb2.GetTextLensResponse:
        answer: model_pb2.GetTextLensResponse = self._gateway.answer(self._gateway.model.GetTextLens, request, context)
        return answer

    def SteerText(
        self, request: model_pb2.SteerTextRequest, context: grpc.ServicerContext
    ) -> model_pb2.SteerTextResponse:
        answer: model_pb2.SteerTextResponse = self._gateway.answer(self._gateway.model.SteerText, request, context)
        return answer

    def AblateSites(
        self, request: model_pb2.AblateSitesRequest, context: grpc.ServicerContext
    ) -> model_pb2.AblateSitesResponse:
        answer: model_pb2.AblateSitesResponse = self._gateway.answer(self._gateway.model.AblateSites, request, context)
        return answer

    def CompareTokens(
        self, request: model_pb2.CompareTokensRequest, context: grpc.ServicerContext
    ) -> model_pb2.CompareTokensResponse:
        answer: model_pb2.CompareTokensResponse = self._gateway.answer(
            self._gateway.model.CompareTokens, request, context
        )
        return answer
