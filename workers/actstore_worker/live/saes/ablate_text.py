"""Ablates tokens of a text, one at a time or in pairs, and returns how a feature's activation changes.

The deletion is Logan Riggs's: the text is cut after a position p, token i <= p is left out, and the feature's
activation at the last remaining token is compared with that at p. Positions are those of the cut text, from 0. With i =
p the last token is the one before it. Pairs reveal a feature that reads either of two tokens: without one, the other is
still there.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from actstore_api.records.sae import AblateText, AblateTextAnswer
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_worker.live.passes.checks import check_features
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.resources import Answers
from actstore_worker.live.passes.running import Passes, setting
from actstore_worker.live.passes.text import LiveText, read_text
from actstore_worker.live.saes.encode_text import feature_activations
from actstore_worker.models.prompts import check_causal
from actstore_worker.provenance import live_provenance
from actstore_worker.sae.autoencoder import SparseAutoencoder

_SCHEMA = pa.schema(
    [
        pa.field("first", pa.int32(), nullable=False),
        pa.field("second", pa.int32()),
        pa.field("first_text", pa.string(), nullable=False),
        pa.field("second_text", pa.string()),
        pa.field("activation", pa.float32(), nullable=False),
        pa.field("change", pa.float64(), nullable=False),
    ]
)
_Cells = Int[Tensor, "cell taken"]


def ablate_text(passes: Passes, sae: SparseAutoencoder, question: AblateText, limits: LiveLimits) -> AblateTextAnswer:
    """Ablate tokens of the text, and return the changes of the feature's activation.

    Single tokens come in order of position, then pairs.

    Errors: BadRequest for an encoder, whose activations depend on text that would be cut off; for a feature or position
    that does not exist; for a text of one token; LIMIT_EXCEEDED for more single tokens and pairs than the limit.
    """
    check_causal(passes.model, "its activations at a token depend on later text, which would be cut off")
    check_features(sae, [question.feature])
    text = read_text(passes.model, question.text, question.prepend_bos)
    ids = text.on(passes.model.device)
    whole = feature_activations(sae, passes.observe(ids, [sae.site])[sae.site][0], question.feature)
    position = _position(text, whole, question.position)
    _check_first(question.first_ablated, position)
    groups = _cells(position + 1, question, limits)
    ways = _Ways(passes, sae, question.feature, ids[:, : position + 1], limits)
    found = [
        np.concatenate([part.numpy(force=True) for part in ways.run(question.ablation, cells)]) for cells in groups
    ]
    return AblateTextAnswer(
        effects=_effects(text, groups, np.concatenate(found), float(whole[position])),
        tokens=text.table(activation=pa.array(whole.numpy(force=True), pa.float32())),
        position=position,
        activation=float(whole[position]),
        provenance=live_provenance(passes.model, sae),
    )


class _Ways:
    """The ways to ablate tokens of a text that is already cut: [1, position]."""

    def __init__(
        self, passes: Passes, sae: SparseAutoencoder, feature: int, ids: Int[Tensor, "1 position"], limits: LiveLimits
    ) -> None:
        self._passes, self._sae, self._feature, self._ids = passes, sae, feature, ids
        self._rows = max(1, limits.tokens_per_slice // ids.shape[1])
        self._layers = range(sae.site.layer + 1)

    def run(self, ablation: str, cells: _Cells) -> Iterator[Float[Tensor, " cell"]]:
        """Find the feature's activation at the last token, cell by cell, in slices.

        All rows of a slice have the same length.
        """
        if ablation == "delete":
            for part in cells.split(self._rows):
                yield self._deleted(part)
            return
        values = self._values(ablation)
        for part in cells.split(self._rows):
            yield self._replaced(part, values)

    def _deleted(self, cells: _Cells) -> Float[Tensor, " cell"]:
        kept = ~self._where(cells)
        shorter = self._ids.expand(len(cells), -1)[kept].view(len(cells), -1)
        return self._last(self._passes.observe(shorter, [self._sae.site]))

    def _replaced(self, cells: _Cells, values: dict[Site, Float[Tensor, " d_model"]]) -> Float[Tensor, " cell"]:
        changes = setting(values, self._where(cells), values)
        rows = self._ids.expand(len(cells), -1)
        return self._last(self._passes.observe(rows, [self._sae.site], changes))

    def _values(self, ablation: str) -> dict[Site, Float[Tensor, " d_model"]]:
        """Returns the replacement values and the layers whose input they replace."""
        sites = [Site(layer, "resid_pre") for layer in self._layers]
        if ablation == "mean_residual":
            return self._means(sites)
        zero = torch.zeros(self._passes.model.d_model, device=self._ids.device)
        return dict.fromkeys(sites[:1] if ablation == "zero_embedding" else sites, zero)

    def _means(self, sites: list[Site]) -> dict[Site, Float[Tensor, " d_model"]]:
        """The mean over the tokens of the cut text without ablation, without BOS."""
        first = int(self._ids[0, 0] == self._passes.model.bos_id)
        seen = self._passes.observe(self._ids, sites)
        return {site: seen[site][0, first:].mean(dim=0) for site in sites}

    def _where(self, cells: _Cells) -> Bool[Tensor, "cell position"]:
        where = torch.zeros(len(cells), self._ids.shape[1], dtype=torch.bool, device=self._ids.device)
        return where.scatter_(1, cells.to(where.device), True)

    def _last(self, seen: dict[Site, Float[Tensor, "cell position width"]]) -> Float[Tensor, " cell"]:
        return feature_activations(self._sae, seen[self._sae.site][:, -1], self._feature)


def _position(text: LiveText, activations: Float[Tensor, " position"], asked: int | None) -> int:
    """Where the feature is strongest, special tokens excluded unless there are no others; if it never fires, the last
    position, which has the most context.
    """
    position = asked
    if asked is None:
        places = np.flatnonzero(~text.special | text.special.all())
        strengths = activations.numpy(force=True)[places]
        position = int(places[strengths.argmax()] if strengths.any() else places[-1])
    if position is None or not 1 <= position < len(text):
        where = "the feature is strongest at" if asked is None else "the text is to be cut after"
        raise BadRequest(
            f"{where} position {position}; in a text of {len(text)} tokens it must be 1 to {len(text) - 1}, because at "
            "position 0 no earlier token can be ablated",
            field="position" if len(text) > 1 else "text",
            value=position,
            allowed=f"1 to {len(text) - 1}" if len(text) > 1 else "a text of at least two tokens",
        )
    return position


def _check_first(first: int, position: int) -> None:
    if first > position:
        raise BadRequest(
            f"tokens from position {first} on are to be ablated, but the text is cut after position {position}",
            field="first_ablated",
            value=first,
            allowed=f"0 to {position}",
        )


def _cells(tokens: int, question: AblateText, limits: LiveLimits) -> list[_Cells]:
    """Every token that may be ablated and, if requested, every pair of them, except the whole text."""
    pairs, taken = question.pairs and tokens > 2, range(question.first_ablated, tokens)
    count = len(taken) + (len(taken) * (len(taken) - 1) // 2 if pairs else 0)
    if count > limits.ablations:
        raise BadRequest(
            f"up to that position the text has {count} tokens and pairs to ablate; one question can ablate at "
            f"most {limits.ablations}: choose an earlier position, or leave out pairs",
            reason="LIMIT_EXCEEDED",
            field="pairs" if pairs else "position",
            value=count,
            allowed=f"at most {limits.ablations}",
        )
    singles = torch.tensor(taken)[:, None]
    return [singles, torch.tensor(list(combinations(taken, 2)))] if pairs and len(taken) > 1 else [singles]


def _effects(text: LiveText, groups: list[_Cells], activations: Float[np.ndarray, " cell"], whole: float) -> pa.Table:
    cells = [tuple(cell) for group in groups for cell in group.tolist()]
    seconds = [cell[1] if len(cell) > 1 else None for cell in cells]
    columns = [
        [cell[0] for cell in cells],
        seconds,
        [text.texts[cell[0]] for cell in cells],
        [None if second is None else text.texts[second] for second in seconds],
        activations,
        activations.astype(np.float64) - whole,
    ]
    return pa.table(columns, schema=_SCHEMA)


ANSWERS: Answers = {
    AblateText: lambda given, question: ablate_text(given.passes, given.fitting(question.sae), question, given.limits),
}
