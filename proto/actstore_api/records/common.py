"""What many questions and answers carry."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

# Marks a text that may not be empty in a message: without it the question has no meaning.
NOT_EMPTY = "not empty"
Name = Annotated[str, NOT_EMPTY]

# Classes of tokens that an answer can leave out. bos: the beginning-of-sequence token at position 0, an attention sink
# with a massive norm; special: every other token that the tokenizer calls special; sink: a token of neither class whose
# norm is far above the median of its sequence, where the run looked for such. Padding is never stored.
TokenClass = Literal["bos", "special", "sink"]
DEFAULT_EXCLUSION: frozenset[TokenClass] = frozenset({"bos"})

# A text, or the ids of the tokens that a model reads in its place: with a BOS where there is to be one.
Prompt = str | tuple[int, ...]
# The text of one token, with its leading space if it has one, or its id.
AnswerToken = str | int


@dataclass(frozen=True)
class Provenance:
    """Where a number comes from: enough to compute it again. A live answer has no run, specification or snapshot.

    `model` and `model_revision` are as given to the capture or the question; an empty revision is the one that the name
    stands for by itself. `weights_sha256`, `tokenizer_sha256` (vocabulary and special tokens), `config_sha256` (what of
    the model's configuration decides numbers; empty of a run captured before it was kept) and `specification_sha256`
    (the run's) are SHA-256 in hexadecimal; `sae_sha256` has that of each SAE that the answer used, by name, and
    `snapshot` that over the names of the commits that the answer saw. `dtype` is of the computation, in torch's words,
    `attention_implementation` in transformers'. `attention_implementation`, `device` and `code_version` (actstore's,
    with those of torch and transformers) name each value once, joined by ", ", where a run's shards differ.
    `shards_committed` of `shards_total` were there. `sink_ratio`: how many times the median norm of its sequence a
    token's has to exceed to be a sink; 0 where the run looked at none, None of a live answer.
    """

    model: str = ""
    model_revision: str = ""
    weights_sha256: str = ""
    tokenizer_sha256: str = ""
    sae_sha256: Mapping[str, str] = field(default_factory=dict)
    dtype: str = ""
    attention_implementation: str = ""
    device: str = ""
    run: str = ""
    specification_sha256: str = ""
    snapshot: str = ""
    shards_committed: int = 0
    shards_total: int = 0
    code_version: str = ""
    sink_ratio: float | None = None
    config_sha256: str = ""

    @property
    def summary(self) -> str:
        """One line for people: model, run and how much of it, hashes shortened to eight digits."""
        return " · ".join([*self._computed(), *self._stored(), f"actstore {self.code_version}"])

    def _computed(self) -> list[str]:
        parts = [f"model {self.model}{'@' + self.model_revision if self.model_revision else ''}"]
        parts += [f"weights {self.weights_sha256[:8]}"] if self.weights_sha256 else []
        parts += [f"config {self.config_sha256[:8]}"] if self.config_sha256 else []
        parts += [f"SAE {name} {sha256[:8]}" for name, sha256 in sorted(self.sae_sha256.items())]
        how = (self.dtype, self.attention_implementation, self.device)
        return [*parts, " ".join(filter(None, how))] if any(how) else parts

    def _stored(self) -> list[str]:
        if not self.run:
            return []
        shards = f"{self.shards_committed} of {self.shards_total} shards"
        return [f"run {self.run}, {shards}", f"snapshot {self.snapshot[:8]}"]


@dataclass(frozen=True)
class ModelReference:
    """A model: a folder below one of the workers' model folders, or a hub id where the workers allow the hub.

    `revision` is one of the hub's, or the name of a folder below the model's `revisions` folder. Empty: the model
    itself.
    """

    name: Name
    revision: str = ""
