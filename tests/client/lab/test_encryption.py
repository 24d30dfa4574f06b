"""TLS with certificates of a lab's own authority, over a socket."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

import actstore
from actstore import BadRequest, Unavailable
from actstore_api.v1 import catalog_pb2, service_pb2_grpc
from tests.service.access.made_certificates import Made, made


class Catalog(service_pb2_grpc.CatalogServiceServicer):
    """A store without runs, for callers with a token."""

    def ListRuns(self, request: Any, context: Any) -> Any:
        if ("authorization", "Bearer hidden") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        return catalog_pb2.ListRunsResponse()


@pytest.fixture(scope="module")
def authority() -> Made:
    return made("an authority of the lab's own")


@pytest.fixture(scope="module")
def address(authority: Made) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_CatalogServiceServicer_to_server(Catalog(), server)
    own = made("127.0.0.1", authority)
    credentials = grpc.ssl_server_credentials([(own.key_pem, own.pem)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_labs_own_authority_is_trusted_where_it_is_given(address: str, authority: Made, tmp_path: Path) -> None:
    file = tmp_path / "authority.pem"
    file.write_bytes(authority.pem)
    for tls, given in ((None, authority.pem), (True, file), (True, str(file))):
        with actstore.connect(address, token="hidden", tls=tls, root_certificates=given) as lab:
            assert len(lab.runs()) == 0


def test_the_environment_names_the_authority(
    address: str, authority: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    monkeypatch.setenv("ACTSTORE_ROOT_CERTIFICATES", str(tmp_path / "authority.pem"))
    with actstore.connect(address, token="hidden") as lab:
        assert len(lab.runs()) == 0
    with pytest.raises(Unavailable), actstore.connect(address, token="hidden", tls=False) as lab:  # an argument counts
        lab.runs()
    monkeypatch.setenv("ACTSTORE_TLS", "yes")
    with pytest.raises(BadRequest, match="ACTSTORE_TLS is 'yes'"):
        actstore.connect(address)


def test_another_authority_is_not_trusted(address: str) -> None:
    for given in (None, made("another authority").pem):
        with (
            actstore.connect(address, token="hidden", tls=True, root_certificates=given) as lab,
            pytest.raises(Unavailable) as caught,
        ):
            lab.runs()
        assert "root_certificates=" in caught.value.next_step


def test_certificates_that_cannot_be_used_are_refused(authority: Made, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_bytes(b"")
    for given in (tmp_path / "nothing.pem", tmp_path / "empty.pem", b"no certificate", 7):
        with pytest.raises(BadRequest) as caught:
            actstore.connect("lab:1", root_certificates=given)  # type: ignore[arg-type]
        assert caught.value.field == "root_certificates"
    with pytest.raises(BadRequest, match="tls=False turns off"):
        actstore.connect("lab:1", tls=False, root_certificates=authority.pem)


def test_a_token_travels_to_another_machine_where_certificates_are_given(authority: Made) -> None:
    actstore.connect("lab.example:7433", token="hidden", root_certificates=authority.pem).close()


@pytest.fixture
def two_addresses(authority: Made) -> Iterator[str]:
    """Two services of one name, which is in their certificates; their addresses are not."""
    own = made("a service", authority, [x509.DNSName("activations.lab.internal")])
    credentials = grpc.ssl_server_credentials([(own.key_pem, own.pem)])
    servers, ports = [], []
    for _ in range(2):
        servers.append(grpc.server(ThreadPoolExecutor(2)))
        service_pb2_grpc.add_CatalogServiceServicer_to_server(Catalog(), servers[-1])
        ports.append(servers[-1].add_secure_port("127.0.0.1:0", credentials))
        servers[-1].start()
    yield "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    for server in servers:
        server.stop(None).wait()


def test_several_addresses_have_one_name_in_their_certificates(
    two_addresses: str, authority: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting = {"token": "hidden", "root_certificates": authority.pem}
    with actstore.connect(two_addresses, authority="activations.lab.internal", **trusting) as lab:
        assert len(lab.runs()) == 0
    monkeypatch.setenv("ACTSTORE_AUTHORITY", "activations.lab.internal")
    with actstore.connect(two_addresses, **trusting) as lab:
        assert len(lab.runs()) == 0
    monkeypatch.setenv("ACTSTORE_AUTHORITY", "other.lab.internal")
    with actstore.connect(two_addresses, **trusting) as lab, pytest.raises(Unavailable):
        lab.runs()


def test_an_authority_is_for_tls() -> None:
    with pytest.raises(BadRequest, match="authority is for TLS, which tls=False turns off"):
        actstore.connect("lab:1", tls=False, authority="lab.internal")
    for wrong in ("a b", "https://lab", "lab:port"):
        with pytest.raises(BadRequest, match="no name of a host"):
            actstore.connect("lab:1", tls=True, authority=wrong)
    actstore.connect("lab.example:7433", token="hidden", authority="lab.internal").close()
