"""Element types of models, and conversion of stored arrays to tensors."""

from typing import Any

import torch
from jaxtyping import Shaped
from numpy.typing import NDArray

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def as_tensor(rows: Shaped[NDArray[Any], "row width"], dtype: str) -> Shaped[torch.Tensor, "row width"]:
    """Returns the same memory as a tensor of `dtype`; rows of bfloat16 are uint16 in NumPy, which has no bfloat16."""
    tensor = torch.from_numpy(rows)
    return tensor.view(TORCH_DTYPES[dtype]) if dtype == "bfloat16" else tensor
