"""The change that steering makes at its site: along which direction, at which positions, and by how much."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from actstore_api.records.model import SteerText
from actstore_api.records.terms import SaeFeature
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site, parse_site
from actstore_worker.live.passes.checks import check_features
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import Change
from actstore_worker.sae.autoencoder import SparseAutoencoder

# Returns what is added to the activation at the site; both are [row, position, d_model] in float32.
Delta = Callable[[Float[Tensor, "row position d_model"]], Float[Tensor, "row position d_model"]]


@dataclass(frozen=True)
class Direction:
    """`unit` has length 1. For an SAE's feature, `sae` says how much the feature writes at the moment."""

    site: Site
    unit: Float[Tensor, " d_model"]
    sae: SparseAutoencoder | None = None
    feature: int = 0

    def delta(self, mode: str, strength: float) -> Delta:
        """Return what steering adds at the site.

        With u the unit vector, x the activation and s the strength in the site's units: `add` s u, `set` (s - x.u) u,
        `project_out` -(x.u) u. Setting a feature replaces what it adds to its SAE's reconstruction by s u; the SAE's
        error stays.
        """
        if mode == "add":
            return lambda x: (strength * self.unit).expand_as(x)
        if mode == "project_out":
            return lambda x: -(x @ self.unit)[..., None] * self.unit
        if self.sae is None:
            return lambda x: (strength - x @ self.unit)[..., None] * self.unit
        return lambda x: strength * self.unit - self._written(x)

    def _written(self, x: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row position d_model"]:
        assert self.sae is not None  # noqa: S101  by `delta`
        rows = x.flatten(0, 1)
        activation = self.sae.encode(rows)[:, self.feature].clone()
        return self.sae.contribution(activation, self.feature, rows).view_as(x)


@dataclass(frozen=True)
class Steering:
    """`prompt`: which of the prompt's positions are steered; `generated`: whether later ones are."""

    model: LanguageModel
    site: Site
    delta: Delta
    prompt: Bool[Tensor, " position"]
    generated: bool

    def changes(self, first: int, length: int) -> Mapping[Site, Change]:
        """Return the changes of a pass over the positions from `first` on.

        resid_mid is not the output of a module, so the change is added to attention's output.
        """
        where = self._where(first, length)[None, :, None]
        if self.site.kind != "resid_mid":
            return {self.site: lambda found: torch.where(where, _moved(found, found, self.delta), found)}
        before: list[Tensor] = []

        def keep(found: Tensor) -> Tensor:
            before.append(found)
            return found

        def complete(found: Tensor) -> Tensor:
            return torch.where(where, _moved(found, before[0] + found, self.delta), found)

        return {Site(self.site.layer, "resid_pre"): keep, Site(self.site.layer, "attn_out"): complete}

    def _where(self, first: int, length: int) -> Bool[Tensor, " position"]:
        rest = max(0, first + length - max(first, len(self.prompt)))
        return torch.cat([self.prompt[first : first + length], self.prompt.new_full((rest,), self.generated)])


def _moved(carrier: Tensor, x: Tensor, delta: Delta) -> Tensor:
    moved: Tensor = carrier + delta(x.float()).to(carrier.dtype)
    return moved


def steered_positions(asked: str, special: Bool[Tensor, " position"]) -> tuple[Bool[Tensor, " position"], bool]:
    """Find which of the prompt's positions are steered, special ones excluded, and whether generated ones are."""
    return ~special & (asked in ("all", "prompt")), asked in ("all", "generated")


def direction_of(model: LanguageModel, question: SteerText, sae: SparseAutoencoder | None) -> Direction:
    """Find the direction that the question steers along, and its site.

    Errors: BadRequest for a site outside the residual stream, for a vector of another width, zero or not a number, for
    a feature that does not exist or writes nothing, and for setting a transcoder's feature, because it reads elsewhere.
    """
    asked = question.direction
    if sae is None or not isinstance(asked, SaeFeature):
        vector = torch.tensor(asked, dtype=torch.float32, device=model.device)
        return Direction(_site(model, question.site), _unit(vector, model, "vector", f"{len(vector)} numbers"))
    check_features(sae, [asked.feature])
    site = sae.output_site
    if site.kind not in model.kinds:
        why = f"it writes {site}, which is inside attention heads, not in the residual stream"
        raise _unsupported(sae, why, "sae", str(site), "an SAE at a site of the residual stream")
    if sae.is_transcoder and question.mode == "set":
        why = f"it reads {sae.site} but writes {site}, where its features cannot be measured"
        raise _unsupported(sae, why, "mode", question.mode, "add, project_out")
    unit = _unit(sae.decoder[asked.feature].float(), model, "feature", str(asked.feature))
    return Direction(site, unit, sae, asked.feature)


def _site(model: LanguageModel, name: str) -> Site:
    return parse_site(name, model.kinds, model.layer_count)


def _unit(vector: Float[Tensor, " width"], model: LanguageModel, field: str, value: str) -> Float[Tensor, " d_model"]:
    length = torch.linalg.vector_norm(vector)
    if len(vector) != model.d_model or not bool(length.isfinite()) or not bool(length > 0):
        why = f"{model.d_model} finite numbers that are not all zero"
        raise BadRequest(f"{field} {value} is not a direction of {why}", field=field, value=value, allowed=why)
    unit: Tensor = vector / length
    return unit


def _unsupported(sae: SparseAutoencoder, why: str, field: str, value: str, allowed: str) -> BadRequest:
    message = f"the model cannot be steered in this mode along a feature of SAE {sae.name!r}: {why}"
    return BadRequest(message, reason="SAE_UNSUPPORTED", field=field, value=value, allowed=allowed)
