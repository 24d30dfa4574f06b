"""What token ids stand for: each one's text alone, and in a row, where the bytes of several may be one character."""

import codecs
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

# Bytes that are no character show as Python writes them in a literal.
SHOW_BYTES = "backslashreplace"


@dataclass(frozen=True)
class TokenTexts:
    r"""`alone[i]` is the text of id i by itself: "" where no token has the id, and bytes that are no character as
    `\xe2\x80`. `parts` has the bytes of the ids whose text in a row is another one than alone.
    """

    alone: tuple[str, ...]
    parts: Mapping[int, bytes] = field(default_factory=dict)

    @cached_property
    def ids(self) -> Mapping[str, Sequence[int]]:
        """The ids whose text alone a text is, in order; of "" there are none."""
        found: dict[str, list[int]] = {}
        for token, text in enumerate(self.alone):
            if text:
                found.setdefault(text, []).append(token)
        return found

    def in_order(self, tokens: Iterable[int]) -> list[str]:
        """A text for each of several tokens that follow each other; joined, they are what was written. A character
        whose bytes several tokens have is the last one's, and the others have "".
        """
        found: list[str] = []
        for in_parts, group in groupby(tokens, key=self.parts.__contains__):
            ids = list(group)
            found += self._joined(ids) if in_parts else [self.alone[token] for token in ids]
        return found

    def _joined(self, tokens: Sequence[int]) -> list[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(SHOW_BYTES)
        last = len(tokens) - 1
        return [decoder.decode(self.parts[token], final=place == last) for place, token in enumerate(tokens)]
