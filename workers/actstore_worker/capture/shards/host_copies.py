"""Copies from the device to the host's memory while the model continues."""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class OnHost:
    """An array on the host, or a pending copy of it."""

    tensor: Tensor
    # Keeps the memory on the device until the copy has finished.
    source: Tensor | None = None
    done: "torch.cuda.Event | None" = None

    def wait(self) -> NDArray[Any]:
        if self.done is not None:
            self.done.synchronize()
        array: NDArray[Any] = self.tensor.numpy()
        return array


class HostCopies:
    """Copies into pinned memory on a separate stream, after pending work of the device. On a CPU nothing is copied."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, tensor: Tensor) -> OnHost:
        if self._stream is None or tensor.device.type != "cuda":
            return OnHost(tensor.cpu())
        ready, done = torch.cuda.Event(), torch.cuda.Event()
        ready.record(torch.cuda.current_stream(tensor.device))
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            host.copy_(tensor, non_blocking=True)
            done.record(self._stream)
        tensor.record_stream(self._stream)
        return OnHost(host, tensor, done)
