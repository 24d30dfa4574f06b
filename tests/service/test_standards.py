"""What any gRPC operator expects: health, reflection, a token, probes, and settings that refuse what is unsafe."""

import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from actstore_api.records.information import GetServiceInfo
from actstore_api.v1 import capture_pb2, catalog_pb2, feature_pb2, service_pb2
from actstore_api.verbs import VERBS
from actstore_service.server import Service
from actstore_service.settings import Limits, Settings
from actstore_storage.answers import ANSWERS, ROWS
from actstore_storage.errors import BadRequest
from tests.service import stand_in
from tests.service.conftest import TOKEN, Caller, Serve
from tests.waiting import PATIENCE_SECONDS

STATES = health_pb2.HealthCheckResponse
SERVED = {f"actstore_api.v1.{name}" for name in service_pb2.DESCRIPTOR.services_by_name}


def _health(service: Service, name: str, token: str | None = TOKEN) -> int:
    call = Caller(service.address, token)
    with call.channel:
        check = health_pb2_grpc.HealthStub(call.channel).Check
        asked = health_pb2.HealthCheckRequest(service=name)
        return check(asked, timeout=PATIENCE_SECONDS, metadata=call.metadata).status


def test_health_of_every_service(forwarding: Service) -> None:
    for name in ("", *SERVED):
        assert _health(forwarding, name) == STATES.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        _health(forwarding, "somewhere.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_needs_the_token_unless_it_is_open(serve: Serve) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        _health(serve(), "", token=None)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert _health(serve(open_health=True), "", token=None) == STATES.SERVING


def test_forwarding_services_do_not_serve_without_workers(serve: Serve) -> None:
    service = serve()
    assert _health(service, "actstore_api.v1.CaptureService") == STATES.NOT_SERVING
    assert _health(service, "actstore_api.v1.PatchingService") == STATES.NOT_SERVING
    assert _health(service, "actstore_api.v1.CatalogService") == STATES.SERVING


def test_watching_health_holds_no_thread_and_sees_the_end(
    serve: Serve, connect: Callable[..., Caller], in_thread: Callable[..., threading.Thread]
) -> None:
    service = serve(limits=Limits(grace_seconds=PATIENCE_SECONDS))
    call = connect(service)
    watch = health_pb2_grpc.HealthStub(call.channel).Watch
    watches = [
        watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS, metadata=call.metadata) for _ in range(100)
    ]
    assert [next(states).status for states in watches] == [STATES.SERVING] * 100
    watches.pop(0).cancel()  # one that leaves takes no news from the others
    assert _health(service, "") == STATES.SERVING
    in_thread(service.stop)
    assert {next(states).status for states in watches} == {STATES.NOT_SERVING}
    for states in watches:
        states.cancel()


def test_reflection_describes_every_service(call: Caller) -> None:
    channel = grpc.intercept_channel(call.channel, _WithToken())
    database = ProtoReflectionDescriptorDatabase(channel)
    standard = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert set(database.get_services()) == SERVED | standard
    pool = DescriptorPool(database)
    for name in SERVED:
        ours = service_pb2.DESCRIPTOR.services_by_name[name.rpartition(".")[2]]
        assert [method.name for method in pool.FindServiceByName(name).methods] == [m.name for m in ours.methods]


def test_every_verb_is_answered_by_the_bucket_or_by_the_workers() -> None:
    stored = {verb.question for verb in VERBS.values() if not verb.forwarded}
    assert stored == {*ANSWERS, *ROWS, GetServiceInfo}  # the last one the service itself
    assert {verb.question for verb in VERBS.values() if not verb.forwarded and verb.streams} == set(ROWS)


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_verb_has_a_handler(serve: Serve, connect: Callable[..., Caller], name: str) -> None:
    verb, call = VERBS[name], connect(serve())
    with pytest.raises(grpc.RpcError) as caught:  # a message that no protobuf is, and no workers for the others
        list(call.channel.unary_stream(verb.path)(b"\xff", metadata=call.metadata, timeout=PATIENCE_SECONDS))
    assert caught.value.code() is not grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1]])
@pytest.mark.parametrize(
    ("service", "method", "request_"),
    [
        ("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest()),
        ("CaptureService", "WatchCapture", capture_pb2.WatchCaptureRequest(run="new")),
    ],
)
def test_no_call_without_the_token(
    forwarding: Service,
    connect: Callable[..., Caller],
    workers: stand_in.StandIn,
    token: str | None,
    service: str,
    method: str,
    request_: object,
) -> None:
    code, failure = connect(forwarding, token).failure(service, method, request_)
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert failure is not None
    assert failure.reason == "UNAUTHENTICATED"
    assert TOKEN not in str(failure)
    assert workers.requests == []


def test_reflection_needs_the_token(forwarding: Service) -> None:
    with grpc.insecure_channel(forwarding.address) as channel, pytest.raises(grpc.RpcError) as caught:
        ProtoReflectionDescriptorDatabase(channel).get_services()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_nobody_is_anonymous_unless_the_operator_says_so(serve: Serve, connect: Callable[..., Caller]) -> None:
    with pytest.raises(BadRequest, match="nobody may call this service"):
        serve(token=None)
    call = connect(serve(token=None, anonymous=("reader",)), None)
    assert call("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest()).runs


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "lab.internal:7433", "10.0.0.1:7433"])
def test_nobody_is_anonymous_beyond_loopback(listen: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Settings(listen=listen, token=TOKEN, anonymous=("reader",))
    assert caught.value.details["field"] == "ACTSTORE_LISTEN"
    Settings(listen=listen, token=TOKEN)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.8.8.8:1", "[::1]:0", "localhost:7433"])
def test_loopback_is_loopback(listen: str) -> None:
    Settings(listen=listen, anonymous=("reader", "writer"))


@pytest.mark.parametrize("listen", ["", "localhost", ":7433", "localhost:", "localhost:http", "localhost:65536"])
def test_an_address_is_host_and_port(listen: str) -> None:
    with pytest.raises(BadRequest):
        Settings(listen=listen, token=TOKEN)


def test_a_gateway_needs_its_token() -> None:
    for given in ({}, {"gateway_token": "a", "gateway_token_file": "b"}):
        with pytest.raises(BadRequest, match="one of them only"):
            Settings(gateway="127.0.0.1:9000", token=TOKEN, **given)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"anonymous": ("reader", "king")}, "ACTSTORE_ANONYMOUS"),
        ({"tls_key": "key.pem"}, "ACTSTORE_TLS_KEY"),
        ({"mutual_tls_listen": "127.0.0.1:1"}, "ACTSTORE_MUTUAL_TLS_LISTEN"),
        ({"mutual_tls_listen": "lab"}, "ACTSTORE_MUTUAL_TLS_LISTEN"),
    ],
)
def test_who_may_call_is_told_without_contradictions(given: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Settings(token=TOKEN, **given)
    assert caught.value.details["field"] == field


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(Settings(token="secret1", gateway="127.0.0.1:1", gateway_token="secret2"))


@pytest.mark.parametrize("setting", ["listen", "metrics_listen"])
def test_a_taken_port_is_said(serve: Serve, setting: str) -> None:
    taken = {"listen": serve().address, "metrics_listen": serve().metrics_address}[setting]
    with pytest.raises(BadRequest, match=taken) as caught:
        serve(**{setting: taken})
    assert caught.value.details["field"] == f"ACTSTORE_{setting.upper()}"


def test_large_requests_are_refused(call: Caller) -> None:
    code, _ = call.failure("CatalogService", "GetRun", catalog_pb2.GetRunRequest(run="x" * (1 << 21)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("letter", ["x", "é", "𝄞"])
def test_errors_about_long_texts_fit_into_grpcs_headers(call: Caller, letter: str) -> None:
    asked = feature_pb2.GetFeatureStatisticsRequest(run="planted", sae=letter * 1000)
    code, failure = call.failure("FeatureService", "GetFeatureStatistics", asked)
    assert code is grpc.StatusCode.NOT_FOUND
    assert failure is not None
    assert failure.reason == "SAE_NOT_FOUND"
    assert failure.details["value"].endswith(f"{letter} ...")


def test_probes(serve: Serve) -> None:
    service = serve()
    assert _get(service, "/healthz") == (200, "200 OK\n")
    assert _get(service, "/readyz") == (200, "200 OK\n")
    assert _get(service, "/elsewhere")[0] == 404


def test_not_ready_while_a_call_is_finished(
    forwarding: Service, call: Caller, workers: stand_in.StandIn, in_thread: Callable[..., None]
) -> None:
    start = capture_pb2.StartCaptureRequest(specification=capture_pb2.CaptureSpecification(run="waiting"))
    answer = call.stub("CaptureService").StartCapture.future(start, metadata=call.metadata)
    assert workers.waiting.wait(PATIENCE_SECONDS)
    in_thread(forwarding.stop)
    while _get(forwarding, "/readyz")[0] == 200:
        assert not answer.done()
    assert _get(forwarding, "/readyz")[0] == 503
    assert _get(forwarding, "/healthz")[0] == 200
    workers.cancelled.set()
    assert answer.result(PATIENCE_SECONDS).run == "waiting"


def _get(service: Service, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{service.metrics_address}{path}", timeout=PATIENCE_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


class _WithToken(grpc.StreamStreamClientInterceptor):
    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(details._replace(metadata=[("authorization", f"Bearer {TOKEN}")]), requests)
