"""The token that the service presents to the workers, from a setting or from a file that is read again."""

from pathlib import Path

from actstore_service.access.reloading import Reloaded
from actstore_storage.errors import BadRequest

FIELD = "ACTSTORE_GATEWAY_TOKEN_FILE"


class GatewayToken:
    """A file has one token a line. The first is presented; workers that read the same file accept the others, too, so
    that a token is changed without a moment at which it is refused.
    """

    def __init__(self, token: str | None, file: str | Path | None = None) -> None:
        self._token = token
        self._file = None if file is None else Reloaded(FIELD, [file], read_tokens)

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


def read_tokens(content: bytes) -> tuple[str, ...]:
    """The tokens of a file. Errors: BadRequest for a file without any, or with what no header can hold."""
    lines = [line.strip() for line in content.decode(errors="replace").splitlines()]
    tokens = tuple(line for line in lines if line)
    if not tokens or not all(token.isascii() and token.isprintable() and " " not in token for token in tokens):
        raise BadRequest("the file of the workers' token has none that can be sent", field=FIELD, allowed=_ALLOWED)
    return tokens


_ALLOWED = "one token a line, of printable ASCII characters"
