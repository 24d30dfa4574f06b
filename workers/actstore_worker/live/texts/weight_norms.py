"""Norms of a model's weights: of each matrix and head of each layer, with and without the preceding norm folded in."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor, nn

from actstore_api.records.model import GetWeightNorms, GetWeightNormsAnswer
from actstore_storage.errors import BadRequest
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.resources import Answers
from actstore_worker.live.passes.running import Passes
from actstore_worker.live.texts.sublayer_norms import sublayer_norms
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import check_causal
from actstore_worker.models.weights import (
    LayerWeights,
    Matrix,
    Norm,
    layer_weights,
    layout_of,
    position_embedding,
    read_norm,
)
from actstore_worker.provenance import live_provenance, with_snapshot

# A Gram matrix is summed over slices of this many rows, because an unembedding in float64 may not fit into memory.
_GRAM_ROWS = 8192
_SCHEMA = pa.schema(
    [
        pa.field("layer", pa.int32()),
        pa.field("component", pa.string(), nullable=False),
        pa.field("head", pa.int32()),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("columns", pa.int32(), nullable=False),
        pa.field("frobenius", pa.float64(), nullable=False),
        pa.field("spectral", pa.float64(), nullable=False),
        pa.field("frobenius_folded", pa.float64()),
        pa.field("spectral_folded", pa.float64()),
    ]
)
_Row = dict[str, Any]
_Pair = tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head d_model"]]


def weight_norms(
    passes: Passes, question: GetWeightNorms, limits: LiveLimits, snapshot: Snapshot | None = None
) -> GetWeightNormsAnswer:
    """Measure a model's weights, and what its layers write.

    `snapshot`: the question's run, captured with this model's weights.

    Errors: BadRequest MODEL_UNSUPPORTED for an encoder; LAYER_OUT_OF_RANGE; and as `sublayer_norms`.
    """
    model = passes.model
    check_causal(
        model, "it applies a norm after each sublayer, so no norm can be folded into the weights that read from it"
    )
    layout_of(model)
    layers = _layers(model, question.layers)
    rows: list[_Row] = []
    for layer in layers:
        with passes.turn():
            weights = layer_weights(model, layer)
        rows += [{"layer": layer, **row} for row in _of_layer(weights)]
    rows += list(_of_ends(passes))
    outputs, provenance = sublayer_norms(passes, question, layers, limits, snapshot), live_provenance(model, None)
    if snapshot is not None:
        provenance = with_snapshot(provenance, snapshot)
    return GetWeightNormsAnswer(pa.Table.from_pylist(rows, _SCHEMA), outputs, provenance)


def factored_norms(
    left: Float[Tensor, "head d_model d_head"], right: Float[Tensor, "head d_head d_model"]
) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"]]:
    """Frobenius and spectral norm of each `left @ right`, by the singular values of a d_head x d_head matrix.

    With QR, left = Q_1 R_1 and right^T = Q_2 R_2: left right = Q_1 (R_1 R_2^T) Q_2^T.
    """
    first = torch.linalg.qr(left.double(), mode="r").R
    second = torch.linalg.qr(right.double().transpose(-1, -2), mode="r").R
    values = torch.linalg.svdvals(first @ second.transpose(-1, -2))
    return torch.linalg.vector_norm(values, dim=-1), values[..., 0]


def matrix_norms(matrix: Float[Tensor, "rows columns"]) -> tuple[float, float]:
    """Frobenius and spectral norm, by the Gram matrix of the shorter side in float64: its largest eigenvalue is as
    exact as a largest singular value, which the small ones are not.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = sum(
        (part.double().T @ part.double() for part in tall.split(_GRAM_ROWS)),
        torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=matrix.device),
    )
    return float(gram.trace().sqrt()), float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt())


def _of_layer(weights: LayerWeights) -> Iterator[_Row]:
    norm = weights.attention_norm
    yield from _norm_rows("ln1", norm)
    for name, (weight, bias) in {"Q": weights.q, "K": weights.k, "V": weights.v}.items():
        folded = norm.fold(weight)
        for head in range(len(weight)):
            yield _row(f"W_{name}", weight[head], folded[head], head)
            if bias is not None:
                yield _row(f"b_{name}", bias[head], bias[head] + norm.folded_bias(weight[head]), head)
    for head, matrix in enumerate(weights.o[0]):
        yield _row("W_O", matrix, None, head)
    yield from _product_rows("W_OV", weights, norm)
    yield from _product_rows("W_QK", weights, norm)
    yield from _value_bias_rows(weights)
    if weights.mlp_norm is not None and weights.reads is not None and weights.writes is not None:
        yield from _norm_rows("ln2", weights.mlp_norm)
        yield from _reading_rows("in", weights.reads, weights.mlp_norm)
        if weights.gate is not None:
            yield from _reading_rows("gate", weights.gate, weights.mlp_norm)
        yield _row("W_out", weights.writes[0], None)
        if weights.writes[1] is not None:
            yield _row("b_out", weights.writes[1], None)


def _product_rows(component: str, weights: LayerWeights, norm: Norm) -> Iterator[_Row]:
    """W_V W_O, and W_Q W_K^T, by query head; both sides of the latter are preceded by the norm."""
    plain, folded = _pair(component, weights, None), _pair(component, weights, norm)
    columns = [values.tolist() for pair in (plain, folded) for values in factored_norms(*pair)]
    width = plain[0].shape[1]
    for head, (frobenius, spectral, frobenius_folded, spectral_folded) in enumerate(zip(*columns, strict=True)):
        yield {
            "component": component,
            "head": head,
            "rows": width,
            "columns": width,
            "frobenius": frobenius,
            "spectral": spectral,
            "frobenius_folded": frobenius_folded,
            "spectral_folded": spectral_folded,
        }


def _pair(component: str, weights: LayerWeights, norm: Norm | None) -> _Pair:
    def read(weight: Tensor) -> Tensor:
        return weight if norm is None else norm.fold(weight)

    if component == "W_OV":
        return weights.shared(read(weights.v[0])), weights.o[0]
    return read(weights.q[0]), weights.shared(read(weights.k[0])).transpose(-1, -2)


def _value_bias_rows(weights: LayerWeights) -> Iterator[_Row]:
    """b_O, and folded: with the constant output of the values' biases and of the norm's bias through the values."""
    output = weights.o[1]
    written = weights.constant_write(folded=True)
    if output is not None or bool(written.any()):
        yield _row("b_O", torch.zeros_like(written) if output is None else output, written)


def _reading_rows(name: str, matrix: Matrix, norm: Norm) -> Iterator[_Row]:
    weight, bias = matrix
    yield _row(f"W_{name}", weight, norm.fold(weight))
    if bias is not None:
        yield _row(f"b_{name}", bias, bias + norm.folded_bias(weight))


def _norm_rows(name: str, norm: Norm) -> Iterator[_Row]:
    """A gain is a diagonal matrix: its spectral norm is its largest entry."""
    row = _row(f"{name}.w", norm.gain, None)
    yield row | {"spectral": float(norm.gain.abs().max())}
    if norm.bias is not None:
        yield _row(f"{name}.b", norm.bias, None)


def _of_ends(passes: Passes) -> Iterator[_Row]:
    with passes.turn():
        model, module = passes.model, passes.model.module
        embedding: Tensor = module.get_input_embeddings().weight.float()  # type: ignore[operator]
        unembedding: Tensor = module.get_output_embeddings().weight.float().T  # type: ignore[operator]
        positions = position_embedding(model)
        final = model.final_norm
        norm = None if isinstance(final, nn.Identity) else read_norm(model, final)
    yield _row("W_E", embedding, None)
    if positions is not None:
        yield _row("W_pos", positions, None)
    if norm is None:
        yield _row("W_U", unembedding, None)
        return
    yield from _norm_rows("ln_final", norm)
    yield _row("W_U", unembedding, norm.fold(unembedding))


def _row(component: str, tensor: Tensor, folded: Tensor | None, head: int | None = None) -> _Row:
    plain = _norms_of(tensor)
    other = (None, None) if folded is None else _norms_of(folded)
    rows, columns = tensor.shape if tensor.ndim == 2 else (1, len(tensor))
    names = ("frobenius", "spectral", "frobenius_folded", "spectral_folded")
    row = dict(zip(names, (*plain, *other), strict=True))
    return {"component": component, "head": head, "rows": rows, "columns": columns, **row}


def _norms_of(tensor: Tensor) -> tuple[float, float]:
    """A vector has the same Frobenius and spectral norm."""
    if tensor.ndim == 2:
        return matrix_norms(tensor)
    length = float(torch.linalg.vector_norm(tensor.double()))
    return length, length


def _layers(model: LanguageModel, asked: Sequence[int]) -> list[int]:
    for layer in asked:
        if layer >= model.layer_count:
            raise BadRequest(
                f"{model.name!r} has no layer {layer}",
                reason="LAYER_OUT_OF_RANGE",
                field="layers",
                value=layer,
                allowed=f"0 to {model.layer_count - 1}",
            )
    return sorted(set(asked)) or list(range(model.layer_count))


ANSWERS: Answers = {
    GetWeightNorms: lambda given, question: weight_norms(
        given.passes, question, given.limits, given.sampled(question.stored)
    ),
}
