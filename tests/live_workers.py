"""Live questions and sweeps over a socket, as the workers' gateway answers them, but without Ray: in this process."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import torch
from google.protobuf.message_factory import GetMessageClass

import actstore
from actstore_api.records.patching import RunSweep, SweepCells, SweepEstimate, SweepProgress, SweepResult
from actstore_api.records.terms import ModelReference
from actstore_api.v1 import service_pb2
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket import Bucket
from actstore_worker.caller import Caller
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.questions import Question
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.serving.failover import going_on
from actstore_worker.patching.serving.sweeps import Served
from actstore_worker.replica import OpenModel, Replica
from actstore_worker.wire.gateway import Gateway

CPU = torch.device("cpu")
TOKEN = "gateway-token"
SERVICES = ("ModelService", "SaeService", "PatchingService")


class LocalModels:
    """The model replicas of a gateway: one, in this process."""

    def __init__(self, folders: tuple[Path, ...], bucket: Bucket) -> None:
        self._replica = Replica(ModelCatalog(folders), bucket, CPU, LiveLimits(), PatchingLimits())
        self._opened: dict[ModelReference, OpenModel] = {}

    async def ask(self, question: Question, caller: Caller) -> Any:
        named = self._replica.live.model_of(question)
        model = self._served(named).model if named else None
        return await self._replica.ask(question, model, caller)

    def run(self, request: RunSweep, caller: Caller) -> AsyncGenerator[SweepProgress | SweepCells | SweepResult, None]:
        served = self._served(request.model)
        return going_on(
            lambda finished, late: self._replica.sweeps.run(served, request, finished, caller.after(late)), most_tries=1
        )

    async def estimate(self, request: RunSweep, caller: Caller) -> SweepEstimate:
        return await self._replica.sweeps.estimate(self._served(request.model), request, caller)

    def _served(self, model: ModelReference) -> Served:
        if model not in self._opened:
            self._opened[model] = self._replica.open(model.name, model.revision)
        return self._opened[model].get()


@contextmanager
def live_lab(bucket: Bucket, *folders: Path) -> Iterator[actstore.Lab]:
    """A lab of the models and SAEs below some folders, and of what a bucket stores."""
    server = grpc.server(ThreadPoolExecutor(2))
    models: Any = LocalModels(folders, bucket)  # captures are asked of nobody
    _offer(server, Gateway(lambda: (TOKEN,), models, models))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    settings = Settings(
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        gateway=f"127.0.0.1:{port}",
        gateway_token=TOKEN,
        anonymous=("reader",),
    )
    service = Service(bucket, settings)
    with actstore.connect(service.address) as lab:
        yield lab
    service.stop()
    server.stop(0).wait()


def _offer(server: grpc.Server, gateway: Gateway) -> None:
    for name in SERVICES:
        service = service_pb2.DESCRIPTOR.services_by_name[name]
        handlers = {method.name: _handler(method, getattr(gateway, method.name)) for method in service.methods}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service.full_name, handlers)])


def _handler(method: Any, answer: Any) -> grpc.RpcMethodHandler:
    def stream(request: Any, context: Any) -> Any:
        async def collect() -> list[Any]:
            return [message async for message in answer(request, context)]

        return iter(asyncio.run(collect()))

    kinds = {
        True: (grpc.unary_stream_rpc_method_handler, stream),
        False: (grpc.unary_unary_rpc_method_handler, lambda request, context: asyncio.run(answer(request, context))),
    }
    kind, call = kinds[method.server_streaming]
    return kind(
        call,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )
