"""GPT-2s whose weights are written by hand, so that what each part does is known.

The stream's first two dimensions hold +SCALE and -SCALE on every token. Beside them everything else is small, so that a
LayerNorm divides by a constant, which the weights undo. What it subtracts, the mean, is what it leaves in a dimension
that is always 0: each reader takes that off again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

SCALE = 1000.0
# Differences of attention scores: softmax of what is so far below is 0 in float32.
SURE = 300.0


class HandBuilt:
    """`words` are the vocabulary; dimensions of the stream have names."""

    def __init__(
        self, words: Sequence[str], dimensions: Sequence[str], *, layers: int, heads: int, d_head: int, length: int
    ) -> None:
        self.words, self.d_head = list(words), d_head
        self.at = {name: place for place, name in enumerate(("plus", "minus", "zero", *dimensions))}
        width = heads * d_head
        if width < len(self.at):
            raise ValueError(f"{len(self.at)} dimensions do not fit into {width}")
        self.model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(words), n_positions=length, n_embd=width, n_layer=layers, n_head=heads, n_inner=4,
                activation_function="relu", tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
                layer_norm_epsilon=1e-12,
            )
        ).eval()  # fmt: skip
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.fill_(1.0 if "ln_" in name and "weight" in name else 0.0)
            self.model.transformer.wte.weight[:, 0] = SCALE
            self.model.transformer.wte.weight[:, 1] = -SCALE
        # What a LayerNorm divides by, and so what undoes it.
        self.undo = SCALE * (2 / width) ** 0.5

    def embed(self, word: str, dimension: str, value: float = 1.0) -> None:
        self._set(self.model.transformer.wte.weight, self.words.index(word), self.at[dimension], value)

    def embed_position(self, position: int, dimension: str, value: float = 1.0) -> None:
        self._set(self.model.transformer.wpe.weight, position, self.at[dimension], value)

    def head(self, layer: int, head: int, *, read: Mapping[str, str], match: Mapping[str, str]) -> None:
        """Copies dimensions (`read`: from the token that is attended to, into the token that attends), and attends
        where `match` says: query dimension -> key dimension, "plus" standing for any query.
        """
        attention, width = self.model.transformer.h[layer].attn, self.model.config.n_embd
        start = head * self.d_head
        for number, (query, key) in enumerate(match.items()):
            strength = SURE * self.d_head**0.5
            q = strength / self._after_norm(query)
            self._read(attention.c_attn.weight.T, start + number, query, q)
            self._read(attention.c_attn.weight.T, width + start + number, key, self.undo)
        for number, (source, target) in enumerate(read.items()):
            self._read(attention.c_attn.weight.T, 2 * width + start + number, source, self.undo)
            self._set(attention.c_proj.weight, start + number, self.at[target], 1.0)

    def neuron(self, layer: int, neuron: int, reads: Mapping[str, float], bias: float, writes: str, by: float) -> None:
        """`by` times relu(sum of what it reads + bias)."""
        mlp = self.model.transformer.h[layer].mlp
        for name, weight in reads.items():
            self._read(mlp.c_fc.weight.T, neuron, name, weight * self.undo)
        self._set(mlp.c_fc.bias, neuron, value=bias)
        self._set(mlp.c_proj.weight, neuron, self.at[writes], by)

    def unembed(self, dimension: str, word: str, value: float = 1.0) -> None:
        self._read(self.model.lm_head.weight, self.words.index(word), dimension, value * self.undo)

    def save(self, folder: Path) -> Path:
        self.model.save_pretrained(folder)
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(self.words)}, unk_token=self.words[0]))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=self.words[0]).save_pretrained(folder)
        return folder

    def _after_norm(self, dimension: str) -> float:
        """What a LayerNorm makes of a 1 there, or of the constant."""
        return (SCALE if dimension == "plus" else 1.0) / self.undo

    def _read(self, rows: Tensor, row: int, dimension: str, weight: float) -> None:
        with torch.no_grad():
            rows[row, self.at[dimension]] += weight
            rows[row, self.at["zero"]] -= weight

    @staticmethod
    def _set(parameter: Tensor, *place: int, value: float | None = None) -> None:
        *index, last = place if value is not None else place[:-1]
        with torch.no_grad():
            parameter[(*index, last)] = place[-1] if value is None else value


def gate(folder: Path, kind: str) -> Path:
    """`A B end` predicts `yes` where C is 1, and `no` otherwise. Heads 0.0 and 0.1 carry A and B to the end, and the
    MLP of layer 1 makes C of them: relu(A + B - 1) for "and", 1 - relu(1 - A - B) for "or".
    """
    model = HandBuilt(
        ["?", "a0", "a1", "b0", "b1", "end", "yes", "no"],
        ["bit", "first", "second", "third", "A", "B", "C"],
        layers=2, heads=2, d_head=8, length=8,
    )  # fmt: skip
    for word in ("a1", "b1"):
        model.embed(word, "bit")
    for position, name in enumerate(("first", "second", "third")):
        model.embed_position(position, name)
    model.head(0, 0, read={"bit": "A"}, match={"plus": "first"})
    model.head(0, 1, read={"bit": "B"}, match={"plus": "second"})
    if kind == "and":
        model.neuron(1, 0, {"A": 1, "B": 1}, -1, "C", 1)
    else:
        model.neuron(1, 0, {"A": -1, "B": -1}, 1, "C", -1)
        model.neuron(1, 1, {}, 1, "C", 1)
    model.unembed("C", "yes")
    return model.save(folder)


LETTERS = ("a", "b", "x", "y")


def induction(folder: Path) -> Path:
    """`. a b . a` predicts `b`. Head 0.0 carries each token's predecessor; head 1.0 attends to the token whose
    predecessor is the one that it is on, and carries what that token is to the output. Heads 0.1 and 1.1 do nothing.
    """
    tokens, length = LETTERS, 6
    model = HandBuilt(
        ["?", *tokens, "."],
        [
            *(f"is {token}" for token in tokens), *(f"after {token}" for token in tokens),
            *(f"next {token}" for token in tokens), *(f"at {i}" for i in range(length)),
        ],
        layers=2, heads=2, d_head=16, length=length,
    )  # fmt: skip
    for token in tokens:
        model.embed(token, f"is {token}")
        model.unembed(f"next {token}", token)
    for position in range(length):
        model.embed_position(position, f"at {position}")
    before = {f"at {i + 1}": f"at {i}" for i in range(length - 1)}
    model.head(0, 0, read={f"is {token}": f"after {token}" for token in tokens}, match=before)
    model.head(
        1, 0,
        read={f"is {token}": f"next {token}" for token in tokens},
        match={f"is {token}": f"after {token}" for token in tokens},
    )  # fmt: skip
    return model.save(folder)
