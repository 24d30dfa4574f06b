r"""The text of every token id, exactly as the tokenizer's own decoder has it in the middle of a text.

All code that shows tokens, or finds one by its text, uses these rules:

- A byte-level token (GPT-2, Llama 3) is its bytes; a byte-fallback token (`<0x0A>`) is that byte, unless another token
  has that text: then it keeps its own name.
- Where a decoder strips the space of a text's first token (Metaspace, Llama 2), the token keeps it all the same.
- A WordPiece that begins a word has the space that decoding puts in front of it; one that goes on with a word keeps its
  prefix, `##ing`.
- Added and special tokens are as they are written.
- Of a decoder of a kind that is not known here nothing is guessed: tokens are as the vocabulary writes them.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from actstore_storage.registry.token_texts import SHOW_BYTES, TokenTexts

# Returns a token's text in the middle of a text; None: as in the vocabulary.
_Piece = Callable[[str], bytes | None]
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
# Decoders of the tokenizers library that depend on a single token, or on the first or the last one of a text.
_TOKEN_BY_TOKEN = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "BPEDecoder"}
# Added before and after a token, so that it is neither the first nor the last one. No decoder changes it.
_NEIGHBOUR = "a"


def describe_tokens(tokenizer: Any, vocabulary_size: int) -> TokenTexts:
    """Returns the texts of all ids below `vocabulary_size`, and of higher ones that the tokenizer can produce."""
    vocabulary = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items()}
    read = _reader(tokenizer.backend_tokenizer.decoder)
    pieces = {token_id: read(token) for token_id, token in vocabulary.items() if token_id not in added}
    shown = vocabulary | added
    shown |= {token_id: piece.decode(errors=SHOW_BYTES) for token_id, piece in pieces.items() if piece is not None}
    shared = Counter(shown.values())
    parts: dict[int, bytes] = {}
    for token_id, piece in pieces.items():
        if piece is None:
            continue
        if _FALLBACK.fullmatch(vocabulary[token_id]) and shared[shown[token_id]] > 1:
            shown[token_id] = vocabulary[token_id]
        if shown[token_id].encode() != piece:
            parts[token_id] = piece
    size = max(vocabulary_size, max(shown, default=-1) + 1)
    return TokenTexts(tuple(shown.get(token_id, "") for token_id in range(size)), parts)


def _reader(decoder: Any) -> _Piece:
    steps = [] if decoder is None else _steps(json.loads(decoder.__getstate__()))
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _byte_level
    if kinds == ["WordPiece"]:
        prefix = steps[0]["prefix"]
        return lambda token: (token if token.startswith(prefix) else f" {token}").encode()
    if kinds and _TOKEN_BY_TOKEN.issuperset(kinds):
        has_bytes = "ByteFallback" in kinds
        return lambda token: _fallback(token) if has_bytes and _FALLBACK.fullmatch(token) else _between(decoder, token)
    return lambda _token: None


def _steps(decoder: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for inner in decoder["decoders"] for step in _steps(inner)]


def _byte_level(token: str) -> bytes:
    """As in the library: a token with a character that represents no byte is kept as it is."""
    found = [_BYTES.get(character) for character in token]
    return token.encode() if None in found else bytes(byte for byte in found if byte is not None)


def _fallback(token: str) -> bytes:
    return bytes([int(token[3:5], 16)])


def _between(decoder: Any, token: str) -> bytes | None:
    text: str = decoder.decode([_NEIGHBOUR, token, _NEIGHBOUR])
    if len(text) < 2 or not text.startswith(_NEIGHBOUR) or not text.endswith(_NEIGHBOUR):
        return None
    return text[1:-1].encode()
