"""TLS with certificates of a lab's own authority, over a socket."""

import datetime
import ipaddress
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import actstore
from actstore import BadRequest, Unavailable
from actstore_api.v1 import catalog_pb2, service_pb2_grpc

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Signed:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def signed(name: str, by: Signed | None = None) -> Signed:
    """A certificate of this machine that an authority signed; without one, an authority's own."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(names, critical=False)
    )
    return Signed(builder.sign(by.key if by else key, hashes.SHA256()), key)


class Catalog(service_pb2_grpc.CatalogServiceServicer):
    """A store without runs, for callers with a token."""

    def ListRuns(self, request: Any, context: Any) -> Any:
        if ("authorization", "Bearer hidden") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        return catalog_pb2.ListRunsResponse()


@pytest.fixture(scope="module")
def authority() -> Signed:
    return signed("an authority of the lab's own")


@pytest.fixture(scope="module")
def address(authority: Signed) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_CatalogServiceServicer_to_server(Catalog(), server)
    own = signed("127.0.0.1", authority)
    credentials = grpc.ssl_server_credentials([(own.key_pem(), own.pem())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_labs_own_authority_is_trusted_where_it_is_given(address: str, authority: Signed, tmp_path: Path) -> None:
    file = tmp_path / "authority.pem"
    file.write_bytes(authority.pem())
    for tls, given in ((None, authority.pem()), (True, file), (True, str(file))):
        with actstore.connect(address, token="hidden", tls=tls, root_certificates=given) as lab:
            assert len(lab.runs()) == 0


def test_the_environment_names_the_authority(
    address: str, authority: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "authority.pem").write_bytes(authority.pem())
    monkeypatch.setenv("ACTSTORE_ROOT_CERTIFICATES", str(tmp_path / "authority.pem"))
    with actstore.connect(address, token="hidden") as lab:
        assert len(lab.runs()) == 0
    with pytest.raises(Unavailable), actstore.connect(address, token="hidden", tls=False) as lab:  # an argument counts
        lab.runs()
    monkeypatch.setenv("ACTSTORE_TLS", "yes")
    with pytest.raises(BadRequest, match="ACTSTORE_TLS is 'yes'"):
        actstore.connect(address)


def test_another_authority_is_not_trusted(address: str) -> None:
    for given in (None, signed("another authority").pem()):
        with (
            actstore.connect(address, token="hidden", tls=True, root_certificates=given) as lab,
            pytest.raises(Unavailable) as caught,
        ):
            lab.runs()
        assert "root_certificates=" in caught.value.next_step


def test_certificates_that_cannot_be_used_are_refused(authority: Signed, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_bytes(b"")
    for given in (tmp_path / "nothing.pem", tmp_path / "empty.pem", b"no certificate", 7):
        with pytest.raises(BadRequest) as caught:
            actstore.connect("lab:1", root_certificates=given)  # type: ignore[arg-type]
        assert caught.value.field == "root_certificates"
    with pytest.raises(BadRequest, match="tls=False turns off"):
        actstore.connect("lab:1", tls=False, root_certificates=authority.pem())


def test_a_token_travels_to_another_machine_where_certificates_are_given(authority: Signed) -> None:
    actstore.connect("lab.example:7433", token="hidden", root_certificates=authority.pem()).close()
