"""What is asked of a sweep, in the workers' own words."""

from dataclasses import dataclass

DIRECTIONS = ("denoise", "noise")
SOURCES = ("prompt", "zero")
POSITIONS = ("each", "all", "last")
WINDOW_LAYERS_MAX = 64
JOINT_CELLS_MAX = 1024


@dataclass(frozen=True)
class PromptPair:
    """Two prompts of the same length in tokens, and the one-token answer to each."""

    clean: str
    corrupt: str
    clean_answer: str
    corrupt_answer: str


@dataclass(frozen=True)
class JointCells:
    """Cells that are replaced together: (site, position) each."""

    name: str
    cells: tuple[tuple[str, int], ...]


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
    # None: where the tokenizer has a BOS token.
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class PatchingLimits:
    # Cells of one sweep, all pairs and both directions together.
    cells: int = 200_000
    pairs: int = 256
    # Tokens, summed over the rows, of one slice; at least one row always runs.
    tokens_per_slice: int = 8192
    # Cells of each pair and direction that are computed again by the full forward pass.
    audited_cells: int = 4

    def __post_init__(self) -> None:
        if min(self.cells, self.pairs, self.tokens_per_slice, self.audited_cells) < 1:
            raise ValueError(f"limits of patching must be positive: {self}")
