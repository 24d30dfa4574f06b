"""How fast a device is said to be: products that were made, in the time that they took."""

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from actstore_worker.capture.shards import speed


class Products(TorchDispatchMode):
    """Counts matrix products, and of what."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Size, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default:
            self.seen.append((args[0].shape, args[0].dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_is_as_fast_as_the_products_that_it_made_in_a_moment(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two operations for each number that is multiplied; here the clock goes on by 60 ms whenever it is looked at."""
    ticks = count(start=5)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: 0.06 * next(ticks)))
    monkeypatch.setattr(speed, "_MATRIX_SIZE", {"cpu": 8})
    with Products() as products:
        found = speed.measured_flops(torch.device("cpu"), dtype)
    assert products.seen == [((8, 8), dtype)] * 3
    assert found == pytest.approx(3 * 2 * 8**3 / 0.24)
