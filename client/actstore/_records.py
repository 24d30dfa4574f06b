"""What the client's calls take and answer, apart from tables. Field by field the messages of actstore_api.v1."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from actstore._view import text as _text


@dataclass(frozen=True)
class S3Access:
    """How to reach the bucket of an `s3://` address. `endpoint` is `host:port` or a host."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"
    secure: bool = True


@dataclass(frozen=True)
class Provenance:
    """Where a number comes from: enough to compute it again. A live answer has no run, specification or snapshot.

    `sink_ratio`: how many times its sequence's median norm makes a token a sink; 0 where the run looked at none, None
    of a live answer. `config_sha256` is over what of the model's configuration decides numbers; empty of a run that was
    captured before it was kept. `code_version` is actstore's, with those of torch and transformers.
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
        parts = [f"model {self.model}{'@' + self.model_revision if self.model_revision else ''}"]
        parts += [f"weights {self.weights_sha256[:8]}"] if self.weights_sha256 else []
        parts += [f"config {self.config_sha256[:8]}"] if self.config_sha256 else []
        parts += [f"SAE {name} {sha256[:8]}" for name, sha256 in sorted(self.sae_sha256.items())]
        how = (self.dtype, self.attention_implementation, self.device)
        parts += [" ".join(filter(None, how))] if any(how) else []
        if self.run:
            parts.append(f"run {self.run}, {self.shards_committed} of {self.shards_total} shards")
            parts.append(f"snapshot {self.snapshot[:8]}")
        return " · ".join([*parts, f"actstore {self.code_version}"])


@dataclass(frozen=True)
class Positions:
    """Which tokens' vectors a capture stores; norms and features are of every token. Made by the methods below."""

    kind: str = "all"
    stride: int = 1
    fraction: float = 1.0
    seed: int = 0
    sae: str = ""
    feature: int = 0

    @classmethod
    def last(cls) -> "Positions":
        """The last token of each sequence."""
        return cls("last")

    @classmethod
    def every(cls, stride: int) -> "Positions":
        """Positions divisible by `stride`."""
        return cls("stride", stride=stride)

    @classmethod
    def random(cls, fraction: float, seed: int = 0) -> "Positions":
        """Each token with this probability; the same ones for the same seed."""
        return cls("fraction", fraction=fraction, seed=seed)

    @classmethod
    def active(cls, sae: str, feature: int) -> "Positions":
        """Tokens on which the feature is active; `sae` is one of the capture's."""
        return cls("feature", sae=sae, feature=feature)


@dataclass(frozen=True)
class RowFilter:
    """Rows of a table dataset whose `column` compares so with `value`; `in` and `not in` take a tuple of values."""

    column: str
    comparison: str
    value: object


@dataclass(frozen=True)
class CaptureSpecification:
    """What decides a run's content. In a request, None and empty mean the default; a run's has every default filled in.

    `bos`: True prepends a BOS token to every sequence, False does not, None follows the tokenizer.
    """

    model: str
    dataset: str
    run: str = ""
    model_revision: str = ""
    text_field: str = ""
    max_tokens: int | None = None
    context_length: int | None = None
    bos: bool | None = None
    dense_sites: tuple[str, ...] = ()
    norm_sites: tuple[str, ...] = ()
    saes: tuple[str, ...] = ()
    dtype: str = ""
    sequences_per_shard: int | None = None
    sequences_per_batch: int | None = None
    storage_dtype: str = ""
    widen_on_overflow: bool = False
    packing: bool = False
    positions: Positions = field(default_factory=Positions)
    tokens_field: str = ""
    row_filters: tuple[RowFilter, ...] = ()
    max_documents: int | None = None
    # 0: no token is flagged as a sink.
    sink_ratio: float | None = None
    # The run over whose stored rows SAEs are encoded; a request then needs its `saes` alone.
    rows_of: str = ""
    source_field: str = ""


@dataclass(frozen=True)
class DatasetFiles:
    """Of a dataset that is a folder, how many of its files are read and not, and the first of those that are not."""

    read: int = 0
    not_read: int = 0
    first_not_read: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """One line for people; empty where all are read."""
        if not self.not_read:
            return ""
        more = ", ..." if self.not_read > len(self.first_not_read) else ""
        names = _text.line(", ".join(self.first_not_read))
        return f"not read, beside {self.read:,} files: {self.not_read:,} ({names}{more})"


@dataclass(frozen=True)
class CaptureEstimate:
    """What a capture would take, found without running the model; `seconds` are of the forward passes alone.

    `documents_with_bos` begin with a BOS of their own, as a chat template writes it, and get no second one.
    """

    documents: int
    sequences: int
    tokens: int
    shards: int
    bytes_by_product: Mapping[str, int]
    bytes: int
    seconds: float
    documents_with_bos: int = 0
    dataset_files: DatasetFiles = field(default_factory=DatasetFiles)

    def __repr__(self) -> str:
        width = max(map(len, self.bytes_by_product), default=0)
        sizes = [f"  {product:<{width}} {size:>16,} bytes" for product, size in sorted(self.bytes_by_product.items())]
        counts = f"{self.tokens:,} tokens in {self.sequences:,} sequences of {self.documents:,} documents"
        time = f"about {self.seconds:,.0f} s of forward passes"
        own = f"  {self.documents_with_bos:,} documents begin with a BOS of their own: none is put in front of it"
        lines = [f"{counts}, {self.shards:,} shards", *([own] if self.documents_with_bos else []), *sizes]
        notes = [f"  {self.dataset_files.note}"] if self.dataset_files.note else []
        return "\n".join([*lines, f"  {self.bytes:,} bytes in all; {time}", *notes])


@dataclass(frozen=True)
class ShardFailure:
    """A shard that failed each time it was tried, and why."""

    shard: int
    reason: str
    message: str


@dataclass(frozen=True)
class SaeAttachment:
    """An SAE whose features a run stores, and the site that it reads."""

    name: str
    site: str
    d_sae: int


@dataclass(frozen=True)
class RunDescription:
    """A run as a reader finds it at one moment."""

    name: str
    specification: CaptureSpecification
    provenance: Provenance
    sequences_total: int
    tokens_total: int
    tokens_committed: int
    dense_sites: tuple[str, ...]
    norm_sites: tuple[str, ...]
    saes: tuple[SaeAttachment, ...]
    layer_count: int
    d_model: int

    @property
    def complete(self) -> bool:
        return self.provenance.shards_committed == self.provenance.shards_total


@dataclass(frozen=True)
class ModelDescription:
    name: str
    revision: str
    weights_sha256: str
    tokenizer_sha256: str
    family: str
    layer_count: int
    d_model: int
    head_count: int
    vocabulary_size: int
    context_length: int
    block: str
    config_sha256: str


@dataclass(frozen=True)
class SaeDescription:
    name: str
    sha256: str
    architecture: str
    site: str
    d_in: int
    d_sae: int
    model: str


@dataclass(frozen=True)
class Sources:
    """What a capture can name: (model, revision) with its family, SAEs and datasets, each in order of name."""

    models: dict[tuple[str, str], str]
    saes: tuple[str, ...]
    datasets: tuple[str, ...]
    hub_allowed: bool
    truncated: bool


@dataclass(frozen=True)
class CaptureProgress:
    """`state` is preparing, running, paused, complete, cancelled or failed; the totals are 0 while preparing.

    Paused: the store is not there, or refuses its credentials; `failure` says how, and it goes on once that is mended.
    """

    run: str
    state: str
    shards_committed: int = 0
    shards_total: int = 0
    tokens_committed: int = 0
    tokens_total: int = 0
    elapsed_seconds: float = 0.0
    failure: str = ""
    failed_shards: tuple[ShardFailure, ...] = ()
    dataset_files: DatasetFiles = field(default_factory=DatasetFiles)

    @property
    def ended(self) -> bool:
        return self.state in ("complete", "cancelled", "failed")


@dataclass(frozen=True)
class RowQuery:
    """Which stored rows, and which columns of them. Positions are from `first_position` to before `end_position`."""

    sites: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("sequence", "position", "document", "token", "flags")
    first_sequence: int = 0
    sequence_count: int | None = None
    tokens: tuple[int, ...] = ()
    documents: tuple[int, ...] = ()
    first_position: int | None = None
    end_position: int | None = None
    exclude: frozenset[str] = frozenset()


# A text, or the ids of the tokens that a model reads in its place.
Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class PromptPair:
    """Two prompts, of the same length in tokens unless spans are named, and the one-token answer to each, or its id."""

    clean: Prompt
    corrupt: Prompt
    answers: tuple[str | int, str | int]


@dataclass(frozen=True)
class Screen:
    """Every cell is estimated, and of each direction only so many are computed."""

    exact_cells: int
    qk_correction: bool = True
    grad_drop: bool = False


Stretch = str | tuple[int, int]


@dataclass(frozen=True)
class SweepRequest:
    """Empty tuples mean the service's defaults: four site kinds, every layer, head and position, both directions.
    `joint` has, by name, (site, position) of cells that are replaced together. Without a `screen` all are computed.
    `source_run` and what follows it are of the sources mean and resample; `spans` has, by name, the clean prompt's part
    and the corrupt one's: text, or tokens from the first to before the second.
    """

    model: str
    pairs: tuple[PromptPair, ...]
    model_revision: str = ""
    sites: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    directions: tuple[str, ...] = ()
    positions: str = "each"
    only_positions: tuple[int, ...] = ()
    window_layers: int = 1
    source: str = "prompt"
    joint: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    screen: Screen | None = None
    bos: bool | None = None
    source_run: str = ""
    source_exclude: frozenset[str] = frozenset({"bos"})
    source_seed: int = 0
    sae: str = ""
    features: tuple[int, ...] = ()
    sae_error: str = "kept"
    spans: Mapping[str, tuple[Stretch, Stretch]] = field(default_factory=dict)
    receivers: tuple[str, ...] = ()
    path_mlps: str = "recomputed"
    fresh: bool = False


@dataclass(frozen=True)
class SweepProgress:
    cells_done: int
    cells_total: int


@dataclass(frozen=True)
class TakenRows:
    """What a sweep put into its prompts' runs from a stored run: the mean of `used` rows, or as many that were drawn,
    of `read` that were looked at, of `stored` that the run has. `sink_ratio` as in Provenance.
    """

    run: str
    used: int
    read: int
    stored: int
    excluded: tuple[str, ...]
    sink_ratio: float | None = None


@dataclass(frozen=True)
class SweepAudit:
    """How far patched runs were from what the whole model makes of the same prompts. Errors are in a logit.

    `audited_cells` were computed again by the full forward pass: `largest_error`. `noise_floor` is that of runs in
    which nothing was replaced: an effect below it says nothing. A sweep with an error above `tolerance` fails.
    `kernel`: "resumed" where only what a patch can change was computed, `token_layers` of `token_layers_full`.
    `rank_agreement`, of a screen, is Spearman's rank correlation of |estimate| with |effect| over the computed cells,
    mean over pairs and directions; None where there is none. `cached`: the same was asked before, and the answer, with
    all of this, is that of back then.
    """

    audited_cells: int = 0
    largest_error: float = 0.0
    noise_floor: float = 0.0
    tolerance: float = 0.0
    kernel: str = ""
    token_layers: float = 0.0
    token_layers_full: float = 0.0
    rank_agreement: float | None = None
    cached: bool = False


@dataclass(frozen=True)
class SweepEstimate:
    """What a sweep would take: `cells` of all pairs and directions, tokens times layers that will be computed for them
    (of a screen at most so many), and by running every patched prompt from the start, `bytes` of the answer, and
    `seconds` of computing at the speed that the model had last. `cached`: the answer is kept, and nothing is computed.
    """

    cells: int
    token_layers: float
    token_layers_full: float
    bytes: int
    seconds: float
    cached: bool = False

    def __repr__(self) -> str:
        reused = f"{self.token_layers:,.0f} token-layers of {self.token_layers_full:,.0f}"
        time = "kept from before" if self.cached else f"about {self.seconds:,.1f} s of computing"
        return f"{self.cells:,} cells, {reused}\n  {self.bytes:,} bytes; {time}"


def field_names(record: type) -> list[str]:
    return [each.name for each in dataclasses.fields(record)]
