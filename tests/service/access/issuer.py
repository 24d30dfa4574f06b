"""An OIDC provider for tests: a real HTTP server with keys that goes away and comes back, and tokens that it signs."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

ISSUER, AUDIENCE = "https://login.lab", "actstore"
PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Issuer:
    """Serves `entries` as its keys; `answer` instead, if a test sets it: status, headers, body."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = [entry("first")]
        self.answer: tuple[int, dict[str, str], bytes] | None = None
        self.requests: list[str] = []
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/keys"

    def start(self) -> None:
        """Listens, again on the port of before."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> "Issuer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests.append(self.path)
                body = json.dumps({"keys": issuer.entries}).encode()
                status, headers, body = issuer.answer or (200, {}, body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def entry(kid: str, key: Any = PRIVATE, **changes: Any) -> dict[str, Any]:
    """A public key as a provider lists it."""
    return {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "alg": "RS256", "use": "sig"} | changes


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a valid token; a change to None leaves one out."""
    now = int(time.time())
    found = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 600,
        "roles": ["reader", "writer"], "runs": ["ada-"],
    } | changes  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def token(kid: str | None = "first", key: Any = PRIVATE, algorithm: str = "RS256", **changes: Any) -> str:
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(**changes), key, algorithm, headers=headers)


def access_file(url: str, **changes: Any) -> str:
    """The part of an access file for this provider."""
    oidc = {
        "issuer": ISSUER, "audience": AUDIENCE, "keys_url": url, "run_prefixes_claim": "runs"
    } | changes  # fmt: skip
    return json.dumps({"oidc": {name: value for name, value in oidc.items() if value is not None}})
