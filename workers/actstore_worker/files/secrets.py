"""Secrets in files that only their owner can read, and that are read again when they change."""

import hmac
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from actstore_worker.errors import SettingsError
from actstore_worker.files.stamps import stamp_of

_log = logging.getLogger(__name__)
# The variable of the file with the gateway's token.
TOKEN_FILE = "ACTSTORE_GATEWAY_TOKEN_FILE"  # noqa: S105  a name
NO_TOKEN = "the gateway's token is missing or wrong"  # noqa: S105  what its caller is told
# While a token is replaced, callers may still present the previous one.
_TOKENS_MAX = 2


class TokenFile:
    """The tokens of a file: the current one, and below it the previous one while callers still present that.

    The file is read again when it changes. If it cannot be read then, the tokens of before stay valid.
    """

    def __init__(self, path: Path) -> None:
        """Errors: SettingsError if the file cannot be read, or contains no token."""
        self._path, self._seen = path, stamp_of([path])
        self._tokens = read_tokens(path)

    def __call__(self) -> tuple[str, ...]:
        try:
            if (stamp := stamp_of([self._path])) != self._seen:
                self._seen = stamp
                self._tokens = read_tokens(self._path)
        except (SettingsError, OSError) as error:
            _log.warning("the tokens of before stay valid: %s", error)
        return self._tokens


def read_tokens(path: Path) -> tuple[str, ...]:
    """Errors: SettingsError if the file cannot be read, or does not contain one or two tokens."""
    try:
        tokens = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(path, f"which cannot be read: {type(error).__name__}") from None
    if not 1 <= len(tokens) <= _TOKENS_MAX:
        raise _refused(
            path,
            f"which has {len(tokens)} lines with a token; it takes one with the current token, and one below it with "
            "the previous token while services still present that",
        )
    for token in tokens:
        check_secret(token, f"a token in {path}")
    return tokens


def has_token(headers: Iterable[tuple[str, Any]], tokens: Iterable[str]) -> bool:
    """Whether a call has one of the tokens. If a header occurs twice only the first counts. Comparing takes the same
    time wherever the first difference is.
    """
    sent = next((value for key, value in headers if key == "authorization"), "")
    matches = [hmac.compare_digest(str(sent).encode(), f"Bearer {token}".encode()) for token in tokens]
    return any(matches)


def check_secret(secret: str, name: str) -> None:
    """Errors: SettingsError for a secret that cannot be sent in a header. It does not show the secret."""
    if not (secret.isascii() and secret.isprintable() and secret == secret.strip()):
        message = f"{name} contains a character that cannot be sent in a header, such as a line break"
        raise SettingsError(message, allowed="printable ASCII characters")


def write_secret(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def write_s3_keys(path: Path, access_key: str, secret_key: str) -> None:
    """In the format of AWS's tools. Errors: as `check_secret`."""
    for name, key in (("ACTSTORE_S3_ACCESS_KEY", access_key), ("ACTSTORE_S3_SECRET_KEY", secret_key)):
        check_secret(key, name)
    escaped = [key.replace("%", "%%") for key in (access_key, secret_key)]
    write_secret(path, "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n".format(*escaped))


def _refused(path: Path, why: str) -> SettingsError:
    return SettingsError(f"{TOKEN_FILE} is {path}, {why}", field=TOKEN_FILE, value=str(path))
