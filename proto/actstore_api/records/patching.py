"""Activation patching: replaces activations of one run by those of another, and measures the effect."""

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

# denoise: clean activations are patched into the corrupt run. noise: corrupt activations are patched into the clean
# run. The patched run is called the base run below, the other one the source run.
PatchDirection = Literal["denoise", "noise"]
# What replaces a patched activation:
# - prompt: the other prompt's activation at the same site and position;
# - zero: zeros;
# - mean: the mean over rows of a stored run;
# - resample: rows of a stored run that are drawn at random, one for each position.
# With the last three, the direction only selects the base run: denoise patches the corrupt run, noise the clean one.
PatchSource = Literal["prompt", "zero", "mean", "resample"]
# What happens to the SAE's error (the site's activation minus the SAE's reconstruction) when features are patched:
# - kept: the error of the base run is kept, so only the features change;
# - dropped: the site is set to the reconstruction;
# - patched: the error of the source run is patched in, together with each patched feature.
SaeError = Literal["kept", "dropped", "patched"]
# The positions of the grid's cells: one cell per position; one cell that patches all positions together; one cell at
# the last position.
PatchPositions = Literal["each", "all", "last"]
# What happens, in path patching, to MLPs between senders and receivers. recomputed: paths through them count. frozen:
# they keep their outputs of the base run, so only the direct path counts.
PathMlps = Literal["recomputed", "frozen"]
# How patched runs are computed. resumed: partial forward passes, over only the layers and positions that a patch can
# change. full: full forward passes, if the model's layers do not support partial ones.
SweepKernel = Literal["resumed", "full"]
# A part of a prompt: a range of positions, counting BOS, with an end; or the tokens that contain this text, which must
# occur exactly once.
PromptRange = Range | str


@dataclass(frozen=True)
class PromptPair:
    """Two prompts and the answer to each. Without spans, both prompts must have the same number of tokens."""

    clean: Prompt
    corrupt: Prompt
    clean_answer: TokenReference
    corrupt_answer: TokenReference


@dataclass(frozen=True)
class CellReference:
    """A site and position to patch. `site` is KIND.LAYER (attn_out.1), or KIND.LAYER.HEAD for one head (z.3.2)."""

    site: str
    position: int


@dataclass(frozen=True)
class PatchSpan:
    """Tokens that have the same role in both prompts, with the same number of tokens in each.

    They are patched together: the first by the first, the second by the second, and so on. `name` appears in the
    answer's column of that name.
    """

    name: str
    clean: PromptRange
    corrupt: PromptRange


@dataclass(frozen=True)
class JointCells:
    """Several cells that are patched together, as one cell. `name` appears in the answer's column of that name."""

    name: str
    cells: tuple[CellReference, ...]


@dataclass(frozen=True)
class Screen:
    """Attribution patching: gradients estimate every cell, and only the cells with the largest estimates are computed.

    Args:
        exact_cells: How many cells are computed exactly for each direction. They are those with the largest mean
            absolute estimate over pairs.
        qk_correction: Estimates for q and k compute the attention softmax exactly with the patched query or key, and
            linearize only what follows (AtP*, Kramár et al. 2024).
        grad_drop: An estimate is the mean, over layers, of the absolute estimate with the gradient through that layer
            dropped (GradDrop of AtP*). It also finds direct and indirect effects that cancel. Estimates then have no
            sign.
    """

    exact_cells: int
    qk_correction: bool = True
    grad_drop: bool = False


@dataclass(frozen=True)
class StoredSource:
    """Rows of a stored run that are patched into the prompts' runs, except rows of the excluded token classes.

    `run` must be from this model, with the same weights, and store the vectors of the patched sites. With the source
    resample, the same `seed` draws the same rows.
    """

    run: Name
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION
    seed: int = 0


@dataclass(frozen=True)
class RunSweep:
    """Asks for the effect on the answer of patching activations, one cell at a time.

    - `pairs`: at least one. Without `spans`, all prompts must have the same number of tokens. `prepend_bos` None: texts
      get a BOS if the tokenizer has one, token ids get none.
    - `sites`: kinds to patch. They are resid_pre, attn_out, resid_mid, mlp_out, resid_post; per head q, k, v, pattern
      (the attention weights of the query at the cell's position) and z; `embedding` (the token embedding, without the
      position embedding, before the first layer); and `features` of `sae`. Empty: resid_pre, attn_out, mlp_out and z;
      or none, if there are `joint` cells or an `sae`.
    - `layers`, and `heads` for kinds with heads: empty for all. `window_layers`: how many consecutive layers are
      patched together, as one cell.
    - `only_positions`: with positions "each", the positions that get cells; empty: all. `spans`: one cell per span,
      instead of positions; prompts may then have different lengths. `joint` adds joint cells to those of the sites.
    - `sae` and `features`: for the site kind `features`. No features given: at each position all that are active there
      in either run of any pair.
    - `directions`: empty for both. `stored`: required with the sources mean and resample, refused otherwise.
    - `receivers`: path patching (Wang et al. 2022). Each cell is a sender: its effect is passed on to the receivers
      only, while all attention between is frozen to the base run; everything after the receivers is recomputed.
      Receivers are q.LAYER, k.LAYER, v.LAYER (one head: q.9.6) and mlp_in.LAYER, which are patched together, or
      `logits` alone. At most 128. Senders can be resid_pre, attn_out, resid_mid, mlp_out, resid_post, pattern, z,
      embedding and features, in layers before a receiver. `joint`, `window_layers` above 1 and `screen` are refused.
      Empty: plain activation patching.
    - `path_mlps`: what happens to MLPs between senders and receivers. "frozen" is refused without receivers.
    - `screen`: None computes every cell. With a screen, `joint` and `window_layers` above 1 are refused.
    - `fresh`: computes every cell again, even if the answer to the same request is cached.
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
    """The progress of a sweep, in cells. `waits_for` is what it waits for, such as a node with a GPU: before its first
    cell, when the cells are not counted yet, or after the process that ran it has died. Empty: it runs.
    """

    cells_done: int
    cells_total: int
    waits_for: str = ""


@dataclass(frozen=True)
class SweepCells:
    """Rows of the answer, one per cell, in order of pair, direction and grid.

    Columns that identify the cell:

    - pair (from 0), direction (denoise, noise).
    - site: the kind; `joint` for joint cells.
    - layer: the first of a window. Null for joint cells and embedding.
    - position: null for all positions, joint cells and spans.
    - head: null unless the kind has heads.
    - feature: null unless the cell is one SAE feature.
    - name: the name of joint cells or of the span. For SAE features, `together` is the cell that patches all requested
      features at once (all of the SAE's, if none were requested), and `error` the cell that patches the SAE's error
      only; with spans, these follow the span's name and a colon.
    - token: the base run's text at the position.
    - unchanged: true if the patch cannot change anything, because the prompts are equal up to the position or no path
      leads to a receiver. The row then has the base run's values.

    Metrics at the last position:

    - logit_difference: clean answer minus corrupt answer.
    - log_probability (natural), probability, rank (from 0): of the clean answer.
    - loss: -log_probability.
    - kl: D(source run || patched run), in nats.
    - normalized: (value - base) / (source - base) of the logit difference, so 0 is the unpatched base run and 1 the
      source run. normalized_log_probability, normalized_probability, normalized_loss and normalized_kl are defined in
      the same way. All are null if source and base are equal.
    - estimate: with a screen only, for all cells: the estimate of `normalized`. The other metrics are null for cells
      that were not computed.
    """

    rows: pa.Table


@dataclass(frozen=True)
class TakenRows:
    """Which rows of a stored run were patched into the prompts' runs.

    `used` rows were averaged or drawn. `read` rows were read for that. `stored` is how many rows the run has of tokens
    that are not excluded. `sink_ratio` is the stored run's; see Provenance.
    """

    run: str
    used: int
    read: int
    stored: int
    excluded: frozenset[TokenClass]
    sink_ratio: float | None = None


@dataclass(frozen=True)
class SweepAudit:
    """The result of a sweep's audit of itself.

    - `audited_cells`: cells that were computed again by full forward passes. `largest_error`: their largest absolute
      logit difference, over the whole vocabulary. A sweep with an error above `tolerance` fails with AUDIT_FAILED.
    - `noise_floor`: the largest absolute logit difference between runs with nothing patched, of which every batch
      contains one, and the base run. Effects below it are noise.
    - `token_layers`: the work in tokens times layers. `token_layers_full`: what full forward passes of every patched
      prompt would take. Neither includes the audit.
    - `rank_agreement`: with a screen, Spearman's rank correlation between |estimate| and |effect on the logit
      difference| over the computed cells, averaged over pairs and directions. None without a screen, or if fewer than
      two cells differ.
    - `cached`: the answer was cached from an earlier identical request, by the same version of actstore. All other
      fields then describe that earlier sweep.
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
    """The final message of a sweep: everything except its rows.

    - `tokens`: position, clean, corrupt. The last two have the texts of the first pair's tokens, null past the end of
      the shorter prompt. `clean_answer` and `corrupt_answer` are the texts of the first pair's answers in the same
      form.
    - `clean_logit_difference`, `corrupt_logit_difference`: logit(clean answer) - logit(corrupt answer) at the last
      position of each unpatched prompt of the first pair.
    - `baselines`: one row per pair and unpatched prompt: pair, prompt (clean, corrupt), logit_difference,
      log_probability, probability, loss, rank.
    - `direct`: direct logit attribution, the direct contribution of each component of an unpatched prompt to its logit
      difference, with the final norm's scale held fixed. Columns: pair, prompt (clean, corrupt), part, layer, head,
      share. Parts are embedding (layer 0's input), attn_out, mlp_out, z (one head of attn_out) and bias (of the final
      norm and unembedding). The shares without those of z add up to the logit difference, before a soft cap of logits.
    - `stored_rows`: with the sources mean and resample only.
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
    """One message of a sweep: progress and cells, as parts of the sweep finish, and finally one result."""

    update: SweepProgress | SweepCells | SweepResult


@dataclass(frozen=True)
class EstimateSweep:
    """Asks for the size and duration of a sweep, with the same checks, without running any cell."""

    sweep: RunSweep


@dataclass(frozen=True)
class SweepEstimate:
    """The size and duration of a planned sweep.

    - `cells`: over all pairs and directions. With a screen: cells that are computed exactly.
    - `token_layers`: the work in tokens times layers; with a screen an upper bound, without the gradients.
      `token_layers_full`: what full forward passes of every patched prompt would take.
    - `bytes`: the approximate size of the answer's rows.
    - `seconds`: the computing time on the machine that answers, at its most recent speed, without waiting for other
      work.
    - `cached`: the answer to this request is cached, so nothing will be computed.
    """

    cells: int
    token_layers: float
    token_layers_full: float
    bytes: int
    seconds: float
    cached: bool = False

    def __repr__(self) -> str:
        reused = f"{self.token_layers:,.0f} token-layers of {self.token_layers_full:,.0f}"
        time = "cached" if self.cached else f"about {self.seconds:,.1f} s of computation"
        return f"{self.cells:,} cells, {reused}\n  {self.bytes:,} bytes; {time}"


@dataclass(frozen=True)
class EstimateSweepAnswer:
    """The answer to EstimateSweep."""

    estimate: SweepEstimate
