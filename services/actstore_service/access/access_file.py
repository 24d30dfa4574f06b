"""The access file: principals with the hashes of their tokens and their certificates, and the issuer of JWTs.

TOML, or JSON if the first character is `{`. It is read strictly: an unknown key or a wrong type refuses the whole file.
The file holds no secret.
"""

import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from actstore_service.access.principals import Principal, Role, prefixes_of
from actstore_storage.errors import BadRequest

FIELD = "ACTSTORE_ACCESS_FILE"
# With a second one, a principal's token is changed without a moment at which none is valid.
TOKENS_MAX = 2
# Names that the service itself gives.
RESERVED = frozenset({"anonymous", "shared"})

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$")]
_Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
_Prefix = Annotated[str, msgspec.Meta(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9._-]{0,127})$")]
_Prefixes = Annotated[list[_Prefix], msgspec.Meta(min_length=1)]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class TokenEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token: its SHA-256 in hexadecimal, and when it expires, with a time zone."""

    sha256: _Sha256
    expires: _Time


class PrincipalEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A caller. `run_prefixes`: beginnings of names of runs, `*` for every run. `certificates`: alternative names of
    client certificates, or common names of those without alternative names.
    """

    name: _Name
    roles: Annotated[list[Role], msgspec.Meta(min_length=1)]
    run_prefixes: _Prefixes
    tokens: list[TokenEntry] = []
    certificates: list[_Text] = []


class IssuerEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An OIDC provider, whose signed tokens are accepted.

    - `issuer`, `audience`: what `iss` and `aud` of a token must be.
    - `keys_url`: where its public keys (JWKS) are fetched. https, or http on this machine.
    - `roles_claim`: the claim with the caller's groups, as a path: `realm_access.roles`.
    - `roles`: for each role, values of that claim that give it. Without it, a role's own name does.
    - `run_prefixes_claim`: the claim with beginnings of names of runs; or `run_prefixes` for all tokens alike.
    """

    issuer: _Text
    audience: _Text
    keys_url: _Text
    roles_claim: _Text = "roles"
    roles: dict[Role, list[_Text]] = {}
    run_prefixes_claim: _Text | None = None
    run_prefixes: _Prefixes | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    principals: list[PrincipalEntry] = []
    oidc: IssuerEntry | None = None


@dataclass(frozen=True)
class AccessTable:
    """What the file says: principals by the SHA-256 of a token, with its expiry, and by the name of a certificate."""

    tokens: Mapping[str, tuple[Principal, datetime | None]]
    certificates: Mapping[str, Principal]
    issuer: IssuerEntry | None


def read_access(content: bytes) -> AccessTable:
    """Errors: BadRequest that says where the file is wrong, without its values."""
    found = _parsed(content)
    _check(found)
    known = [(entry, _principal(entry)) for entry in found.principals]
    return AccessTable(
        {token.sha256: (caller, token.expires) for entry, caller in known for token in entry.tokens},
        {name: caller for entry, caller in known for name in entry.certificates},
        found.oidc,
    )


def _parsed(content: bytes) -> _File:
    try:
        text = content.decode()
        plain: Any = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
        return msgspec.convert(plain, _File)
    except (UnicodeDecodeError, ValueError) as error:  # those of json, tomllib and msgspec are ValueErrors
        # A parser may quote the line, and with it a token that somebody wrote there; msgspec names only the place.
        where = str(error) if isinstance(error, msgspec.ValidationError) else type(error).__name__
        raise _wrong(f"the access file cannot be read: {where}", "TOML or JSON of the documented form") from None


def _principal(entry: PrincipalEntry) -> Principal:
    return Principal(entry.name, frozenset(entry.roles), prefixes_of(entry.run_prefixes))


def _check(found: _File) -> None:
    names = [entry.name for entry in found.principals]
    for repeated in _repeated(names):
        raise _wrong(f"two principals are named {repeated}", "one entry for each name")
    for name in RESERVED & set(names):
        raise _wrong(f"no principal may be named {name}", "another name")
    for repeated in _repeated(token.sha256 for entry in found.principals for token in entry.tokens):
        raise _wrong(f"two tokens have the hash {repeated[:8]}...", "a token of its own for each principal")
    for repeated in _repeated(name for entry in found.principals for name in entry.certificates):
        raise _wrong(f"two principals have the certificate {repeated}", "one principal for each certificate")
    for entry in found.principals:
        _check_tokens(entry)
    if found.oidc is not None:
        _check_issuer(found.oidc)


def _check_tokens(entry: PrincipalEntry) -> None:
    now = datetime.now(UTC)
    valid = sum(token.expires > now for token in entry.tokens)
    if valid > TOKENS_MAX:
        raise _wrong(f"{entry.name} has {valid} valid tokens", f"at most {TOKENS_MAX}: remove the oldest")


def _check_issuer(entry: IssuerEntry) -> None:
    if (entry.run_prefixes is None) == (entry.run_prefixes_claim is None):
        raise _wrong("oidc needs either run_prefixes or run_prefixes_claim", "one of the two")


def _repeated(words: Iterable[str]) -> list[str]:
    return [word for word, count in Counter(words).items() if count > 1]


def _wrong(message: str, allowed: str) -> BadRequest:
    return BadRequest(message, field=FIELD, allowed=allowed)
