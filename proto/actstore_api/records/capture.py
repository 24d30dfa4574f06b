"""Captures: running a model over text and storing its activations.

A field with a `help` becomes an option of the command, with the field's name and this help text. Fields that callers
pass as keywords are repeated in the `...Keywords` class after the record: editors and type checkers need them there,
because they cannot derive keywords from a record.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from actstore_api.records.terms import Dtype, Failure, ModelReference, Name, one_line

Comparison = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in"]
# paused: the store cannot be reached or refuses its credentials; the capture continues automatically once that is
# fixed. failed: the capture has ended, and some shards failed in every attempt; all others are committed. cancelled:
# committed shards stay readable.
CaptureState = Literal["running", "complete", "cancelled", "failed", "paused"]
# Small captures are interactive, and start before bulk ones.
CaptureClass = Literal["interactive", "bulk"]
# How the tokens whose vectors are stored are selected; see Positions.
PositionsKind = Literal["all", "last", "stride", "fraction", "feature"]


@dataclass(frozen=True)
class RowFilter:
    """Keeps the rows of a table dataset whose `column` meets a condition, like pyarrow's filters.

    `values` has one value, or any number of them for `in` and `not in`.
    """

    column: Name
    comparison: Comparison
    values: tuple[str | int | float | bool, ...]


@dataclass(frozen=True)
class DatasetOptions:
    """The fields that `DatasetReference` and the client's `Dataset` share, which says what each means."""

    name: Name
    text_field: str = field(
        default="", metadata={"help": "the column that holds the text, in a dataset of tables (default: text)"}
    )
    tokens_field: str = field(
        default="", metadata={"help": "the column that holds lists of token ids, if the dataset is tokenized"}
    )
    source_field: str = field(
        default="", metadata={"help": "the column that names each document's origin, for example a URL"}
    )
    max_documents: int | None = field(
        default=None, metadata={"help": "stop after this many documents (default: the whole dataset)"}
    )


@dataclass(frozen=True)
class DatasetReference(DatasetOptions):
    """A dataset, and which part of it is read.

    - `name`: a file or a folder below one of the workers' dataset folders or dataset stores, with tables (JSON lines,
      JSON arrays, Parquet, Arrow, CSV) or plain text; or `hf:OWNER/NAME[:CONFIG]:SPLIT`, a dataset of the Hugging Face
      hub, if the workers allow the hub.
    - `text_field`: the column of a table that holds the text. Empty: `text`.
    - `tokens_field`: the column that holds lists of token ids, if the dataset is already tokenized. Empty: the text is
      tokenized.
    - `source_field`: the column that identifies each document's origin, such as a URL. Empty: the file and row identify
      it.
    - `row_filters`: rows that do not pass all filters are left out. Document ids count all rows, so the others keep
      theirs.
    - `max_documents`: stops after this many documents that pass the filters. None: the whole dataset.
    - `max_tokens`: stops after the last whole sequence that fits into this many tokens, BOS included. None: the whole
      dataset.
    """

    row_filters: tuple[RowFilter, ...] = ()
    max_tokens: int | None = field(
        default=None, metadata={"help": "stop after this many tokens (default: the whole dataset)"}
    )


@dataclass(frozen=True)
class DatasetFiles:
    """Which files of a dataset folder are read. All are 0 for a dataset from the hub and for rows of another run.

    `not_read` counts skipped files: hidden ones, unfinished writes, files that describe the dataset, and files that are
    neither tables nor text. A hidden folder counts as one. `first_not_read` has at most 20 of them, as paths in the
    folder.
    """

    read: int = 0
    not_read: int = 0
    first_not_read: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """One line for people; empty if all files are read."""
        if not self.not_read:
            return ""
        more = ", ..." if self.not_read > len(self.first_not_read) else ""
        names = one_line(", ".join(self.first_not_read))
        return f"{self.read:,} files were read; {self.not_read:,} were not ({names}{more})"


@dataclass(frozen=True)
class Positions:
    """The tokens whose vectors a capture stores. Token ids, norms and features are stored for every token.

    Use the methods below to make one. `kind`: all; last (of each sequence); stride (positions divisible by `stride`);
    fraction (each token with this probability, above 0, by a hash of seed, sequence and position); feature (tokens on
    which this feature of this SAE, one of the capture's, is active).
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

    In a request, None and empty mean the default. In an existing run, every default is filled in.

    - `run`: letters, digits, `.`, `_` and `-`. Empty: made from model, dataset and the specification's hash.
    - `model` and `dataset`: required, unless there is `rows_of`.
    - `rows_of`: a complete run whose stored rows `saes` encode; the model is not run. The new run has the tokens,
      norms, sites and features of that run, and the features of `saes`. That run must store the SAEs' sites for every
      token. All other fields except `run` may be left out; those that are set must match that run.
    - `context_length`: tokens in a sequence, BOS included. None: the model's n_ctx. Longer documents are cut into
      several sequences. A sequence never contains parts of two documents.
    - `prepend_bos`: whether every sequence gets a BOS token at position 0; the tokenizer must have one. A document that
      already begins with a BOS, for example from a chat template, does not get a second one. None: true for texts if
      the tokenizer has a BOS token, false for token ids.
    - `packing`: several sequences share one row of a batch. They do not attend to each other, and positions of each
      start at 0.
    - `dense_sites`: sites that are stored as whole vectors, for the tokens of `positions`. `resid_post.2` is one site,
      `resid_post` stands for that site in every layer. At sites with heads (z, q, k, v, pattern), `z.2` is the
      concatenation of all heads in layer 2, and `z.2.5` is one head.
    - `norm_sites`: sites whose L2 norms are stored. Empty: every site of every layer.
    - `saes`: SAEs whose nonzero features are stored.
    - `sink_ratio`: a token is flagged as a sink if its norm at any resid_post exceeds this many times the median of its
      sequence. None: 10. 0: no token is flagged.
    - `dtype`: the data type in which the model computes. None: float32. `storage_dtype`: the data type in which dense
      sites are stored. None: as `dtype`.
    - `widen_on_overflow`: if the storage dtype cannot hold a value, the site is stored as float32 in that shard. False:
      the shard fails.
    - `sequences_per_shard`: the size of a shard, which is the unit of work, retry and commit. None: chosen from the
      bytes that a sequence takes.
    - `sequences_per_batch`: sequences in one batch of the forward pass; a CPU worker splits them over its cores. None:
      the workers' setting.
    """

    run: str = ""
    model: ModelReference | None = None
    dataset: DatasetReference | None = None
    rows_of: str = ""
    context_length: int | None = field(
        default=None, metadata={"help": "tokens in a sequence, BOS included (default: the model's n_ctx)"}
    )
    prepend_bos: bool | None = None
    packing: bool = field(default=False, metadata={"help": "put several short sequences into one row of a batch"})
    dense_sites: tuple[str, ...] = ()
    positions: Positions = field(default_factory=Positions)
    norm_sites: tuple[str, ...] = ()
    saes: tuple[str, ...] = field(default=(), metadata={"help": "SAEs whose features are stored"})
    sink_ratio: float | None = field(
        default=None,
        metadata={
            "help": "a token is a sink if its norm exceeds this many times its sequence's median (default: 10; 0: none)"
        },
    )
    dtype: Dtype | None = None
    storage_dtype: Dtype | None = field(
        default=None, metadata={"help": "dtype in which vectors are stored (default: as --dtype)"}
    )
    widen_on_overflow: bool = field(
        default=False, metadata={"help": "store a site as float32 where the storage dtype cannot hold its values"}
    )
    sequences_per_shard: int | None = None
    sequences_per_batch: int | None = None


@dataclass(frozen=True)
class ShardFailure:
    """A shard that failed in every attempt, and the cause."""

    shard: int
    failure: Failure


@dataclass(frozen=True)
class QueuePlace:
    """The place of a capture in the queue.

    `position` is how many captures would start until this one has, from 1. `captures_ahead` are those of the same
    principal and class that run or wait before it. `expected_start_seconds` is an estimate from the measured speed of
    the workers; None if none was measured yet.
    """

    position: int
    captures_ahead: int
    expected_start_seconds: float | None = None


@dataclass(frozen=True)
class CaptureProgress:
    """The progress of a capture.

    `elapsed_seconds` are since the capture was submitted. `failure` is the cause in the states failed and paused,
    otherwise None. `failed_shards` has at most 100 of the shards that failed in every attempt. `queue` is the place in
    the queue while the capture, in state running, waits for its start; then None. `waits_for` is what a capture that
    has started waits for, such as a node for a worker; empty if a worker is there.
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
    queue: QueuePlace | None = None
    waits_for: str = ""

    @property
    def ended(self) -> bool:
        """Whether the capture has ended, so that nothing more will be committed."""
        return self.state in ("complete", "cancelled", "failed")


@dataclass(frozen=True)
class CaptureEstimate:
    """The size and duration of a planned capture, computed without running the model.

    `tokens` include BOS. `bytes_by_product` has the bytes for each kind of object: tokens, norms, each site,
    features-SAE and so on. `seconds` is the duration of the forward passes on as many workers as there may be, at half
    of the measured speed of matrix products of those that ran last; 0 if none has run yet. `documents_with_bos` already
    begin with a BOS token and do not get a second one.
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
        own = f"  {self.documents_with_bos:,} documents already begin with a BOS token: no second one is added"
        return [f"{counts}, {self.shards:,} shards", *([own] if self.documents_with_bos else [])]

    def _sizes(self) -> list[str]:
        width = max(map(len, self.bytes_by_product), default=0)
        return [f"  {product:<{width}} {size:>16,} bytes" for product, size in sorted(self.bytes_by_product.items())]

    def _notes(self) -> list[str]:
        time = (
            f"about {self.seconds:,.0f} s of forward passes" if self.seconds else "unknown time: no worker has run yet"
        )
        files = [f"  {self.dataset_files.note}"] if self.dataset_files.note else []
        return [f"  {self.bytes:,} bytes in all; {time}", *files]


@dataclass(frozen=True)
class EstimateCapture:
    """Asks for the size and duration of a capture, with all checks of StartCapture."""

    specification: CaptureSpecification


@dataclass(frozen=True)
class EstimateCaptureAnswer:
    """The answer to EstimateCapture."""

    estimate: CaptureEstimate


@dataclass(frozen=True)
class StartCapture:
    """Asks for a capture to be started."""

    specification: CaptureSpecification


@dataclass(frozen=True)
class StartCaptureAnswer:
    """The name of the run, as given or as generated."""

    run: str


@dataclass(frozen=True)
class ListSources:
    """Asks which models, SAEs and datasets a capture can use."""


@dataclass(frozen=True)
class FoundModel:
    """A model folder of the workers, or a revision in one, with weights of a supported family. The model was not
    loaded.

    `family` is the model_type of transformers.
    """

    name: str
    revision: str
    family: str


@dataclass(frozen=True)
class ListSourcesAnswer:
    """What a capture can use, in order of name, as the workers find it at the moment of the call.

    - `saes`: those in the workers' model folders. SAEs that were trained from the store are in its catalog.
    - `datasets`: files and folders at the top level of the dataset folders and stores. A capture can also use files and
      folders below.
    - `hub_allowed`: a capture can also use names on the Hugging Face hub, which are not listed.
    - `truncated`: a list was cut off, because each has at most 1000 entries.
    """

    models: tuple[FoundModel, ...]
    saes: tuple[str, ...]
    datasets: tuple[str, ...]
    hub_allowed: bool
    truncated: bool


@dataclass(frozen=True)
class WatchCapture:
    """Asks for the progress of a capture until it ends."""

    run: str


@dataclass(frozen=True)
class WatchCaptureAnswer:
    """The progress of a capture, sent at each commit and at least every few seconds. The last one has a final state."""

    progress: CaptureProgress


@dataclass(frozen=True)
class CancelCapture:
    """Asks for a capture to be stopped."""

    run: str


@dataclass(frozen=True)
class CancelCaptureAnswer:
    """The progress of a capture when it was stopped."""

    progress: CaptureProgress


@dataclass(frozen=True)
class GetCaptureTotals:
    """Asks for totals over all captures since the workers started."""


@dataclass(frozen=True)
class QueueTotals:
    """The queue of one class of captures: those that wait now, and since the coordinator started those that started."""

    capture_class: CaptureClass
    captures_queued: int = 0
    oldest_seconds: float = 0.0
    captures_started: int = 0
    waited_seconds: float = 0.0


@dataclass(frozen=True)
class PrincipalTotals:
    """What a principal has used since the workers' coordinator started."""

    principal: str
    device_seconds: float = 0.0


@dataclass(frozen=True)
class GetCaptureTotalsAnswer:
    """Totals since the workers' coordinator started, for dashboards."""

    captures_running: int = 0
    captures_complete: int = 0
    captures_failed: int = 0
    captures_cancelled: int = 0
    shards_committed: int = 0
    tokens_committed: int = 0
    bytes_committed: int = 0
    queues: tuple[QueueTotals, ...] = ()
    principals: tuple[PrincipalTotals, ...] = ()
