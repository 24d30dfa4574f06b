"""Checks that several kinds of questions share."""

from collections.abc import Sequence

from actstore_storage.errors import BadRequest
from actstore_worker.sae.autoencoder import SparseAutoencoder


def check_features(sae: SparseAutoencoder, features: Sequence[int], field: str = "feature") -> None:
    """Refuse features that the SAE does not have.

    Errors: BadRequest FEATURE_OUT_OF_RANGE.
    """
    for feature in features:
        if not 0 <= feature < sae.d_sae:
            raise BadRequest(
                f"SAE {sae.name} has no feature {feature}",
                reason="FEATURE_OUT_OF_RANGE",
                field=field,
                value=feature,
                allowed=f"0 to {sae.d_sae - 1}",
            )


def check_k(k: int, allowed: int) -> None:
    """Refuse a number of rows that an answer cannot have.

    Errors: BadRequest for 0, LIMIT_EXCEEDED above `allowed`.
    """
    if k < 1:
        raise BadRequest(f"k is {k}", field="k", value=k, allowed=f"1 to {allowed}")
    if k > allowed:
        message = f"k is {k}; one answer can have at most {allowed}"
        raise BadRequest(message, reason="LIMIT_EXCEEDED", field="k", value=k, allowed=f"1 to {allowed}")
