"""What questions and answers about different things have in common."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

# Marks a text that no message may leave empty.
NOT_EMPTY = "not empty"
Name = Annotated[str, NOT_EMPTY]

# A text, or the ids of the tokens that a model reads in its place, with a BOS where there is to be one.
Prompt = str | tuple[int, ...]
# One token of a model's vocabulary: its text, with a leading space if it has one, or its id.
TokenReference = str | int
# What numbers are computed or stored in, in PyTorch's words.
Dtype = Literal["float32", "bfloat16", "float16"]
# How attention and MLP of a layer are wired to its norms.
BlockWiring = Literal["pre_ln", "post_ln", "parallel"]
# Classes of tokens that an answer can leave out. bos: the beginning-of-sequence token at position 0, an attention sink
# with a massive norm; special: every other token that the tokenizer calls special; sink: a token of neither class whose
# norm is far above the median of its sequence, where the run looked for such. Padding is never stored.
TokenClass = Literal["bos", "special", "sink"]
DEFAULT_EXCLUSION: frozenset[TokenClass] = frozenset({"bos"})


@dataclass(frozen=True)
class ModelReference:
    """A language model: a folder below one of the workers' model folders, or a hub id where the workers allow the hub.

    `revision` is one of the hub's, or the name of a folder below the model's `revisions` folder. Empty: the model
    itself.
    """

    name: Name
    revision: str = ""


@dataclass(frozen=True)
class Range:
    """Numbers side by side, half-open as Python's range: from `first` to before `end`, or all that follow.

    Layers, positions, tokens of a prompt and sequences of a run are all counted from 0.
    """

    first: int = 0
    end: int | None = None


@dataclass(frozen=True)
class SaeFeature:
    """One feature of an SAE, from 0 to d_sae - 1."""

    sae: Name
    feature: int


@dataclass(frozen=True)
class StoredSample:
    """A sample of about so many stored tokens of a run: whole sequences, spread evenly over it."""

    run: Name
    tokens: int = 8192


@dataclass(frozen=True)
class Failure:
    """An error, in the words of actstore_api.reasons.

    `details` has string values under `field` (what was wrong, as the caller wrote it), `value` (what it was) and
    `allowed` (what it may be), each where it applies.
    """

    reason: str
    message: str
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a number comes from: enough to compute it again. A live answer has no run, specification or snapshot.

    `model` and `model_revision` are as given to the capture or the question; an empty revision is the one that the name
    stands for by itself. The hashes are SHA-256 in hexadecimal: of the weight files; of vocabulary and special tokens;
    of what of the model's configuration decides numbers (empty: the run does not tell); of the configuration and
    weights of each SAE that the answer used, by name; of the run's specification. `snapshot` is that of the names of
    the commits that the answer saw: `shards_committed` of `shards_total`.

    `dtype` is what the model computed in, `attention_implementation` what it ran with in transformers' words (eager,
    sdpa), `device` cpu or cuda, `code_version` actstore's with those of torch and transformers; the last three name
    each value once, joined by ", ", where the run's shards differ. `sink_ratio`: how many times the median norm of its
    sequence a token's has to exceed to be a sink; 0 where the run looked at none, None of a live answer.
    """

    model: str
    model_revision: str = ""
    weights_sha256: str
    tokenizer_sha256: str
    config_sha256: str = ""
    sae_sha256: Mapping[str, str] = field(default_factory=dict)
    dtype: Dtype
    attention_implementation: str
    device: str
    code_version: str
    run: str = ""
    specification_sha256: str = ""
    snapshot: str = ""
    shards_committed: int = 0
    shards_total: int = 0
    sink_ratio: float | None = None

    @property
    def summary(self) -> str:
        """One line for people: model, run and how much of it, hashes shortened to eight digits."""
        return " · ".join([*self._computed(), *self._stored(), f"actstore {self.code_version}"])

    def _computed(self) -> list[str]:
        parts = [f"model {self.model}{'@' + self.model_revision if self.model_revision else ''}"]
        parts += [f"weights {self.weights_sha256[:8]}"] if self.weights_sha256 else []
        parts += [f"config {self.config_sha256[:8]}"] if self.config_sha256 else []
        parts += [f"SAE {name} {sha256[:8]}" for name, sha256 in sorted(self.sae_sha256.items())]
        how = " ".join(filter(None, (self.dtype, self.attention_implementation, self.device)))
        return [*parts, *([how] if how else [])]

    def _stored(self) -> list[str]:
        if not self.run:
            return []
        shards = f"{self.shards_committed} of {self.shards_total} shards"
        return [f"run {self.run}, {shards}", f"snapshot {self.snapshot[:8]}"]


def one_line(text: str) -> str:
    """A text from elsewhere on one line of a terminal: what steers one, or hides, as its escape."""
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
