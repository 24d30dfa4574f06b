"""A text given now: its tokens as answers show them, and what an SAE makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from actstore_storage.errors import BadRequest
from actstore_worker.live.model_questions import TokenisedText, TokeniseText
from actstore_worker.live.passes import Passes
from actstore_worker.live.questions import EncodedText, EncodeText
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import (
    Prompt,
    check_length,
    prompt_ids,
    token_of,
)
from actstore_worker.provenance import live_provenance
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.nonzeros import nonzero_features

# Dense activations, rows x features, are made in slices of so many elements.
DENSE_MAX = 1 << 24
_ACTIVATION_SCHEMA = pa.schema(
    [
        pa.field("position", pa.int32(), nullable=False),
        pa.field("feature", pa.int32(), nullable=False),
        pa.field("activation", pa.float32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class LiveText:
    """`special`: BOS, and whatever else the tokenizer calls special."""

    ids: tuple[int, ...]
    texts: list[str]
    special: Bool[NDArray[np.bool_], " position"]

    def __len__(self) -> int:
        return len(self.ids)

    def on(self, device: torch.device) -> Int[Tensor, "1 position"]:
        return torch.tensor([self.ids], device=device)

    def table(self, **more: pa.Array) -> pa.Table:
        """Columns position, token, text, special, and `more`: the first so many rows, as many as `more` has."""
        rows = min((len(column) for column in more.values()), default=len(self))
        columns: dict[str, Any] = {
            "position": pa.array(range(rows), pa.int32()),
            "token": pa.array(self.ids[:rows], pa.int32()),
            "text": pa.array(self.texts[:rows], pa.string()),
            "special": pa.array(self.special[:rows], pa.bool_()),
        }
        return pa.table(columns | more)


def read_text(model: LanguageModel, text: Prompt, prepend_bos: bool | None, field: str = "text") -> LiveText:
    """Errors: BadRequest as of `prompt_ids`, and past the model's context."""
    ids = prompt_ids(model, text, prepend_bos, field)
    check_length(model, field, len(ids))
    return show_text(model, ids)


def show_text(model: LanguageModel, ids: tuple[int, ...]) -> LiveText:
    special = np.isin(ids, sorted(model.special_ids))
    special[0] |= ids[0] == model.bos_id
    return LiveText(ids, model.texts.in_order(ids), special)


def tokenise_text(model: LanguageModel, question: TokeniseText) -> TokenisedText:
    """What the model would read of a text, however long it is; or, `one_token`, the token that the text stands for.

    Errors: BadRequest as of `prompt_ids` and `token_of`.
    """
    if question.one_token:
        if not isinstance(question.text, str):
            message = "token ids are given, and no text whose token is looked for"
            raise BadRequest(message, field="one_token", value="true", allowed="a text")
        ids: tuple[int, ...] = (token_of(model, question.text, "text"),)
    else:
        ids = prompt_ids(model, question.text, question.prepend_bos, "text")
    return TokenisedText(show_text(model, ids).table(), live_provenance(model))


def encode_text(passes: Passes, sae: SparseAutoencoder, question: EncodeText) -> EncodedText:
    """Every activation above 0, as a capture of the text would store it."""
    text = read_text(passes.model, question.text, question.prepend_bos)
    x = passes.observe(text.on(passes.model.device), [sae.site])[sae.site][0]
    found = nonzero_features(sae, x)
    columns = [found.row.astype(np.int32), found.feature, found.activation]
    activations = pa.Table.from_arrays([pa.array(column) for column in columns], schema=_ACTIVATION_SCHEMA)
    return EncodedText(text.table(), activations, live_provenance(passes.model, sae))


def feature_activations(sae: SparseAutoencoder, x: Float[Tensor, "row d_in"], feature: int) -> Float[Tensor, " row"]:
    """Of one feature. All are computed, for in some SAEs they compete."""
    rows = max(1, DENSE_MAX // sae.d_sae)
    return torch.cat([sae.encode(part)[:, feature].clone() for part in x.split(rows)])


def check_features(sae: SparseAutoencoder, features: Sequence[int], field: str = "feature") -> None:
    """Errors: BadRequest FEATURE_OUT_OF_RANGE."""
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
    """Errors: BadRequest for 0, LIMIT_EXCEEDED past `allowed`."""
    if k < 1:
        raise BadRequest(f"k is {k}", field="k", value=k, allowed=f"1 to {allowed}")
    if k > allowed:
        message = f"k is {k}; one answer has at most {allowed}"
        raise BadRequest(message, reason="LIMIT_EXCEEDED", field="k", value=k, allowed=f"1 to {allowed}")
