"""Access to the service: who a caller is, by token, signed token or certificate, and what that caller may do."""

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actstore_api.records.terms import Failure
from actstore_api.verbs import Verb
from actstore_service.access import permissions
from actstore_service.access.access_file import FIELD, AccessTable, IssuerEntry, read_access
from actstore_service.access.issuer_keys import IssuerKeys
from actstore_service.access.principals import EVERY_ROLE, EVERY_RUN, Principal, Role, refused
from actstore_service.access.reloading import Reloaded
from actstore_service.access.signed_tokens import SignedTokens
from actstore_service.access.tokens import PREFIX, is_whole, sha256_of

TOKEN_BYTES_MAX = 8 * 1024
BEARER = "Bearer "
# Names of a verified client certificate, as gRPC's auth_context has them. Without alternative names, the common name.
ALTERNATIVE_NAMES, COMMON_NAME = "x509_subject_alternative_name", "x509_common_name"
EMPTY = AccessTable({}, {}, None)


class Access:
    """Everything here is quick and never waits, so that it can run in an event loop.

    Args:
        token: A single token, whose caller has every role on every run.
        file: The path of an access file.
        anonymous: Roles of callers without credentials; none: they are refused.
    """

    def __init__(
        self,
        token: str | None = None,
        file: str | Path | None = None,
        anonymous: frozenset[Role] = frozenset(),
    ) -> None:
        self._file = None if file is None else Reloaded(FIELD, [file], read_access)
        self._shared = {} if token is None else {sha256_of(token): (_shared(), None)}
        self._anonymous = Principal("anonymous", anonymous, EVERY_RUN) if anonymous else None
        self._lock = threading.Lock()
        self._signed: SignedTokens | None = None
        signed = self._follow(self._table())
        if signed is not None:
            signed.keys.wait()

    def identify(self, headers: Mapping[str, str], certificate: Mapping[str, Sequence[bytes]]) -> Principal:
        """The caller of a call, from its headers and gRPC's `auth_context()`. Errors: UNAUTHENTICATED;
        ISSUER_UNAVAILABLE.
        """
        table = self._table()
        names = [*certificate.get(ALTERNATIVE_NAMES, ())] or [*certificate.get(COMMON_NAME, ())]
        if names:
            return _certified(table, names)
        presented = headers.get("authorization")
        if presented is None and self._anonymous is not None:
            return self._anonymous
        return self._bearer(table, presented or "")

    def permit(self, principal: Principal, verb: Verb, question: object) -> None:
        """Errors: PERMISSION_DENIED, with the role or the run that is missing."""
        permissions.permit(principal, verb.name, question)

    def visible(self, principal: Principal, verb: Verb, answer: Any) -> Any:
        """An answer without what the principal may not see."""
        return permissions.visible(principal, verb.name, answer)

    def visible_failure(self, principal: Principal, failure: Failure) -> Failure:
        """An error without names of runs that the principal may not use."""
        return permissions.visible_failure(principal, failure)

    def reloads(self) -> Mapping[str, bool]:
        """Whether each source of this room could be read when it last changed, for a metric."""
        found = {} if self._file is None else {"access": self._file.successful}
        signed = self._signed
        return found if signed is None else {**found, "issuer_keys": signed.keys.successful}

    def close(self) -> None:
        """Ends the thread that fetches keys."""
        if self._signed is not None:
            self._signed.keys.close()

    def _bearer(self, table: AccessTable, presented: str) -> Principal:
        if len(presented) > TOKEN_BYTES_MAX or not presented.startswith(BEARER):
            raise refused("wrong")
        token = presented.removeprefix(BEARER)
        sha256 = sha256_of(token)
        found = self._shared.get(sha256) or table.tokens.get(sha256)
        if found is not None:
            return _unexpired(*found)
        signed = self._follow(table)
        if signed is not None and token.count(".") == 2:
            return signed.principal(token)
        raise refused("cut" if token.startswith(PREFIX) and not is_whole(token) else "wrong")

    def _table(self) -> AccessTable:
        return EMPTY if self._file is None else self._file.current()

    def _follow(self, table: AccessTable) -> SignedTokens | None:
        """Who reads signed tokens by the file's present issuer: another one if the file changed it."""
        with self._lock:
            if (self._signed.issuer if self._signed else None) != table.issuer:
                if self._signed is not None:
                    self._signed.keys.close()
                self._signed = None if table.issuer is None else _signed_by(table.issuer)
            return self._signed


def _signed_by(issuer: IssuerEntry) -> SignedTokens:
    return SignedTokens(issuer, IssuerKeys(issuer.keys_url))


def _shared() -> Principal:
    return Principal("shared", EVERY_ROLE, EVERY_RUN)


def _unexpired(caller: Principal, expires: datetime | None) -> Principal:
    if expires is not None and expires <= datetime.now(UTC):
        raise refused("expired")
    return caller


def _certified(table: AccessTable, names: Sequence[bytes]) -> Principal:
    """The caller of a verified certificate. One that names two principals is of neither."""
    known = {table.certificates.get(name.decode(errors="replace")) for name in names} - {None}
    found = next(iter(known), None)
    if len(known) != 1 or found is None:
        raise refused("certificate")
    return found
