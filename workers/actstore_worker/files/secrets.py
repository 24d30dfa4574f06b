"""Secrets in files that only their owner can read: written from the environment, read again when they change."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from actstore_worker.errors import SettingsError
from actstore_worker.files.stamps import stamp_of

_log = logging.getLogger(__name__)
GATEWAY_TOKEN, GATEWAY_TOKEN_FILE = "ACTSTORE_GATEWAY_TOKEN", "ACTSTORE_GATEWAY_TOKEN_FILE"
S3_KEYS, S3_CREDENTIALS_FILE = ("ACTSTORE_S3_ACCESS_KEY", "ACTSTORE_S3_SECRET_KEY"), "ACTSTORE_S3_CREDENTIALS_FILE"
SECRETS = (GATEWAY_TOKEN, *S3_KEYS)
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
        except SettingsError as error:
            _log.warning("the tokens of before stay valid: %s", error)
        return self._tokens


def read_tokens(path: Path) -> tuple[str, ...]:
    """Errors: SettingsError if the file cannot be read, or does not contain one or two tokens."""
    try:
        tokens = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{GATEWAY_TOKEN_FILE} is {path}, which cannot be read: {type(error).__name__}") from None
    if not 1 <= len(tokens) <= _TOKENS_MAX:
        raise SettingsError(
            f"{GATEWAY_TOKEN_FILE} is {path}, which has {len(tokens)} lines with a token; it takes one with the "
            "current token, and one below it with the previous token while callers still present that"
        )
    if not all(token.isascii() and token.isprintable() for token in tokens):
        raise SettingsError(f"{GATEWAY_TOKEN_FILE} is {path}; a token contains a character that headers cannot have")
    return tokens


def with_files_for_secrets(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Returns the environment with files in `folder` instead of the secrets that it has by value.

    Settings travel to other processes, and Ray keeps a copy of them; the path of a file is no secret.

    Errors: SettingsError for a secret that a file cannot contain.
    """
    given = {name: environment[name] for name in SECRETS if environment.get(name)}
    others = {name: value for name, value in environment.items() if name not in SECRETS}
    for name, value in given.items():
        _check(name, value)
    if GATEWAY_TOKEN in given:
        others.setdefault(GATEWAY_TOKEN_FILE, _written(folder / "gateway-token", f"{given[GATEWAY_TOKEN]}\n"))
    if all(name in given for name in S3_KEYS) and not others.get(S3_CREDENTIALS_FILE):
        access, secret = (given[name].replace("%", "%%") for name in S3_KEYS)  # as the format has it
        text = f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n"
        others[S3_CREDENTIALS_FILE] = _written(folder / "s3-credentials", text)
    return others


def _check(name: str, value: str) -> None:
    if not (value.isascii() and value.isprintable() and value == value.strip()):
        raise SettingsError(f"{name} contains a character that cannot be sent in a header, such as a line break")


def _written(path: Path, text: str) -> str:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return str(path)
