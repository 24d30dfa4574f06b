"""Toy models whose weights grow over training and over depth, for what a fit of growth can and cannot tell apart."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actstore import _checks
from actstore._answer import Table
from actstore._errors import refused
from actstore._norms import line_plots
from actstore._norms.growth import Growth
from actstore._view.plot import titled
from actstore_api.records.norm import GrowthAxis
from actstore_api.records.terms import Provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ToyModel = Literal["partial_sum", "scalar_chain", "deep_linear"]
LAYERS_MAX, STEPS_MAX, WIDTH_MAX = 256, 1_000_000, 256
RECORDED = 50
Numbers = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class DepthSimulation(Table):
    """Norms of the layers' weights in a toy model: a row for each recorded step and layer.

    Columns: step, layer and norm.

    Attributes:
        kind: Which toy model.
    """

    kind: ToyModel

    def norms(self) -> Numbers:
        """Return the norms as an array, float64 [steps, layers]."""
        steps = len(self.steps)
        found: Numbers = self.table["norm"].to_numpy().reshape(steps, -1)
        return found

    @property
    def steps(self) -> list[float]:
        """The recorded steps of training."""
        return list(dict.fromkeys(self.table["step"].to_pylist()))

    @property
    def layers(self) -> list[int]:
        """The layers, from 0."""
        return list(dict.fromkeys(self.table["layer"].to_pylist()))

    def fit_growth(self, axis: GrowthAxis = "layer", *, step: float | None = None, layer: int | None = None) -> Growth:
        """Fit growth to the norms, by the same fit that runs get.

        Args:
            axis: `layer`: over layers at one step. `checkpoint`: over steps at one layer.
            step: Over layers, the recorded step. None: the last.
            layer: Over steps, the layer. None: the last.

        Returns:
            The fit, without intervals.
        """
        _checks.one_of(axis, "axis", get_args(GrowthAxis))
        chosen = _chosen(step, self.steps, "step"), _chosen(layer, self.layers, "layer")
        at = self.layers if axis == "layer" else self.steps
        values = self.norms()[chosen[0]] if axis == "layer" else self.norms()[:, chosen[1]]
        columns, fields = _fit([float(place) for place in at], values.tolist())
        named = {"layer": pa.array(at, pa.int32())} if axis == "layer" else {"revision": [""] * len(at), "step": at}
        return Growth(
            table=pa.table(named | {"mean": values} | columns),
            axis=axis,
            site=f"{self.kind} simulated",
            layers=tuple(self.layers) if axis == "layer" else (self.layers[chosen[1]],),
            block="",
            resamples=0,
            seed=0,
            resampled_sequences=0,
            quantity="l2",
            provenance=_simulated(self.kind),
            **fields,
        )

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw norms over layers on a log axis: a line for each recorded step, at most eight.

        Args:
            ax: Axes to draw on. None: those of a new figure.

        Returns:
            The axes.
        """
        ax = line_plots.simulated(ax, self.steps, self.layers, self.norms())
        return titled(ax, f"{self.kind}, simulated")

    def _title(self) -> str:
        return f"{self.kind} of {len(self.layers)} layers at {len(self.steps)} steps"


def simulate_depth(
    kind: ToyModel = "scalar_chain",
    *,
    n_layers: int = 5,
    n_steps: int = 10_000,
    learning_rate: float = 1e-3,
    target: float = 3.0,
    width: int = 8,
    initial: tuple[float, float] = (0.1, 0.5),
    seed: int = 0,
) -> DepthSimulation:
    """Simulate how norms of weights grow over depth and over training in a toy model, to be fitted along either axis.

    - scalar_chain: y = w_L ... w_1 x, trained by gradient descent on (w_L ... w_1 - target)^2 / 2. Gradient flow keeps
      w_i^2 - w_j^2 as they were. The weights start evenly spaced over `initial`.
    - deep_linear: the same with square matrices, each a random orthogonal one times a number evenly spaced over
      `initial`, towards `target` times a random orthogonal matrix. Gradient flow keeps
      W_{i+1}^T W_{i+1} - W_i W_i^T (Saxe, McClelland and Ganguli 2013). Norms are Frobenius norms.
    - partial_sum: no training, but the closed form that a LessWrong discussion of growth over depth took for it:
      w_i(x) = sum over n from L - i to 2 L - 1 of sqrt(x)^n / n!, where x is the step and i the layer from 1. Its terms
      are those of exp(sqrt(x)), and the ratio of neighboring layers is not constant: it is no exponential over layers.

    Args:
        kind: The toy model.
        n_layers: Number of layers, 2 to 256.
        n_steps: Number of steps of training, up to 1,000,000. At most 50 are recorded, evenly spaced, the last among
            them.
        learning_rate: Learning rate of gradient descent.
        target: Product that the weights are trained towards.
        width: Rows and columns of each matrix of deep_linear, up to 256.
        initial: Weights of the first and of the last layer at the start.
        seed: Draws the matrices of deep_linear.

    Returns:
        Norms of each layer at the recorded steps.

    Raises:
        BadRequest: A number is out of range, or the training diverges.
    """
    _checks.one_of(kind, "kind", get_args(ToyModel))
    layers = _within(n_layers, "n_layers", 2, LAYERS_MAX)
    steps = _within(n_steps, "n_steps", 1, STEPS_MAX)
    low, high = (_checks.number(value, "initial", least=0.0) for value in _pair(initial))
    toy = _Toy(
        np.linspace(low, high, layers),
        _checks.number(learning_rate, "learning_rate", least=0.0),
        _checks.number(target, "target"),
        _within(width, "width", 1, WIDTH_MAX),
        _checks.seed(seed),
    )
    recorded = np.unique(np.linspace(1 if kind == "partial_sum" else 0, steps, RECORDED).round().astype(np.int64))
    norms = np.array(list(_at(_TRAININGS[kind](toy), recorded)) if kind in _TRAININGS else _sums(layers, recorded))
    if not np.isfinite(norms).all():
        message = f"training with learning_rate {toy.learning_rate:g} diverges"
        raise refused(message, "learning_rate", f"{toy.learning_rate:g}", "a smaller one")
    columns = {
        "step": pa.array(np.repeat(recorded.astype(np.float64), layers)),
        "layer": pa.array(np.tile(np.arange(layers), len(recorded)), pa.int32()),
        "norm": pa.array(norms.ravel()),
    }
    return DepthSimulation(table=pa.table(columns), kind=kind)


@dataclass(frozen=True)
class _Toy:
    initial: Numbers
    learning_rate: float
    target: float
    width: int
    seed: int


def _scalar_chain(toy: _Toy) -> Iterator[Numbers]:
    """dP/dw_i is the product of the others, by products from both sides: a weight may be 0."""
    w = toy.initial.copy()
    while True:
        yield np.abs(w)
        before = np.concatenate([[1.0], np.cumprod(w)[:-1]])
        after = np.concatenate([np.cumprod(w[::-1])[::-1][1:], [1.0]])
        w = w - toy.learning_rate * (w.prod() - toy.target) * before * after


def _deep_linear(toy: _Toy) -> Iterator[Numbers]:
    rng = np.random.default_rng(toy.seed)
    orthogonal = [np.linalg.qr(rng.standard_normal((toy.width, toy.width)))[0] for _ in range(len(toy.initial) + 1)]
    weights = [scale * matrix for scale, matrix in zip(toy.initial, orthogonal, strict=False)]
    target = toy.target * orthogonal[-1]
    while True:
        yield np.array([np.linalg.norm(matrix) for matrix in weights])
        below, above = _products(weights)
        error = below[-1] - target
        weights = [matrix - toy.learning_rate * above[i].T @ error @ below[i].T for i, matrix in enumerate(weights)]


def _products(weights: list[Numbers]) -> tuple[list[Numbers], list[Numbers]]:
    """`below[i]` is W_{i-1} ... W_0, `above[i]` is W_{L-1} ... W_{i+1}."""
    below, above = [np.eye(len(weights[0]))], [np.eye(len(weights[0]))]
    for matrix in weights:
        below.append(matrix @ below[-1])
    for matrix in reversed(weights[1:]):
        above.append(above[-1] @ matrix)
    return below, above[::-1]


_TRAININGS: Mapping[str, Callable[[_Toy], Iterator[Numbers]]] = {
    "scalar_chain": _scalar_chain,
    "deep_linear": _deep_linear,
}


def _at(training: Iterator[Numbers], steps: NDArray[np.int64]) -> Iterator[Numbers]:
    wanted = set(steps.tolist())
    with np.errstate(over="ignore", invalid="ignore"):  # of a training that diverges
        for step in range(int(steps[-1]) + 1):
            norms = next(training)
            if step in wanted:
                yield norms


def _sums(layers: int, steps: NDArray[np.int64]) -> list[list[float]]:
    def term(step: int, n: int) -> float:
        return math.exp(0.5 * n * math.log(step) - math.lgamma(n + 1))

    def row(step: int) -> list[float]:
        return [math.fsum(term(step, n) for n in range(layers - i, 2 * layers)) for i in range(1, layers + 1)]

    return [row(step) for step in steps.tolist()]


def _fit(steps: Sequence[float], values: Sequence[float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the store's fit says of any norms: columns of its points, and fields of a Growth."""
    from actstore._transport.bucket import in_our_words
    from actstore_storage.norms.growth_shapes import fit_steps

    with in_our_words():
        fit = fit_steps(np.array(steps, np.float64), np.array(values, np.float64))
    fields = {name: value for name, value in vars(fit).items() if name not in ("fitted", "ratios")}
    return {"fitted": fit.fitted, **fit.ratios.columns()}, {**fields, "median_ratio": fit.ratios.median}


def _simulated(kind: str) -> Provenance:
    """The provenance of a simulation, which has no weights and no run; numpy computes in float64."""
    nothing: Any = ""
    names = ("weights_sha256", "tokenizer_sha256", "dtype", "attention_implementation", "device", "code_version")
    return Provenance(model=kind, **dict.fromkeys(names, nothing))


def _chosen(wanted: float | None, there: Sequence[float], field: str) -> int:
    if wanted is None:
        return len(there) - 1
    if wanted not in there:
        raise refused(f"{field} {wanted} was not recorded", field, str(wanted), ", ".join(f"{one:g}" for one in there))
    return there.index(wanted)


def _within(value: int, field: str, least: int, most: int) -> int:
    found = _checks.count(value, field)
    if not least <= found <= most:
        raise refused(f"{field} is {found}", field, str(found), f"{least} to {most}")
    return found


def _pair(values: object) -> tuple[float, float]:
    if not isinstance(values, tuple | list) or len(values) != 2:
        message = "initial must be a pair: the first layer's weight and the last one's"
        raise refused(message, "initial", repr(values), "(0.1, 0.5)")
    return values[0], values[1]
