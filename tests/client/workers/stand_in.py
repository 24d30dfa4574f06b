"""Workers that answer by the contract without a model: what the client shows of captures and sweeps can be told apart.

`StandInWorkers` is a real gRPC server in this process, behind a real service. Run names steer captures: `fails`,
`cancelled`, `slow` (until cancelled), `breaks` (the stream breaks off once), `unfinished` (ends without an end state).
What it says of SAEs is in stand_in_saes, and of models alone in stand_in_models.
"""

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pyarrow as pa
from grpc_status import rpc_status

from actstore_api.reasons import to_status
from actstore_api.records.terms import Failure
from actstore_api.v1 import capture_pb2, common_pb2, patching_pb2, service_pb2_grpc
from tests.client.workers.models import StandInModels
from tests.client.workers.norms import StandInNorms
from tests.client.workers.saes import StandInSaes, message
from tests.stored_run import MODEL

TOKEN = "gateway-token"
CLEAN, CORRUPT = ["<bos>", " When", " Mary", " gave", " to"], ["<bos>", " When", " John", " gave", " to"]
LAYERS, HEADS = 3, 2
SITES = ("resid_pre", "attn_out", "mlp_out", "z")
CLEAN_DIFFERENCE, CORRUPT_DIFFERENCE = 3.0, -1.0
SHARDS, TOKENS_PER_SHARD = 4, 250
SOURCES = capture_pb2.ListSourcesResponse(
    models=[
        capture_pb2.FoundModel(name="another", revision="step9", family="llama"),
        capture_pb2.FoundModel(name=MODEL, family="gpt2"),
    ],
    saes=["another-sae"],
    datasets=["asyncio", "text.jsonl"],
    hub_allowed=True,
)
UNEQUAL = Failure("PROMPT_LENGTHS_DIFFER", "4 and 5 tokens", {"field": "corrupt", "value": "5", "allowed": "4"})
MISMATCH = Failure("SAE_MISMATCH", "the SAE reads 768 values", {"field": "saes", "value": "768", "allowed": "8"})


def normalised(direction: str, site: str, layer: int, position: int, head: int | None) -> float:
    """A number of its own for every cell; negative for attn_out, strongest for z."""
    strength = {"resid_pre": 0.05, "attn_out": -0.03, "mlp_out": 0.01, "z": 0.07}[site]
    return strength * (1 + layer) * (1 + position) * (1 if direction == "denoise" else 0.5) * (1 + 2 * (head or 0))


def cells(sites: tuple[str, ...] = SITES, layers: tuple[int, ...] = tuple(range(LAYERS))) -> pa.Table:
    rows = []
    for direction, base, source in (
        ("denoise", CORRUPT_DIFFERENCE, CLEAN_DIFFERENCE),
        ("noise", CLEAN_DIFFERENCE, CORRUPT_DIFFERENCE),
    ):
        texts = CORRUPT if direction == "denoise" else CLEAN
        for site in sites:
            for layer in layers:
                for position, text in enumerate(texts):
                    for head in range(HEADS) if site == "z" else (None,):
                        value = normalised(direction, site, layer, position, head)
                        rows.append(
                            (direction, site, layer, position, head, text, base + value * (source - base), value)
                        )
    names = ("direction", "site", "layer", "position", "head", "token", "logit_difference", "normalised")
    kinds = (pa.string(), pa.string(), pa.int32(), pa.int32(), pa.int32(), pa.string(), pa.float64(), pa.float64())
    columns = zip(*rows, strict=True)
    return pa.table({name: pa.array(column, kind) for name, column, kind in zip(names, columns, kinds, strict=True)})


def tokens() -> pa.Table:
    return pa.table({"position": range(len(CLEAN)), "clean": CLEAN, "corrupt": CORRUPT})


def _refuse(context: grpc.ServicerContext, failure: Failure) -> None:
    context.abort_with_status(rpc_status.to_status(to_status(failure)))


# Of this run's dataset, and of what is estimated, some files are not read.
MIXED = "partial"
FILES = capture_pb2.DatasetFiles(read=20, not_read=3, first_not_read=["notes", ".DS_Store"])


class StandInWorkers(
    StandInSaes,
    StandInModels,
    StandInNorms,
    service_pb2_grpc.CaptureServiceServicer,
    service_pb2_grpc.PatchingServiceServicer,
):
    def __init__(self, token: str = TOKEN) -> None:
        self.requests: list[object] = []
        self.cancelled = threading.Event()
        self._token = token
        self._watches = 0
        self._server = grpc.server(ThreadPoolExecutor(8))
        service_pb2_grpc.add_CaptureServiceServicer_to_server(self, self._server)
        service_pb2_grpc.add_PatchingServiceServicer_to_server(self, self._server)
        service_pb2_grpc.add_SaeServiceServicer_to_server(self, self._server)
        service_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        service_pb2_grpc.add_NormServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self.cancelled.set()
        self._server.stop(None).wait()

    def StartCapture(self, request, context):
        self._meet(request, context)
        if "bad-sae" in request.specification.saes:
            _refuse(context, MISMATCH)
        return capture_pb2.StartCaptureResponse(run=request.specification.run or "planted")

    def EstimateCapture(self, request, context):
        self._meet(request, context)
        sizes = {"tokens": 500, "resid_post.0": 4000}
        estimate = capture_pb2.CaptureEstimate(
            documents=3, sequences=4, tokens=100, shards=2, bytes_by_product=sizes, bytes=4500, seconds=12.0,
            documents_with_bos=2, dataset_files=FILES,
        )  # fmt: skip
        return capture_pb2.EstimateCaptureResponse(estimate=estimate)

    def GetCaptureTotals(self, request, context):
        self._meet(request, context)
        return capture_pb2.GetCaptureTotalsResponse()

    def ListSources(self, request, context):
        self._meet(request, context)
        return SOURCES

    def WatchCapture(self, request, context) -> Iterator[capture_pb2.WatchCaptureResponse]:
        self._meet(request, context)
        self._watches += 1
        yield self._news(request.run, capture_pb2.CAPTURE_STATE_PREPARING, None)
        for shards in range(SHARDS):
            yield self._news(request.run, capture_pb2.CAPTURE_STATE_RUNNING, shards)
        if request.run == "breaks" and self._watches == 1:
            _refuse(context, Failure("WORKERS_UNAVAILABLE", "restarting"))
        if request.run == "slow":
            while not self.cancelled.wait(0.05) and context.is_active():
                yield self._news(request.run, capture_pb2.CAPTURE_STATE_RUNNING, SHARDS - 1)
        ends = {"fails": capture_pb2.CAPTURE_STATE_FAILED, "cancelled": capture_pb2.CAPTURE_STATE_CANCELLED}
        ends["slow"] = capture_pb2.CAPTURE_STATE_CANCELLED
        if request.run != "unfinished":
            yield self._news(request.run, ends.get(request.run, capture_pb2.CAPTURE_STATE_COMPLETE), SHARDS)

    def CancelCapture(self, request, context):
        self._meet(request, context)
        if request.run == "nobody":
            _refuse(context, Failure("CAPTURE_NOT_FOUND", "no such capture", {"field": "run", "value": request.run}))
        self.cancelled.set()
        news = self._news(request.run, capture_pb2.CAPTURE_STATE_CANCELLED, SHARDS - 1)
        return capture_pb2.CancelCaptureResponse(progress=news.progress)

    def RunSweep(self, request, context) -> Iterator[patching_pb2.RunSweepResponse]:
        self._meet(request, context)
        if len(request.clean.split()) != len(request.corrupt.split()):
            _refuse(context, UNEQUAL)
        for part in _halves(_asked_cells(request)):
            yield patching_pb2.RunSweepResponse(cells=patching_pb2.SweepCells(rows=message(part)))
            yield patching_pb2.RunSweepResponse(progress=patching_pb2.SweepProgress(cells_done=1, cells_total=2))
        if request.model.name == "no-result":
            return
        result = patching_pb2.SweepResult(
            tokens=message(tokens()),
            clean_logit_difference=CLEAN_DIFFERENCE,
            corrupt_logit_difference=CORRUPT_DIFFERENCE,
            provenance=common_pb2.Provenance(model=request.model.name, dtype="float32"),
        )
        yield patching_pb2.RunSweepResponse(result=result)

    def EstimateSweep(self, request, context):
        self._meet(request, context)
        if len(request.sweep.clean.split()) != len(request.sweep.corrupt.split()):
            _refuse(context, UNEQUAL)
        cells = _asked_cells(request.sweep).num_rows
        estimate = patching_pb2.SweepEstimate(
            cells=cells, token_layers=10.5, token_layers_full=40, bytes=cells * 100, seconds=1.5
        )
        return patching_pb2.EstimateSweepResponse(estimate=estimate)

    def _meet(self, request, context) -> None:
        self.requests.append(request)
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {self._token}":
            _refuse(context, Failure("UNAUTHENTICATED", "not the token"))

    def _news(self, run: str, state: int, shards: int | None) -> capture_pb2.WatchCaptureResponse:
        progress = capture_pb2.CaptureProgress(run=run, state=state)
        if run == MIXED:
            progress.dataset_files.CopyFrom(FILES)
        if shards is not None:
            progress.shards_committed, progress.shards_total = shards, SHARDS
            progress.tokens_committed, progress.tokens_total = shards * TOKENS_PER_SHARD, SHARDS * TOKENS_PER_SHARD
            progress.elapsed_seconds = float(shards)
        if state == capture_pb2.CAPTURE_STATE_FAILED:
            progress.failure.CopyFrom(
                capture_pb2.CaptureFailure(reason=MISMATCH.reason, message=MISMATCH.message, details=MISMATCH.details)
            )
        return capture_pb2.WatchCaptureResponse(progress=progress)


def main() -> None:
    """`python -m actstore_worker` of a stand-in stack: the same environment, the same ready line, the same end."""
    started = StandInWorkers(token=os.environ["ACTSTORE_GATEWAY_TOKEN"])
    print(json.dumps({"ready": "workers", "address": started.address}), flush=True)
    signal.sigwait({signal.SIGTERM})
    started.close()


def _asked_cells(request: patching_pb2.RunSweepRequest) -> pa.Table:
    return cells(tuple(request.sites) or SITES, tuple(request.layers) or tuple(range(LAYERS)))


def _halves(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    half = table.num_rows // 2
    return table.slice(0, half), table.slice(half)
