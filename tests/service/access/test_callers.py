"""What each kind of caller gets from a real service, for every method of the contract."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from actstore_api.codec import encode, message_of
from actstore_api.reasons import from_status
from actstore_api.records.activation import ReadTokens
from actstore_api.records.capture import CancelCapture
from actstore_api.records.catalog import ListRuns
from actstore_api.records.terms import Failure
from actstore_api.verbs import VERBS, Verb, verb_of
from actstore_service.access.methods import RULES
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket import Bucket
from tests.service import stand_in
from tests.service.access.made_certificates import made
from tests.service.access.questions import question_about
from tests.service.access.test_access_file import entry, written
from tests.stored_run import StoredRun
from tests.waiting import PATIENCE_SECONDS

EVERY_RUN, ALL = ["*"], ["reader", "writer", "admin"]
# By name, which is the token too: roles, and prefixes of runs. The bucket has the run `planted`.
CALLERS: dict[str, tuple[list[str], list[str]]] = {
    "reader": (["reader"], EVERY_RUN),
    "writer": (["writer"], EVERY_RUN),
    "admin": (["admin"], EVERY_RUN),
    "all": (ALL, EVERY_RUN),
    "planter": (ALL, ["plant", "other-"]),
    "outsider": (ALL, ["other-"]),
}


@pytest.fixture(scope="module")
def service(bucket: Bucket, stored: StoredRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("access")
    entries = [entry(name, name, roles=roles, run_prefixes=prefixes) for name, (roles, prefixes) in CALLERS.items()]
    workers = stand_in.StandIn()
    (folder / "gateway").write_text(f"{stand_in.TOKEN}\n")
    settings = Settings(
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        access_file=Path(written(folder / "access", *entries)),
        gateway=workers.address,
        gateway_token_file=folder / "gateway",
    )
    started = Service(bucket, settings)
    yield started
    started.stop()
    workers.close()


@pytest.fixture(scope="module")
def channel(service: Service) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(service.address) as opened:
        yield opened


def ask(channel: grpc.Channel, token: str | None, question: Any) -> Any:
    """The messages of the answer."""
    verb = verb_of(question)
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    call = channel.unary_stream(verb.path, response_deserializer=message_of(verb.answer).FromString)
    return list(call(encode(question).SerializeToString(), metadata=metadata, timeout=PATIENCE_SECONDS))


def outcome(channel: grpc.Channel, token: str | None, question: Any) -> Failure | None:
    """What actstore says that went wrong; None for an answer."""
    try:
        ask(channel, token, question)
    except grpc.RpcError as error:
        return from_status(rpc_status.from_call(error)) or Failure("NONE", str(error))
    return None


def is_allowed(channel: grpc.Channel, name: str, verb: Verb, run: str) -> bool:
    """Whatever becomes of a question that is allowed: the run may not be there, or the workers not know the method."""
    failure = outcome(channel, name, question_about(verb, run))
    assert failure is None or failure.reason != "UNAUTHENTICATED"
    return failure is None or failure.reason != "PERMISSION_DENIED"


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_each_caller_gets_what_the_table_says(verb: Verb, channel: grpc.Channel) -> None:
    rule = RULES[verb.name]
    names_runs = bool(rule.runs or rule.runs_if_given)
    for name, (roles, prefixes) in CALLERS.items():
        for run in ("planted", "other-run"):
            may_use = prefixes == EVERY_RUN or not names_runs or run.startswith(tuple(prefixes))
            expected = (rule.role is None or rule.role.value in roles) and may_use
            assert is_allowed(channel, name, verb, run) == expected, (name, run)


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
@pytest.mark.parametrize("token", [None, "stranger"])
def test_strangers_get_nothing(verb: Verb, token: str | None, channel: grpc.Channel) -> None:
    failure = outcome(channel, token, question_about(verb, "planted"))
    assert failure is not None
    assert failure.reason == "UNAUTHENTICATED"


def test_strangers_get_neither_health_nor_reflection(channel: grpc.Channel) -> None:
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    for wanted in (
        lambda: check(health_pb2.HealthCheckRequest().SerializeToString(), timeout=PATIENCE_SECONDS),
        lambda: ProtoReflectionDescriptorDatabase(channel).get_services(),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            wanted()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_lists_and_errors_name_no_runs_of_others(channel: grpc.Channel) -> None:
    listed = {name: [run.name for run in ask(channel, name, ListRuns())[0].runs] for name in ("planter", "outsider")}
    assert listed == {"planter": ["planted"], "outsider": []}
    for name, told in (("planter", "planted"), ("outsider", "none that you may use")):
        failure = outcome(channel, name, ReadTokens("other-run"))
        assert failure is not None
        assert (failure.reason, failure.details["allowed"]) == ("RUN_NOT_FOUND", told)


def test_errors_of_the_workers_name_no_runs_of_others(channel: grpc.Channel) -> None:
    """The stand-in's coordinator lists the captures that are running."""
    for name, told in (("all", "other-run, planted"), ("outsider", "other-run")):
        failure = outcome(channel, name, CancelCapture("other-nowhere"))
        assert failure is not None
        assert (failure.reason, failure.details["allowed"]) == ("CAPTURE_NOT_FOUND", told)


def test_a_service_speaks_tls_and_knows_clients_by_their_certificates(
    bucket: Bucket, stored: StoredRun, tmp_path: Path
) -> None:
    authority = made("an authority")
    certificate, key = map(Path, made("service", authority).write(tmp_path, "own"))
    (tmp_path / "authorities").write_bytes(authority.pem)
    known = entry("planter", "token", run_prefixes=["planted"], certificates=["ada.lab"])
    settings = Settings(
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        mutual_tls_listen="127.0.0.1:0",
        access_file=Path(written(tmp_path / "access", known)),
        tls_certificate=certificate,
        tls_key=key,
        client_authorities=tmp_path / "authorities",
    )
    service = Service(bucket, settings)
    assert service.mutual_tls_address is not None
    client = made("ada.lab", authority, [])
    plain = grpc.ssl_channel_credentials(authority.pem)
    mutual = grpc.ssl_channel_credentials(authority.pem, client.key_pem, client.pem)
    with (
        grpc.secure_channel(service.address, plain) as by_token,
        grpc.secure_channel(service.mutual_tls_address, mutual) as by_certificate,
    ):
        assert outcome(by_token, "token", ReadTokens("planted")) is None
        assert outcome(by_certificate, None, ReadTokens("planted")) is None
        for channel, token in ((by_token, None), (by_certificate, None)):
            failure = outcome(channel, token, ReadTokens("another"))
            assert failure is not None
            assert failure.reason == ("UNAUTHENTICATED" if channel is by_token else "PERMISSION_DENIED")
    service.stop()


def test_the_workers_token_changes_while_the_service_runs(
    bucket: Bucket, stored: StoredRun, tmp_path: Path, until: Any
) -> None:
    workers = stand_in.StandIn()
    (tmp_path / "gateway").write_text("yesterdays\n")
    settings = Settings(
        listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", token="token", gateway=workers.address,
        gateway_token_file=tmp_path / "gateway",
    )  # fmt: skip
    service = Service(bucket, settings)
    with grpc.insecure_channel(service.address) as channel:
        question = CancelCapture("run")
        failure = outcome(channel, "token", question)
        assert failure is not None
        assert failure.reason == "WORKERS_UNAVAILABLE"
        (tmp_path / "gateway").write_text(f"{stand_in.TOKEN}\nyesterdays\n")
        until(lambda: outcome(channel, "token", question) is None)
    service.stop()
    workers.close()
