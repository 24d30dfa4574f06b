"""Checks whether an SAE fits a model: measures it on stored text, and compares with the claims in its files.

BOS and special tokens are not counted, and their residual is never replaced: SAEs are trained without them, and the
first token's norm is a multiple of all others'. The losses are over the next tokens of the remaining tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from actstore_api.records.sae import CheckSae, CheckSaeAnswer
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.resources import Answers, Resources
from actstore_worker.live.passes.running import UNCHANGED, Passes, adding
from actstore_worker.live.passes.stored_sample import Batch, StoredSequence, batches, sample_sequences
from actstore_worker.live.saes.doubts import Findings, doubts
from actstore_worker.live.saes.fit_of_sae import Firing, Unexplained, reconstructed, unexplained
from actstore_worker.models.taps import Change
from actstore_worker.provenance import live_provenance, with_snapshot
from actstore_worker.sae.autoencoder import SparseAutoencoder

# Rows on which other scales and layers are tried: enough to find the right one.
_TRIED_TOKENS = 1024
# Half decades: an SAE that expects scaled input is usually off by the root of d_model, or by a mean norm.
_SCALES = (0.01, 0.03, 0.1, 0.3, 3.0, 10.0, 30.0, 100.0)
_SCHEMA = pa.schema(
    [
        pa.field("quantity", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("claimed", pa.float64()),
    ]
)


def check_sae(
    passes: Passes, sae: SparseAutoencoder, snapshot: Snapshot, question: CheckSae, limits: LiveLimits
) -> CheckSaeAnswer:
    """Measure an SAE on stored text, and write warnings about what looks wrong.

    An encoder predicts no next token, so its SAEs have no losses.

    Errors: BadRequest for `tokens` above the limit, and as `sample_sequences`.
    """
    if not 1 <= question.tokens <= limits.check_tokens:
        raise BadRequest(
            f"a check can use 1 to {limits.check_tokens} tokens, not {question.tokens}",
            reason="LIMIT_EXCEEDED" if question.tokens else "ARGUMENT_INVALID",
            field="tokens",
            value=question.tokens,
            allowed=f"1 to {limits.check_tokens}",
        )
    passes.expect(question.tokens)
    sample = sample_sequences(snapshot, question.tokens)
    quantities = _Measurement(passes, sae).of(sample, limits)
    scales, layers = _alternatives(passes, sae, sample, limits)
    asked = snapshot.record.specification
    findings = Findings(sae, asked.model, asked.model_revision, quantities, scales, layers)
    provenance = with_snapshot(live_provenance(passes.model, sae), snapshot)
    return CheckSaeAnswer(_table(quantities, sae), tuple(doubts(findings)), provenance)


@dataclass
class _Loss:
    """Mean cross-entropy in nats, accumulated in float64."""

    total: float = 0.0
    tokens: int = 0

    def add(self, log_probabilities: Float[Tensor, "batch followed"], counted: Bool[Tensor, "batch followed"]) -> None:
        self.total -= float(log_probabilities[counted].double().sum())
        self.tokens += int(counted.sum())

    @property
    def mean(self) -> float:
        return self.total / self.tokens if self.tokens else float("nan")


class _Measurement:
    def __init__(self, passes: Passes, sae: SparseAutoencoder) -> None:
        device = passes.model.device
        self._passes, self._sae = passes, sae
        self._firing, self._unexplained = Firing(sae.d_sae, device), Unexplained(sae.d_out, device)
        self._losses = {name: _Loss() for name in ("loss", "loss_reconstructed", "loss_zeroed")}
        self._tokens = 0

    def of(self, sample: list[StoredSequence], limits: LiveLimits) -> dict[str, float]:
        causal = self._passes.model.family.causal
        for batch in batches(sample, limits.tokens_per_slice, self._passes.model.device):
            target, reconstruction = self._reconstruct(batch)
            if causal:
                self._add_losses(batch, target, reconstruction)
        found = {
            "tokens": float(self._tokens),
            "l0": self._firing.l0,
            "fvu": self._unexplained.fraction,
            "dead_share": self._firing.dead_share,
        }
        return found | self._recovered() if causal else found

    def _reconstruct(self, batch: Batch) -> tuple[Float[Tensor, "row d_out"], Float[Tensor, "row d_out"]]:
        """The activations at the SAE's output site on the kept tokens, and the SAE's reconstruction."""
        seen = _observe(self._passes, batch, {self._sae.site, self._sae.output_site})
        x, target = seen[self._sae.site][batch.kept], seen[self._sae.output_site][batch.kept]
        reconstruction = reconstructed(self._sae, x, self._firing)
        self._unexplained.add(target, reconstruction)
        self._tokens += len(x)
        return target, reconstruction

    def _add_losses(self, batch: Batch, target: Tensor, reconstruction: Tensor) -> None:
        counted = batch.kept[:, :-1] & batch.inside[:, 1:]
        for name, rows in (("loss", None), ("loss_reconstructed", reconstruction - target), ("loss_zeroed", -target)):
            changes = UNCHANGED if rows is None else self._adding(_spread_out(rows, batch.kept))
            self._losses[name].add(self._passes.log_probabilities(batch.ids, changes), counted)

    def _adding(self, delta: Float[Tensor, "batch position width"]) -> Mapping[Site, Change]:
        return adding(self._passes.model, self._sae.output_site, delta)

    def _recovered(self) -> dict[str, float]:
        """The fraction of the loss added by zeroing the site that the reconstruction recovers."""
        loss, put_back, zeroed = (loss.mean for loss in self._losses.values())
        recovered = (zeroed - put_back) / (zeroed - loss) if zeroed != loss else float("nan")
        return {name: found.mean for name, found in self._losses.items()} | {"loss_recovered": recovered}


def _alternatives(
    passes: Passes, sae: SparseAutoencoder, sample: list[StoredSequence], limits: LiveLimits
) -> tuple[dict[float, float], dict[Site, float]]:
    """FVU on a part of the sample, by the scale of the input, and by the layer whose site of this kind is read.

    A transcoder's output differs from its input, so neither is tried for it.
    """
    if sae.is_transcoder:
        return {}, {}
    sites = [replace(sae.site, layer=layer) for layer in range(passes.model.layer_count)]
    few = max(1, len(sample) * _TRIED_TOKENS // sum(len(sequence.tokens) for sequence in sample))
    rows: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for batch in batches(sample[:: -(-len(sample) // few)], limits.tokens_per_slice, passes.model.device):
        for site, found in _observe(passes, batch, set(sites)).items():
            rows[site].append(found[batch.kept])
    own = torch.cat(rows[sae.site])
    scales = {scale: unexplained(sae, own, scale) for scale in (1.0, *_SCALES)}
    return scales, {site: unexplained(sae, torch.cat(found)) for site, found in rows.items()}


def _observe(passes: Passes, batch: Batch, sites: set[Site]) -> dict[Site, Float[Tensor, "batch position width"]]:
    # Padding on the right is harmless with causal attention.
    mask = None if passes.model.family.causal else batch.inside
    return passes.observe(batch.ids, sites, attention_mask=mask)


def _spread_out(
    rows: Float[Tensor, "row width"], where: Bool[Tensor, "batch position"]
) -> Float[Tensor, "batch position width"]:
    """Puts rows at the positions `where`, and zeros elsewhere."""
    return rows.new_zeros(*where.shape, rows.shape[1]).masked_scatter_(where[..., None], rows)


def _table(quantities: dict[str, float], sae: SparseAutoencoder) -> pa.Table:
    """The table of quantities; NaN becomes null."""
    values = [None if math.isnan(value) else value for value in quantities.values()]
    claimed = [sae.claims.get(name) for name in quantities]
    return pa.table([list(quantities), values, claimed], schema=_SCHEMA)


def _check_sae(given: Resources, question: CheckSae) -> CheckSaeAnswer:
    sae, snapshot = given.fitting(question.sae), given.open(question.run)
    return check_sae(given.passes, sae, snapshot, question, given.limits)


ANSWERS: Answers = {CheckSae: _check_sae}
