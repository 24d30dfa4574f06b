"""What Prometheus reads off a service: real scrapes after real calls."""

import urllib.request
from collections.abc import Callable

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from actstore_api.v1 import capture_pb2, catalog_pb2, common_pb2, patching_pb2
from actstore_service.server import Service
from tests.service import stand_in
from tests.service.conftest import Caller, Serve
from tests.waiting import PATIENCE_SECONDS

Samples = dict[tuple[str, tuple[str, ...]], float]


def _scrape(service: Service) -> Samples:
    """Values by sample name and label values in order of label name, without histogram bounds."""
    with urllib.request.urlopen(f"http://{service.metrics_address}/metrics", timeout=PATIENCE_SECONDS) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for sample in samples
        if "le" not in sample.labels
    }


def _method(service: str, method: str) -> str:
    return f"/actstore_api.v1.{service}/{method}"


def test_calls_by_method_and_code(forwarding: Service, call: Caller, connect: Callable[..., Caller]) -> None:
    for _ in range(3):
        call("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest())
    call.failure("CatalogService", "GetRun", catalog_pb2.GetRunRequest(run="absent"))
    call("CaptureService", "WatchCapture", capture_pb2.WatchCaptureRequest(run="new"))
    connect(forwarding, "wrong").failure("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest())
    found = _scrape(forwarding)
    assert found["actstore_calls_total", ("OK", _method("CatalogService", "ListRuns"))] == 3
    assert found["actstore_calls_total", ("UNAUTHENTICATED", _method("CatalogService", "ListRuns"))] == 1
    assert found["actstore_calls_total", ("NOT_FOUND", _method("CatalogService", "GetRun"))] == 1
    assert found["actstore_calls_total", ("OK", _method("CaptureService", "WatchCapture"))] == 1
    assert found["actstore_calls_started_total", (_method("CatalogService", "ListRuns"),)] == 4
    assert found["actstore_unary_seconds_count", (_method("CatalogService", "ListRuns"),)] == 4
    assert 0 < found["actstore_unary_seconds_sum", (_method("CatalogService", "ListRuns"),)] < 20
    assert found["actstore_stream_seconds_count", (_method("CaptureService", "WatchCapture"),)] == 1
    assert found["actstore_calls_in_flight", ()] == 0


def test_a_running_call_is_in_flight_and_a_cancelled_one_is_counted(
    forwarding: Service, call: Caller, workers: stand_in.StandIn, until: Callable[..., None]
) -> None:
    watch = capture_pb2.WatchCaptureRequest(run="waiting")
    stream = call.stub("CaptureService").WatchCapture(watch, metadata=call.metadata)
    assert workers.waiting.wait(PATIENCE_SECONDS)
    assert _scrape(forwarding)["actstore_calls_in_flight", ()] == 1
    stream.cancel()
    cancelled = "actstore_calls_total", ("CANCELLED", _method("CaptureService", "WatchCapture"))
    until(lambda: _scrape(forwarding)[cancelled] == 1)
    assert _scrape(forwarding)["actstore_calls_in_flight", ()] == 0


def test_what_sweeps_say_of_themselves(forwarding: Service, call: Caller) -> None:
    for name in ("resumed", "worse", "resumed", "kept", "of-tomorrow"):
        list(call("PatchingService", "RunSweep", _sweep(name)))
    call.failure("PatchingService", "RunSweep", _sweep("audit-failed"))
    call.failure("PatchingService", "RunSweep", _sweep("refused"))
    found = _scrape(forwarding)
    assert found["actstore_sweeps_total", ("computed", "resumed")] == 2
    assert found["actstore_sweeps_total", ("computed", "full")] == 1
    assert found["actstore_sweeps_total", ("kept", "resumed")] == 1
    assert found["actstore_sweeps_total", ("computed", "other")] == 1
    assert found["actstore_sweep_audits_failed_total", ()] == 1
    assert found["actstore_sweep_cells_total", ("computed",)] == 4
    assert found["actstore_sweep_cells_total", ("kept",)] == 1
    assert found["actstore_sweep_token_layers_total", ("computed",)] == 60
    assert found["actstore_sweep_token_layers_total", ("full",)] == 120
    assert found["actstore_sweep_error_of_tolerance_count", ()] == 3
    assert found["actstore_sweep_error_of_tolerance_sum", ()] == pytest.approx(0.54)
    assert found["actstore_sweep_noise_of_tolerance_count", ()] == 3
    assert found["actstore_sweep_noise_of_tolerance_sum", ()] == pytest.approx(0.02)
    assert found["actstore_sweep_seconds_count", ("resumed",)] == 2
    assert found["actstore_sweep_seconds_count", ("full",)] == 1


def _sweep(model: str) -> patching_pb2.RunSweepRequest:
    return patching_pb2.RunSweepRequest(model=common_pb2.ModelReference(name=model))


def test_labels_stay_bounded(forwarding: Service, call: Caller) -> None:
    for number in range(20):
        unknown = call.channel.unary_unary(f"/somewhere.Service/Method{number}")
        with pytest.raises(grpc.RpcError) as caught:
            unknown(b"", metadata=call.metadata)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        call.failure("CatalogService", "GetRun", catalog_pb2.GetRunRequest(run=f"absent{number}"))
    found = _scrape(forwarding)
    assert found["actstore_calls_total", ("UNIMPLEMENTED", "unknown")] == 20
    assert not [key for key in found if "somewhere" in str(key) or "absent1" in str(key)]


def test_the_workers_totals_are_not_a_services(forwarding: Service) -> None:
    """Each of several services would report them, and a sum would be a multiple of the truth."""
    found = _scrape(forwarding)
    assert found["actstore_workers_up", ()] == 1
    assert {name for name, _ in found if "committed" in name or "captures" in name} == set()


@pytest.mark.parametrize("configured", [True, False])
def test_a_scrape_without_workers_says_so(serve: Serve, workers: stand_in.StandIn, configured: bool) -> None:
    settings = {"gateway": workers.address, "gateway_token": stand_in.TOKEN} if configured else {}
    workers.close()
    assert _scrape(serve(**settings))["actstore_workers_up", ()] == 0
