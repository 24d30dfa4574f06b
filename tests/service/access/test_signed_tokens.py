"""Signed tokens of an OIDC provider, over a real HTTP server that goes away and comes back."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from actstore_service.access import Access, Principal, Role
from actstore_service.access import signed_tokens as reading
from actstore_service.access.issuer_keys import IssuerKeys, check_url
from actstore_storage.errors import ActstoreError, BadRequest
from tests.service.access.issuer import PRIVATE, Issuer, access_file, claims, entry, token
from tests.waiting import PATIENCE_SECONDS

ADA = Principal("oidc:ada", frozenset({Role.READER, Role.WRITER}), ("ada-",))


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as found:
        yield found


@pytest.fixture
def open_access(issuer: Issuer, tmp_path: Path) -> Iterator[Callable[..., Access]]:
    opened = []

    def access(**changes: Any) -> Access:
        (tmp_path / "access.json").write_text(access_file(issuer.url, **changes))
        opened.append(Access(file=str(tmp_path / "access.json")))
        return opened[-1]

    yield access
    for one in opened:
        one.close()


def identified(access: Access, presented: str) -> Principal:
    return access.identify({"authorization": f"Bearer {presented}"}, {})


def refusal(access: Access, presented: str) -> ActstoreError:
    with pytest.raises(ActstoreError) as caught:
        identified(access, presented)
    assert presented not in f"{caught.value} {caught.value.details}"
    return caught.value


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_signed_token_is_a_principal_with_roles_and_runs_from_claims(open_access: Callable[..., Access]) -> None:
    assert identified(open_access(), token()) == ADA


def test_roles_come_from_the_configured_claim_and_values(open_access: Callable[..., Access]) -> None:
    access = open_access(
        roles_claim="realm_access.roles", roles={"admin": ["sre"]}, run_prefixes=["*"], run_prefixes_claim=None
    )
    presented = token(realm_access={"roles": ["sre", "reader"]})
    assert identified(access, presented) == Principal("oidc:ada", frozenset({Role.ADMIN}), ("",))
    assert identified(access, token(realm_access="reader")).roles == frozenset()


def test_claims_that_are_absent_or_empty_give_nothing(open_access: Callable[..., Access]) -> None:
    access = open_access()
    nothing = Principal("oidc:ada", frozenset(), ())
    assert identified(access, token(roles=None, runs=None)) == nothing
    assert identified(access, token(roles=[{"name": "reader"}, 3], runs=[""])) == nothing
    assert not nothing.may_use("ada-1")
    assert identified(access, token(roles="reader other", runs="ada- bob-")).run_prefixes == ("ada-", "bob-")


ANOTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC_PEM = PRIVATE.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


@pytest.mark.parametrize(
    "made",
    [
        lambda: token(key=ANOTHER),
        lambda: token(algorithm="RS512"),  # the key says RS256
        lambda: jwt.encode(claims(), None, "none", headers={"kid": "first"}),
        lambda: _signed_with_the_public_key(),
        lambda: token(kid=None),
        lambda: token(iss="https://login.other"),
        lambda: token(aud="another service"),
        lambda: token(sub="a b\n"),
        lambda: token(sub="a" * 129),
        lambda: token(iat=int(time.time()) + 3600),
        lambda: token(nbf=int(time.time()) + 3600),
        *[lambda name=name: token(**{name: None}) for name in ("exp", "iat", "iss", "aud", "sub")],
        lambda: "a.b.c",
        *[lambda head=head: _with_head(head) for head in (b"[" * 3000, b'{"kid":["first"]}', b"\xff", b"3", b"")],
        lambda: f"{token()[:-4]}AAAA",
        lambda: token(padding="x" * 9000),
    ],
)
def test_a_token_that_is_not_whole_and_for_this_service_is_refused(
    made: Callable[[], str], open_access: Callable[..., Access]
) -> None:
    assert (
        refusal(open_access(), made()).message == "this service requires a token, and the call had none or a wrong one"
    )


def _with_head(head: bytes) -> str:
    return ".".join([jwt.utils.base64url_encode(head).decode(), *token().split(".")[1:]])


def _signed_with_the_public_key() -> str:
    """The classic forgery: the public key as the secret of an HMAC, which PyJWT itself refuses to make."""
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    body = token().split(".")[1]
    forged = jwt.utils.base64url_encode(b'{"alg":"HS256","kid":"first","typ":"JWT"}').decode()
    signature = algorithm.sign(f"{forged}.{body}".encode(), PUBLIC_PEM)
    return f"{forged}.{body}.{jwt.utils.base64url_encode(signature).decode()}"


def test_an_expired_token_is_refused_after_the_leeway(open_access: Callable[..., Access]) -> None:
    access, now = open_access(), int(time.time())
    assert identified(access, token(exp=now - 20)) == ADA
    assert refusal(access, token(exp=now - 40)).message == "the token has expired"


def test_a_caller_that_is_remembered_expires_too(open_access: Callable[..., Access], issuer: Issuer) -> None:
    access, now = open_access(), time.time()
    presented = token(exp=int(now) + 60)
    signed = access._signed
    assert signed is not None
    assert identified(access, presented) == identified(access, presented) == ADA
    assert len(signed._cached) == 1
    signed._now = lambda: now + 60 + reading.LEEWAY_SECONDS
    assert signed._remembered(next(iter(signed._cached))) is None
    assert len(signed._cached) == 0


def test_what_is_remembered_is_bounded(open_access: Callable[..., Access], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CACHED_MAX", 2)
    access = open_access()
    for name in "abc":
        identified(access, token(sub=name))
    assert access._signed is not None
    assert len(access._signed._cached) == 2


def test_a_provider_that_dies_leaves_its_keys_in_use(issuer: Issuer) -> None:
    keys = IssuerKeys(issuer.url, refresh_seconds=0.05, retry_seconds=0.05)
    keys.wait()
    issuer.stop()
    until(lambda: not keys.successful)
    assert set(keys.keys or ()) == {"first"}
    issuer.entries = [entry("second")]
    issuer.start()
    until(lambda: set(keys.keys or ()) == {"second"})
    until(lambda: keys.successful)
    keys.close()
    keys._thread.join(PATIENCE_SECONDS)
    assert not keys._thread.is_alive()


def test_an_unknown_key_is_asked_for_but_not_for_each_token(issuer: Issuer, tmp_path: Path) -> None:
    keys = IssuerKeys(issuer.url, retry_seconds=0.3)
    keys.wait()
    issuer.entries.append(entry("second", ANOTHER))
    for _ in range(50):
        keys.ask()
    until(lambda: "second" in (keys.keys or ()))
    assert len(issuer.requests) == 2
    keys.close()


def test_a_key_that_is_withdrawn_signs_for_nobody(open_access: Callable[..., Access], issuer: Issuer) -> None:
    access, presented = open_access(), token()
    assert identified(access, presented) == ADA
    assert access._signed is not None
    issuer.entries = [entry("second", ANOTHER)]
    access._signed.keys._fetch()
    refusal(access, presented)
    assert identified(access, token(kid="second", key=ANOTHER)) == ADA


def test_before_the_first_keys_the_caller_is_told_to_try_again(
    open_access: Callable[..., Access], issuer: Issuer
) -> None:
    issuer.stop()
    access = open_access()
    assert refusal(access, token()).reason == "ISSUER_UNAVAILABLE"
    assert access.reloads() == {"access": True, "issuer_keys": False}
    issuer.start()
    assert access._signed is not None
    access._signed.keys._fetch()
    assert identified(access, token()) == ADA


@pytest.mark.parametrize(
    "answer",
    [
        (302, {"Location": "/elsewhere"}, b""),
        (200, {}, b"{}"),
        (200, {}, b"[]"),
        (200, {}, b'{"keys": [3, {"kty": "oct", "k": "AAAA", "kid": "first"}]}'),
        (200, {}, b'{"keys": "' + b"x" * (1 << 20) + b'"}'),
        (500, {}, b""),
    ],
)
def test_what_are_no_keys_is_not_taken(answer: Any, issuer: Issuer) -> None:
    issuer.answer = answer
    keys = IssuerKeys(issuer.url)
    keys.wait(PATIENCE_SECONDS)
    assert (keys.keys, keys.successful) == (None, False)
    assert issuer.requests == ["/keys"]
    keys.close()


def test_keys_of_other_kinds_are_left_out(issuer: Issuer) -> None:
    issuer.entries += [entry("enc", use="enc"), {"kty": "oct", "k": "AAAA", "kid": "shared"}, {"kty": "new"}]
    keys = IssuerKeys(issuer.url)
    keys.wait()
    assert set(keys.keys or ()) == {"first"}
    keys.close()


@pytest.mark.parametrize("url", ["http://login.lab/keys", "file:///etc/passwd", "https://", "https://me:pw@lab/keys"])
def test_keys_come_from_where_nobody_can_forge_them(url: str) -> None:
    with pytest.raises(BadRequest, match="https"):
        check_url(url)
    check_url("https://login.lab/keys")


def test_another_issuer_in_the_file_takes_the_place_of_the_first(
    open_access: Callable[..., Access], issuer: Issuer, tmp_path: Path
) -> None:
    access = open_access()
    assert access._file is not None
    access._file._check_seconds = 0.0
    assert identified(access, token()) == ADA
    before = access._signed
    (tmp_path / "access.json").write_text(access_file(issuer.url, audience="another service"))
    with pytest.raises(ActstoreError):
        identified(access, token())
    assert before is not None
    before.keys._thread.join(PATIENCE_SECONDS)
    assert not before.keys._thread.is_alive()
    assert access._signed is not None
    access._signed.keys.wait()
    assert identified(access, token(aud="another service")) == ADA
    assert threading.active_count() < 50
