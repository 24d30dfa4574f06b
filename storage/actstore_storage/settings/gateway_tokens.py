"""The file of the token that service and workers share, as both read it."""

from actstore_storage.errors import SettingsError

# The variable of the file.
TOKEN_FILE = "ACTSTORE_GATEWAY_TOKEN_FILE"  # noqa: S105  a name
# While a token is replaced, services may still present the previous one.
TOKENS_MAX = 2


def tokens_of(content: bytes) -> tuple[str, ...]:
    """The tokens of the file: the current one, and below it the previous one, if services may still present that.

    Errors: SettingsError for a file with no token or more than two, or with one that cannot be sent in a header. It
    shows none of them.
    """
    lines = (line.strip() for line in content.decode(errors="replace").splitlines())
    tokens = tuple(line for line in lines if line)
    if not 1 <= len(tokens) <= TOKENS_MAX:
        raise _refused(f"has {len(tokens)} lines with a token")
    if not all(token.isascii() and token.isprintable() and " " not in token for token in tokens):
        raise _refused("has a token with a character that cannot be sent in a header, or a space")
    return tokens


def _refused(why: str) -> SettingsError:
    allowed = "a line with the current token, and below it one with the previous token while services still present it"
    return SettingsError(f"the file of {TOKEN_FILE} {why}; it takes {allowed}", field=TOKEN_FILE, allowed=allowed)
