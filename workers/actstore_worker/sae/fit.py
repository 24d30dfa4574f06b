"""Checks whether an SAE fits a model: its sites, their widths, and its assumptions about the model's wiring."""

from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_worker.models.families import FAMILIES
from actstore_worker.models.model import ModelDescription
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.refusals import mismatch

# Formats of SAEs that read module outputs.
_MODULE_FORMATS = ("sparsify",)


def check_fit(sae: SparseAutoencoder, model: ModelDescription) -> None:
    """Refuses an SAE with a site or a width that the model does not have, or whose format or adaptation does not work
    with the model's family: BadRequest SAE_MISMATCH.
    """
    for site, field, width in ((sae.site, "d_in", sae.d_in), (sae.output_site, "d_out", sae.d_out)):
        _check_site(sae, site, model)
        there = model.site_width(site, model.context_length)
        if width != there:
            same = "d_model" if there == model.d_model else "a width"
            raise mismatch(sae.name, field, width, there, f"model {model.name!r} has {same} {there} at {site}")
    if sae.normalisation == "centred" and not model.family.centrable:
        why = f"the weights that write to the residual stream of model {model.name!r} cannot be centered"
        allowed = tuple(name for name, family in FAMILIES.items() if family.centrable)
        raise mismatch(sae.name, "adapt", "center_writing_weights", allowed, why)
    if sae.format in _MODULE_FORMATS and model.family.norms_writes and sae.output_site.kind in ("mlp_out", "attn_out"):
        why = (
            f"it reads the module's output before the norm that follows it in model {model.name!r}, which is not "
            "captured"
        )
        raise mismatch(sae.name, "site", sae.output_site, ("resid_post.LAYER",), why)


def _check_site(sae: SparseAutoencoder, site: Site, model: ModelDescription) -> None:
    kinds = (*model.kinds, *model.inner_kinds, *HEAD_KINDS)
    heads = model.head_counts.get(site.kind, 0)
    if site.kind in kinds and site.layer < model.layer_count and (site.head is None or site.head < heads):
        return
    sites = [f"{kind}.0..{model.layer_count - 1}" for kind in kinds]
    raise mismatch(sae.name, "site", site, sites, f"model {model.name!r} has {', '.join(sites)}")
