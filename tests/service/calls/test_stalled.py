"""Clients that do not read, and clients that send no message, cost nobody else anything."""

import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from actstore_api.v1 import activation_pb2
from tests.service.calls.conftest import ask_everything, attack, service_over
from tests.service.calls.wide_run import WIDE, WIDE_SITE
from tests.service.conftest import Caller
from tests.waiting import PATIENCE_SECONDS, wait_until

MEBIBYTE = 1 << 20
STALLED, HALF_OPEN = 200, 1000
READ = activation_pb2.ReadActivationsRequest(run=WIDE, sites=[WIDE_SITE])


def test_everyone_else_is_answered_while_clients_stall(wide_store: str) -> None:
    patient = {"message_seconds": 600, "stalled_seconds": 600, "open_streams": STALLED, "principal_streams": STALLED}
    with service_over(wide_store, **patient) as service:
        call = service.caller()
        ask_everything(call)
        before = service.resident_bytes()
        with attack(service, STALLED, HALF_OPEN):
            wait_until(lambda: service.in_flight() == STALLED + HALF_OPEN, "all bad calls are open")
            for _ in range(5):
                ask_everything(call)
            check = health_pb2_grpc.HealthStub(call.channel).Check
            state = check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS, metadata=call.metadata).status
            assert state == health_pb2.HealthCheckResponse.SERVING
            with urllib.request.urlopen(f"http://{service.metrics}/readyz", timeout=PATIENCE_SECONDS) as answer:
                assert answer.status == 200
            assert service.in_flight() == STALLED + HALF_OPEN  # all of this while none of them had ended
            # A stream that nobody reads costs its small first messages and the rows that storage has at hand.
            assert service.resident_bytes() - before < STALLED * 4 * MEBIBYTE + HALF_OPEN * MEBIBYTE / 16
        wait_until(lambda: service.in_flight() == 0, "the calls of a client that is gone are over")
        ask_everything(call)
        call.channel.close()


def test_bad_clients_are_told_what_they_did(wide_store: str) -> None:
    short = {"message_seconds": 0.5, "stalled_seconds": 0.5}
    with service_over(wide_store, **short) as service, attack(service, stalled=5, half_open=7) as begun:
        wait_until(lambda: service.refused("streams", "STREAM_STALLED") == 5, "the streams are ended")
        wait_until(lambda: service.in_flight() == 0, "all calls are ended")
        assert service.refused("catalog", "MESSAGE_LATE") == 7
        assert begun.ends() == {"STREAM_STALLED": 5, "MESSAGE_LATE": 7}


def test_a_stream_that_was_ended_gives_its_place_back(wide_store: str) -> None:
    with service_over(wide_store, open_streams=3, untaken_streams=3, stalled_seconds=0.5) as service:
        call = service.caller()
        with attack(service, stalled=3):
            wait_until(lambda: service.refused("streams", "STREAM_STALLED") == 3, "the streams are ended")
            # They still hold memory, because their client neither reads nor goes.
            _, failure = call.failure("ActivationService", "ReadActivations", READ)
            assert failure is not None
            assert failure.reason == "BUSY"
        wait_until(lambda: _is_answered(call), "streams are taken again once that client is gone")
        call.channel.close()


def _is_answered(call: Caller) -> bool:
    try:
        return len(call("ActivationService", "ReadActivations", READ)) > 0
    except grpc.RpcError:
        return False


def test_too_many_calls_without_a_message_end_the_oldest(wide_store: str) -> None:
    with service_over(wide_store, unread_calls=10, message_seconds=600) as service, attack(service, half_open=25):
        wait_until(lambda: service.refused("catalog", "MESSAGE_LATE") == 15, "the oldest are ended")
        call = service.caller()
        ask_everything(call)
        call.channel.close()
