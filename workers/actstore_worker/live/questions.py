"""The questions of proto SaeService and their answers, field by field; defaults are those of the contract.

`Question` and `Answer` are those of ModelService, too.
"""

from dataclasses import dataclass

import pyarrow as pa

from actstore_storage.runs.snapshot import Provenance
from actstore_worker.live.model_questions import AloneAnswer, AloneQuestion, ModelQuestion
from actstore_worker.models.prompts import Prompt

SIDES = ("decoder", "encoder")
DELETE, ZERO_EMBEDDING, ZERO_RESIDUAL, MEAN_RESIDUAL = "delete", "zero_embedding", "zero_residual", "mean_residual"


@dataclass(frozen=True)
class LiveLimits:
    # SAEs that one replica keeps loaded.
    saes: int = 4
    # Features of one logit lens, and tokens at each of its ends.
    lens_features: int = 256
    lens_tokens: int = 1000
    # Features in one answer about neighbours.
    neighbours: int = 1000
    # Single tokens and pairs that one question takes from a text.
    ablations: int = 20_000
    # Stored tokens that one check looks at.
    check_tokens: int = 131_072
    # Attention weights in one answer, and in one layer of one pass, which holds those of all its heads.
    attention_weights: int = 2_000_000
    attention_elements: int = 1 << 26
    # Texts of random tokens that induction scores are means over.
    induction_texts: int = 64
    # Rows of one lens on a text: layers x positions x tokens of each.
    lens_rows: int = 500_000
    # Tokens that one question generates, with and without steering each.
    steered_tokens: int = 512
    # Parts of a model x tokens of the texts that they are taken from, in one question.
    ablated_tokens: int = 2_000_000
    # Corrupt prompts in one question about their tokens, drawn tokens that stand for what is usual, and tokens of the
    # prompts with drawn ones in them: prompts x replaced tokens x draws x length.
    compared_prompts: int = 64
    compared_draws: int = 1024
    compared_tokens: int = 500_000
    # Random inputs that norms of what is written are sampled on, and MLP units whose pairs a formula sums over.
    weight_samples: int = 65_536
    weight_units: int = 8192
    # Tokens, summed over the rows, in one forward pass; at least one row always runs.
    tokens_per_slice: int = 4096

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1:
            raise ValueError(f"limits of live questions must be positive: {self}")


@dataclass(frozen=True)
class SaeQuestion(ModelQuestion):
    """To an SAE and a model."""

    sae: str


@dataclass(frozen=True)
class EncodeText(SaeQuestion):
    """`prepend_bos` None: texts get one where the tokenizer has a BOS token, and token ids none."""

    text: Prompt
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class LogitLens(SaeQuestion):
    features: tuple[int, ...]
    side: str = "decoder"
    fold_norm: bool = False
    longest_unembedding: float | None = None
    k: int = 20


@dataclass(frozen=True)
class AblateText(SaeQuestion):
    feature: int
    text: Prompt
    position: int | None = None
    ablation: str = DELETE
    pairs: bool = False
    first_ablated: int = 0
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class AblateDirection(SaeQuestion):
    feature: int
    text: Prompt
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class FindNeighbours:
    """Of `feature`, or where that is None of `vector`."""

    sae: str
    feature: int | None = None
    vector: tuple[float, ...] = ()
    side: str = "decoder"
    k: int = 20


@dataclass(frozen=True)
class CheckSae:
    run: str
    sae: str
    tokens: int = 8192


Question = EncodeText | LogitLens | AblateText | AblateDirection | FindNeighbours | CheckSae | AloneQuestion


@dataclass(frozen=True)
class EncodedText:
    tokens: pa.Table
    activations: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class LensTokens:
    tokens: pa.Table
    masked_tokens: int
    provenance: Provenance


@dataclass(frozen=True)
class AblatedText:
    effects: pa.Table
    tokens: pa.Table
    position: int
    activation: float
    provenance: Provenance


@dataclass(frozen=True)
class AblatedDirection:
    tokens: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class Neighbours:
    features: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class SaeCheck:
    quantities: pa.Table
    warnings: tuple[str, ...]
    provenance: Provenance


Answer = EncodedText | LensTokens | AblatedText | AblatedDirection | Neighbours | SaeCheck | AloneAnswer
