"""A text of a live question: its tokens as the model reads them and as answers show them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from actstore_api.records.terms import Prompt
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import check_characters, check_length, prompt_ids


@dataclass(frozen=True)
class LiveText:
    """A text as its model reads it. `special`: BOS, and all other tokens that the tokenizer calls special."""

    ids: tuple[int, ...]
    texts: list[str]
    special: Bool[NDArray[np.bool_], " position"]

    def __len__(self) -> int:
        return len(self.ids)

    def on(self, device: torch.device) -> Int[Tensor, "1 position"]:
        return torch.tensor([self.ids], device=device)

    def table(self, **more: pa.Array) -> pa.Table:
        """Return the tokens as columns position, token, text, special, and `more`.

        Only as many tokens as `more` has are returned.
        """
        rows = min((len(column) for column in more.values()), default=len(self))
        columns: dict[str, Any] = {
            "position": pa.array(range(rows), pa.int32()),
            "token": pa.array(self.ids[:rows], pa.int32()),
            "text": pa.array(self.texts[:rows], pa.string()),
            "special": pa.array(self.special[:rows], pa.bool_()),
        }
        return pa.table(columns | more)


def read_text(model: LanguageModel, text: Prompt, prepend_bos: bool | None, field: str = "text") -> LiveText:
    """Turn a text, or token ids, into what the model reads.

    Errors: BadRequest as in `prompt_ids`, and if it exceeds the model's context.
    """
    check_characters(model, field, text)
    ids = prompt_ids(model, text, prepend_bos, field)
    check_length(model, field, len(ids))
    return show_text(model, ids)


def show_text(model: LanguageModel, ids: tuple[int, ...]) -> LiveText:
    special = np.isin(ids, sorted(model.special_ids))
    special[0] |= ids[0] == model.bos_id
    return LiveText(ids, model.texts.in_order(ids), special)
