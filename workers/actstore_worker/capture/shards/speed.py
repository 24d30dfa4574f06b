"""Measures how fast a device computes."""

import time

import torch

_MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}
_MEASURE_SECONDS = 0.2


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large square matrix product."""
    size = _MATRIX_SIZE.get(device.type, _MATRIX_SIZE["cpu"])
    left = torch.randn(size, size, device=device).to(dtype)
    products, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < _MEASURE_SECONDS:
        left @ left
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        products += 1
    return products * 2.0 * size**3 / elapsed
