"""Finds replaced tokens of corrupt prompts that the model treats differently from ordinary tokens.

A corruption should change only what the task depends on. Heimersheim & Janiak ("A circuit for Python docstrings in a
4-layer attention-only transformer", in answer to a comment) replaced `param` by `arg` and were misled: an early head
treats such tokens in a special way, and `self` is not treated like names. Here the usual treatment is measured with
ordinary tokens in the same place.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from actstore_api.records.model import CompareTokens, CompareTokensAnswer
from actstore_api.records.terms import Prompt
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.resources import Answers
from actstore_worker.live.passes.running import Passes
from actstore_worker.live.passes.text import LiveText, read_text
from actstore_worker.live.texts.attention import EAGER, check_weights, visit_patterns
from actstore_worker.models.chosen import chosen_layers
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import check_causal, plain_ids
from actstore_worker.provenance import live_provenance

# Layers up to this fraction of all count as early.
EARLY_PART = 3
_USUAL_DRAWS = 128
# Rows of the embedding are converted in slices of this many elements.
_ELEMENTS_MAX = 1 << 24
_TEXT = ("corrupt", "position", "prompt", "token", "text")
_EMBEDDING = ("norm", "norm_z", "norm_below", "cosine_to_mean", "cosine_z", "cosine_to_clean")
_HEAD = ("corrupt", "position", "prompt", "layer", "head")
_ATTENTION = ("attention", "usual_attention", "attention_deviation", "shift", "moved", "usual_moved", "moved_deviation")
_Row = dict[str, object]


@dataclass(frozen=True)
class _Place:
    """A replaced position of a corrupt prompt, in one of the two prompts."""

    corrupt: int
    position: int
    prompt: str
    text: LiveText

    @property
    def token(self) -> int:
        return self.text.ids[self.position]

    @property
    def row(self) -> _Row:
        return {"corrupt": self.corrupt, "position": self.position, "prompt": self.prompt}


# By [layer, head]: attention, usual_attention, attention_deviation, moved, usual_moved, moved_deviation.
_Seen = Float[NDArray[np.float64], "measure layer head"]


def compare_tokens(passes: Passes, question: CompareTokens, limits: LiveLimits) -> CompareTokensAnswer:
    """Compare the replaced tokens of corrupt prompts with ordinary tokens.

    Errors: BadRequest for an encoder, for layers that do not exist, for prompts that have another length than the clean
    one or equal it, and above limits.
    """
    model = passes.model
    check_causal(model, "its attention is bidirectional: earlier tokens attend to later ones")
    layers = chosen_layers(model, question.layers or range(max(1, model.layer_count // EARLY_PART)))
    clean, corrupt = _read(passes, question, limits)
    check_weights(model, 1, len(clean), limits)
    places = list(_places(clean, corrupt))
    drawn = _draw(model, question, [clean, *corrupt], limits)
    asked = {(place.text.ids, place.token) for place in places}
    tokens_run = len(asked) * (len(drawn) + 1) * len(clean)
    _check_tokens(tokens_run, limits)
    passes.expect(tokens_run)
    seen: dict[tuple[tuple[int, ...], int, int], _Seen] = {}
    for ids, token in sorted(asked):
        positions = sorted({place.position for place in places if (place.text.ids, place.token) == (ids, token)})
        found = _see(passes, ids, token, positions, drawn, layers, limits)
        seen.update({(ids, token, position): values for position, values in zip(positions, found, strict=True)})
    by_place = [seen[place.text.ids, place.token, place.position] for place in places]
    tokens, heads = _token_table(passes, places), _head_table(places, by_place, layers)
    return CompareTokensAnswer(tokens, heads, live_provenance(model, attention=EAGER))


def _read(passes: Passes, question: CompareTokens, limits: LiveLimits) -> tuple[LiveText, list[LiveText]]:
    model = passes.model
    if not 1 <= len(question.corrupt) <= limits.compared_prompts:
        raise BadRequest(
            f"1 to {limits.compared_prompts} corrupt prompts can be compared at once, not {len(question.corrupt)}",
            reason="LIMIT_EXCEEDED" if question.corrupt else "ARGUMENT_INVALID",
            field="corrupt",
            value=f"{len(question.corrupt)} prompts",
            allowed=f"1 to {limits.compared_prompts} prompts",
        )
    clean = read_text(model, question.clean, question.prepend_bos, "clean")
    corrupt = []
    for prompt in question.corrupt:
        passes.check()
        corrupt.append(read_text(model, prompt, question.prepend_bos, "corrupt"))
    for number, text in enumerate(corrupt):
        _check_prompt(number, question.corrupt[number], text, clean)
    return clean, corrupt


def _check_prompt(number: int, words: Prompt, text: LiveText, clean: LiveText) -> None:
    if len(text) != len(clean):
        raise BadRequest(
            f"corrupt prompt {number} has {len(text)} tokens and the clean one {len(clean)}; tokens are compared "
            "position by position",
            reason="PROMPT_LENGTHS_DIFFER",
            field="corrupt",
            value=f"{len(text)} tokens",
            allowed=f"{len(clean)} tokens",
        )
    if text.ids == clean.ids:
        message = f"corrupt prompt {number} has the same tokens as the clean prompt, so nothing is replaced"
        raise BadRequest(message, field="corrupt", value=words, allowed="a text that differs from the clean prompt")


def _places(clean: LiveText, corrupt: Sequence[LiveText]) -> Iterator[_Place]:
    for number, text in enumerate(corrupt):
        for position, (one, other) in enumerate(zip(clean.ids, text.ids, strict=True)):
            if one != other:
                yield _Place(number, position, "clean", clean)
                yield _Place(number, position, "corrupt", text)


def _draw(
    model: LanguageModel, question: CompareTokens, texts: Sequence[LiveText], limits: LiveLimits
) -> Int[NDArray[np.int64], " draw"]:
    """Draws tokens that are not in the prompts: a repeated token would attract heads that look for repetitions."""
    ordinary = np.setdiff1d(plain_ids(model), [token for text in texts for token in text.ids])
    most = min(len(ordinary), limits.compared_draws)
    draws = min(_USUAL_DRAWS, most) if question.draws is None else question.draws
    if not 2 <= draws <= most:
        raise BadRequest(
            f"draws is {draws}; the vocabulary has {len(ordinary)} ordinary tokens outside the prompts, "
            f"and one answer can draw at most {limits.compared_draws}",
            reason="LIMIT_EXCEEDED" if draws > most else "ARGUMENT_INVALID",
            field="draws",
            value=draws,
            allowed=f"2 to {most}",
        )
    return np.random.default_rng(question.seed).permutation(ordinary)[:draws]


def _check_tokens(tokens: int, limits: LiveLimits) -> None:
    if tokens > limits.compared_tokens:
        raise BadRequest(
            f"the prompts with drawn tokens in them have {tokens} tokens; one answer can process at most "
            f"{limits.compared_tokens}: give fewer corrupt prompts or draws",
            reason="LIMIT_EXCEEDED",
            field="corrupt",
            value=f"{tokens} tokens",
            allowed=f"at most {limits.compared_tokens} tokens",
        )


def _see(
    passes: Passes,
    ids: Sequence[int],
    token: int,
    positions: Sequence[int],
    drawn: Int[NDArray[np.int64], " draw"],
    layers: Sequence[int],
    limits: LiveLimits,
) -> list[_Seen]:
    """Returns weights by position. Every occurrence of the token in the prompt is replaced, so that repetitions remain
    repetitions.
    """
    own = np.array(ids)
    rows = torch.from_numpy(np.stack([own, *(np.where(own == token, other, own) for other in drawn)]))
    size = max(1, min(limits.tokens_per_slice // len(own), _rows_at_once(passes.model, len(own), limits)))
    received, rowwise = _attention(passes, rows, positions, layers, size)
    return [_measure(received[:, :, :, place], rowwise[:, :, :, place]) for place in range(len(positions))]


def _rows_at_once(model: LanguageModel, length: int, limits: LiveLimits) -> int:
    return limits.attention_elements // (model.head_count * length**2)


def _attention(
    passes: Passes, rows: Int[Tensor, "row position"], positions: Sequence[int], layers: Sequence[int], size: int
) -> tuple[Float[NDArray[np.float64], "layer row head place"], Float[NDArray[np.float64], "layer row head place key"]]:
    """Mean weight of later queries on the positions (NaN if there are none), and the positions' own weights on keys."""
    received: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    given: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def see(site: Site, weights: Float[Tensor, "row head query key"]) -> None:
        weights = weights.double()
        means = [weights[:, :, position + 1 :, position].mean(-1) for position in positions]
        received[site.layer].append(torch.stack(means, dim=-1).cpu())
        given[site.layer].append(weights[:, :, list(positions)].cpu())

    for part in rows.split(size):
        visit_patterns(passes, part.to(passes.model.device), layers, see)
    return _stacked(received), _stacked(given)


def _stacked(parts: Mapping[int, Sequence[Tensor]]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = torch.stack([torch.cat(list(each)) for each in parts.values()]).numpy()
    return found


def _measure(
    received: Float[NDArray[np.float64], "layer row head"], given: Float[NDArray[np.float64], "layer row head key"]
) -> _Seen:
    """Row 0 has the prompt's own token, the others have drawn tokens."""
    usual = given[:, 1:].mean(axis=1, keepdims=True)
    moved = np.abs(given - usual).sum(axis=-1) / 2  # Total variation: both sum to 1.
    return np.stack([of for each in (received, moved) for of in _against_usual(each)])


def _against_usual(values: Float[NDArray[np.float64], "layer row head"]) -> tuple[NDArray[np.float64], ...]:
    drawn = values[:, 1:]
    return values[:, 0], drawn.mean(axis=1), drawn.std(axis=1)


def _head_table(places: Sequence[_Place], seen: Sequence[_Seen], layers: Sequence[int]) -> pa.Table:
    rows: list[_Row] = []
    for number, (place, values) in enumerate(zip(places, seen, strict=True)):
        attention, usual, deviation, moved, usual_moved, moved_deviation = values
        shift = attention - seen[number - 1][0] if place.prompt == "corrupt" else np.full_like(attention, np.nan)
        columns = (attention, usual, deviation, shift, moved, usual_moved, moved_deviation)
        for at, layer in enumerate(layers):
            for head in range(attention.shape[1]):
                found = {name: float(column[at, head]) for name, column in zip(_ATTENTION, columns, strict=True)}
                rows.append({**place.row, "layer": layer, "head": head, **_known(found)})
    return pa.Table.from_pylist(rows, _schema(_HEAD, _ATTENTION))


def _token_table(passes: Passes, places: Sequence[_Place]) -> pa.Table:
    with passes.turn():
        weight = passes.model.module.get_input_embeddings().weight.detach()  # type: ignore[operator]
    ordinary = plain_ids(passes.model)
    mean = _mean(weight, ordinary)
    norms, cosines = _norms(weight, ordinary), _cosines(weight, ordinary, mean)
    rows: list[_Row] = []
    for place in places:
        token = np.array([place.token])
        norm, cosine = float(_norms(weight, token)[0]), float(_cosines(weight, token, mean)[0])
        clean = weight[places[len(rows) - 1].token].double() if place.prompt == "corrupt" else None
        found = {
            "norm": norm,
            "norm_z": _z(norm, norms),
            "norm_below": float((norms < norm).mean()),
            "cosine_to_mean": cosine,
            "cosine_z": _z(cosine, cosines),
            "cosine_to_clean": np.nan if clean is None else float(_cosines(weight, token, clean)[0]),
        }
        rows.append({**place.row, "token": place.token, "text": passes.model.texts.alone[place.token], **_known(found)})
    return pa.Table.from_pylist(rows, _schema(_TEXT, _EMBEDDING))


def _parts(
    weight: Float[Tensor, "vocabulary d_model"], ids: Int[NDArray[np.int64], " token"]
) -> Iterator[Float[Tensor, "part d_model"]]:
    size = max(1, _ELEMENTS_MAX // weight.shape[1])
    for part in torch.from_numpy(ids).split(size):
        yield weight[part.to(weight.device)].double()


def _mean(weight: Float[Tensor, "vocabulary d_model"], ids: NDArray[np.int64]) -> Float[Tensor, " d_model"]:
    return torch.stack([part.sum(0) for part in _parts(weight, ids)]).sum(0) / len(ids)


def _norms(weight: Float[Tensor, "vocabulary d_model"], ids: NDArray[np.int64]) -> Float[NDArray[np.float64], " token"]:
    found = torch.cat([torch.linalg.vector_norm(part, dim=-1) for part in _parts(weight, ids)])
    return found.numpy(force=True)


def _cosines(
    weight: Float[Tensor, "vocabulary d_model"], ids: NDArray[np.int64], other: Float[Tensor, " d_model"]
) -> Float[NDArray[np.float64], " token"]:
    found = torch.cat([torch.cosine_similarity(part, other, dim=-1) for part in _parts(weight, ids)])
    return found.numpy(force=True)


def _z(value: float, among: Float[NDArray[np.float64], " token"]) -> float:
    """Z-scores; NaN if the values do not vary."""
    deviation = float(among.std())
    return (value - float(among.mean())) / deviation if deviation else np.nan


def _known(found: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in found.items()}


def _schema(named: Sequence[str], measured: Sequence[str]) -> pa.Schema:
    kinds = {"prompt": pa.string(), "text": pa.string()}
    fields = [pa.field(name, kinds.get(name, pa.int32()), nullable=False) for name in named]
    return pa.schema([*fields, *(pa.field(name, pa.float64()) for name in measured)])


ANSWERS: Answers = {
    CompareTokens: lambda given, question: compare_tokens(given.passes, question, given.limits),
}
