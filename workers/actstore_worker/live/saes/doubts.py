"""Writes warnings about an SAE on a model, which say what looks wrong and what to try."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from actstore_storage.format.sites import Site
from actstore_worker.sae.autoencoder import SparseAutoencoder

# Another scale or layer is named if its FVU is at most this share of the FVU at the SAE's own. At its own layer, the
# bundled SAE has 0.51 and 0.33 of the FVU at the neighboring layers, and 0.36 of the FVU with inputs scaled by three.
_CLEARLY_BETTER = 0.6
# How far FVU may be above its claim, as a factor. On text other than the training text, FVU is higher.
_FVU_FACTOR = 2.0
# How far L0 may differ from its claim, as a factor in either direction.
_L0_FACTOR = 2.0
_DEAD_SHARE_LARGE = 0.5
# With fewer activations of a feature on average than this, many features that never fire are not a sign of a problem.
_ENOUGH_ACTIVATIONS = 10.0
_USUAL_REVISIONS = ("", "main")


@dataclass(frozen=True)
class Findings:
    """`quantities` of a check, and FVU on a part of the sample by scale of the input (1 is its own), and by site."""

    sae: SparseAutoencoder
    model: str
    revision: str
    quantities: Mapping[str, float]
    fvu_by_scale: Mapping[float, float]
    fvu_by_site: Mapping[Site, float]


def doubts(found: Findings) -> Iterator[str]:
    yield from _of_model(found)
    yield from _of_explained(found)
    yield from _of_scale(found)
    yield from _of_layer(found)
    yield from _of_firing(found)
    yield from _of_loss(found)


def _of_model(found: Findings) -> Iterator[str]:
    """Names are compared without the owner: `EleutherAI/pythia-70m` is `pythia-70m`. SAEs do not name a revision, so
    they mean the default one.
    """
    trained, used = (name.rpartition("/")[2].lower() for name in (found.sae.model, found.model))
    if trained and trained != used:
        yield f"it was trained on model {found.sae.model!r}, but this run is from {found.model!r}"
    elif trained and found.revision not in _USUAL_REVISIONS:
        yield f"it was trained on model {found.sae.model!r}, but this run is from its revision {found.revision!r}"


def _of_explained(found: Findings) -> Iterator[str]:
    fvu = found.quantities["fvu"]
    if not fvu < 1:  # Also if it is NaN.
        yield f"FVU is {fvu:.3g}, so it explains nothing: is the site, the scale or the model wrong?"
    elif fvu > (claimed := found.sae.claims.get("fvu", 1.0)) * _FVU_FACTOR:
        yield f"FVU is {fvu:.3g}, but its files claim {claimed:.3g}"


def _of_scale(found: Findings) -> Iterator[str]:
    if not found.fvu_by_scale:
        return
    scale, fvu = min(found.fvu_by_scale.items(), key=lambda item: item[1])
    own = found.fvu_by_scale[1.0]
    if scale != 1 and _is_better(fvu, own):
        yield (
            f"it seems to expect inputs about {scale:g} times as large: FVU would then be {fvu:.3g} instead of "
            f"{own:.3g}"
        )


def _of_layer(found: Findings) -> Iterator[str]:
    if not found.fvu_by_site:
        return
    site, fvu = min(found.fvu_by_site.items(), key=lambda item: item[1])
    own = found.fvu_by_site[found.sae.site]
    if site != found.sae.site and _is_better(fvu, own):
        yield f"it fits {site} better than its own site {found.sae.site}: FVU {fvu:.3g} instead of {own:.3g}"


def _is_better(fvu: float, own: float) -> bool:
    """If neither explains anything, neither is better."""
    return fvu < min(1.0, own * _CLEARLY_BETTER)


def _of_firing(found: Findings) -> Iterator[str]:
    l0, claimed = found.quantities["l0"], found.sae.claims.get("l0")
    if claimed and not claimed / _L0_FACTOR <= l0 <= claimed * _L0_FACTOR:
        yield f"{l0:.4g} features fire on a token, but its files claim {claimed:.4g}"
    dead, tokens = found.quantities["dead_share"], found.quantities["tokens"]
    expected = tokens * l0 / found.sae.d_sae
    if dead >= _DEAD_SHARE_LARGE and (expected >= _ENOUGH_ACTIVATIONS or l0 == 0):
        yield f"{dead:.0%} of its features never fire on {tokens:.0f} tokens"


def _of_loss(found: Findings) -> Iterator[str]:
    recovered = found.quantities.get("loss_recovered")
    if recovered is not None and recovered < 0:
        yield (
            f"loss_recovered is {recovered:.3g}: the model predicts worse with its reconstruction than with nothing in "
            "its place"
        )
