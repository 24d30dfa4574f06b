"""Whether an SAE goes with a model: its sites and their widths."""

from actstore_worker.model import ModelDescription
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.refusals import mismatch


def check_fit(sae: SparseAutoencoder, model: ModelDescription) -> None:
    """Errors: BadRequest SAE_MISMATCH where the SAE reads a site or a width that the model does not have."""
    if sae.d_in != model.d_model:
        raise mismatch(sae.name, "d_in", sae.d_in, model.d_model, f"model {model.name!r} has d_model {model.d_model}")
    if sae.site.kind not in model.kinds or sae.site.layer >= model.layer_count:
        sites = [f"{kind}.0..{model.layer_count - 1}" for kind in model.kinds]
        raise mismatch(sae.name, "site", sae.site, sites, f"model {model.name!r} has {', '.join(sites)}")
