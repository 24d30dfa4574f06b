"""What Prometheus reads off a service: real scrapes after real calls."""

import logging
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from actstore_api import metrics as catalogue
from actstore_api.v1 import activation_pb2, capture_pb2, catalog_pb2, common_pb2, patching_pb2
from actstore_service.calls.classes import CallClass
from actstore_service.server import Service
from tests.service import stand_in
from tests.service.conftest import Caller, Serve
from tests.service.observed.scrapes import scrape
from tests.stored_run import DENSE_SITE
from tests.waiting import PATIENCE_SECONDS, wait_until


def _method(service: str, method: str) -> str:
    return f"/actstore_api.v1.{service}/{method}"


def test_calls_by_method_and_code(forwarding: Service, call: Caller, connect: Callable[..., Caller]) -> None:
    for _ in range(3):
        call("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest())
    call.failure("CatalogService", "GetRun", catalog_pb2.GetRunRequest(run="absent"))
    call("CaptureService", "WatchCapture", capture_pb2.WatchCaptureRequest(run="new"))
    connect(forwarding, "wrong").failure("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest())
    found = scrape(forwarding)
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
    assert scrape(forwarding)["actstore_calls_in_flight", ()] == 1
    stream.cancel()
    cancelled = "actstore_calls_total", ("CANCELLED", _method("CaptureService", "WatchCapture"))
    until(lambda: scrape(forwarding)[cancelled] == 1)
    assert scrape(forwarding)["actstore_calls_in_flight", ()] == 0


def test_what_sweeps_say_of_themselves(forwarding: Service, call: Caller) -> None:
    for name in ("resumed", "worse", "resumed", "kept", "of-tomorrow"):
        list(call("PatchingService", "RunSweep", _sweep(name)))
    call.failure("PatchingService", "RunSweep", _sweep("audit-failed"))
    call.failure("PatchingService", "RunSweep", _sweep("refused"))
    found = scrape(forwarding)
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


def test_a_stream_is_measured_to_its_first_message_and_in_bytes(call: Caller, forwarding: Service) -> None:
    answers = call("CaptureService", "WatchCapture", capture_pb2.WatchCaptureRequest(run="new"))
    found, watch = scrape(forwarding), (_method("CaptureService", "WatchCapture"),)
    assert found["actstore_stream_messages_total", watch] == len(answers) == stand_in.PROGRESS
    assert found["actstore_sent_bytes_total", watch] == sum(answer.ByteSize() for answer in answers)
    asked = capture_pb2.WatchCaptureRequest(run="new").ByteSize()
    assert found["actstore_principal_bytes_total", ("shared",)] == asked + found["actstore_sent_bytes_total", watch]
    assert found["actstore_principal_calls_total", ("shared",)] == 1
    assert 0 < found["actstore_first_message_seconds_sum", watch] < found["actstore_stream_seconds_sum", watch]


def test_places_of_each_class_and_what_is_taken(
    forwarding: Service, call: Caller, workers: stand_in.StandIn, until: Callable[..., None]
) -> None:
    watch = capture_pb2.WatchCaptureRequest(run="waiting")
    stream = call.stub("CaptureService").WatchCapture(watch, metadata=call.metadata)
    assert workers.waiting.wait(PATIENCE_SECONDS)
    found = scrape(forwarding)
    assert {labels[0] for name, labels in found if name == "actstore_call_places"} == set(CallClass)
    assert set(catalogue.CALL_CLASS.values) == set(CallClass)
    assert found["actstore_call_places_taken", ("forwarded",)] == 1
    assert found["actstore_calls_waiting", ("forwarded",)] == 0
    stream.cancel()
    until(lambda: scrape(forwarding)["actstore_call_places_taken", ("forwarded",)] == 0)


def test_rows_that_are_held_are_told_from_rows_that_are_read(serve: Serve, connect: Callable[..., Caller]) -> None:
    service = serve()
    call, request = connect(service), activation_pb2.ReadActivationsRequest(run="planted", sites=[DENSE_SITE])
    for _ in range(2):
        call("ActivationService", "ReadActivations", request)
    found = scrape(service)
    assert (
        found["actstore_held_rows_requests_total", ("read",)] == found["actstore_held_rows_requests_total", ("held",)]
    )
    assert found["actstore_held_rows_bytes", ()] > 0


def test_workers_that_leave_are_one_line_and_not_one_a_scrape(
    forwarding: Service, workers: stand_in.StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        assert scrape(forwarding)["actstore_workers_up", ()] == 1
    workers.close()
    for _ in range(3):
        assert scrape(forwarding)["actstore_workers_up", ()] == 0
    said = [record.message for record in caplog.records if "the workers" in record.message]
    assert [line.startswith("the workers answer") for line in said] == [True, False]


def test_a_file_that_breaks_is_told_and_so_is_who_was_let_in(
    serve: Serve, connect: Callable[..., Caller], workers: stand_in.StandIn, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(stand_in.TOKEN)
    service = serve(gateway=workers.address, gateway_token_file=file)
    assert scrape(service)["actstore_config_last_reload_successful", ("gateway_token",)] == 1
    file.write_text("not a token\n")
    wait_until(
        lambda: scrape(service)["actstore_config_last_reload_successful", ("gateway_token",)] == 0, "the broken file"
    )
    connect(service)("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest())
    connect(service, "wrong").failure("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest())
    found = scrape(service)
    results = ("accepted", "unauthenticated", "denied")
    assert [found["actstore_auth_total", (result,)] for result in results] == [1, 1, 0]


def test_every_method_of_the_server_is_a_label(forwarding: Service) -> None:
    assert set(forwarding._answers.methods) <= set(catalogue.METHOD.values)


def test_labels_stay_bounded(forwarding: Service, call: Caller) -> None:
    for number in range(20):
        unknown = call.channel.unary_unary(f"/somewhere.Service/Method{number}")
        with pytest.raises(grpc.RpcError) as caught:
            unknown(b"", metadata=call.metadata)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        call.failure("CatalogService", "GetRun", catalog_pb2.GetRunRequest(run=f"absent{number}"))
    found = scrape(forwarding)
    assert found["actstore_calls_total", ("UNIMPLEMENTED", "unknown")] == 20
    assert not [key for key in found if "somewhere" in str(key) or "absent1" in str(key)]


def test_the_workers_totals_are_not_a_services(forwarding: Service) -> None:
    """Each of several services would report them, and a sum would be a multiple of the truth."""
    found = scrape(forwarding)
    assert found["actstore_workers_up", ()] == 1
    assert {name for name, _ in found if "committed" in name or "captures" in name} == set()


@pytest.mark.parametrize("configured", [True, False])
def test_a_scrape_without_workers_says_so(serve: Serve, workers: stand_in.StandIn, configured: bool) -> None:
    settings = {"gateway": workers.address, "gateway_token": stand_in.TOKEN} if configured else {}
    workers.close()
    assert scrape(serve(**settings))["actstore_workers_up", ()] == 0
