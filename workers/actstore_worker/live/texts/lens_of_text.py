"""The logit lens on a text: what the residual stream would predict at each layer and position if it were the last.

The activation at a site goes through the model's own final norm, unembedding and soft cap (nostalgebraist 2020). At the
last layer's resid_post this is the model's output.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from actstore_api.records.model import GetTextLens, GetTextLensAnswer
from actstore_api.records.terms import TokenReference
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site, why_missing
from actstore_worker.live.passes.checks import check_k
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.resources import Answers
from actstore_worker.live.passes.running import LOGITS_MAX, Passes
from actstore_worker.live.passes.text import LiveText, read_text
from actstore_worker.models.chosen import chosen_layers
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import check_causal, token_of, token_texts
from actstore_worker.provenance import live_provenance

_KINDS = ("resid_pre", "resid_mid", "resid_post")


@dataclass(frozen=True)
class _Read:
    """The results of one layer, in order of position; `rank` and `log_probability` are the target's."""

    logit: Float[Tensor, "position k"]
    probability: Float[Tensor, "position k"]
    token: Int[Tensor, "position k"]
    rank: Int[Tensor, " position"]
    log_probability: Float[Tensor, " position"]
    entropy: Float[Tensor, " position"]
    kl: Float[Tensor, " position"]


def lens_text(passes: Passes, question: GetTextLens, limits: LiveLimits) -> GetTextLensAnswer:
    """Find what the residual stream would predict at each layer and position.

    If the vocabulary has fewer than k tokens, all are returned. With p the model's output at a position and q what a
    layer would predict, entropy is -sum q ln q and kl is sum p ln(p / q), both in nats.

    Errors: BadRequest for an encoder, for a site outside the residual stream or that does not exist, for layers out of
    range, for a target of several tokens; LIMIT_EXCEEDED for k and rows above their limits.
    """
    model = passes.model
    check_causal(model, "it has no unembedding that the residual stream could be projected through")
    _check_kind(model, question.site)
    layers = chosen_layers(model, question.layers)
    check_k(question.k, limits.lens_tokens)
    text = read_text(model, question.text, question.prepend_bos)
    k = min(question.k, model.vocabulary_size)
    _check_rows(len(layers) * len(text) * k, limits)
    targets = _targets(model, text, question.target)
    sites = [Site(layer, question.site) for layer in layers]
    last = Site(model.layer_count - 1, "resid_post")
    seen = passes.observe(text.on(model.device), {*sites, last})
    found = _read(passes, [seen[site][0] for site in sites], seen[last][0], targets, k)
    return GetTextLensAnswer(
        _tops(model, layers, found), _positions(model, layers, found, targets), text.table(), live_provenance(model)
    )


def _read(
    passes: Passes,
    residuals: Sequence[Float[Tensor, "position d_model"]],
    last: Float[Tensor, "position d_model"],
    targets: Sequence[int | None],
    k: int,
) -> list[_Read]:
    """Computed in slices of positions, because logits are much larger than residuals. For a target None, token 0's
    values are read and never shown.
    """
    wanted = torch.tensor([token or 0 for token in targets], device=last.device)
    size = max(1, LOGITS_MAX // passes.model.vocabulary_size)
    parts: list[list[_Read]] = [[] for _ in residuals]
    for start in range(0, len(last), size):
        here = slice(start, start + size)
        output = _logits(passes, last[here]).log_softmax(-1)
        for residual, found in zip(residuals, parts, strict=True):
            found.append(_compare(_logits(passes, residual[here]), output, wanted[here], k))
    return [_joined(found) for found in parts]


def _logits(passes: Passes, residual: Float[Tensor, "position d_model"]) -> Float[Tensor, "position vocabulary"]:
    with passes.turn():
        return passes.model.unembed(passes.model.final_norm(residual)).float()


def _compare(
    logits: Float[Tensor, "position vocabulary"],
    output: Float[Tensor, "position vocabulary"],
    targets: Int[Tensor, " position"],
    k: int,
) -> _Read:
    """`output`: the model's log-probabilities."""
    logs = logits.log_softmax(-1)
    top = logits.topk(k)
    wanted = logits.gather(-1, targets[:, None])
    return _Read(
        logit=top.values,
        probability=logs.gather(-1, top.indices).exp(),
        token=top.indices,
        rank=1 + (logits > wanted).sum(-1),
        log_probability=logs.gather(-1, targets[:, None])[:, 0],
        entropy=torch.special.entr(logs.exp()).sum(-1),
        kl=(output.exp() * (output - logs)).sum(-1),
    )


def _joined(parts: Sequence[_Read]) -> _Read:
    return _Read(**{name: torch.cat([getattr(part, name) for part in parts]) for name in _Read.__dataclass_fields__})


def _targets(model: LanguageModel, text: LiveText, target: TokenReference | None) -> list[int | None]:
    """One token per position: the given one, or the true next token, which the last position does not have."""
    if target is not None:
        return [token_of(model, target, "target")] * len(text)
    return [*text.ids[1:], None]


def _tops(model: LanguageModel, layers: Sequence[int], found: Sequence[_Read]) -> pa.Table:
    """By layer, then position, then rank."""
    positions, k = found[0].token.shape
    tokens = torch.stack([read.token for read in found]).flatten().tolist()
    count = len(tokens)
    return pa.table(
        {
            "layer": pa.array([layer for layer in layers for _ in range(positions * k)], pa.int32()),
            "position": pa.array([index // k % positions for index in range(count)], pa.int32()),
            "rank": pa.array([index % k + 1 for index in range(count)], pa.int32()),
            "token": pa.array(tokens, pa.int32()),
            "text": pa.array(token_texts(model, tokens), pa.string()),
            "logit": _numbers([read.logit for read in found]),
            "probability": _numbers([read.probability for read in found]),
        }
    )


def _positions(
    model: LanguageModel, layers: Sequence[int], found: Sequence[_Read], targets: Sequence[int | None]
) -> pa.Table:
    """By layer, then position."""
    here = [token for token in targets if token is not None]
    texts = iter(token_texts(model, here))
    shown = [None if token is None else next(texts) for token in targets]
    absent = np.array([token is None for token in targets] * len(layers))
    ranks = torch.stack([read.rank for read in found]).flatten().numpy(force=True)
    return pa.table(
        {
            "layer": pa.array(np.repeat(np.asarray(layers, np.int32), len(targets))),
            "position": pa.array(list(range(len(targets))) * len(layers), pa.int32()),
            "target": pa.array(list(targets) * len(layers), pa.int32()),
            "target_text": pa.array(shown * len(layers), pa.string()),
            "target_rank": pa.array(ranks.astype(np.int32), mask=absent),
            "target_log_probability": _numbers([read.log_probability for read in found], absent),
            "entropy": _numbers([read.entropy for read in found]),
            "kl": _numbers([read.kl for read in found]),
        }
    )


def _numbers(parts: Sequence[Tensor], absent: NDArray[np.bool_] | None = None) -> pa.Array:
    return pa.array(torch.stack(list(parts)).flatten().float().numpy(force=True), mask=absent)


def _check_kind(model: LanguageModel, kind: str) -> None:
    there = [each for each in model.kinds if each in _KINDS]
    if kind not in there:
        raise BadRequest(
            f"a lens reads the residual stream of {model.name!r} at {', '.join(there)}, not at {kind!r}"
            f"{why_missing(kind, model.kinds)}",
            reason="SITE_UNKNOWN",
            field="site",
            value=kind,
            allowed=there,
        )


def _check_rows(rows: int, limits: LiveLimits) -> None:
    if rows > limits.lens_rows:
        raise BadRequest(
            f"layers x positions x k are {rows} rows; one answer can have at most {limits.lens_rows}: name fewer "
            "layers, "
            "or a smaller k",
            reason="LIMIT_EXCEEDED",
            field="k",
            value=f"{rows} rows",
            allowed=f"at most {limits.lens_rows} rows",
        )


ANSWERS: Answers = {
    GetTextLens: lambda given, question: lens_text(given.passes, question, given.limits),
}
