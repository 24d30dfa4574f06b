"""What is asked of a sweep, in the workers' own words."""

from dataclasses import asdict, dataclass

from actstore_storage.format.tokens import DEFAULT_EXCLUSION
from actstore_worker.models.prompts import Prompt

DIRECTIONS = ("denoise", "noise")
# Of the others only the base run differs from cell to cell.
STORED_SOURCES = ("mean", "resample")
SOURCES = ("prompt", "zero", *STORED_SOURCES)
SAE_ERRORS = ("kept", "dropped", "patched")
# Kinds of sites that no layer has: the token's own part of what goes into layer 0, and features of an SAE.
EMBEDDING, FEATURES = "embedding", "features"
# What MLPs between senders and receivers do: what they make of what has been sent, or what they do in the base run.
PATH_MLPS = ("recomputed", "frozen")
POSITIONS = ("each", "all", "last")
WINDOW_LAYERS_MAX = 64
JOINT_CELLS_MAX = 1024
SPANS_MAX = 256
RECEIVERS_MAX = 128
FEATURES_MAX = 16_384


@dataclass(frozen=True)
class PromptPair:
    """Two prompts, of the same length in tokens unless spans are named, and the one-token answer to each, or its id."""

    clean: Prompt
    corrupt: Prompt
    clean_answer: str | int
    corrupt_answer: str | int


@dataclass(frozen=True)
class JointCells:
    """Cells that are replaced together: (site, position) each."""

    name: str
    cells: tuple[tuple[str, int], ...]


# Text that is once in the prompt, or tokens from the first to before the second.
Stretch = str | tuple[int, int]


@dataclass(frozen=True)
class Span:
    """Tokens that play the same part in both prompts; as many in one as in the other."""

    name: str
    clean: Stretch
    corrupt: Stretch


@dataclass(frozen=True)
class StoredSource:
    """Rows of a run, but for those of the token classes that are excluded."""

    run: str
    exclude: frozenset[str] = DEFAULT_EXCLUSION
    seed: int = 0


@dataclass(frozen=True)
class SaeFeatures:
    """Empty `features` stand for those that are active at the place in any of the runs."""

    sae: str
    features: tuple[int, ...] = ()
    error: str = "kept"


@dataclass(frozen=True)
class Screen:
    """The fields of proto Screen."""

    exact_cells: int
    qk_correction: bool = False
    grad_drop: bool = False


@dataclass(frozen=True)
class SweepRequest:
    """The fields of proto RunSweepRequest. Empty tuples stand for all that there are."""

    model: str
    revision: str
    pairs: tuple[PromptPair, ...]
    sites: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    directions: tuple[str, ...] = ()
    positions: str = "each"
    only_positions: tuple[int, ...] = ()
    window_layers: int = 1
    source: str = "prompt"
    joint: tuple[JointCells, ...] = ()
    # None: every cell is computed.
    screen: Screen | None = None
    # None: texts get one where the tokenizer has a BOS token, and token ids none.
    prepend_bos: bool | None = None
    # Of the sources mean and resample.
    stored: StoredSource | None = None
    # Of the site kind features.
    features: SaeFeatures | None = None
    # In place of positions.
    spans: tuple[Span, ...] = ()
    # Sites then send, and what is patched are these, as what was sent makes them.
    receivers: tuple[str, ...] = ()
    path_mlps: str = "recomputed"
    # Computed again, even where the answer is kept.
    fresh: bool = False


@dataclass(frozen=True)
class PatchingLimits:
    # Cells of one sweep, all pairs and both directions together.
    cells: int = 200_000
    pairs: int = 256
    # Tokens, summed over the rows, of one slice; at least one row always runs.
    tokens_per_slice: int = 8192
    # Cells of so many tokens' worth that are computed again by the full forward pass.
    audited_cells: int = 4
    # Rows of a stored run that a sweep looks at, to take their mean or to draw from them.
    stored_rows: int = 16_384
    # How long a slice should take: so long others wait for their turn, and a sweep that nobody wants any more goes on.
    slice_seconds: float = 0.25
    # Of the rows of an answer that is kept for who asks for the same.
    kept_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        if min(asdict(self).values()) <= 0:
            raise ValueError(f"limits of patching must be positive: {self}")
