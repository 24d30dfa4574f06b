"""What changes when one activation is replaced."""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from actstore_api.records.terms import (
    DEFAULT_EXCLUSION,
    ModelReference,
    Name,
    Prompt,
    Provenance,
    Range,
    TokenClass,
    TokenReference,
)

# denoise: a clean activation into the corrupt run; noise: a corrupt one into the clean run.
PatchDirection = Literal["denoise", "noise"]
# What a patched activation is replaced with: the other prompt's at the same place; zero; the mean of rows of a stored
# run; such rows drawn at random, one for each position. Of the last three only the base run differs from cell to cell:
# denoise patches the corrupt run, noise the clean one.
PatchSource = Literal["prompt", "zero", "mean", "resample"]
# What happens to what an SAE leaves unexplained, when features are patched: the site less the SAE's reconstruction.
# kept: the base run's stays, so that only the features differ; dropped: none, the site becomes the reconstruction;
# patched: the source's takes its place, with every feature that is patched.
SaeError = Literal["kept", "dropped", "patched"]
# Where the grid has cells: a cell a position; one cell, of all positions at once; one cell, at the last position.
PatchPositions = Literal["each", "all", "last"]
# What MLPs do between senders and receivers. recomputed: what they make of what has been sent, so that a path may go
# through them; frozen: what they do in the base run, so that only the direct path is left.
PathMlps = Literal["recomputed", "frozen"]
# How patched runs are computed. resumed: what the patch can change, and nothing else; full: from the start, where a
# model's layers cannot be called by themselves.
SweepKernel = Literal["resumed", "full"]
# A part of a prompt: positions, BOS counted, with an end; or the tokens that hold this text, which is once in it.
PromptRange = Range | str


@dataclass(frozen=True)
class PromptPair:
    """Two prompts, of the same length in tokens unless spans are named, and the answer to each."""

    clean: Prompt
    corrupt: Prompt
    clean_answer: TokenReference
    corrupt_answer: TokenReference


@dataclass(frozen=True)
class CellReference:
    """A place that is patched. `site` is KIND and LAYER, and of one head where one is meant: z.3.2, attn_out.1."""

    site: str
    position: int


@dataclass(frozen=True)
class PatchSpan:
    """Tokens that play the same part in both prompts, as many in one as in the other.

    They are replaced together, first by first. `name` is what the row of the answer is called.
    """

    name: str
    clean: PromptRange
    corrupt: PromptRange


@dataclass(frozen=True)
class JointCells:
    """Cells that are replaced together, and count as one. `name` is what the row of the answer is called."""

    name: str
    cells: tuple[CellReference, ...]


@dataclass(frozen=True)
class Screen:
    """Estimates every cell by a gradient, and computes only the most promising ones.

    `exact_cells` of each direction are computed: those with the largest estimates, by absolute value, mean over pairs.
    `qk_correction`, of q and k: attention's softmax is computed with the replaced one, and only what follows it is
    taken as linear. `grad_drop`: the mean over layers of the absolute estimate with the gradient through that layer
    left out: direct and indirect effects that cancel are seen, and estimates have no sign.
    """

    exact_cells: int
    qk_correction: bool = True
    grad_drop: bool = False


@dataclass(frozen=True)
class StoredSource:
    """Rows of a stored run that are put into the prompts' runs, but for those of the classes that are excluded.

    `run` is of the model's weights and stores the sites' vectors. The same `seed` draws the same rows for resample.
    """

    run: Name
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION
    seed: int = 0


@dataclass(frozen=True)
class RunSweep:
    """Asks what becomes of the answer when activations are replaced, one by one.

    - `pairs`: one at least; all of their prompts are of one length in tokens unless `spans` are named. `prepend_bos`
      None: texts get a BOS where the tokenizer has one, token ids get none.
    - `sites` are kinds: resid_pre, attn_out, resid_mid, mlp_out, resid_post, and by head q, k, v, pattern and z;
      `embedding`, the token's own without its position's, before the first layer; and `features`, of `sae`. Empty:
      resid_pre, attn_out, mlp_out and z, or of these none where `joint` has cells or there is an `sae`. A pattern cell
      is the weights with which its position attends. Empty `layers`, and `heads` of kinds with heads, are all of them.
      `window_layers` side by side are replaced together, as one cell.
    - `only_positions`, of each: these alone; empty: all. `spans` in place of positions: a cell a span; prompts may then
      have other lengths than each other. `joint` cells come beside the sites'.
    - Of the site `features`: the `sae`, and `features` of it alone; empty: at each place all that are active there in
      either run of any pair.
    - `directions` empty: both. `stored` is needed for the sources mean and resample, and of no others.
    - `receivers`, path patching: each cell sends, at its position, and only these take what then reaches them, while
      all attention stays the base run's; what follows them is recomputed. q.LAYER, k.LAYER and v.LAYER (of one head:
      q.9.6), mlp_in.LAYER, all of them at once; or `logits` alone. At most 128. Cells are then of resid_pre, attn_out,
      resid_mid, mlp_out, resid_post, pattern, z, embedding or features, in layers before a receiver; neither joint, nor
      of several layers, nor with a screen. Empty: the cells themselves are patched. `path_mlps` frozen is refused
      without any.
    - `screen` None: every cell is computed. With one there can be neither joint cells nor a window of several layers.
    - `fresh` computes every cell again, even where the answer to the same request is kept.
    """

    model: ModelReference
    pairs: tuple[PromptPair, ...]
    prepend_bos: bool | None = None
    sites: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    window_layers: int = 1
    positions: PatchPositions = "each"
    only_positions: tuple[int, ...] = ()
    spans: tuple[PatchSpan, ...] = ()
    joint: tuple[JointCells, ...] = ()
    sae: str = ""
    features: tuple[int, ...] = ()
    sae_error: SaeError = "kept"
    directions: tuple[PatchDirection, ...] = ()
    source: PatchSource = "prompt"
    stored: StoredSource | None = None
    receivers: tuple[str, ...] = ()
    path_mlps: PathMlps = "recomputed"
    screen: Screen | None = None
    fresh: bool = False


@dataclass(frozen=True)
class SweepProgress:
    """How many cells of a sweep are done."""

    cells_done: int
    cells_total: int


@dataclass(frozen=True)
class SweepCells:
    """Rows of the answer, in order: a row a cell, by pair, direction, then in order of the grid.

    Columns: pair (from 0), direction (denoise, noise), site (`joint` for cells that are replaced together), layer (the
    first of a window; null for joint and embedding), position (null: all, joint, or a span), head (null unless the site
    has heads), feature (null unless it is one of an SAE), name (of joint cells; the span's; of features `together` for
    those named, or else all of the SAE's, at once, and `error` for its error alone, behind the span's name and a colon
    where there is one), token (the base run's text there), unchanged (the prompts do not differ up to there, or nothing
    that is sent reaches a receiver, so that nothing can change: the row is the base run's), and at the last position:
    logit_difference (clean answer less corrupt answer), log_probability and probability (natural; of the clean answer),
    loss (-log_probability), rank (of the clean answer, from 0), kl (D(source run || patched run), nats). `normalized`
    is of the logit difference: (value - base) / (source - base), so that 0 is the unpatched base run and 1 the source
    run; normalized_log_probability, normalized_probability, normalized_loss and normalized_kl likewise, null where
    source and base do not differ. Of a screen there is also `estimate`, of `normalized` and of all cells, and the
    metrics are null where they were not computed.
    """

    rows: pa.Table


@dataclass(frozen=True)
class TakenRows:
    """What of a stored run was put into the prompts' runs: the mean of `used` rows, or as many that were drawn.

    Of `stored` rows that the run has of tokens that are not excluded, `read` were looked at to that end. `sink_ratio`
    as in Provenance, of the run.
    """

    run: str
    used: int
    read: int
    stored: int
    excluded: frozenset[TokenClass]
    sink_ratio: float | None = None


@dataclass(frozen=True)
class SweepAudit:
    """How a sweep has checked itself. Errors are in a logit, over all of the vocabulary.

    `audited_cells` were computed again by the whole model over the whole prompt, with the `largest_error`; a sweep with
    one above `tolerance` fails with AUDIT_FAILED. `noise_floor` is that of runs in which nothing is replaced, one in
    every batch: what is below it says nothing. `token_layers` are tokens times layers that were computed,
    `token_layers_full` those of running every patched prompt from the start; what the check itself runs is in neither.
    `rank_agreement`, of a screen: Spearman's rank correlation of |estimate| with |effect on the logit difference| over
    the cells that were computed, mean over pairs and directions; None without a screen, or with fewer than two cells
    that differ. `cached`: the answer was kept from an earlier request for the same, by the same version of the code; so
    was all of this.
    """

    audited_cells: int
    largest_error: float
    noise_floor: float
    tolerance: float
    kernel: SweepKernel
    token_layers: float
    token_layers_full: float
    rank_agreement: float | None = None
    cached: bool = False


@dataclass(frozen=True)
class SweepResult:
    """What a sweep ends with, beside its rows.

    `tokens`: position, clean, corrupt: the texts of the first pair's tokens, null past the end of the shorter prompt;
    the answers are texts of the first pair's, as `tokens` would show them. The logit differences are logit(clean
    answer) - logit(corrupt answer) at the last position of each unpatched prompt of the first pair.

    `baselines`, a row a pair and unpatched prompt: pair, prompt (clean, corrupt), logit_difference, log_probability,
    probability, loss, rank. `direct`, direct logit attribution: what each component of an unpatched prompt writes
    straight into its logit difference, past all later layers, the final norm's scale held at what it is there: pair,
    prompt (clean, corrupt), part (embedding: what goes into layer 0; attn_out; mlp_out; z: a head of attn_out; bias: of
    final norm and unembedding), layer, head, share. The shares but those of z add up to the logit difference, before a
    soft cap of logits. `stored_rows` are of the sources mean and resample.
    """

    tokens: pa.Table
    clean_answer: str
    corrupt_answer: str
    clean_logit_difference: float
    corrupt_logit_difference: float
    baselines: pa.Table
    direct: pa.Table
    stored_rows: TakenRows | None
    audit: SweepAudit
    provenance: Provenance


@dataclass(frozen=True)
class RunSweepAnswer:
    """What a sweep tells: progress and cells as slices finish, then one result."""

    update: SweepProgress | SweepCells | SweepResult


@dataclass(frozen=True)
class EstimateSweep:
    """Asks what a sweep would take, by the same checks, without running a cell of it."""

    sweep: RunSweep


@dataclass(frozen=True)
class SweepEstimate:
    """What a sweep would take.

    `cells` are of all pairs and directions; of a screen, those that are computed exactly. `token_layers` are tokens
    times layers that will be computed for them, of a screen at most, and without gradients; `token_layers_full` those
    of running every patched prompt from the start. `bytes` are about those of the answer's rows, `seconds` of computing
    on the machine that was asked, as fast as it went last, without waiting for others. `cached`: the answer to this
    request is kept, and nothing will be computed.
    """

    cells: int
    token_layers: float
    token_layers_full: float
    bytes: int
    seconds: float
    cached: bool = False

    def __repr__(self) -> str:
        reused = f"{self.token_layers:,.0f} token-layers of {self.token_layers_full:,.0f}"
        time = "kept from before" if self.cached else f"about {self.seconds:,.1f} s of computation"
        return f"{self.cells:,} cells, {reused}\n  {self.bytes:,} bytes; {time}"


@dataclass(frozen=True)
class EstimateSweepAnswer:
    """What a sweep would take."""

    estimate: SweepEstimate
