"""How much computing a capture is: what its duration is estimated from."""

import re

from actstore_storage.format.sites import parse_site
from actstore_storage.format.specification import RunRecord
from actstore_worker.models.files.source import ModelSource
from actstore_worker.models.loading import weight_shapes
from actstore_worker.models.model import ModelDescription

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def forward_flops_per_token(record: RunRecord, source: ModelSource, model: ModelDescription) -> float:
    """Two for each weight of a matrix in the layers that run, and four for each score that attention computes.

    Kaplan et al. (2020), "Scaling laws for neural language models", section 2.1; a capture stops after its last site,
    and on average a token attends to half of its sequence.
    """
    asked = record.specification
    named = [*asked.dense_sites, *asked.norm_sites, *(sae.site for sae in asked.saes)]
    last_layer = max((parse_site(site).layer for site in named), default=-1)
    weights = 0
    for name, shape in weight_shapes(source, model.config):
        found = _LAYER.search(name)
        if found and int(found[1]) <= last_layer and len(shape) == 2:
            weights += shape[0] * shape[1]
    length = record.tokens_total / record.sequences_total
    encoders = sum(model.d_model * sae.d_sae for sae in asked.saes)
    return 2.0 * (weights + encoders) + 2.0 * length * model.d_model * (last_layer + 1)
