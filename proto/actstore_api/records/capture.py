"""Running a model over text and storing what it shows.

A field with a `help` is an option of the command by its own name, and this is what the command says of it. Fields that
callers give as keywords of their own names stand once more in the `...Keywords` beside the record, for editors and type
checkers, which cannot derive them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from actstore_api.records.terms import Dtype, Failure, ModelReference, Name, one_line

Comparison = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in"]
# paused: the store is not there, or refuses its credentials; it goes on by itself once that is mended. failed: ended,
# with shards that failed each time they were tried; all others are committed. cancelled: committed shards stay
# readable.
CaptureState = Literal["running", "complete", "cancelled", "failed", "paused"]
# Of the tokens whose vectors are stored; see Positions.
PositionsKind = Literal["all", "last", "stride", "fraction", "feature"]


@dataclass(frozen=True)
class RowFilter:
    """Keeps the rows of a table dataset whose `column` compares so with `values`, as pyarrow's filters do.

    `values` is one; of `in` and `not in` any number.
    """

    column: Name
    comparison: Comparison
    values: tuple[str | int | float | bool, ...]


@dataclass(frozen=True)
class DatasetReference:
    """A dataset and what of it is read.

    `name` is a file or a folder below one of the workers' dataset folders or dataset stores: tables (JSON lines, JSON
    arrays, Parquet, Arrow, CSV), or plain text; or `hf:OWNER/NAME[:CONFIG]:SPLIT`, a dataset of the Hugging Face hub,
    where the workers allow the hub. Of a table, `text_field` is the column that holds the text (empty: `text`);
    `tokens_field` the one that holds lists of token ids, of a dataset that is tokenized already (empty: text is
    tokenized); `source_field` the one that says where a document comes from, a URL or an identifier (empty: its file
    and row do). Rows that do not pass all `row_filters` are left out, and keep their document ids. Reading stops after
    `max_documents` that pass them, and after the last whole sequence within `max_tokens`, BOS included; None: it does
    not.
    """

    name: Name
    text_field: str = field(default="", metadata={"help": "the column of a dataset of tables (default: text)"})
    tokens_field: str = field(default="", metadata={"help": "the column of token ids, where the dataset has them"})
    source_field: str = field(
        default="", metadata={"help": "the column that says where a document comes from, as a URL"}
    )
    row_filters: tuple[RowFilter, ...] = ()
    max_documents: int | None = field(default=None, metadata={"help": "documents in all (default: the whole dataset)"})
    max_tokens: int | None = field(default=None, metadata={"help": "tokens in all (default: the whole dataset)"})


class DatasetKeywords(TypedDict, total=False):
    """Fields of `DatasetReference` as keywords."""

    text_field: str
    tokens_field: str
    source_field: str
    max_documents: int | None
    max_tokens: int | None


@dataclass(frozen=True)
class DatasetFiles:
    """Which files of a folder that is a dataset are read; all 0 for a dataset of the hub, and for rows of another run.

    `not_read` are hidden files and those of unfinished writes, files that describe the dataset, and what is neither
    table nor text; a hidden folder counts as one. `first_not_read` has at most 20 of them, by their paths in the
    folder.
    """

    read: int = 0
    not_read: int = 0
    first_not_read: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """One line for people; empty where all are read."""
        if not self.not_read:
            return ""
        more = ", ..." if self.not_read > len(self.first_not_read) else ""
        names = one_line(", ".join(self.first_not_read))
        return f"not read, beside {self.read:,} files: {self.not_read:,} ({names}{more})"


@dataclass(frozen=True)
class Positions:
    """Which tokens' vectors a capture stores; tokens, norms and features are of every token. Made by the methods below.

    `kind`: all; last (of each sequence); stride (positions divisible by `stride`); fraction (each token with this
    probability, above 0, by a hash of seed, sequence and position); feature (tokens on which that feature of that SAE,
    one of the capture's, is active).
    """

    kind: PositionsKind = "all"
    stride: int = 1
    fraction: float = 1.0
    seed: int = 0
    sae: str = ""
    feature: int = 0

    @classmethod
    def last(cls) -> "Positions":
        """Stores vectors of the last token of each sequence."""
        return cls("last")

    @classmethod
    def every(cls, stride: int) -> "Positions":
        """Stores vectors of every `stride`-th token of a sequence.

        Args:
            stride: Distance between two positions, in tokens. Position 0 is always stored.
        """
        return cls("stride", stride=stride)

    @classmethod
    def random(cls, fraction: float, seed: int = 0) -> "Positions":
        """Stores vectors of tokens that are drawn at random.

        Args:
            fraction: Probability of each token, above 0 and at most 1.
            seed: The same seed draws the same tokens.
        """
        return cls("fraction", fraction=fraction, seed=seed)

    @classmethod
    def active(cls, sae: str, feature: int) -> "Positions":
        """Stores vectors of the tokens on which a feature is active.

        Args:
            sae: Name of one of the capture's SAEs.
            feature: Index of the feature, from 0.
        """
        return cls("feature", sae=sae, feature=feature)


@dataclass(frozen=True)
class CaptureSpecification:
    """Everything that decides what a run stores. Two equal specifications are the same run.

    In a request, None and empty mean the default; of a run that is there, every default is filled in.

    - `run`: letters, digits, `.`, `_` and `-`. Empty: made from model, dataset and the specification's hash.
    - `model` and `dataset`: needed unless there is `rows_of`, a complete run over whose stored rows `saes` are encoded
      without its model: the new run has that run's tokens, norms, sites and features, and those of these SAEs, whose
      sites it must store of every token. All other fields but `run` may be left out then; what is given must be as in
      that run.
    - `context_length`: tokens in a sequence, BOS included; None is the model's n_ctx. A longer document is cut into
      several sequences; sequences never span documents.
    - `prepend_bos`: a BOS at position 0 of every sequence; the tokenizer must have one. A document that begins with
      one, as a chat template writes it, keeps that one alone. None: where the tokenizer has a BOS token, but never of
      token ids.
    - `packing` puts several sequences side by side into a row of the batch. They do not attend to each other, and each
      counts its positions from 0.
    - `dense_sites` are stored as whole vectors, of the tokens of `positions`: `resid_post.2`, or `resid_post` for that
      site of every layer. Of sites with heads (z, q, k, v, pattern) `z.2` has all heads of a layer side by side, and
      `z.2.5` one. Of `norm_sites` L2 norms are stored; empty: of every site of every layer. Of `saes`, the nonzero
      features.
    - `sink_ratio`: a token whose norm at some resid_post exceeds the median of its sequence this many times is flagged
      as a sink. None: 10; 0: none is flagged.
    - `dtype`: what the model computes in; None: float32. `storage_dtype`: what dense sites are stored in; None: as
      `dtype`. Where that cannot hold a value, `widen_on_overflow` stores that site of that shard in float32; else the
      shard is refused.
    - `sequences_per_shard`: the unit of work and of commit; None: chosen by the coordinator from the bytes of a
      sequence. `sequences_per_batch`: those read at once; a CPU worker splits them over its cores; None: the workers'
      setting.
    """

    run: str = ""
    model: ModelReference | None = None
    dataset: DatasetReference | None = None
    rows_of: str = ""
    context_length: int | None = field(default=None, metadata={"help": "tokens in a sequence (default: the model's)"})
    prepend_bos: bool | None = None
    packing: bool = field(default=False, metadata={"help": "several sequences to a row of a batch"})
    dense_sites: tuple[str, ...] = ()
    positions: Positions = field(default_factory=Positions)
    norm_sites: tuple[str, ...] = ()
    saes: tuple[str, ...] = field(default=(), metadata={"help": "SAEs whose features are stored"})
    sink_ratio: float | None = field(
        default=None, metadata={"help": "norm of a sink over its sequence's median (default: 10)"}
    )
    dtype: Dtype | None = None
    storage_dtype: Dtype | None = field(default=None, metadata={"help": "of vectors (default: as dtype)"})
    widen_on_overflow: bool = field(default=False, metadata={"help": "store what does not fit as float32"})
    sequences_per_shard: int | None = None
    sequences_per_batch: int | None = None


class SpecificationKeywords(TypedDict, total=False):
    """Fields of `CaptureSpecification` as keywords."""

    context_length: int | None
    packing: bool
    sink_ratio: float | None
    widen_on_overflow: bool
    sequences_per_shard: int | None
    sequences_per_batch: int | None


@dataclass(frozen=True)
class ShardFailure:
    """A shard that failed each time it was tried, and why."""

    shard: int
    failure: Failure


@dataclass(frozen=True)
class CaptureProgress:
    """How far a capture is.

    `elapsed_seconds` are since it was started. `failure` says why it failed or paused, and is None in other states;
    `failed_shards` has at most 100 of those that failed each time they were tried.
    """

    run: str
    state: CaptureState
    shards_committed: int = 0
    shards_total: int = 0
    tokens_committed: int = 0
    tokens_total: int = 0
    elapsed_seconds: float = 0.0
    failure: Failure | None = None
    failed_shards: tuple[ShardFailure, ...] = ()
    dataset_files: DatasetFiles = field(default_factory=DatasetFiles)

    @property
    def ended(self) -> bool:
        """Whether nothing more will be committed."""
        return self.state in ("complete", "cancelled", "failed")


@dataclass(frozen=True)
class CaptureEstimate:
    """What a capture would take, found without running the model.

    `tokens` are with BOS. `bytes_by_product`: of tokens, norms, a site, features-SAE and so on. `seconds` are of the
    forward pass on the workers that there are now, at half of their measured matrix-product speed.
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
        return "\n".join([*self._counts(), *self._sizes(), *self._notes()])

    def _counts(self) -> list[str]:
        counts = f"{self.tokens:,} tokens in {self.sequences:,} sequences of {self.documents:,} documents"
        own = f"  {self.documents_with_bos:,} documents begin with a BOS of their own: none is put in front of it"
        return [f"{counts}, {self.shards:,} shards", *([own] if self.documents_with_bos else [])]

    def _sizes(self) -> list[str]:
        width = max(map(len, self.bytes_by_product), default=0)
        return [f"  {product:<{width}} {size:>16,} bytes" for product, size in sorted(self.bytes_by_product.items())]

    def _notes(self) -> list[str]:
        time = f"about {self.seconds:,.0f} s of forward passes"
        files = [f"  {self.dataset_files.note}"] if self.dataset_files.note else []
        return [f"  {self.bytes:,} bytes in all; {time}", *files]


@dataclass(frozen=True)
class EstimateCapture:
    """Asks what a capture would take, by all that StartCapture checks."""

    specification: CaptureSpecification


@dataclass(frozen=True)
class EstimateCaptureAnswer:
    """What a capture would take."""

    estimate: CaptureEstimate


@dataclass(frozen=True)
class StartCapture:
    """Asks for a capture to be started."""

    specification: CaptureSpecification


@dataclass(frozen=True)
class StartCaptureAnswer:
    """The name of the run, given or made."""

    run: str


@dataclass(frozen=True)
class ListSources:
    """Asks what a capture can name."""


@dataclass(frozen=True)
class FoundModel:
    """A model folder of the workers, or a revision in one, with weights of a supported family. It was not loaded.

    `family` is transformers' model_type.
    """

    name: str
    revision: str
    family: str


@dataclass(frozen=True)
class ListSourcesAnswer:
    """What a capture can name, in order of name, as the workers find it at this moment.

    `saes` are those in the workers' model folders; those that were trained from the store are in its catalog.
    `datasets` are files and folders of documents, each at the top of a dataset folder or store; a capture can also name
    what lies below. `hub_allowed`: names of the Hugging Face hub can be given, too; they are not listed. `truncated`:
    some were left out of the lists, of which each has at most 1000.
    """

    models: tuple[FoundModel, ...]
    saes: tuple[str, ...]
    datasets: tuple[str, ...]
    hub_allowed: bool
    truncated: bool


@dataclass(frozen=True)
class WatchCapture:
    """Asks how far a capture is, until it ends."""

    run: str


@dataclass(frozen=True)
class WatchCaptureAnswer:
    """How far a capture is: sent at each commit and at least every few seconds; the last one has an end state."""

    progress: CaptureProgress


@dataclass(frozen=True)
class CancelCapture:
    """Asks for a capture to be stopped."""

    run: str


@dataclass(frozen=True)
class CancelCaptureAnswer:
    """How far a capture was when it was stopped."""

    progress: CaptureProgress


@dataclass(frozen=True)
class GetCaptureTotals:
    """Asks what the workers have captured since they started."""


@dataclass(frozen=True)
class GetCaptureTotalsAnswer:
    """Counts since the workers' coordinator started, for dashboards."""

    captures_running: int = 0
    captures_complete: int = 0
    captures_failed: int = 0
    captures_cancelled: int = 0
    shards_committed: int = 0
    tokens_committed: int = 0
    bytes_committed: int = 0
