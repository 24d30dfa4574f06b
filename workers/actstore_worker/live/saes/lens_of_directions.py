"""The logit lens of a feature: the tokens that its direction makes more likely, and less likely."""

from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from actstore_api.records.sae import GetLogitLens, GetLogitLensAnswer
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import HEAD_KINDS
from actstore_worker.live.passes.checks import check_features, check_k
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.resources import Answers
from actstore_worker.live.passes.running import Passes
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import check_causal, token_texts
from actstore_worker.models.weights import read_norm
from actstore_worker.provenance import live_provenance
from actstore_worker.sae.autoencoder import SparseAutoencoder

# Logits, features x vocabulary, are computed in slices of this many elements.
_LOGITS_MAX = 1 << 24
_SCHEMA = pa.schema(
    [
        pa.field("feature", pa.int32(), nullable=False),
        pa.field("end", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("token", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("logit", pa.float32(), nullable=False),
    ]
)


def logit_lens(
    passes: Passes, sae: SparseAutoencoder, question: GetLogitLens, limits: LiveLimits
) -> GetLogitLensAnswer:
    """Find the tokens at both ends of each feature's direction.

    The direction is multiplied by W_U, as Logan Riggs does: without a bias, a final norm's scale, or a soft cap, which
    do not apply to a direction. If fewer than k tokens are left, all are returned.

    Errors: BadRequest for an encoder, for an SAE at a site in heads, for features and k out of range, and if every
    token's unembedding is longer than `longest_unembedding`.
    """
    model = passes.model
    check_causal(model, "it has no unembedding that a direction could be projected through")
    _check_writes(sae, question.side)
    _check_features(sae, question.features, limits)
    check_k(question.k, limits.lens_tokens)
    directions = getattr(sae, question.side)[list(question.features)]
    with passes.turn():
        module: Any = model.module
        unembedding: Tensor = module.get_output_embeddings().weight.float()  # [vocabulary, d_model]
        if question.fold_norm:
            directions = fold_final_norm(model, directions)
    masked = _masked(unembedding, question.longest_unembedding)
    k = min(question.k, int((~masked).sum()))
    tops, bottoms = _ends(directions, unembedding, masked, k)
    table = _table(model, question.features, tops, bottoms)
    return GetLogitLensAnswer(table, int(masked.sum()), live_provenance(model, sae))


def fold_final_norm(model: LanguageModel, directions: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """Apply the final norm to directions, without its division by the residual's scale and without its bias: a
    LayerNorm removes the mean, and each norm multiplies by its gain.
    """
    norm = read_norm(model, model.final_norm)
    return norm.gain * (directions - directions.mean(dim=-1, keepdim=True) if norm.centred else directions)


_Ends = tuple[Float[Tensor, "feature k"], Int[Tensor, "feature k"]]


def _ends(directions: Tensor, unembedding: Tensor, masked: Bool[Tensor, " vocabulary"], k: int) -> tuple[_Ends, _Ends]:
    """Logits and tokens, the largest first; and the smallest first."""
    tops, bottoms = [], []
    for part in directions.split(max(1, _LOGITS_MAX // len(unembedding))):
        logits = part @ unembedding.T
        tops.append(logits.masked_fill(masked, -torch.inf).topk(k))
        bottoms.append(logits.masked_fill(masked, torch.inf).topk(k, largest=False))
    return _joined(tops), _joined(bottoms)


def _joined(parts: list[Any]) -> _Ends:
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _masked(unembedding: Float[Tensor, "vocabulary d_model"], longest: float | None) -> Bool[Tensor, " vocabulary"]:
    if longest is None:
        return torch.zeros(len(unembedding), dtype=torch.bool, device=unembedding.device)
    lengths: Tensor = torch.linalg.vector_norm(unembedding, dim=-1)
    if not bool((lengths <= longest).any()):  # Also if it is NaN.
        raise BadRequest(
            f"every token's unembedding vector is longer than {longest:g}",
            field="longest_unembedding",
            value=longest,
            allowed=f"at least {float(lengths.min()):.6g}, the shortest",
        )
    return lengths > longest


def _table(model: LanguageModel, features: tuple[int, ...], tops: _Ends, bottoms: _Ends) -> pa.Table:
    """By feature, then end, then rank."""
    k = tops[0].shape[1]
    logits = torch.stack([tops[0], bottoms[0]], dim=1).flatten().tolist()
    tokens = torch.stack([tops[1], bottoms[1]], dim=1).flatten().tolist()
    columns = [
        [feature for feature in features for _ in range(2 * k)],
        (["top"] * k + ["bottom"] * k) * len(features),
        list(range(1, k + 1)) * 2 * len(features),
        tokens,
        token_texts(model, tokens),
        logits,
    ]
    return pa.table(columns, schema=_SCHEMA)


def _check_features(sae: SparseAutoencoder, features: tuple[int, ...], limits: LiveLimits) -> None:
    if not 1 <= len(features) <= limits.lens_features:
        raise BadRequest(
            f"one logit lens takes 1 to {limits.lens_features} features, not {len(features)}",
            reason="LIMIT_EXCEEDED" if features else "ARGUMENT_INVALID",
            field="features",
            value=f"{len(features)} features",
            allowed=f"1 to {limits.lens_features} features",
        )
    check_features(sae, features, "features")


def _check_writes(sae: SparseAutoencoder, side: str) -> None:
    """Refuses sites in heads: concatenated head values are not a direction of the residual."""
    site = sae.output_site if side == "decoder" else sae.site
    if site.kind in HEAD_KINDS:
        raise BadRequest(
            f"the {side} directions of SAE {sae.name!r} are at {site}, which is inside attention heads, not in the "
            "residual stream",
            reason="SAE_UNSUPPORTED",
            field="sae",
            value=str(site),
            allowed="an SAE at a site of the residual stream",
        )


ANSWERS: Answers = {
    GetLogitLens: lambda given, question: logit_lens(given.passes, given.fitting(question.sae), question, given.limits),
}
