"""What lies in the bucket: runs, models and SAEs."""

from dataclasses import dataclass

from actstore_api.records.capture import CaptureSpecification
from actstore_api.records.terms import BlockWiring, Provenance


@dataclass(frozen=True)
class SaeAttachment:
    """An SAE whose features a run stores, and the site that it reads, by its short name."""

    name: str
    site: str
    d_sae: int


@dataclass(frozen=True)
class Run:
    """A run as a reader finds it at one moment.

    `sequences_total` and `tokens_total` (with BOS) are of the finished run, `tokens_committed` those in committed
    shards. Sites have short names, in layer order: resid_post.0, resid_post.1.
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
    """A model that a capture into the store has loaded. Its sizes have TransformerLens's names.

    An empty `revision` is the one that the name stands for by itself. `family` is transformers' model_type: gpt_neox,
    gpt2, llama. `block` None and `config_sha256` empty: the record does not tell; the latter as in Provenance.
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
    """A sparse autoencoder that a capture into the store has loaded.

    `architecture`: standard, topk, jumprelu or gated. `site` is the one that it was trained on, by its short name;
    `model` the model that it was trained on, as its configuration says, and empty where it does not say.
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
    """Asks for every run of the store."""


@dataclass(frozen=True)
class ListRunsAnswer:
    """Every run of the store, in order of name."""

    runs: tuple[Run, ...]


@dataclass(frozen=True)
class GetRun:
    """Asks for one run, as it is at this moment."""

    run: str


@dataclass(frozen=True)
class GetRunAnswer:
    """One run."""

    run: Run


@dataclass(frozen=True)
class ListModels:
    """Asks for every model that a capture into the store has loaded."""


@dataclass(frozen=True)
class ListModelsAnswer:
    """Every such model, in order of name, then revision."""

    models: tuple[Model, ...]


@dataclass(frozen=True)
class ListSaes:
    """Asks for every SAE that a capture into the store has loaded."""


@dataclass(frozen=True)
class ListSaesAnswer:
    """Every such SAE, in order of name."""

    saes: tuple[Sae, ...]
