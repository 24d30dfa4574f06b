"""What is there: runs, models, SAEs."""

import grpc

from actstore_api.v1 import catalog_pb2
from actstore_api.v1.service_pb2_grpc import CatalogServiceServicer
from actstore_service import wire
from actstore_storage.bucket import Bucket
from actstore_storage.registry.models import list_models
from actstore_storage.registry.saes import list_saes
from actstore_storage.runs.opening import open_run, readable_runs


class CatalogService(CatalogServiceServicer):
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def ListRuns(
        self, request: catalog_pb2.ListRunsRequest, context: grpc.ServicerContext
    ) -> catalog_pb2.ListRunsResponse:
        return catalog_pb2.ListRunsResponse(runs=[wire.run_message(found) for found in readable_runs(self._bucket)])

    def GetRun(self, request: catalog_pb2.GetRunRequest, context: grpc.ServicerContext) -> catalog_pb2.GetRunResponse:
        return catalog_pb2.GetRunResponse(run=wire.run_message(open_run(self._bucket, request.run)))

    def ListModels(
        self, request: catalog_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> catalog_pb2.ListModelsResponse:
        return catalog_pb2.ListModelsResponse(models=[wire.model_message(found) for found in list_models(self._bucket)])

    def ListSaes(
        self, request: catalog_pb2.ListSaesRequest, context: grpc.ServicerContext
    ) -> catalog_pb2.ListSaesResponse:
        return catalog_pb2.ListSaesResponse(saes=[wire.sae_message(found) for found in list_saes(self._bucket)])
