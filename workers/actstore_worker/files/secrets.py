"""Secrets in files that only their owner can read, and that are read again when they change."""

import hmac
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from actstore_storage.settings.gateway_tokens import TOKEN_FILE, tokens_of
from actstore_worker.errors import SettingsError
from actstore_worker.files.stamps import stamp_of

_log = logging.getLogger(__name__)
NO_TOKEN = "the gateway's token is missing or wrong"  # noqa: S105  what its caller is told


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
    """Errors: SettingsError if the file cannot be read; as `tokens_of`."""
    try:
        return tokens_of(path.read_bytes())
    except OSError as error:
        why = f"{TOKEN_FILE} is {path}, which cannot be read: {type(error).__name__}"
        raise SettingsError(why, field=TOKEN_FILE, value=str(path)) from None


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
