"""Returns where each head attends: every weight of a text, or a summary, and scores that find induction heads.

Only eager attention exposes its weights, so it is used here. Let a[q, k] be a head's weight from query q to key k in a
text of n tokens; for each query they sum to 1. The summary of a head is

    entropy          mean over q of -sum over k of a[q, k] ln a[q, k], in nats
    distance         mean over q of sum over k of a[q, k] |q - k|, in tokens
    previous_token   sum over q of a[q, q - 1], over n
    first_token      sum over q of a[q, 0], over n; the first token is BOS if the text has one
    current_token    sum over q of a[q, q], over n
    duplicate_token  sum of a[q, k] over all k < q with the same token as q, over n
    induction        sum of a[q, k] over all k <= q whose predecessor k - 1 < q has the same token as q, over n

The fractions are those of TransformerLens's `detect_head` with its "mul" measure: n is the sum of all weights.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actstore_api.records.model import GetAttention, GetAttentionAnswer, GetInductionScores, GetInductionScoresAnswer
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.resources import Answers
from actstore_worker.live.passes.running import Passes
from actstore_worker.live.passes.text import read_text
from actstore_worker.models.chosen import chosen_heads, chosen_layers
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import check_causal, plain_ids, prepends_bos
from actstore_worker.provenance import live_provenance

EAGER = "eager"
_USUAL_TOKENS = 48
_Pattern = Float[Tensor, "batch head query key"]
_SCORES = ("induction", "duplicate_token", "previous_token")


def see_attention(passes: Passes, question: GetAttention, limits: LiveLimits) -> GetAttentionAnswer:
    """Find where each head attends in a text.

    Errors: BadRequest for layers and heads that do not exist; LIMIT_EXCEEDED for more weights than one answer, or one
    layer, may have.
    """
    model = passes.model
    layers = chosen_layers(model, question.layers)
    heads = chosen_heads(model, "pattern", question.heads)
    text = read_text(model, question.text, question.prepend_bos)
    check_weights(model, 1, len(text), limits)
    if question.patterns:
        _check_rows(model, len(text), len(layers) * len(heads), limits)
    ids = text.on(model.device)
    summaries, patterns = [], []

    def see(site: Site, weights: _Pattern) -> None:
        pattern = weights[0, list(heads)]
        summaries.append(_summary(site.layer, heads, summarise(pattern, ids[0])))
        if question.patterns:
            patterns.append(_rows(site.layer, heads, pattern, causal=model.family.causal))

    visit_patterns(passes, ids, layers, see)
    return GetAttentionAnswer(
        pa.concat_tables(summaries),
        pa.concat_tables(patterns) if patterns else None,
        text.table(),
        live_provenance(model, attention=EAGER),
    )


def score_induction(passes: Passes, question: GetInductionScores, limits: LiveLimits) -> GetInductionScoresAnswer:
    """Score each head as an induction head.

    The text consists of t different random tokens, repeated once, after a BOS if there is one. For a query q in the
    second half, whose token first occurs at q - t, each score is the mean, over those queries and over the texts, of a
    weight: induction a[q, q - t + 1], duplicate_token a[q, q - t], previous_token a[q, q - 1].

    An induction head has an induction score near 1 (Olsson et al. 2022). For one text it equals TransformerLens's
    `detect_head` score times (2 t + 1) / t, because that averages over all queries.

    Errors: BadRequest for an encoder, for layers and heads that do not exist, and for more tokens than fit.
    """
    model = passes.model
    check_causal(model, "its attention is bidirectional and it does not predict next tokens")
    layers = chosen_layers(model, question.layers)
    heads = chosen_heads(model, "pattern", question.heads)
    first = int(prepends_bos(model, question.prepend_bos))
    tokens = _repeated_tokens(model, question, first)
    _check_texts(question.texts, limits)
    check_weights(model, question.texts, 2 * tokens + first, limits)
    ids = _repeated(model, question, tokens, first)
    offsets = dict(zip(_SCORES, (tokens - 1, tokens, 1), strict=True))
    tables = []

    def see(site: Site, weights: _Pattern) -> None:
        second = weights[:, list(heads), first + tokens :]
        found = {name: _behind(second, first + tokens, offset) for name, offset in offsets.items()}
        tables.append(_summary(site.layer, heads, found))

    visit_patterns(passes, ids, layers, see)
    losses = -passes.log_probabilities(ids)[:, first:].double()  # [text, 2 t - 1], with or without a BOS.
    return GetInductionScoresAnswer(
        pa.concat_tables(tables),
        tokens,
        float(losses[:, : tokens - 1].mean()),
        float(losses[:, tokens:].mean()),
        live_provenance(model, attention=EAGER),
    )


def summarise(
    pattern: Float[Tensor, "head query key"], tokens: Int[Tensor, " key"]
) -> Mapping[str, Float[Tensor, " head"]]:
    """Summarize attention weights by head; the module's docstring has the formulas."""
    place = torch.arange(len(tokens), device=tokens.device)
    same = (tokens[:, None] == tokens) & (place[:, None] > place)
    after = torch.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    masks = {
        "previous_token": place[:, None] == place + 1,
        "first_token": (place == 0).expand_as(same),
        "current_token": place[:, None] == place,
        "duplicate_token": same,
        "induction": after,
    }
    apart = (place[:, None] - place).abs()
    return {
        "entropy": torch.special.entr(pattern).sum((-2, -1), dtype=torch.float64) / len(tokens),
        "distance": (pattern * apart).sum((-2, -1), dtype=torch.float64) / len(tokens),
        **{name: (pattern * mask).sum((-2, -1), dtype=torch.float64) / len(tokens) for name, mask in masks.items()},
    }


def visit_patterns(
    passes: Passes, ids: Int[Tensor, "batch position"], layers: Iterable[int], see: Callable[[Site, _Pattern], None]
) -> None:
    """Call a function with each layer's attention weights during the pass, so that only one layer's are in memory."""
    heads = passes.model.head_count

    def show(site: Site, shown: Float[Tensor, "batch query head_and_key"]) -> None:
        see(site, shown.unflatten(-1, (heads, -1)).transpose(1, 2))

    passes.visit(ids, [Site(layer, "pattern") for layer in layers], show, attention=EAGER)


def _behind(second: Float[Tensor, "batch head query key"], first_query: int, offset: int) -> Float[Tensor, " head"]:
    """Mean weight on the key this many positions before each query."""
    keys = torch.arange(second.shape[2], device=second.device) + first_query - offset
    weights = second.gather(-1, keys[None, None, :, None].expand(*second.shape[:3], 1))
    return weights.double().mean((0, 2, 3))


def _summary(layer: int, heads: Sequence[int], found: Mapping[str, Float[Tensor, " head"]]) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "layer": pa.array([layer] * len(heads), pa.int32()),
        "head": pa.array(list(heads), pa.int32()),
    }
    return pa.table(columns | {name: pa.array(values.numpy(force=True)) for name, values in found.items()})


def _rows(layer: int, heads: Sequence[int], pattern: Float[Tensor, "head query key"], *, causal: bool) -> pa.Table:
    """By head, query and key."""
    length = pattern.shape[-1]
    query, key = np.tril_indices(length) if causal else np.indices((length, length)).reshape(2, -1)
    weights = pattern.float().numpy(force=True)[:, query, key]
    return pa.table(
        {
            "layer": pa.array(np.full(weights.size, layer, np.int32)),
            "head": pa.array(np.repeat(np.asarray(heads, np.int32), len(query))),
            "query": pa.array(np.tile(query.astype(np.int32), len(heads))),
            "key": pa.array(np.tile(key.astype(np.int32), len(heads))),
            "weight": pa.array(weights.reshape(-1)),
        }
    )


def _repeated_tokens(model: LanguageModel, question: GetInductionScores, first: int) -> int:
    """The number of tokens before the repetition. Errors: BadRequest for fewer than 2, or more than fit or exist."""
    most = min((model.context_length - first) // 2, len(plain_ids(model)))
    tokens = min(_USUAL_TOKENS, most) if question.tokens is None else question.tokens
    if not 2 <= tokens <= most:
        raise BadRequest(
            f"a text of {tokens} tokens repeated twice is not possible: {model.name!r} reads {model.context_length} "
            "tokens"
            f"{model.context_reason} and has {len(plain_ids(model))} ordinary tokens",
            reason="LIMIT_EXCEEDED" if tokens > most else "ARGUMENT_INVALID",
            field="tokens",
            value=tokens,
            allowed=f"2 to {most}",
        )
    return tokens


def _repeated(
    model: LanguageModel, question: GetInductionScores, tokens: int, first: int
) -> Int[Tensor, "text position"]:
    generator, plain = np.random.default_rng(question.seed), plain_ids(model)
    drawn = np.stack([generator.permutation(plain)[:tokens] for _ in range(question.texts)])
    start = np.full((question.texts, first), model.bos_id or 0)
    return torch.from_numpy(np.concatenate([start, drawn, drawn], axis=1)).to(model.device)


def _check_texts(texts: int, limits: LiveLimits) -> None:
    if not 1 <= texts <= limits.induction_texts:
        raise BadRequest(
            f"scores can be averaged over 1 to {limits.induction_texts} texts, not {texts}",
            reason="LIMIT_EXCEEDED" if texts else "ARGUMENT_INVALID",
            field="texts",
            value=texts,
            allowed=f"1 to {limits.induction_texts}",
        )


def check_weights(model: LanguageModel, texts: int, length: int, limits: LiveLimits) -> None:
    """Refuse batches whose attention weights of one layer, for all heads, do not fit into memory."""
    weights = texts * model.head_count * length**2
    if weights > limits.attention_elements:
        raise _too_many(weights, limits.attention_elements, f"a layer's attention over {length} tokens", "text")


def _check_rows(model: LanguageModel, length: int, heads: int, limits: LiveLimits) -> None:
    rows = heads * (length * (length + 1) // 2 if model.family.causal else length**2)
    if rows > limits.attention_weights:
        what = f"the patterns of {heads} heads over {length} tokens"
        raise _too_many(rows, limits.attention_weights, what, "patterns")


def _too_many(weights: int, allowed: int, what: str, field: str) -> BadRequest:
    advice = ": name fewer layers or heads" if field == "patterns" else ""
    details: dict[str, Any] = {"field": field, "value": f"{weights} weights", "allowed": f"at most {allowed} weights"}
    message = f"{what} have {weights} weights; one answer can have at most {allowed}{advice}"
    if field == "text":
        message = f"{what} has {weights} weights; at most {allowed} can be held in memory at once"
    return BadRequest(message, reason="LIMIT_EXCEEDED", **details)


ANSWERS: Answers = {
    GetAttention: lambda given, question: see_attention(given.passes, question, given.limits),
    GetInductionScores: lambda given, question: score_induction(given.passes, question, given.limits),
}
