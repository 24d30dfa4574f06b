"""Questions about a language model and a text given now, answered live."""

from dataclasses import dataclass

from actstore._records import Prompt

MODES = ("add", "set", "project_out")
UNITS = ("mean_norm", "absolute")
STEERED = ("all", "prompt", "generated")
SITE_ABLATIONS = ("zero", "mean", "resample")
LENS_SITES = ("resid_pre", "resid_mid", "resid_post")


@dataclass(frozen=True)
class ModelQuestion:
    """`bos` None follows the tokenizer, and puts none before token ids. Empty tuples stand for all that there are."""

    model: str
    revision: str = ""
    bos: bool | None = None


@dataclass(frozen=True)
class TokeniseQuestion(ModelQuestion):
    """`one_token`: the text is looked for among those of single tokens."""

    text: Prompt = ""
    one_token: bool = False


@dataclass(frozen=True)
class AttentionQuestion(ModelQuestion):
    text: Prompt = ""
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    patterns: bool = False


@dataclass(frozen=True)
class WeightsQuestion(ModelQuestion):
    """`text` and `run` "": none."""

    layers: tuple[int, ...] = ()
    samples: int = 4096
    seed: int = 0
    text: Prompt = ""
    run: str = ""
    run_tokens: int = 8192


@dataclass(frozen=True)
class InductionQuestion(ModelQuestion):
    tokens: int | None = None
    texts: int = 4
    seed: int = 0
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()


@dataclass(frozen=True)
class TextLensQuestion(ModelQuestion):
    text: Prompt = ""
    site: str = "resid_post"
    layers: tuple[int, ...] = ()
    k: int = 5
    target: str | int = ""


@dataclass(frozen=True)
class SteerQuestion(ModelQuestion):
    """Along `vector` at `site`, or where `sae` is given along its `feature`."""

    prompt: Prompt = ""
    vector: tuple[float, ...] = ()
    site: str = ""
    sae: str = ""
    feature: int = 0
    mode: str = "add"
    strength: float | None = None
    unit: str = "mean_norm"
    positions: str = "all"
    tokens: int = 32
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class CompareTokensQuestion(ModelQuestion):
    clean: Prompt = ""
    corrupt: tuple[Prompt, ...] = ()
    layers: tuple[int, ...] = ()
    draws: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class AblateSitesQuestion(ModelQuestion):
    texts: tuple[Prompt, ...] = ()
    sites: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    ablation: str = "zero"
    run: str = ""
    run_tokens: int = 8192
    seed: int = 0
    same_position: bool = False
