"""What a client shows of itself: tokens from files and functions, and certificates, renewed while a lab is open."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import actstore
from actstore import BadRequest, Denied
from actstore._cli.main import main
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket.opening import open_bucket
from tests.service.access.made_certificates import Made, made
from tests.service.access.test_access_file import entry, written

AUTHORITY = made("an authority")


@pytest.fixture(scope="module")
def service(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Knows the tokens `first` and `second`, and the certificates of ada, who may read, and of bob, who may not."""
    folder = tmp_path_factory.mktemp("access")
    certificate, key = map(Path, made("service", AUTHORITY).write(folder, "own"))
    (folder / "authorities").write_bytes(AUTHORITY.pem)
    people = [
        entry("ada", "first", "second", run_prefixes=["*"], certificates=["ada"]),
        entry("bob", roles=["writer"], certificates=["bob"]),
    ]
    started = Service(
        open_bucket(str(store)),
        Settings(
            listen="127.0.0.1:0",
            metrics_listen="127.0.0.1:0",
            mutual_tls_listen="127.0.0.1:0",
            access_file=Path(written(folder / "access", *people)),
            tls_certificate=certificate,
            tls_key=key,
            client_authorities=folder / "authorities",
        ),
    )
    yield started
    started.stop()


@pytest.fixture
def connect(service: Service) -> Callable[..., actstore.Lab]:
    return lambda **how: actstore.connect(service.address, root_certificates=AUTHORITY.pem, **how)


def refused(ask: Callable[[], object], message: str) -> actstore.ActstoreError:
    with pytest.raises(actstore.ActstoreError, match=message) as caught:
        ask()
    return caught.value


def test_a_token_file_is_read_again_when_it_changes(connect: Callable[..., actstore.Lab], tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    with connect(token_file=file) as lab:
        assert len(lab.runs())
        file.write_text("of nobody\n")
        assert refused(lab.runs, "none or a wrong one").reason == "UNAUTHENTICATED"
        for now in ("second\n", "", "sec\nond"):  # what cannot be a token is on its way to become one
            file.write_text(now)
            assert len(lab.runs())
        file.unlink()
        assert len(lab.runs())


@pytest.mark.parametrize("content", ["", "two\nlines", "caf\xe9", None])
def test_a_token_file_that_has_no_token_is_refused_at_once(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content, "latin-1")
    with pytest.raises(BadRequest) as caught:
        actstore.connect("127.0.0.1:1", token_file=tmp_path / "token")
    assert caught.value.field == "token_file"
    assert content is None or not content or content not in str(caught.value)


def test_a_function_is_asked_for_a_token_at_each_question(connect: Callable[..., actstore.Lab]) -> None:
    given = iter(["first", "second", "of nobody"])
    with connect(token=lambda: next(given)) as lab:
        assert len(lab.runs()) == len(lab.runs())
        assert refused(lab.runs, "none or a wrong one").reason == "UNAUTHENTICATED"
        found = refused(lab.runs, "it raised StopIteration")
        assert (type(found), found.field) == (Denied, "token")


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (lambda: "", "it returned nothing"),
        (lambda: None, "it returned nothing"),
        (lambda: b"secret", "it returned bytes"),
        (lambda: "sec\nret", "character that cannot be sent"),
        (lambda: {}["secret"], "it raised KeyError"),
    ],
)
def test_a_function_that_gives_no_token_says_so_and_shows_none(
    token: Any, said: str, connect: Callable[..., actstore.Lab], caplog: pytest.LogCaptureFixture
) -> None:
    with connect(token=token) as lab:
        assert "secret" not in str(refused(lab.runs, said))
    assert caplog.text == ""


def test_a_function_works_in_asyncio(service: Service) -> None:
    async def ask() -> int:
        async with actstore.connect_async(
            service.address, token=lambda: "first", root_certificates=AUTHORITY.pem
        ) as lab:
            return len(await lab.runs())

    assert asyncio.run(ask())


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"token": 3}, "token"),
        ({"token": "a", "token_file": "b"}, "token_file"),
        ({"client_certificate": "a"}, "client_key"),
        ({"client_key": "a"}, "client_certificate"),
        ({"client_certificate": "/nowhere.pem", "client_key": "/nowhere.key"}, "client_certificate"),
        ({"client_certificate": "a", "client_key": "b", "tls": False}, "client_certificate"),
    ],
)
def test_credentials_that_contradict_each_other_are_refused(how: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        actstore.connect("127.0.0.1:1", **how)
    assert caught.value.field == field


def test_a_token_from_a_function_does_not_travel_in_the_clear_either() -> None:
    with pytest.raises(Denied, match="in the clear"):
        actstore.connect("lab.example:7433", token=lambda: "secret")
    with pytest.raises(Denied, match="in the clear"):
        actstore.connect("ipv4:127.0.0.1:1,192.0.2.1:1", token="secret")


def test_a_client_certificate_is_read_again_when_it_changes(service: Service, tmp_path: Path) -> None:
    def lay(person: Made) -> tuple[str, str]:
        return person.write(tmp_path, "mine")

    ada, bob = made("ada", AUTHORITY, []), made("bob", AUTHORITY, [])
    certificate, key = lay(ada)
    how = {"client_certificate": certificate, "client_key": key, "root_certificates": AUTHORITY.pem}
    assert service.mutual_tls_address is not None
    with actstore.connect(service.mutual_tls_address, **how) as lab:
        assert len(lab.runs())
        reading, before = lab._backend.listen(_rows()), lab._backend._channels._channel  # type: ignore[attr-defined]
        next(reading)
        lay(bob)
        found = refused(lab.runs, "needs the role reader, which bob does not have")
        assert (type(found), found.reason) == (Denied, "PERMISSION_DENIED")
        assert "for the role" in found.next_step
        assert list(reading) is not None  # over the connection of before, which is closed then
        with pytest.raises(ValueError, match="closed"):
            before.unary_unary("/any/Method")(b"")
        Path(key).write_bytes(ada.key_pem)  # half replaced
        refused(lab.runs, "bob")
        lay(ada)
        assert len(lab.runs())


def _rows() -> Any:
    from actstore_api.records.activation import ReadTokens

    return ReadTokens("planted")


def test_the_environment_and_the_command_name_the_files(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("first")
    (tmp_path / "authority.pem").write_bytes(AUTHORITY.pem)
    monkeypatch.setenv("ACTSTORE_ADDRESS", service.address)
    trusting = ["--root-certificates", str(tmp_path / "authority.pem")]
    with redirect_stdout(StringIO()):
        assert main(["runs", "--token-file", str(tmp_path / "token"), *trusting]) == 0
        assert main(["runs", "--token-file", str(tmp_path / "token"), "--no-tls"]) == 1
        monkeypatch.setenv("ACTSTORE_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("ACTSTORE_ROOT_CERTIFICATES", str(tmp_path / "authority.pem"))
        assert main(["runs"]) == 0
        certificate, key = made("ada", AUTHORITY, []).write(tmp_path, "mine")
        monkeypatch.delenv("ACTSTORE_TOKEN_FILE")
        monkeypatch.setenv("ACTSTORE_ADDRESS", str(service.mutual_tls_address))
        assert main(["runs", "--client-certificate", certificate, "--client-key", key]) == 0
        monkeypatch.setenv("ACTSTORE_CLIENT_CERTIFICATE", certificate)
        monkeypatch.setenv("ACTSTORE_CLIENT_KEY", key)
        assert main(["runs"]) == 0


def test_nothing_of_a_lab_shows_its_token(tmp_path: Path) -> None:
    lab = actstore.connect("127.0.0.1:1", token="secret")
    for found in (lab, lab._backend, lab._backend._credentials):  # type: ignore[attr-defined]
        assert "secret" not in repr(found)
    lab.close()
