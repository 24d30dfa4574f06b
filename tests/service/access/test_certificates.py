"""TLS and mutual TLS over real sockets of grpc.aio: certificates change while a connection lives."""

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from actstore_service.access import Access
from actstore_service.access.access_file import AccessTable, read_access
from actstore_service.access.certificates import ServerCertificates, read_server_files
from actstore_service.access.gateway_token import GatewayToken
from actstore_storage.errors import ActstoreError, BadRequest
from tests.service.access.made_certificates import Made, made
from tests.service.access.test_access_file import entry, written
from tests.waiting import PATIENCE_SECONDS

AUTHORITY = made("an authority")
SPIFFE = x509.UniformResourceIdentifier("spiffe://lab/ada")


class _Names(grpc.GenericRpcHandler):
    """Answers each call with the principal of its certificate."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def service(self, handler_call_details: Any) -> Any:
        async def answer(_: bytes, context: Any) -> bytes:
            try:
                return self._access.identify({}, context.auth_context()).name.encode()
            except ActstoreError as error:
                return error.reason.encode()

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def serving(access: Access, *certificates: ServerCertificates) -> Iterator[list[str]]:
    """A server of grpc.aio with a port for each of these; yields their addresses."""
    addresses: list[str] = []
    loop, started, ended = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        server = grpc.aio.server(handlers=[_Names(access)])
        ports = [server.add_secure_port("127.0.0.1:0", one.credentials()) for one in certificates]
        addresses.extend(f"127.0.0.1:{port}" for port in ports)
        await server.start()
        started.set()
        await ended.wait()
        await server.stop(None)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(PATIENCE_SECONDS)
    try:
        yield addresses
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


@contextmanager
def channel(address: str, client: Made | None = None) -> Iterator[grpc.Channel]:
    own = (None, None) if client is None else (client.key_pem, client.pem)
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(AUTHORITY.pem, *own)) as opened:
        yield opened


def ask(opened: grpc.Channel) -> str:
    answer: bytes = opened.unary_unary("/any/Method")(b"", timeout=PATIENCE_SECONDS)
    return answer.decode()


def shown(address: str) -> str:
    """The common name of the certificate that a new connection meets."""
    trusting = ssl.create_default_context(cadata=AUTHORITY.pem.decode())
    trusting.set_alpn_protocols(["h2"])
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as raw, trusting.wrap_socket(raw, server_hostname=host) as secure:
        (((_, name),),) = secure.getpeercert()["subject"]  # type: ignore[index,misc]
    return str(name)


def test_certificates_change_while_a_connection_lives_and_broken_files_keep_the_old(tmp_path: Path) -> None:
    first, second = made("first", AUTHORITY), made("second", AUTHORITY, days=30)
    files = first.write(tmp_path, "own")
    certificates = ServerCertificates(*files)
    with serving(Access(), certificates) as (address,), channel(address) as opened:
        assert ask(opened) == "UNAUTHENTICATED"
        assert shown(address) == "first"
        before = certificates.expires_seconds
        second.write(tmp_path, "own")
        assert shown(address) == "second"
        assert certificates.expires_seconds > before
        assert certificates.successful
        for breakage in (b"", first.pem):  # no certificate, and one of another key
            Path(files[0]).write_bytes(breakage)
            assert shown(address) == "second"
            assert not certificates.successful
        Path(files[1]).unlink()
        assert shown(address) == "second"
        assert ask(opened) == "UNAUTHENTICATED"  # over the connection of before
        first.write(tmp_path, "own")
        assert shown(address) == "first"
        assert certificates.successful


def test_a_client_certificate_is_a_principal_on_the_mutual_port_only(tmp_path: Path) -> None:
    own = made("service", AUTHORITY).write(tmp_path, "own")
    (tmp_path / "authorities.pem").write_bytes(AUTHORITY.pem)
    names = written(
        tmp_path / "access",
        entry("ada", certificates=["spiffe://lab/ada", "ada.lab"]),
        entry("bob", certificates=["bob"]),
    )
    plain, mutual = ServerCertificates(*own), ServerCertificates(*own, str(tmp_path / "authorities.pem"))
    with serving(Access(file=names), plain, mutual) as (open_port, mutual_port):
        clients = {
            "ada": made("anything", AUTHORITY, [SPIFFE]),
            "bob": made("bob", AUTHORITY, []),
            "UNAUTHENTICATED": made("bob", AUTHORITY, [x509.DNSName("eve.lab")]),  # alternative names count alone
        }
        for expected, client in clients.items():
            with channel(mutual_port, client) as opened:
                assert ask(opened) == expected
            with channel(open_port, client) as opened:
                assert ask(opened) == "UNAUTHENTICATED"
        for stranger in (None, made("ada", made("another authority"), [SPIFFE])):
            with channel(mutual_port, stranger) as opened, pytest.raises(grpc.RpcError) as caught:
                ask(opened)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_that_names_two_principals_is_of_neither() -> None:
    access = Access()
    access._table = lambda: _table(entry("ada", certificates=["ada.lab"]), entry("bob", certificates=["bob.lab"]))  # type: ignore[method-assign]
    with pytest.raises(ActstoreError, match="certificate is of nobody"):
        access.identify({}, {"x509_subject_alternative_name": [b"ada.lab", b"bob.lab"]})
    for names in ([b"ada.lab"], [b"ada.lab", b"other.lab"]):
        assert access.identify({}, {"x509_subject_alternative_name": names}).name == "ada"


def _table(*entries: dict[str, Any]) -> AccessTable:
    return read_access(json.dumps({"principals": entries}).encode())


def test_files_that_do_not_belong_together_do_not_start_a_service(tmp_path: Path) -> None:
    one, two = made("one"), made("two")
    for chain, key, authorities, said in (
        (one.pem, two.key_pem, None, "belongs to another"),
        (b"", one.key_pem, None, "certificate cannot be read"),
        (one.pem, b"", None, "key of the certificate"),
        (one.pem, one.key_pem, b"x", "authorities"),
    ):
        with pytest.raises(BadRequest, match=said):
            read_server_files(chain, key, authorities)


def test_the_workers_token_is_read_again_and_the_first_line_is_presented(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old\n")
    token = GatewayToken(None, str(file))
    token._file._check_seconds = 0.0  # type: ignore[union-attr]
    assert token.current() == "old"
    file.write_text("new\nold\n")
    assert token.current() == "new"
    for breakage in ("", "\n", "hid den\n", "one\ntwo\nthree\n"):
        file.write_text(breakage)
        assert token.current() == "new"
        assert not token.successful
    assert GatewayToken("set").current() == "set"
