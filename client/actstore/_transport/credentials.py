"""What a client shows of itself: a token, from a text, a function or a file; and a certificate, from two files.

Files are read again when they change. Nothing here prints or logs what it holds.
"""

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from actstore._errors import ActstoreError, Denied, refused

Token = str | Callable[[], str]
Stamp = tuple[tuple[int, int, int], ...]
NO_STAMP: Stamp = ()


class Credentials:
    """The token and the certificate of one connection.

    A token that is a function is called for each question, from the thread that asks it. A file is looked at for each
    question. If it cannot be read again, what was read before stays in use.
    """

    def __init__(self, token: Token | None = None, token_file: str | os.PathLike[str] | None = None) -> None:
        if token is not None and token_file is not None:
            raise refused("token and token_file are given", "token_file", str(token_file), "one of the two")
        self._token = _checked(token) if isinstance(token, str) else token
        if token_file is not None:
            self._token = TokenFile(Path(token_file).expanduser()).current

    def __bool__(self) -> bool:
        """Whether there is a token to send."""
        return bool(self._token)

    def token(self) -> str | None:
        """The token to send now. Errors: Denied if the function that gives it fails."""
        if not callable(self._token):
            return self._token or None
        try:
            found = self._token()
        except ActstoreError:
            raise
        except Exception as error:
            raise _no_token(f"it raised {type(error).__name__}") from error
        if not isinstance(found, str) or not found:
            raise _no_token(f"it returned {type(found).__name__ if found else 'nothing'}, and not a text")
        return _checked(found)


class TokenFile:
    """A file with a token and nothing else. Errors: BadRequest if it cannot be read at first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._stamp_now()
        self._token = self._read()

    def current(self) -> str:
        """The token that the file has now, or had when it could last be read."""
        try:
            stamp = self._stamp_now()
            if stamp != self._stamp:
                self._token, self._stamp = self._read(), stamp
        except ActstoreError:
            pass  # It is being replaced; the next question looks again.
        return self._token

    def _stamp_now(self) -> Stamp:
        return stamp_of("token_file", self._path)

    def _read(self) -> str:
        try:
            found = self._path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable("token_file", self._path, error) from None
        if not found:
            raise refused(f"{self._path} is empty", "token_file", str(self._path), "a file with a token")
        return _checked(found, "token_file")


@dataclass(frozen=True)
class ClientCertificate:
    """A certificate of the client with its chain, and its key, each as the path of a file in PEM."""

    certificate: Path
    key: Path = field(repr=False)

    def stamp(self) -> Stamp:
        """Differs once a file was replaced. Errors: BadRequest."""
        return stamp_of("client_certificate", self.certificate, self.key)

    def read(self) -> tuple[bytes, bytes]:
        """The certificate and the key. Errors: BadRequest if they cannot be read, or do not belong together."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")
            return self.certificate.read_bytes(), self.key.read_bytes()
        except (OSError, ssl.SSLError) as error:
            allowed = "a certificate in PEM and its own key, without a password"
            message = f"the client's certificate and key cannot be used: {getattr(error, 'reason', None) or error}"
            raise refused(message, "client_certificate", str(self.certificate), allowed) from None


def stamp_of(name: str, *paths: Path) -> Stamp:
    """Inode, time and size of each file: a mounted secret changes by a link to another folder. Errors: BadRequest."""
    return tuple(_described(name, path) for path in paths)


def _described(name: str, path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(name, path, error) from None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _checked(token: str, name: str = "token") -> str:
    """It travels in a header."""
    if not (token.isascii() and token.isprintable()):
        message = "the token contains a character that cannot be sent in a header, such as a line break"
        raise refused(message, name, None, "printable ASCII characters")
    return token


def _unreadable(name: str, path: Path, error: Exception) -> ActstoreError:
    said = getattr(error, "strerror", None) or type(error).__name__
    return refused(f"{path} cannot be read: {said}", name, str(path), "a file that you may read")


def _no_token(what: str) -> Denied:
    return Denied(
        f"the function that was given as token= gave no token: {what}",
        reason="UNAUTHENTICATED",
        field="token",
        allowed="a function that returns a token as text",
        next_step="mend the function, or renew what it takes its token from",
    )
