"""Ablates a feature's contribution to the residual, and returns the effect on the model's predictions."""

import pyarrow as pa
import torch

from actstore_api.records.sae import AblateDirection, AblateDirectionAnswer
from actstore_storage.errors import BadRequest
from actstore_worker.live.passes.checks import check_features
from actstore_worker.live.passes.resources import Answers
from actstore_worker.live.passes.running import Passes, adding
from actstore_worker.live.passes.text import read_text
from actstore_worker.live.saes.encode_text import feature_activations
from actstore_worker.models.prompts import check_causal
from actstore_worker.provenance import live_provenance
from actstore_worker.sae.autoencoder import SparseAutoencoder


def ablate_direction(passes: Passes, sae: SparseAutoencoder, question: AblateDirection) -> AblateDirectionAnswer:
    """Run the model without what the feature writes, and compare its predictions.

    At every position, what the feature adds to the SAE's reconstruction is subtracted from the site; the SAE's error
    stays. Before the feature's first activation nothing changes, exactly: both passes are over the same text.

    Errors: BadRequest for an encoder, a feature that does not exist, and a text of one token, which has no next token.
    """
    check_causal(passes.model, "it does not predict next tokens, so no probability could change")
    check_features(sae, [question.feature])
    text = read_text(passes.model, question.text, question.prepend_bos)
    if len(text) < 2:
        raise BadRequest(
            "the text has only one token, so there is no next token to predict",
            field="text",
            value=question.text,
            allowed="a text of at least two tokens",
        )
    ids = text.on(passes.model.device)
    x = passes.observe(ids, [sae.site])[sae.site][0]
    activation = feature_activations(sae, x, question.feature)
    contribution = sae.contribution(activation, question.feature, x)[None]
    before = passes.log_probabilities(ids)[0]
    after = passes.log_probabilities(ids, adding(passes.model, sae.output_site, -contribution))[0]
    return AblateDirectionAnswer(
        text.table(
            activation=pa.array(activation[:-1].numpy(force=True), pa.float32()),
            next_text=pa.array(text.texts[1:], pa.string()),
            log_probability=_numbers(before),
            ablated=_numbers(after),
            change=_numbers(after.double() - before.double()),
        ),
        live_provenance(passes.model, sae),
    )


def _numbers(values: torch.Tensor) -> pa.Array:
    return pa.array(values.double().numpy(force=True), pa.float64())


ANSWERS: Answers = {
    AblateDirection: lambda given, question: ablate_direction(given.passes, given.fitting(question.sae), question),
}
