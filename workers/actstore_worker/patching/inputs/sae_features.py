"""Patches SAE features: one, several together, or the SAE's error.

An SAE turns an activation x into features f, with x = decode(f) + error. A patched row has some of the base run's
features replaced by the source run's values, and the base run's error (`kept`), none (`dropped`) or the source run's
(`patched`; Marks et al. 2024, "Sparse feature circuits", treat errors as separate nodes). If the SAE scales each row by
itself, the base run's scale is kept, and the resulting difference of the source run counts as error: with all features
and the error from the source run, the row is the source run's, for every SAE.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from actstore_api.records.patching import SaeError
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.kernels.recording import Recording, record
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.fit import check_fit
from actstore_worker.sae.refusals import mismatch

# The largest number of features in one sweep.
FEATURES_MAX = 16_384
# Positions that are encoded at once. Each has d_sae numbers, of which only the few nonzero ones are kept.
_ROWS_AT_ONCE = 64

# For each feature its value on one token; 0 if it is missing.
Active = Mapping[int, float]


def check_features(
    sae: SparseAutoencoder, model: LanguageModel, features: Sequence[int], patchable: Sequence[str]
) -> None:
    """Refuses an SAE at a site that cannot be patched, or that does not fit the model, and features that it does not
    have: BadRequest.
    """
    check_fit(sae, model)
    if sae.is_transcoder:
        why = "a transcoder reads one site and writes another, so its features cannot be patched at either"
        raise mismatch(sae.name, "output_site", sae.output_site, str(sae.site), why)
    if sae.site.kind not in patchable or sae.site.kind == "pattern":
        allowed = [f"{kind}.LAYER" for kind in patchable if kind != "pattern"]
        raise mismatch(sae.name, "site", sae.site, allowed, f"{model.name!r} cannot be patched at this site")
    if len(features) > FEATURES_MAX:
        raise BadRequest(
            f"{len(features)} features were given",
            reason="LIMIT_EXCEEDED",
            field="features",
            value=len(features),
            allowed=f"at most {FEATURES_MAX}",
        )
    for feature in features:
        if not 0 <= feature < sae.d_sae:
            raise BadRequest(
                f"SAE {sae.name!r} has no feature {feature}; it has {sae.d_sae}",
                reason="FEATURE_OUT_OF_RANGE",
                field="features",
                value=feature,
                allowed=f"0..{sae.d_sae - 1}",
            )


def active_features(model: LanguageModel, sae: SparseAutoencoder, tokens: Sequence[int]) -> list[Active]:
    """Returns the active features of each token of a prompt, by one forward pass."""
    return _encoded(sae, _rows(record(model, tokens, [sae.site]), sae.site, model.head_counts))


@dataclass(frozen=True)
class FeatureRuns:
    """The base and the source run of a pair as SAE features. `zero`: the source's features and error are 0."""

    sae: SparseAutoencoder
    error: SaeError
    base: Recording
    source: Recording
    zero: bool
    head_counts: Mapping[str, int]

    def replacing(self, features: Iterable[int] | None, by: int, *, error: bool = False) -> "FeatureSource":
        """Returns the source of patched rows. None: all features. `by`: how much later the source's token is than the
        base's. `error`: for a cell that patches the error.
        """
        return FeatureSource(self, None if features is None else tuple(features), by, error)

    def row(self, features: Sequence[int] | None, position: int, by: int, *, error: bool) -> Float[Tensor, " width"]:
        x = self._base_rows[position : position + 1]
        found = x if self.error == "kept" and not error else self._explained(position)
        here, there = self._base[position], {} if self.zero else self._source[position + by]
        for feature in sorted({*here, *there}) if features is None else features:
            change = there.get(feature, 0.0) - here.get(feature, 0.0)
            if change:
                found = found + self.sae.contribution(found.new_tensor([change]), feature, x)
        if (error or self.error == "patched") and not self.zero:
            found = found + self._source_error(position, by)
        return found[0].to(self.base.logits.dtype)

    def _explained(self, position: int) -> Float[Tensor, "one width"]:
        """Returns the SAE's reconstruction of the base run's row."""
        if position not in self._decoded:
            x = self._base_rows[position : position + 1]
            self._decoded[position] = self.sae.decode(self._dense(self._base[position]), x)
        return self._decoded[position]

    def _source_error(self, position: int, by: int) -> Float[Tensor, "one width"]:
        """Returns the source run's error in the base run's scale."""
        if (position, by) not in self._errors:
            x, there = self._base_rows[position : position + 1], self._source[position + by]
            self._errors[position, by] = self._source_rows[position + by] - self.sae.decode(self._dense(there), x)
        return self._errors[position, by]

    @cached_property
    def _decoded(self) -> dict[int, Float[Tensor, "one width"]]:
        """Returns decoded rows by position, computed on request: the rows of all features begin with them."""
        return {}

    @cached_property
    def _errors(self) -> dict[tuple[int, int], Float[Tensor, "one width"]]:
        return {}

    @cached_property
    def _base_rows(self) -> Float[Tensor, "position width"]:
        return _rows(self.base, self.sae.site, self.head_counts).float()

    @cached_property
    def _source_rows(self) -> Float[Tensor, "position width"]:
        return _rows(self.source, self.sae.site, self.head_counts).float()

    @cached_property
    def _base(self) -> list[Active]:
        return _encoded(self.sae, self._base_rows)

    @cached_property
    def _source(self) -> list[Active]:
        return _encoded(self.sae, self._source_rows)

    def _dense(self, active: Active) -> Float[Tensor, "one d_sae"]:
        found = torch.zeros(1, self.sae.d_sae, device=self._base_rows.device)
        found[0, list(active)] = found.new_tensor(list(active.values()))
        return found


@dataclass(frozen=True)
class FeatureSource:
    """The base run's activations at the SAE's site, with these features patched."""

    runs: FeatureRuns
    features: tuple[int, ...] | None
    by: int
    error: bool

    @property
    def logits(self) -> Float[Tensor, " vocabulary"]:
        return self.runs.source.logits

    def activation(self, site: Site, position: int, heads: int) -> Float[Tensor, " width"]:  # noqa: ARG002
        return self.runs.row(self.features, position, self.by, error=self.error)


def _rows(recording: Recording, site: Site, head_counts: Mapping[str, int]) -> Float[Tensor, "position width"]:
    whole = recording.activations[site.whole]
    return whole if site.head is None else whole.unflatten(-1, (head_counts[site.kind], -1))[:, site.head]


@torch.inference_mode()
def _encoded(sae: SparseAutoencoder, rows: Float[Tensor, "position width"]) -> list[Active]:
    found: list[Active] = []
    for part in rows.split(_ROWS_AT_ONCE):
        for row in sae.encode(part):
            features = row.nonzero()[:, 0]
            found.append(dict(zip(features.tolist(), row[features].tolist(), strict=True)))
    return found
