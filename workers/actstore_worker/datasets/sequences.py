"""Cuts documents into token sequences. A sequence never contains parts of two documents; a long document becomes
several sequences.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from actstore_storage.errors import BadRequest
from actstore_storage.format.tokens import BOS, SPECIAL
from actstore_storage.runs.shard_writer import TokenRows
from actstore_worker.datasets.documents import Document
from actstore_worker.models.model import ModelDescription
from actstore_worker.models.prompts import check_ids, tokenised
from actstore_worker.models.tokens.tokenizer_files import refusing_tokenizer
from actstore_worker.models.tokens.tokenizer_process import TokenizerProcess

# Documents of a run: the coordinator holds some 50 bytes of each in memory, beside the tokens.
DOCUMENTS_MAX = 50_000_000
# Documents are passed to the tokenizer, which has its own threads, in groups of about this many characters, and of at
# most so many documents: a group that has begun is not interrupted. A text that is longer is tokenized in a process of
# its own, which is.
_GROUP_CHARACTERS, _GROUP_DOCUMENTS = 1 << 18, 1024
# Documents whose tokens are kept one by one, before they become one array: an array takes a hundred bytes.
_SINGLE_DOCUMENTS = 4096


@dataclass(frozen=True)
class SequenceShape:
    """How documents are cut into sequences."""

    # The largest number of tokens in a sequence, BOS included.
    context_length: int
    prepend_bos: bool
    # Stop after the last whole sequence that fits into this many tokens; None: no limit.
    max_tokens: int | None = None


@dataclass(frozen=True)
class TokenSequences:
    """Some sequences of a dataset. Sequence i of these is sequence `numbers[i]` of the dataset:
    `tokens[offsets[i]:offsets[i + 1]]`, with BOS.
    """

    tokens: Int[NDArray[np.int32], " token"]
    offsets: Int[NDArray[np.int64], " sequence_and_one"]
    documents: Int[NDArray[np.int64], " sequence"]
    numbers: Int[NDArray[np.int64], " sequence"]

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def lengths(self) -> Int[NDArray[np.int64], " sequence"]:
        """Tokens of each sequence."""
        return np.diff(self.offsets)

    def slice(self, start: int, stop: int) -> "TokenSequences":
        """Returns the sequences from `start` to `stop` (exclusive), counted from 0."""
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"{range(start, stop)} is not within {range(len(self))}")
        offsets = self.offsets[start : stop + 1]
        tokens = self.tokens[offsets[0] : offsets[-1]]
        return TokenSequences(tokens, offsets - offsets[0], self.documents[start:stop], self.numbers[start:stop])

    def take(self, order: Int[NDArray[np.int64], " sequence"]) -> "TokenSequences":
        """Returns these sequences, in this order."""
        lengths = self.lengths[order]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.offsets[order] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return TokenSequences(self.tokens[places], offsets, self.documents[order], self.numbers[order])

    def batches(self, size: int) -> Iterator["TokenSequences"]:
        """Yields the sequences in order, this many at a time."""
        for start in range(0, len(self), size):
            yield self.slice(start, min(start + size, len(self)))

    @property
    def positions(self) -> Int[NDArray[np.int64], " token"]:
        """Each token's position in its sequence."""
        return np.arange(len(self.tokens)) - np.repeat(self.offsets[:-1], self.lengths)

    def rows(self, bos_id: int | None, special_ids: frozenset[int]) -> TokenRows:
        """One row per token. Only the BOS token at position 0 is BOS; elsewhere it is special like others."""
        lengths = self.lengths
        position = self.positions.astype(np.int32)
        flags = np.where(np.isin(self.tokens, sorted(special_ids)), SPECIAL, 0).astype(np.uint8)
        if bos_id is not None:
            flags[(position == 0) & (self.tokens == bos_id)] = BOS
        return TokenRows(
            sequence=np.repeat(self.numbers, lengths),
            position=position,
            document=np.repeat(self.documents, lengths),
            token=self.tokens,
            flags=flags,
        )


@dataclass(frozen=True)
class TokenisedDataset:
    """`sha256` is the hash of the documents' token ids and ends, without BOS, so the same text with the same tokenizer
    has the same hash.

    `documents_with_bos` counts those that already begin with a BOS, and do not get a second one.
    """

    sequences: TokenSequences
    sha256: str
    documents: int
    documents_with_bos: int = 0


@dataclass
class _Gathered:
    shape: SequenceShape
    # Ids before and after the text of each sequence.
    before: tuple[int, ...]
    after: tuple[int, ...]
    ids: list[NDArray[np.int32]] = field(default_factory=list)
    lengths: list[NDArray[np.int64]] = field(default_factory=list)
    documents: list[NDArray[np.int64]] = field(default_factory=list)
    # Ids, lengths and documents of those before, joined.
    joined: list[tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    tokens: int = 0
    documents_seen: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, document: int, ids: NDArray[np.int32]) -> bool:
        """Cut one document into sequences. Returns False once max_tokens leaves no room for the next one."""
        around = len(self.before) + len(self.after)
        body = self.shape.context_length - around
        starts = np.arange(0, len(ids), body)
        lengths = np.minimum(body, len(ids) - starts) + around
        kept = self._fitting(lengths)
        ids = ids[: int((lengths[:kept] - around).sum())]
        self.documents_seen += 1
        self.digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i4").tobytes())
        self.ids.append(ids)
        self.lengths.append(lengths[:kept])
        self.documents.append(np.full(kept, document))
        self.tokens += int(lengths[:kept].sum())
        if len(self.ids) == _SINGLE_DOCUMENTS:
            self._join()
        return kept == len(lengths)

    def _join(self) -> None:
        self.joined.append((np.concatenate(self.ids), np.concatenate(self.lengths), np.concatenate(self.documents)))
        self.ids, self.lengths, self.documents = [], [], []

    def _fitting(self, lengths: NDArray[np.int64]) -> int:
        if self.shape.max_tokens is None:
            return len(lengths)
        room = self.shape.max_tokens - self.tokens
        kept = int(np.searchsorted(np.cumsum(lengths), room, side="right"))
        if kept == 0 and self.tokens == 0 and len(lengths):
            raise _max_tokens_too_small(self.shape.max_tokens, int(lengths[0]))
        return kept

    def sequences(self) -> TokenSequences:
        if not self.tokens:
            raise BadRequest("the dataset has no token", reason="DATASET_EMPTY", field="dataset", allowed="some text")
        if self.ids:
            self._join()
        text, lengths, documents = map(np.concatenate, zip(*self.joined, strict=True))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        is_text = np.ones(self.tokens, dtype=np.bool_)
        tokens = np.empty(self.tokens, dtype=np.int32)
        for place, token in [(offsets[:-1], token) for token in self.before] + [
            (offsets[1:] - 1, token) for token in self.after
        ]:
            is_text[place] = False
            tokens[place] = token
        tokens[is_text] = text
        return TokenSequences(tokens, offsets, documents, np.arange(len(documents)))


def tokenise(
    described: ModelDescription,
    documents: Iterable[Document],
    shape: SequenceShape,
    tokens_max: int,
    documents_max: int = DOCUMENTS_MAX,
    check: Callable[[], None] = lambda: None,
    check_tokens: Callable[[int], None] = lambda _: None,
) -> TokenisedDataset:
    """Turns documents into sequences. Documents that are token ids already are cut in the same way as texts. `check` is
    called while a long text is tokenized, and `check_tokens` with the tokens so far after each document; each ends it
    by what it raises.

    Errors: BadRequest DATASET_EMPTY; ARGUMENT_INVALID if max_tokens cannot hold a sequence; MODEL_UNSUPPORTED if the
    model has no embedding for an id; LIMIT_EXCEEDED above `tokens_max` and `documents_max`.
    """
    before, after = described.around if shape.prepend_bos else ((), ())
    gathered = _Gathered(shape, before, after)
    begun = 0
    with TokenizerProcess(described.tokenizer, check) as apart:
        for document, ids in _token_ids(described, documents, apart):
            own = _between(ids, before, after)
            room = gathered.add(document, own)
            begun += bool(before) and _begins_with(ids, before)
            if not room:
                break
            if gathered.tokens > tokens_max:
                raise _too_many("tokens", gathered.tokens, tokens_max)
            check_tokens(gathered.tokens)
            if gathered.documents_seen > documents_max:
                raise _too_many("documents", gathered.documents_seen, documents_max)
    return TokenisedDataset(gathered.sequences(), gathered.digest.hexdigest(), gathered.documents_seen, begun)


def _token_ids(
    described: ModelDescription, documents: Iterable[Document], apart: TokenizerProcess
) -> Iterator[tuple[int, Int[NDArray[np.int32], " token"]]]:
    """With each document's number."""
    for group in _groups(documents):
        texts = [document.content for document in group if isinstance(document.content, str)]
        found = _tokenised(described, texts, apart)
        for document in group:
            if isinstance(document.content, str):
                ids, whence = next(found), "its tokenizer gives for"
            else:
                ids, whence = document.content, "is in"
            if len(ids):
                check_ids(described, (int(ids.min()), int(ids.max())), f"{whence} document {document.number}")
            yield document.number, ids


def _between(
    ids: Int[NDArray[np.int32], " token"], before: tuple[int, ...], after: tuple[int, ...]
) -> Int[NDArray[np.int32], " token"]:
    """Removes a document's own BOS (and an encoder's SEP), because each of its sequences gets one."""
    ids = ids[len(before) :] if _begins_with(ids, before) else ids
    ends = bool(after) and tuple(ids[-len(after) :].tolist()) == after
    return ids[: -len(after)] if ends else ids


def _begins_with(ids: Int[NDArray[np.int32], " token"], before: tuple[int, ...]) -> bool:
    return tuple(ids[: len(before)].tolist()) == before


def _tokenised(
    described: ModelDescription, texts: list[str], apart: TokenizerProcess
) -> Iterator[Int[NDArray[np.int32], " token"]]:
    is_long = [len(text) > _GROUP_CHARACTERS for text in texts]
    short = [text for text, long in zip(texts, is_long, strict=True) if not long]
    found = iter(tokenised(described, short) if short else ())
    for text, long in zip(texts, is_long, strict=True):
        if long:
            with refusing_tokenizer(described.name):
                yield apart.ids(text)
        else:
            yield np.asarray(next(found), dtype=np.int32)


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document.content)
        if characters >= _GROUP_CHARACTERS or len(group) == _GROUP_DOCUMENTS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _too_many(what: str, count: int, most: int) -> BadRequest:
    return BadRequest(
        f"the dataset has at least {count} {what}; one run can have at most {most}: pass max_{what}, or split the "
        "dataset",
        reason="LIMIT_EXCEEDED",
        field=f"dataset.max_{what}",
        value=f"at least {count}",
        allowed=f"at most {most}",
    )


def _max_tokens_too_small(max_tokens: int, first_length: int) -> BadRequest:
    return BadRequest(
        f"max_tokens is {max_tokens}, but the first sequence alone has {first_length} tokens",
        field="dataset.max_tokens",
        value=max_tokens,
        allowed=f"at least {first_length}",
    )
