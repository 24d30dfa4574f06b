"""Questions about features, as both backends take them, and what they find."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from actstore import _checks as _arguments
from actstore._errors import refused
from actstore._records import Prompt, Provenance, RowQuery

DEFAULT_EXAMPLES, DEFAULT_BINS = 20, 40
DEFAULT_TOKENS_BEFORE, DEFAULT_TOKENS_AFTER = 12, 6
METHODS = ("top", "range", "rank", "quantile", "activating", "positions")
OVER = ("range", "rank", "activating", "positions")
HOW = {
    "top": "strongest",
    "range": "uniform over the range of activation",
    "rank": "uniform over rank",
    "activating": "at random where it fires",
    "positions": "at random positions",
    "quantile": "by quantile",
}
SIDES = ("decoder", "encoder")
ABLATIONS = ("delete", "zero_embedding", "zero_residual", "mean_residual")
STATISTICS = ("density", "active_tokens", "maximum", "mean_when_active", "token_r2")
ACTIVE_ORDERS = ("mean", "maximum", "active_tokens", "lift")


@dataclass(frozen=True)
class Where:
    """Which tokens a question looks at: those that pass every part that is given. `tokens` are ids."""

    sequences: range | slice | None = None
    positions: range | slice | None = None
    documents: Iterable[int] | None = None
    tokens: Iterable[int] | None = None

    def __post_init__(self) -> None:
        for name in ("documents", "tokens"):
            if isinstance(values := getattr(self, name), Iterator):
                object.__setattr__(self, name, tuple(values))  # a page asks several questions of the same tokens

    def query(self) -> RowQuery:
        """Errors: BadRequest for what the wire cannot carry."""
        first_sequence, sequence_count = _arguments.stretch(self.sequences, "sequences")
        first_position, position_count = _arguments.stretch(self.positions, "positions")
        return RowQuery(
            first_sequence=first_sequence,
            sequence_count=sequence_count,
            tokens=_arguments.whole_numbers(self.tokens, "tokens", 2**31 - 1),
            documents=_arguments.whole_numbers(self.documents, "documents", 2**63 - 1),
            first_position=None if self.positions is None else first_position,
            end_position=None if position_count is None else first_position + position_count,
        )


def chosen_tokens(where: object) -> RowQuery | None:
    """None: every token. Errors: BadRequest for what is no Where."""
    if where is None:
        return None
    if not isinstance(where, Where):
        allowed = "actstore.Where(sequences=, positions=, documents=, tokens=)"
        raise refused(f"where cannot be {where!r}", "where", repr(where), allowed)
    return where.query()


@dataclass(frozen=True)
class SaeOfRun:
    """An SAE whose features a run stores, and what it takes to ask it and its model the same question live."""

    run: str
    sae: str
    d_sae: int
    model: str
    revision: str
    bos: bool | None

    def live(self) -> dict[str, Any]:
        """The fields of an SaeQuestion."""
        return {"sae": self.sae, "model": self.model, "revision": self.revision}

    def read(self, text: Any) -> dict[str, Any]:
        """Those of one about a text, which gets a BOS where the run's sequences have one, or about token ids, which are
        to have it themselves.
        """
        prompt = _arguments.prompt(text, "text")
        return {**self.live(), "text": prompt, "bos": self.bos if isinstance(prompt, str) else None}


@dataclass(frozen=True)
class FeatureQuestion:
    """Of a run's stored features. `where` None: every token."""

    run: str
    sae: str
    exclude: frozenset[str] = frozenset()
    where: RowQuery | None = None


@dataclass(frozen=True)
class SampleQuestion(FeatureQuestion):
    features: tuple[int, ...] = ()
    method: str = "top"
    k: int = DEFAULT_EXAMPLES
    bins: int = 10
    threshold: float = 0.0
    seed: int = 0
    tokens_before: int = DEFAULT_TOKENS_BEFORE
    tokens_after: int = DEFAULT_TOKENS_AFTER


@dataclass(frozen=True)
class RowsQuestion(FeatureQuestion):
    feature: int = 0
    threshold: float = 0.0


@dataclass(frozen=True)
class FindQuestion(FeatureQuestion):
    bounds: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    order: str = "density"
    ascending: bool = False
    k: int = 100
    features: tuple[int, ...] = ()
    with_token_r2: bool = False


@dataclass(frozen=True)
class ActiveQuestion(FeatureQuestion):
    order: str = "mean"
    k: int = 20


@dataclass(frozen=True)
class CofiringQuestion(FeatureQuestion):
    feature: int = 0
    k: int = 20
    least_tokens: int = 5


@dataclass(frozen=True)
class SaeQuestion:
    """Of an SAE and the model that it reads; answered live. `bos` None follows the tokenizer, and puts none in front of
    token ids.
    """

    sae: str
    model: str = ""
    revision: str = ""
    text: Prompt = ""
    bos: bool | None = None


@dataclass(frozen=True)
class EncodeQuestion(SaeQuestion):
    pass


@dataclass(frozen=True)
class LensQuestion(SaeQuestion):
    features: tuple[int, ...] = ()
    side: str = "decoder"
    fold_norm: bool = False
    longest_unembedding: float | None = None
    k: int = 20


@dataclass(frozen=True)
class AblateTextQuestion(SaeQuestion):
    feature: int = 0
    position: int | None = None
    ablation: str = "delete"
    pairs: bool = False
    first: int = 0


@dataclass(frozen=True)
class AblateDirectionQuestion(SaeQuestion):
    feature: int = 0


@dataclass(frozen=True)
class NeighboursQuestion(SaeQuestion):
    """Of a feature, or where it is None of a vector."""

    feature: int | None = None
    vector: tuple[float, ...] = ()
    side: str = "decoder"
    k: int = 20


@dataclass(frozen=True)
class CheckQuestion(SaeQuestion):
    run: str = ""
    tokens: int = 8192


@dataclass(frozen=True)
class Found:
    """A table and where it comes from; some answers have a second table `tokens`, more by name, facts, and warnings."""

    table: pa.Table
    provenance: Provenance
    excluded: tuple[str, ...] = ()
    tokens: pa.Table = field(default_factory=lambda: pa.table({}))
    facts: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
