"""A stand-in for the workers: a real gRPC server of the same contract, which does what the run's name tells it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_status import rpc_status

from actstore_api.reasons import to_status
from actstore_api.records.terms import Failure
from actstore_api.v1 import capture_pb2, information_pb2, patching_pb2
from actstore_api.v1.service_pb2_grpc import (
    CaptureServiceServicer,
    PatchingServiceServicer,
    WorkersInformationServiceServicer,
    add_CaptureServiceServicer_to_server,
    add_PatchingServiceServicer_to_server,
    add_WorkersInformationServiceServicer_to_server,
)

TOKEN = "workers-token"
# Of a call that waits to be cancelled: longer than any test waits for that.
LONG_SECONDS = 600.0
PROGRESS = 3
TOTALS = capture_pb2.GetCaptureTotalsResponse(
    captures_running=1,
    captures_complete=2,
    captures_failed=3,
    captures_cancelled=4,
    shards_committed=50,
    tokens_committed=6_000,
    bytes_committed=70_000,
)
FAILURE = Failure(
    "SAE_MISMATCH", "the SAE reads 768 values, the model has 128", {"field": "saes", "value": "768", "allowed": "128"}
)

RESUMED, FULL = patching_pb2.SWEEP_KERNEL_RESUMED, patching_pb2.SWEEP_KERNEL_FULL
AUDITS = {
    "resumed": patching_pb2.SweepAudit(
        audited_cells=4, largest_error=2e-6, noise_floor=1e-6, tolerance=1e-4, kernel=RESUMED, token_layers=10,
        token_layers_full=40,
    ),
    "worse": patching_pb2.SweepAudit(
        audited_cells=4, largest_error=5e-5, noise_floor=0, tolerance=1e-4, kernel=FULL, token_layers=40,
        token_layers_full=40,
    ),
    "kept": patching_pb2.SweepAudit(
        audited_cells=4, largest_error=9e-5, tolerance=1e-4, kernel=RESUMED, token_layers=10, cached=True
    ),
    "of-tomorrow": patching_pb2.SweepAudit(kernel=99),
}  # fmt: skip


class StandIn(CaptureServiceServicer, PatchingServiceServicer, WorkersInformationServiceServicer):
    """Does what the run's name says: `refused` (a rich status), `bare-<CODE>` (one without details), `waiting`...

    `info` is what it says of itself; None: it is too old to say.
    """

    info: information_pb2.WorkersInfo | None = None

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        self.cancelled = threading.Event()
        self.waiting = threading.Event()
        self.metadata: dict[str, str | bytes] = {}
        self.seconds_left: float | None = None
        self.requests: list[object] = []
        self._server = grpc.server(ThreadPoolExecutor(8))
        add_CaptureServiceServicer_to_server(self, self._server)
        add_PatchingServiceServicer_to_server(self, self._server)
        add_WorkersInformationServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(address)}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()

    def GetWorkersInfo(self, request, context):
        self._meet(request, context, "")
        if self.info is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        return information_pb2.GetWorkersInfoResponse(info=self.info)

    def StartCapture(self, request, context):
        self._meet(request, context, request.specification.run)
        return capture_pb2.StartCaptureResponse(run=request.specification.run or "made")

    def WatchCapture(self, request, context) -> Iterator[capture_pb2.WatchCaptureResponse]:
        self._meet(request, context, request.run)
        for committed in range(PROGRESS):
            progress = capture_pb2.CaptureProgress(run=request.run, shards_committed=committed, shards_total=PROGRESS)
            yield capture_pb2.WatchCaptureResponse(progress=progress)
        if request.run == "refused-late":
            context.abort_with_status(rpc_status.to_status(to_status(FAILURE)))

    def CancelCapture(self, request, context):
        self._meet(request, context, request.run)
        state = capture_pb2.CAPTURE_STATE_CANCELLED
        return capture_pb2.CancelCaptureResponse(progress=capture_pb2.CaptureProgress(run=request.run, state=state))

    def GetCaptureTotals(self, request, context):
        self._meet(request, context, "")
        return TOTALS

    def RunSweep(self, request, context) -> Iterator[patching_pb2.RunSweepResponse]:
        self._meet(request, context, request.model.name)
        yield patching_pb2.RunSweepResponse(progress=patching_pb2.SweepProgress(cells_done=1, cells_total=2))
        if request.model.name == "audit-failed":
            context.abort_with_status(rpc_status.to_status(to_status(Failure("AUDIT_FAILED", "not the same"))))
        result = patching_pb2.SweepResult(clean_logit_difference=1.5, audit=AUDITS.get(request.model.name))
        yield patching_pb2.RunSweepResponse(result=result)

    def _meet(self, request, context, name: str) -> None:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        self.seconds_left = context.time_remaining()
        if self.metadata.get("authorization") != f"Bearer {TOKEN}":
            context.abort_with_status(rpc_status.to_status(to_status(Failure("UNAUTHENTICATED", "not the token"))))
        if name == "refused":
            context.abort_with_status(rpc_status.to_status(to_status(FAILURE)))
        if name == "refused-at-length":
            details = ("grpc-status-details-bin", to_status(FAILURE).SerializeToString())
            context.set_trailing_metadata([details])
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, FAILURE.message * 2)
        if name == "no-node":
            details = {"retry_seconds": "60.0"}
            context.abort_with_status(rpc_status.to_status(to_status(Failure("WORKERS_UNAVAILABLE", "none", details))))
        if name == "other-nowhere":
            details = {"field": "run", "value": name, "allowed": "other-run, planted"}
            context.abort_with_status(rpc_status.to_status(to_status(Failure("CAPTURE_NOT_FOUND", "no", details))))
        if name.startswith("bare-"):
            context.abort(grpc.StatusCode[name.removeprefix("bare-")], "Traceback: /secret/path.py")
        if name == "waiting":
            context.add_callback(self.cancelled.set)
            self.waiting.set()
            self.cancelled.wait(LONG_SECONDS)
