"""What replaces the base run's activations, for each row of a sweep's grid."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from actstore_storage.format.sites import Site
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import changing, writing
from actstore_worker.patching.inputs.kinds import EMBEDDING, FEATURES
from actstore_worker.patching.inputs.prompts import PairTokens
from actstore_worker.patching.inputs.sae_features import FeatureRuns
from actstore_worker.patching.inputs.stored_rows import StoredRows
from actstore_worker.patching.kernels.full import Patch
from actstore_worker.patching.kernels.recording import Recording, Source, zeroed
from actstore_worker.patching.plan import Entry, SweepPlan


@dataclass(frozen=True)
class Given:
    """What all pairs of a sweep share: rows of a stored run, and the part of layer 0's input that comes from positions
    only. Each is present only if the sweep needs it.
    """

    head_counts: Mapping[str, int]
    stored: StoredRows | None = None
    position_parts: Float[Tensor, "position d_model"] | None = None


@dataclass(frozen=True)
class Replacing:
    """The replacements of one pair and direction. `source` is the other prompt's run, `values` the activations that are
    taken.
    """

    plan: SweepPlan
    given: Given
    tokens: PairTokens
    direction: str
    base: Recording
    source: Recording

    def patch(self, entry: Entry) -> Patch:
        return Patch(self.base, self._source(entry), self.plan.cells(entry, self.tokens, self.direction))

    @cached_property
    def values(self) -> Recording:
        if self.given.stored is not None:
            return self.given.stored.instead(self.source)
        return zeroed(self.source) if self._is_zero else self.source

    def _source(self, entry: Entry) -> Source:
        by = self._shift(entry)
        if entry.site == FEATURES:
            return self._features.replacing(entry.features, by, error=entry.is_error)
        if entry.site == EMBEDDING:
            assert self.given.position_parts is not None  # noqa: S101  by `given_to`
            return EmbeddingSource(self.values, self.given.position_parts, by, self._is_zero)
        return Shifted(self.values, by) if by else self.values

    def _shift(self, entry: Entry) -> int:
        """Returns how much later a span begins in the source run."""
        if entry.span is None:
            return 0
        base, source = self.tokens.spans[entry.span].sides(self.direction)
        return source.start - base.start

    @property
    def _is_zero(self) -> bool:
        return self.plan.source == "zero"

    @cached_property
    def _features(self) -> FeatureRuns:
        assert self.plan.sae is not None  # noqa: S101  by `plan_sweep`
        sae, error = self.plan.sae, self.plan.sae_error
        return FeatureRuns(sae, error, self.base, self.values, self._is_zero, self.given.head_counts)


@dataclass(frozen=True)
class Shifted:
    """A run whose tokens are `by` positions later than the base run's tokens that they replace."""

    of: Recording
    by: int

    @property
    def logits(self) -> Float[Tensor, " vocabulary"]:
        return self.of.logits

    def activation(self, site: Site, position: int, heads: int) -> Float[Tensor, " width"]:
        return self.of.activation(site, position + self.by, heads)


@dataclass(frozen=True)
class EmbeddingSource:
    """A token's own embedding (TransformerLens's hook_embed), or zeros if `zero`, plus the base run's part of layer 0's
    input at that position.
    """

    of: Recording
    position_parts: Float[Tensor, "position d_model"]
    by: int
    zero: bool

    @property
    def logits(self) -> Float[Tensor, " vocabulary"]:
        return self.of.logits

    def activation(self, site: Site, position: int, heads: int) -> Float[Tensor, " width"]:
        if self.zero:
            return self.position_parts[position]
        found = self.of.activation(site, position + self.by, heads)
        # If the token is the same, nothing is added, so there is no rounding either.
        return found + (self.position_parts[position] - self.position_parts[position + self.by]) if self.by else found


@torch.inference_mode()
def position_parts(model: LanguageModel, length: int) -> Float[Tensor, "position d_model"]:
    """Returns layer 0's input if all tokens' embeddings were zero: position embeddings if they are learned; zeros with
    rotary embeddings, which attention applies.
    """
    seen: list[Tensor] = []
    embedding = model.module.get_input_embeddings()  # type: ignore[operator]
    handle = embedding.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
    ids = torch.zeros(1, length, dtype=torch.long, device=model.device)
    edits = {Site(0, "resid_pre"): lambda residual: seen.append(residual[0, :, 0].clone())}
    try:
        with changing(model, writing(model, edits), ids.shape):
            model.module(input_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return seen[0]


def given_to(plan: SweepPlan, model: LanguageModel, stored: StoredRows | None = None) -> Given:
    embedded = any(entry.site == EMBEDDING for entry in plan.grid)
    return Given(model.head_counts, stored, position_parts(model, plan.length) if embedded else None)
