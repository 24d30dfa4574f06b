"""The token that the service presents to the workers, from a setting or from a file that is read again."""

from pathlib import Path

from actstore_service.access.reloading import Reloaded
from actstore_storage.settings.gateway_tokens import TOKEN_FILE, tokens_of


class GatewayToken:
    """Of a file with two, the first is presented. Workers that read the same file accept the other, too, so that a
    token is changed without a moment at which it is refused.
    """

    def __init__(self, token: str | None, file: str | Path | None = None) -> None:
        self._token = token
        self._file = None if file is None else Reloaded(TOKEN_FILE, [file], tokens_of)

    def current(self) -> str | None:
        """The token to present now; None if there is none."""
        return self._token if self._file is None else self._file.current()[0]

    def reloads(self) -> dict[str, bool]:
        """Whether the file could be used the last time; nothing without a file."""
        return {} if self._file is None else {"gateway_token": self._file.successful}

    @property
    def successful(self) -> bool:
        """Whether the file could be read when it last changed."""
        return self._file is None or self._file.successful
