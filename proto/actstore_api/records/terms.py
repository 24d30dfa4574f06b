"""Types that several questions and answers share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

# Marks a text that no message may leave empty.
NOT_EMPTY = "not empty"
Name = Annotated[str, NOT_EMPTY]

# A text, or token ids, which must include a BOS if the model is to read one.
Prompt = str | tuple[int, ...]
# One token of a model's vocabulary: its text, with a leading space if it has one, or its id.
TokenReference = str | int
# The data type in which numbers are computed or stored, named as in PyTorch.
Dtype = Literal["float32", "bfloat16", "float16"]
# How a layer's attention, MLP and norms are connected.
BlockWiring = Literal["pre_ln", "post_ln", "parallel"]
# Classes of tokens that an answer can leave out. bos: the beginning-of-sequence token at position 0, an attention sink
# with a massive norm. special: every other token that the tokenizer calls special. sink: a token of neither class whose
# norm is far above the median of its sequence, if the run looked for sinks. Padding is never stored.
TokenClass = Literal["bos", "special", "sink"]
DEFAULT_EXCLUSION: frozenset[TokenClass] = frozenset({"bos"})


@dataclass(frozen=True)
class ModelReference:
    """A language model: a folder below one of the workers' model folders, or a hub id if the workers allow the hub.

    `revision` is a hub revision, or the name of a folder below the model's `revisions` folder. Empty: the model itself.
    """

    name: Name
    revision: str = ""


@dataclass(frozen=True)
class Range:
    """A half-open range of consecutive numbers, like Python's range. `end` None: the range has no end.

    Layers, positions, tokens of a prompt and sequences of a run are all counted from 0.
    """

    first: int = 0
    end: int | None = None


@dataclass(frozen=True)
class SaeFeature:
    """One feature of an SAE: an index from 0 to d_sae - 1."""

    sae: Name
    feature: int


@dataclass(frozen=True)
class StoredSample:
    """A sample of about `tokens` stored tokens of a run. It consists of whole sequences, spread evenly over the run."""

    run: Name
    tokens: int = 8192


@dataclass(frozen=True)
class Failure:
    """An error. `reason` is a key of the table in actstore_api.reasons.

    `details` has string values under `field` (what was wrong, as the caller wrote it), `value` (what it was) and
    `allowed` (what it may be), each where it applies.
    """

    reason: str
    message: str
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the numbers of an answer come from: enough to compute them again.

    A live answer has no run, specification or snapshot.

    - `model`, `model_revision`: as in the capture or the question. Empty revision: the model itself.
    - Hashes are SHA-256 in hexadecimal: `weights_sha256` of the weight files; `tokenizer_sha256` of vocabulary and
      special tokens; `config_sha256` of the parts of the model's configuration that affect numbers (empty: unknown, in
      runs captured by early versions); `sae_sha256` of the configuration and weights of each SAE that the answer used,
      by name; `specification_sha256` of the run's specification.
    - `snapshot`: the hash of the names of the commits that the answer saw, `shards_committed` of `shards_total`.
    - `dtype`: the data type in which the model computed. `attention_implementation`: named as in transformers (eager,
      sdpa). `device`: cpu or cuda. `code_version`: of actstore, with those of torch and transformers. If the shards of
      a run differ in one of the last three, the field has each value once, joined by ", ".
    - `sink_ratio`: a token is a sink if its norm exceeds this many times the median of its sequence. 0: the run did not
      look for sinks. None in a live answer.
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
        """One line for people: the model, the run and how much of it is committed, and hashes shortened to eight
        digits.
        """
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
    """Returns a text on one line for a terminal: control and invisible characters are replaced by escapes."""
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
