"""Tokens that operators give to callers: how they are made, recognized, and kept as hashes."""

import hashlib
import re
import secrets
import zlib

# A prefix that scanners of code and logs can search for.
PREFIX = "act_"
RANDOM_BYTES = 32
_FORM = re.compile(rf"{PREFIX}([0-9a-f]{{{2 * RANDOM_BYTES}}})([0-9a-f]{{8}})")


def new_token() -> str:
    """Returns a prefix, 32 random bytes and a checksum, in hexadecimal."""
    random = secrets.token_hex(RANDOM_BYTES)
    return f"{PREFIX}{random}{_checksum(random)}"


def is_whole(token: str) -> bool:
    """Whether a token that begins like ours is one: none is cut or mistyped whose checksum fits."""
    found = _FORM.fullmatch(token)
    return found is not None and _checksum(found[1]) == found[2]


def sha256_of(token: str) -> str:
    """Returns the form in which tokens are kept. They are random, so that no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
