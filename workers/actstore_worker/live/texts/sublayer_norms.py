"""Measures how large the outputs of attention and MLP are on random input, by formula and by sampling, and how many MLP
units are active.

Norms are root mean squares over inputs, sqrt(E |y|^2): E |y| itself has no closed form, and is at most that.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor, nn

from actstore_api.records.model import GetWeightNorms
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.running import Passes
from actstore_worker.live.passes.stored_sample import batches, check_sample, sample_sequences
from actstore_worker.live.passes.text import read_text
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.weights import LayerWeights, Norm, layer_weights, layout_of

GAUSSIAN, NORMALIZED, TEXT, RUN = "gaussian", "normalized", "text", "run"
_SCHEMA = pa.schema(
    [
        pa.field("layer", pa.int32(), nullable=False),
        pa.field("sublayer", pa.string(), nullable=False),
        pa.field("input", pa.string(), nullable=False),
        pa.field("expected", pa.float64()),
        pa.field("sampled", pa.float64(), nullable=False),
        pa.field("standard_error", pa.float64(), nullable=False),
        pa.field("active_expected", pa.float64()),
        pa.field("active_sampled", pa.float64()),
    ]
)
# Moments of a unit are integrals over a standard normal on this grid; pairs of units use this many Hermite terms.
_GRID_ENDS, _GRID_POINTS, _HERMITE_TERMS = 8.0, 1601, 24
_UNITS_AT_ONCE = 1024


def sublayer_norms(
    passes: Passes, question: GetWeightNorms, layers: Sequence[int], limits: LiveLimits, snapshot: Snapshot | None
) -> pa.Table:
    """Measure the outputs of attention and MLP, on random input and on real input.

    `snapshot`: the question's run. Errors: BadRequest LIMIT_EXCEEDED for samples and tokens of the run, and as
    `read_text` and `sample_sequences`.
    """
    model = passes.model
    if not 2 <= question.samples <= limits.weight_samples:
        raise BadRequest(
            f"samples is {question.samples}",
            reason="LIMIT_EXCEEDED" if question.samples > limits.weight_samples else "ARGUMENT_INVALID",
            field="samples",
            value=question.samples,
            allowed=f"2 to {limits.weight_samples}",
        )
    read = _read_inputs(passes, question, layers, snapshot, limits)
    generator = torch.Generator().manual_seed(question.seed)
    inputs = torch.randn(question.samples, model.d_model, generator=generator).to(model.device)
    rows: list[dict[str, Any]] = []
    for layer in layers:
        with passes.turn():
            weights = layer_weights(model, layer)
        parts = [_attention(passes, layer, weights, inputs, read, limits)]
        if weights.reads is not None:
            parts.append(_mlp(passes, layer, weights, inputs, read, limits))
        rows += [{"layer": layer, **row} for part in parts for row in part]
    return pa.Table.from_pylist(rows, _SCHEMA)


@dataclass(frozen=True)
class _Seen:
    """The outputs' |y|^2 for each token that the model read, and each layer's fraction of active units."""

    squares: dict[Site, Float[Tensor, " token"]]
    active: dict[int, float]


_Read = dict[str, _Seen]


def _read_inputs(
    passes: Passes, question: GetWeightNorms, layers: Sequence[int], snapshot: Snapshot | None, limits: LiveLimits
) -> _Read:
    """Results by input: for the text, and for a sample of the run, if requested; without BOS and special tokens."""
    found: _Read = {}
    if question.text is not None:
        text = read_text(passes.model, question.text, question.prepend_bos)
        if text.special.all():
            message = "the text has special tokens only"
            raise BadRequest(message, field="text", value=question.text, allowed="some text")
        kept = torch.from_numpy(~text.special)[None].to(passes.model.device)
        found[TEXT] = _seen(passes, [(text.on(passes.model.device), kept)], layers)
    if snapshot is not None and question.stored is not None:
        check_sample(question.stored, limits.check_tokens)
        sample = sample_sequences(snapshot, question.stored.tokens)
        rows = batches(sample, limits.tokens_per_slice, passes.model.device)
        found[RUN] = _seen(passes, ((batch.ids, batch.kept) for batch in rows), layers)
    return found


def _seen(passes: Passes, given: Iterable[tuple[Tensor, Tensor]], layers: Sequence[int]) -> _Seen:
    """`given`: ids, and which of them count, both [batch, position]. Padding on the right does not affect causal
    attention.
    """
    model, layout = passes.model, layout_of(passes.model)
    has = [kind for kind in ("attn_out", "mlp_out", "mlp_input") if kind in model.family.taps]
    sites = [Site(layer, kind) for layer in layers for kind in has]
    squares: dict[Site, list[Tensor]] = defaultdict(list)
    active: dict[int, list[Tensor]] = defaultdict(list)
    for ids, kept in given:
        for site, x in passes.observe(ids, sites).items():
            rows = x[kept]
            if site.kind == "mlp_input":
                with passes.turn():
                    before = model.layers[site.layer].get_submodule(layout.gate or layout.reads)(rows)
                active[site.layer].append((before > 0).float().mean(-1).cpu())
            else:
                squares[site].append(rows.double().square().sum(-1).cpu())
    return _Seen(
        {site: torch.cat(parts) for site, parts in squares.items()},
        {layer: float(torch.cat(parts).mean()) for layer, parts in active.items()},
    )


def _attention(
    passes: Passes, layer: int, weights: LayerWeights, inputs: Tensor, read: _Read, limits: LiveLimits
) -> Iterator[dict[str, Any]]:
    """Every head attends to one token, so that y = sum over heads of W_OV x + b. For x of covariance C and mean m,
    E |y|^2 = tr(A^T C A) + |m A + b|^2, A being that sum.
    """
    model = passes.model
    mixed = torch.einsum("hdk,hke->de", weights.shared(weights.v[0]), weights.o[0])
    written: Tensor = weights.constant_write(folded=False)
    for name in (GAUSSIAN, NORMALIZED):
        law = _law(name, weights.attention_norm)
        expected = law.square(mixed, written) ** 0.5
        parts = []
        for part in inputs.split(limits.tokens_per_slice):
            with passes.turn():
                norm = model.layers[layer].get_submodule(model.family.attention_norm)
                parts.append(_value_path(model, layer, part if name == GAUSSIAN else norm(part)))
        y = torch.cat(parts)
        yield _row("attn", name, None if model.family.norms_writes else expected, _squares(y))
    for name, seen in read.items():
        if (site := Site(layer, "attn_out")) in seen.squares:
            yield _row("attn", name, None, seen.squares[site])


def _value_path(
    model: LanguageModel, layer: int, x: Float[Tensor, "sample d_model"]
) -> Float[Tensor, "sample d_model"]:
    """Computed by the model's own modules."""
    tap, block = model.family.taps["v"], model.layers[layer]
    value: Tensor = block.get_submodule(tap.path)(x[None])
    if tap.select is not None:
        value = tap.select(value, model.config)
    by_head = value.flatten(2).unflatten(-1, (model.head_counts["v"], -1))
    y = by_head.repeat_interleave(model.head_count // model.head_counts["v"], dim=2).flatten(2)
    for path in model.family.from_z:
        y = block.get_submodule(path)(y)
    rows: Tensor = y[0]
    return rows


def _mlp(
    passes: Passes, layer: int, weights: LayerWeights, inputs: Tensor, read: _Read, limits: LiveLimits
) -> Iterator[dict[str, Any]]:
    layout = layout_of(passes.model)
    assert weights.mlp_norm is not None and weights.reads is not None  # noqa: S101, PT018  the caller looked
    closed = not (layout.gate or passes.model.family.norms_writes) and weights.reads[0].shape[1] <= limits.weight_units
    for name in (GAUSSIAN, NORMALIZED):
        law = _law(name, weights.mlp_norm)
        parts = inputs.split(limits.tokens_per_slice)
        found = [_mlp_path(passes, layer, part, normalized=name == NORMALIZED) for part in parts]
        y, active = (torch.cat(column) for column in zip(*found, strict=True))
        expected = _expected_mlp(weights, law, _activation(passes, layer)) if closed else None
        yield _row("mlp", name, expected, _squares(y)) | {
            "active_expected": _expected_active(weights, law),
            "active_sampled": float(active.mean()),
        }
    for name, seen in read.items():
        if (site := Site(layer, "mlp_out")) in seen.squares:
            yield _row("mlp", name, None, seen.squares[site]) | {"active_sampled": seen.active[layer]}


def _mlp_path(
    passes: Passes, layer: int, inputs: Float[Tensor, "sample d_model"], *, normalized: bool
) -> tuple[Float[Tensor, "sample d_model"], Float[Tensor, " sample"]]:
    """Computed by the model's own modules: the MLP's output, and its fraction of active units, for each row."""
    model, layout = passes.model, layout_of(passes.model)
    with passes.turn():
        first, *others = (model.layers[layer].get_submodule(path) for path in model.family.from_middle)
        x = first(inputs[None]) if normalized else inputs[None]
        before = model.layers[layer].get_submodule(layout.gate or layout.reads)(x)
        y = x
        for module in others:
            y = module(y)
    return y[0], (before[0] > 0).float().mean(-1)


def _activation(passes: Passes, layer: int) -> nn.Module:
    """The function between the MLP's two matrices, in float64: some functions have parameters. It is a copy, so its
    integrals need no turn.
    """
    path = layout_of(passes.model).activation
    with passes.turn():
        return copy.deepcopy(passes.model.layers[layer].get_submodule(path)).double()


@dataclass(frozen=True)
class _Law:
    """Mean and covariance of what a sublayer's matrices read: C = scale * G P G, with gain G and P taking the mean away
    where the norm does.

    Of a Gaussian that was layer-normalized: uniform on a sphere of radius sqrt(d) in the d - 1 dimensions that are
    left, so that C = d / (d - 1) P; of one that was RMS-normalized, C = 1. Both to the epsilon of the norm.
    """

    norm: Norm | None

    def root(self, matrix: Float[Tensor, "d_model width"]) -> Float[Tensor, "d_model width"]:
        """Returns R with R^T R = matrix^T C matrix."""
        if self.norm is None:
            return matrix
        d = len(matrix)
        return self.norm.fold(matrix) * (math.sqrt(d / (d - 1)) if self.norm.centred else 1.0)

    def mean(self, matrix: Tensor, bias: Tensor | None) -> Tensor:
        constant: Tensor = torch.zeros(matrix.shape[1], device=matrix.device) if bias is None else bias
        if self.norm is not None:
            constant = constant + self.norm.folded_bias(matrix)
        return constant

    def square(self, matrix: Tensor, bias: Tensor | None) -> float:
        """Returns E |x matrix + bias|^2."""
        return float(self.root(matrix).double().square().sum() + self.mean(matrix, bias).double().square().sum())


def _law(name: str, norm: Norm) -> _Law:
    return _Law(None if name == GAUSSIAN else norm)


def _expected_active(weights: LayerWeights, law: _Law) -> float:
    """The mean over units of P(u > 0) = Phi(mean / deviation)."""
    matrix, bias = weights.gate or weights.reads or (torch.zeros(0, 0), None)
    deviation = torch.linalg.vector_norm(law.root(matrix), dim=0)
    found: Tensor = torch.special.ndtr(law.mean(matrix, bias) / deviation.clamp_min(torch.finfo(torch.float32).tiny))
    return float(found.mean())


def _expected_mlp(weights: LayerWeights, law: _Law, activation: nn.Module) -> float:
    """sqrt(E |W_out^T f(u) + b|^2) for u Gaussian: exact of Gaussian input, and to order 1/d of a normalized one.

    By Mehler's formula, with f(m_i + s_i z) = sum_k a_ik h_k(z) in orthonormal Hermite polynomials and r_ij the
    correlation of units, E f_i f_j = sum_k a_ik a_jk r_ij^k; of a unit with itself E f_i^2 is the whole integral.
    """
    assert weights.reads is not None and weights.writes is not None  # noqa: S101, PT018  the caller looked
    matrix, bias = weights.reads
    out, out_bias = weights.writes[0].double(), weights.writes[1]
    root = law.root(matrix).double()
    deviation = torch.linalg.vector_norm(root, dim=0)
    unit = root / deviation.clamp_min(torch.finfo(torch.float64).tiny)
    coefficients, squares = _hermite(activation, law.mean(matrix, bias).double(), deviation)
    correlation, gram = (unit.T @ unit).clamp(-1, 1), out @ out.T
    mean = coefficients[0] @ out + (0 if out_bias is None else out_bias.double())
    power, total = torch.ones_like(correlation), mean.square().sum()
    for a in coefficients[1:]:
        power = power * correlation
        total = total + a @ (power * gram) @ a
    left = squares - coefficients.square().sum(0)
    return float((total + (gram.diagonal() * left).sum()).sqrt())


def _hermite(
    activation: nn.Module, mean: Float[Tensor, " unit"], deviation: Float[Tensor, " unit"]
) -> tuple[Float[Tensor, "term unit"], Float[Tensor, " unit"]]:
    """Coefficients a_ik of f(m_i + s_i z), and E f^2."""
    z = torch.linspace(-_GRID_ENDS, _GRID_ENDS, _GRID_POINTS, dtype=torch.float64, device=mean.device)
    weight = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    basis = [torch.ones_like(z), z]
    for k in range(1, _HERMITE_TERMS):
        basis.append((z * basis[k] - math.sqrt(k) * basis[k - 1]) / math.sqrt(k + 1))
    table = torch.stack(basis) * weight
    parts = []
    for m, s in zip(mean.split(_UNITS_AT_ONCE), deviation.split(_UNITS_AT_ONCE), strict=True):
        values = activation(m[:, None] + s[:, None] * z)
        parts.append((table @ values.T, values.square() @ weight))
    return torch.cat([a for a, _ in parts], dim=1), torch.cat([square for _, square in parts])


def _squares(y: Float[Tensor, "sample d_model"]) -> Float[Tensor, " sample"]:
    return y.double().square().sum(-1)


def _row(sublayer: str, name: str, expected: float | None, squares: Float[Tensor, " sample"]) -> dict[str, Any]:
    """Returns a row. The standard error of a root mean square follows from that of the mean square."""
    sampled = float(squares.mean().sqrt())
    error = float(squares.std(correction=0)) / math.sqrt(len(squares)) / (2 * sampled) if sampled else 0.0
    return {
        "sublayer": sublayer,
        "input": name,
        "expected": expected,
        "sampled": sampled,
        "standard_error": error,
        "active_expected": None,
        "active_sampled": None,
    }
