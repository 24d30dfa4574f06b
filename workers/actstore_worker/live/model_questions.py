"""The questions of proto ModelService and their answers, field by field; defaults are those of the contract."""

from dataclasses import dataclass

import pyarrow as pa

from actstore_storage.runs.snapshot import Provenance
from actstore_worker.models.prompts import Prompt

ADD, SET, PROJECT_OUT = "add", "set", "project_out"
MEAN_NORM, ABSOLUTE = "mean_norm", "absolute"
ALL, PROMPT, GENERATED = "all", "prompt", "generated"
ZERO, MEAN, RESAMPLE = "zero", "mean", "resample"


@dataclass(frozen=True)
class ModelQuestion:
    """To a model. `revision` "" is the model itself."""

    model: str
    revision: str


@dataclass(frozen=True)
class TokeniseText(ModelQuestion):
    """`prepend_bos` None: texts get one where the tokenizer has a BOS token, and token ids none."""

    text: Prompt
    one_token: bool = False
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class SeeAttention(ModelQuestion):
    """`prepend_bos`: as of TokeniseText. Empty tuples stand for all that there are."""

    text: Prompt
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    patterns: bool = False
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class ScoreInduction(ModelQuestion):
    """`tokens` None: 48, or as many as fit."""

    tokens: int | None = None
    texts: int = 4
    seed: int = 0
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class LensText(ModelQuestion):
    """`target` "": each position's true next token; else the text of one, or its id."""

    text: Prompt
    site: str = "resid_post"
    layers: tuple[int, ...] = ()
    k: int = 5
    target: str | int = ""
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class SteerText(ModelQuestion):
    """Along `vector` at `site`; or, where `sae` is given, along its `feature`."""

    prompt: Prompt
    vector: tuple[float, ...] = ()
    site: str = ""
    sae: str = ""
    feature: int = 0
    mode: str = ADD
    strength: float | None = None
    unit: str = MEAN_NORM
    positions: str = ALL
    tokens: int = 32
    temperature: float = 0.0
    seed: int = 0
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class AblateSites(ModelQuestion):
    """`run` "": a mean is over the texts."""

    texts: tuple[Prompt, ...]
    sites: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    ablation: str = ZERO
    run: str = ""
    run_tokens: int = 8192
    seed: int = 0
    same_position: bool = False
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class CompareTokens(ModelQuestion):
    """`layers` empty: the first third. `draws` None: 128, or as many as there are."""

    clean: Prompt
    corrupt: tuple[Prompt, ...]
    layers: tuple[int, ...] = ()
    draws: int | None = None
    seed: int = 0
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class MeasureWeights(ModelQuestion):
    """Of proto NormService. `text` and `run` "": nothing is read but random input."""

    layers: tuple[int, ...] = ()
    samples: int = 4096
    seed: int = 0
    text: Prompt = ""
    prepend_bos: bool | None = None
    run: str = ""
    run_tokens: int = 8192


AloneQuestion = (
    TokeniseText | SeeAttention | ScoreInduction | LensText | SteerText | AblateSites | CompareTokens | MeasureWeights
)


@dataclass(frozen=True)
class TokenisedText:
    tokens: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class SeenAttention:
    heads: pa.Table
    patterns: pa.Table | None
    tokens: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class InductionScores:
    heads: pa.Table
    tokens: int
    loss_first: float
    loss_second: float
    provenance: Provenance


@dataclass(frozen=True)
class LensedText:
    tops: pa.Table
    positions: pa.Table
    tokens: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class SteeredText:
    tokens: pa.Table
    prompt: pa.Table
    steered_text: str
    unsteered_text: str
    site: str
    mean_norm: float
    strength: float | None
    provenance: Provenance


@dataclass(frozen=True)
class AblatedSites:
    effects: pa.Table
    texts: pa.Table
    loss: float
    tokens: int
    provenance: Provenance


@dataclass(frozen=True)
class ComparedTokens:
    tokens: pa.Table
    heads: pa.Table
    provenance: Provenance


@dataclass(frozen=True)
class MeasuredWeights:
    weights: pa.Table
    sublayers: pa.Table
    provenance: Provenance


AloneAnswer = (
    TokenisedText
    | SeenAttention
    | InductionScores
    | LensedText
    | SteeredText
    | AblatedSites
    | ComparedTokens
    | MeasuredWeights
)
