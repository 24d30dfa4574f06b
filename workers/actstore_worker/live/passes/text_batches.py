"""Batches of several texts for a model. For resampling, each text is paired with the one that its activations come
from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from actstore_worker.datasets.batching import by_length
from actstore_worker.live.passes.text import LiveText


@dataclass(frozen=True)
class Rows:
    """Texts side by side, padded on the right with token 0.

    `plain`: of a text and not special. `counted`: plain, with a next token.
    """

    numbers: tuple[int, ...]
    ids: Int[Tensor, "row position"]
    plain: Bool[Tensor, "row position"]
    counted: Bool[Tensor, "row followed"]


def batches_of(texts: Sequence[LiveText], tokens: int, device: torch.device) -> Iterator[Rows]:
    """Group texts of similar length into batches of at most this many tokens, padding included, or of one text."""
    for chosen in by_length([len(text) for text in texts], tokens):
        yield rows_of(texts, chosen, device)


def rows_of(texts: Sequence[LiveText], chosen: Sequence[int], device: torch.device) -> Rows:
    shape = len(chosen), max(len(texts[number]) for number in chosen)
    ids, plain, inside = np.zeros(shape, np.int64), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for row, number in enumerate(chosen):
        text = texts[number]
        ids[row, : len(text)], plain[row, : len(text)], inside[row, : len(text)] = text.ids, ~text.special, True
    there = (torch.from_numpy(array).to(device) for array in (ids, plain, plain[:, :-1] & inside[:, 1:]))
    return Rows(tuple(chosen), *there)


@dataclass(frozen=True)
class Gifts:
    """The pairing for resampling: `giver` is, for each text, the other text that its activations come from; and for
    each position, the giver's position.
    """

    giver: Int[NDArray[np.int64], " text"]
    positions: tuple[Int[NDArray[np.int64], " position"], ...]


def draw_gifts(texts: Sequence[LiveText], seed: int, *, same_position: bool) -> Gifts:
    """Draw the pairing for resampling: texts form a random ring, and each gets activations from the next.

    Positions that are not special are drawn with replacement. `same_position`: the texts have the same length, and each
    position gets the giver's activation at the same position.
    """
    generator = np.random.default_rng(seed)
    ring = generator.permutation(len(texts))
    giver = np.zeros(len(texts), np.int64)
    giver[ring] = np.roll(ring, -1)
    drawn = []
    for number, text in enumerate(texts):
        plain = np.flatnonzero(~texts[giver[number]].special)
        drawn.append(np.arange(len(text)) if same_position else generator.choice(plain, len(text)))
    return Gifts(giver, tuple(drawn))
