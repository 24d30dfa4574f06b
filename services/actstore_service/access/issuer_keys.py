"""The public keys of an OIDC provider, fetched in a thread of their own, so that no call waits for the provider."""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import jwt

from actstore_service.settings import is_loopback
from actstore_storage.errors import BadRequest

LOG = logging.getLogger(__name__)
FIELD = "oidc.keys_url"
FETCH_SECONDS = 3.0
REFRESH_SECONDS = 300.0
# After a failed attempt, or if a token names a key that is not known.
RETRY_SECONDS = 30.0
KEYS_BYTES_MAX = 1 << 20
# A secret that both sides share would let whoever verifies tokens make them.
ASYMMETRIC = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
)


class IssuerKeys:
    """The last set that could be fetched stays in use, however long the provider is away."""

    def __init__(
        self,
        url: str,
        *,
        refresh_seconds: float = REFRESH_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_url(url)
        self._url, self._clock = url, clock
        self._refresh_seconds, self._retry_seconds = refresh_seconds, retry_seconds
        self._keys: Mapping[str, jwt.PyJWK] | None = None
        self._changed = threading.Condition()
        self._asked = self._closed = False
        self._successful = True
        self._tried = clock()
        self._thread = threading.Thread(target=self._run, name="issuer-keys", daemon=True)
        self._thread.start()

    @property
    def successful(self) -> bool:
        """Whether the last attempt to fetch the keys succeeded."""
        return self._successful

    @property
    def keys(self) -> Mapping[str, jwt.PyJWK] | None:
        """The keys by their ids; None until they could be fetched for the first time."""
        return self._keys

    def ask(self) -> None:
        """Has the keys fetched again, because one is missing; at most once in RETRY_SECONDS."""
        with self._changed:
            self._asked = True
            self._changed.notify_all()

    def wait(self, seconds: float = FETCH_SECONDS) -> None:
        """Waits for the first keys, for at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._keys is not None or self._closed or not self._successful, seconds)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while not self._closed:
            self._fetch()
            with self._changed:
                while not self._closed and (pause := self._due() - self._clock()) > 0:
                    self._changed.wait(pause)

    def _due(self) -> float:
        soon = self._asked or not self._successful
        return self._tried + (self._retry_seconds if soon else self._refresh_seconds)

    def _fetch(self) -> None:
        self._tried, self._asked = self._clock(), False
        try:
            keys = read_keys(_fetched(self._url))
        except (URLError, OSError, ValueError) as error:
            if self._successful:
                LOG.error("keys of %s: %s; those of before stay in use", self._url, type(error).__name__)
            keys = None
        with self._changed:
            self._successful = keys is not None
            self._keys = keys or self._keys
            self._changed.notify_all()


def check_url(url: str) -> None:
    """Errors: BadRequest for a URL whose answer somebody on the way could forge."""
    parts = urlsplit(url)
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.netloc))
    if not is_safe or not parts.hostname or parts.username is not None:
        raise BadRequest("the keys of an issuer need a URL with https", field=FIELD, allowed="https://host/path")


def read_keys(body: bytes) -> Mapping[str, jwt.PyJWK]:
    """The keys with which signatures can be checked, by id. Errors: ValueError if there are none."""
    found: Any = json.loads(body)
    entries = found.get("keys") if isinstance(found, dict) else None
    keys = dict(filter(None, map(_named_key, entries if isinstance(entries, list) else [])))
    if not keys:
        raise ValueError("no key that can be used")
    return keys


def _named_key(entry: Any) -> tuple[str, jwt.PyJWK] | None:
    """None for keys of other kinds, which a provider may have beside those for signatures."""
    try:
        key = jwt.PyJWK(entry)
    except (jwt.PyJWTError, AttributeError, TypeError, ValueError):
        return None
    is_usable = key.algorithm_name in ASYMMETRIC and key.public_key_use in (None, "sig")
    return (key.key_id, key) if is_usable and key.key_id else None


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """An answer from elsewhere than the configured URL is refused."""


def _fetched(url: str) -> bytes:
    request = Request(url, headers={"Accept": "application/json"})  # noqa: S310 - checked by check_url
    with build_opener(_NoRedirect).open(request, timeout=FETCH_SECONDS) as answer:
        body: bytes = answer.read(KEYS_BYTES_MAX + 1)
    if len(body) > KEYS_BYTES_MAX:
        raise ValueError("larger than keys are")
    return body
