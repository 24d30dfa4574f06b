"""Encodes a text with an SAE."""

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from actstore_api.records.sae import EncodeText, EncodeTextAnswer
from actstore_worker.live.passes.resources import Answers
from actstore_worker.live.passes.running import Passes
from actstore_worker.live.passes.text import read_text
from actstore_worker.provenance import live_provenance
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.nonzeros import nonzero_features

# Dense activations, rows x features, are computed in slices of this many elements.
DENSE_MAX = 1 << 24
_ACTIVATION_SCHEMA = pa.schema(
    [
        pa.field("position", pa.int32(), nullable=False),
        pa.field("feature", pa.int32(), nullable=False),
        pa.field("activation", pa.float32(), nullable=False),
    ]
)


def encode_text(passes: Passes, sae: SparseAutoencoder, question: EncodeText) -> EncodeTextAnswer:
    """Encode a text: every activation above 0, as a capture of the text would store it."""
    text = read_text(passes.model, question.text, question.prepend_bos)
    x = passes.observe(text.on(passes.model.device), [sae.site])[sae.site][0]
    found = nonzero_features(sae, x)
    columns = [found.row.astype(np.int32), found.feature, found.activation]
    activations = pa.Table.from_arrays([pa.array(column) for column in columns], schema=_ACTIVATION_SCHEMA)
    return EncodeTextAnswer(text.table(), activations, live_provenance(passes.model, sae))


def feature_activations(sae: SparseAutoencoder, x: Float[Tensor, "row d_in"], feature: int) -> Float[Tensor, " row"]:
    """Find one feature's activation on each row.

    All features are computed, because in some SAEs they compete.
    """
    rows = max(1, DENSE_MAX // sae.d_sae)
    return torch.cat([sae.encode(part)[:, feature].clone() for part in x.split(rows)])


ANSWERS: Answers = {
    EncodeText: lambda given, question: encode_text(given.passes, given.fitting(question.sae), question),
}
