"""The contents of a store: runs, models and SAEs."""

from dataclasses import dataclass

from actstore_api.records.capture import CaptureSpecification
from actstore_api.records.terms import BlockWiring, Provenance


@dataclass(frozen=True)
class SaeAttachment:
    """An SAE whose feature activations a run stores. `site` is the short name of the site that it reads."""

    name: str
    site: str
    d_sae: int


@dataclass(frozen=True)
class Run:
    """A run as it is at the moment of the call. During a capture, more shards may be committed later.

    `sequences_total` and `tokens_total` (including BOS) are those of the complete run; `tokens_committed` counts
    committed shards only. Sites have short names, in layer order: resid_post.0, resid_post.1.
    """

    name: str
    specification: CaptureSpecification
    provenance: Provenance
    sequences_total: int
    tokens_total: int
    tokens_committed: int
    dense_sites: tuple[str, ...]
    norm_sites: tuple[str, ...]
    saes: tuple[SaeAttachment, ...]
    n_layers: int
    d_model: int

    @property
    def complete(self) -> bool:
        """Whether every shard is committed."""
        return self.provenance.shards_committed == self.provenance.shards_total


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that was used in a capture into the store. Sizes are named as in TransformerLens.

    `revision` empty: the model itself. `family` is the model_type of transformers: gpt_neox, gpt2, llama. `block` None
    and `config_sha256` empty: unknown; see Provenance.
    """

    name: str
    revision: str
    weights_sha256: str
    tokenizer_sha256: str
    config_sha256: str = ""
    family: str
    block: BlockWiring | None = None
    n_layers: int
    n_heads: int
    d_model: int
    d_vocab: int
    n_ctx: int


@dataclass(frozen=True)
class Sae:
    """A sparse autoencoder that was used in a capture into the store, or trained from it.

    `architecture`: standard, topk, jumprelu or gated. `site` is the short name of the site that it was trained on.
    `model` is the model that it was trained on, according to its configuration; empty: the configuration does not say.
    """

    name: str
    sha256: str
    architecture: str
    site: str
    d_in: int
    d_sae: int
    model: str


@dataclass(frozen=True)
class ListRuns:
    """Asks for the list of all runs of the store."""


@dataclass(frozen=True)
class ListRunsAnswer:
    """All runs of the store, in order of name."""

    runs: tuple[Run, ...]


@dataclass(frozen=True)
class GetRun:
    """Asks for one run, as it is at the moment of the call."""

    run: str


@dataclass(frozen=True)
class GetRunAnswer:
    """The answer to GetRun."""

    run: Run


@dataclass(frozen=True)
class ListModels:
    """Asks for all models that were used in captures into the store."""


@dataclass(frozen=True)
class ListModelsAnswer:
    """All these models, in order of name, then revision."""

    models: tuple[Model, ...]


@dataclass(frozen=True)
class ListSaes:
    """Asks for all SAEs that were used in captures into the store, or trained from it."""


@dataclass(frozen=True)
class ListSaesAnswer:
    """All these SAEs, in order of name."""

    saes: tuple[Sae, ...]
