"""Reads signed tokens (JWTs) of an OIDC provider: who the caller is, its roles and its runs."""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jwt

from actstore_service.access.access_file import IssuerEntry
from actstore_service.access.issuer_keys import IssuerKeys
from actstore_service.access.principals import Principal, Role, prefixes_of, refused
from actstore_storage.errors import ActstoreError

LEEWAY_SECONDS = 30
REQUIRED = ["exp", "iat", "iss", "aud", "sub"]
CACHED_MAX = 4096
SUBJECT_CHARACTERS_MAX = 128
PREFIX = "oidc:"


class SignedTokens:
    """Checks a token's signature once, and remembers its caller until it expires."""

    def __init__(self, issuer: IssuerEntry, keys: IssuerKeys, now: Callable[[], float] = time.time) -> None:
        self.issuer, self.keys = issuer, keys
        self._now = now
        self._lock = threading.Lock()
        self._cached: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self._cached_for: object = None

    def principal(self, token: str) -> Principal:
        """Errors: UNAUTHENTICATED; ISSUER_UNAVAILABLE while the keys have never been fetched."""
        digest = hashlib.sha256(token.encode()).digest()
        found = self._remembered(digest)
        if found is not None:
            return found
        claims = self._claims(token)
        caller = _principal(self.issuer, claims)
        self._remember(digest, caller, float(claims["exp"]) + LEEWAY_SECONDS)
        return caller

    def _claims(self, token: str) -> dict[str, Any]:
        key = self._key(token)
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],  # the key's own, never the token's
                audience=self.issuer.audience,
                issuer=self.issuer.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": REQUIRED},
            )
        except jwt.ExpiredSignatureError:
            raise refused("expired") from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise refused("wrong") from None

    def _key(self, token: str) -> jwt.PyJWK:
        known = self.keys.keys
        if known is None:
            message = "the keys that tokens are checked with could not be fetched yet; try again later"
            raise ActstoreError(message, reason="ISSUER_UNAVAILABLE")
        try:
            name = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, ValueError):
            raise refused("wrong") from None
        if not isinstance(name, str) or name not in known:
            self.keys.ask()
            raise refused("wrong")
        return known[name]

    def _remembered(self, digest: bytes) -> Principal | None:
        with self._lock:
            if self._cached_for is not self.keys.keys:  # a key that was withdrawn signs for nobody
                self._cached.clear()
                self._cached_for = self.keys.keys
            caller, until = self._cached.get(digest, (None, 0.0))
            if caller is None or until <= self._now():
                self._cached.pop(digest, None)
                return None
            self._cached.move_to_end(digest)
            return caller

    def _remember(self, digest: bytes, caller: Principal, until: float) -> None:
        with self._lock:
            self._cached[digest] = (caller, until)
            while len(self._cached) > CACHED_MAX:
                self._cached.popitem(last=False)


def _principal(issuer: IssuerEntry, claims: Mapping[str, Any]) -> Principal:
    """A subject becomes part of a header and of logs, so it has to be short and printable."""
    subject = claims["sub"]
    if not (subject.isascii() and subject.isprintable() and 0 < len(subject) <= SUBJECT_CHARACTERS_MAX):
        raise refused("wrong")
    return Principal(PREFIX + subject, _roles(issuer, claims), _prefixes(issuer, claims))


def _roles(issuer: IssuerEntry, claims: Mapping[str, Any]) -> frozenset[Role]:
    held = set(_words(claims, issuer.roles_claim))
    giving = issuer.roles or {role: [role.value] for role in Role}
    return frozenset(role for role, values in giving.items() if held & set(values))


def _prefixes(issuer: IssuerEntry, claims: Mapping[str, Any]) -> tuple[str, ...]:
    if issuer.run_prefixes_claim is None:
        return prefixes_of(issuer.run_prefixes or [])
    return prefixes_of(_words(claims, issuer.run_prefixes_claim))


def _words(claims: Mapping[str, Any], path: str) -> list[str]:
    """The words of a claim, which is a list, or a text of words as `scope` is; none for anything else."""
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    words = found.split() if isinstance(found, str) else found
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []
