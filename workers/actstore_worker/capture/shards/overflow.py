"""Converts rows to the dtype in which they are stored, and refuses values that it cannot hold."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from actstore_storage.errors import BadRequest


class OverflowRefused(BadRequest):
    """A finite value would be stored as infinity. `details` has the site, the value and its position."""

    default_reason = "VALUE_OVERFLOW"

    @property
    def site(self) -> str:
        return self.details["field"]


def stored_bits(
    rows: Float[Tensor, "row width"], dtype: torch.dtype, site: str, place: Callable[[int], tuple[int, int]]
) -> Tensor:
    """Returns [rows, width] as NumPy arrays: bfloat16, which NumPy does not have, as uint16.

    An infinity that the model itself computed is stored and counted, except in float16, whose range is so small that it
    means overflow in the model. `place` gives the sequence and position of a row.
    """
    stored = rows.to(dtype)
    narrowed = stored.dtype != rows.dtype and dtype != torch.float32
    if narrowed or rows.dtype == torch.float16:
        _check(rows, stored, site, place)
    stored = stored.contiguous()
    return stored.view(torch.uint16) if dtype == torch.bfloat16 else stored


def check_norms(
    norms: Mapping[str, NDArray[np.float32]], sites: Iterable[str], place: Callable[[int], tuple[int, int]]
) -> None:
    """For a model that runs in float16. Norms are computed in float32, which can hold the norm of any finite vector.

    Errors: OverflowRefused for a norm that is infinite or NaN.
    """
    for site in sites:
        lost = np.flatnonzero(~np.isfinite(norms[site]))
        if len(lost):
            sequence, position = place(int(lost[0]))
            raise OverflowRefused(
                f"{site}, sequence {sequence}, position {position}: an activation overflowed float16, whose largest "
                "number "
                f"is {torch.finfo(torch.float16).max:g}; run it in bfloat16, or in float32",
                field=site,
                value=f"{norms[site][lost[0]]} at sequence {sequence}, position {position}",
                allowed="dtype bfloat16 or float32",
            )


def _check(rows: Tensor, stored: Tensor, site: str, place: Callable[[int], tuple[int, int]]) -> None:
    if bool(torch.isfinite(stored).all()):
        return
    lost = torch.isinf(stored)
    if rows.dtype != torch.float16:
        lost &= torch.isfinite(rows)
    if not bool(lost.any()):
        return
    row, element = (int(index) for index in lost.nonzero()[0])
    sequence, position = place(row)
    dtype = str(stored.dtype).removeprefix("torch.")
    raise OverflowRefused(
        f"{site}, sequence {sequence}, position {position}, element {element}: {dtype} cannot hold "
        f"{float(rows[row, element]):.6g}, its largest number is {torch.finfo(stored.dtype).max:.6g}",
        field=site,
        value=f"{float(rows[row, element]):.6g} at sequence {sequence}, position {position}",
        allowed="dtype bfloat16 or float32"
        if rows.dtype == torch.float16
        else "storage_dtype bfloat16 or float32, or widen_on_overflow",
    )
