"""Compares SAE encoding with plain PyTorch and with SAELens: `python -m benchmarks.encode --json`.

Random weights, the same rows on every side, in turns, round after round, in batches as a capture has them:

- actstore: `nonzero_features`, from rows to (row, feature, activation) in order of token, as a run stores them;
- matmul: a float32 `x @ W` into reused memory, and `torch.topk` of it. Without bias and order: the limit;
- saelens: `SAE.encode`, and `nonzero` with its values.

On a CPU each side runs as in a capture: the rows are split over lanes of one thread each. (With torch's own threads in
one lane, the selection, which is not threaded, leaves them idle: 0.93 of matmul on two.) Predicted on a CPU: 17 MFLOP
per token at 512 x 16,384, about 130 us of one core, and 64 KiB of pre-activations that are read three times for the
selection, about 12 us; torch.topk took 47.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.formats.loading import load_sae
from actstore_worker.sae.nonzeros import nonzero_features

ROWS, ROUNDS = 2048, 7
SIDES = ("matmul", "saelens", "actstore")


@dataclass(frozen=True)
class Shape:
    """`k` is TopK's; for JumpReLU it is the approximate number of active features."""

    architecture: str
    d_in: int
    d_sae: int
    k: int

    def __str__(self) -> str:
        return f"{self.architecture}-{self.d_in}x{self.d_sae}-k{self.k}"


# The first one's ratios are the result; the others show how far it generalizes.
SHAPES = (
    Shape("topk", 512, 16_384, 32),
    Shape("topk", 512, 32_768, 64),
    Shape("topk", 2304, 16_384, 32),
    Shape("topk", 128, 1_024, 16),
    Shape("jumprelu", 512, 16_384, 32),
)


def save(folder: Path, shape: Shape, x: Tensor) -> None:
    """In SAELens's format, with a threshold that leaves about k active features per row."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(shape.d_sae, shape.d_in, generator=generator)
    decoder = directions / directions.norm(dim=1, keepdim=True)
    tensors = {"W_enc": decoder.T.contiguous(), "W_dec": decoder, "b_enc": 0.01 * torch.randn(shape.d_sae)}
    tensors["b_dec"] = 0.01 * torch.randn(shape.d_in)
    config: dict[str, Any] = {"architecture": shape.architecture, "d_in": shape.d_in, "d_sae": shape.d_sae}
    config |= {"dtype": "float32", "device": "cpu", "metadata": {"hook_name": "blocks.3.hook_resid_post"}}
    if shape.architecture == "topk":
        config["k"] = shape.k
    else:
        level = (x[:256] @ tensors["W_enc"]).quantile(1 - shape.k / shape.d_sae, dim=1).mean()
        tensors["threshold"] = torch.full((shape.d_sae,), float(level))
    folder.mkdir()
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))


def plain(sae: SparseAutoencoder, shape: Shape, x: Tensor) -> Callable[[], object]:
    """The product's memory is reused between calls, because page faults of new memory are not part of the
    computation.
    """
    weights, out = sae.tensors["W_enc"], torch.empty(len(x), shape.d_sae, device=x.device)
    return lambda: torch.mm(x, weights, out=out).topk(shape.k, dim=-1)


def saelens(folder: Path, device: torch.device) -> Callable[[Tensor], object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports trigger deprecation warnings
        from sae_lens import SAE
    sae = SAE.load_from_disk(folder, device=str(device))

    def encode(x: Tensor) -> object:
        dense = sae.encode(x)
        found = dense.nonzero()
        return found, dense[found[:, 0], found[:, 1]]

    return encode


def measure(shape: Shape, rows: int, rounds: int, device: str) -> dict[str, float]:
    """Median tokens per second of each side; all sides are warmed up, and each round begins with another one."""
    x = torch.randn(rows, shape.d_in, generator=torch.Generator().manual_seed(0)).to(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "sae"
        save(folder, shape, x.cpu())
        sae = load_sae(folder, "benchmark").to(x.device)
        peer = saelens(folder, x.device)
        threads = torch.get_num_threads() if x.device.type == "cpu" else 1
        parts = x.tensor_split(threads)
        sides: dict[str, list[Callable[[], object]]] = {
            "matmul": [plain(sae, shape, part) for part in parts],
            "saelens": [partial(peer, part) for part in parts],
            "actstore": [partial(nonzero_features, sae, part) for part in parts],
        }
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        with ThreadPoolExecutor(threads, "lane", torch.set_num_threads, (1,)) as lanes:
            for number in range(-1, rounds):
                for turn in range(len(SIDES)):
                    side = SIDES[(number + turn) % len(SIDES)]
                    taken = _seconds(sides[side], lanes, x.device)
                    seconds[side] += [taken] if number >= 0 else []
    torch.set_num_threads(threads)
    return {side: rows / median(times) for side, times in seconds.items()}


def _seconds(side: list[Callable[[], object]], lanes: ThreadPoolExecutor, device: torch.device) -> float:
    started = time.perf_counter()
    list(lanes.map(_without_gradients, side))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _without_gradients(part: Callable[[], object]) -> object:
    with torch.inference_mode():
        return part()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    print(f"tokens/s, {torch.get_num_threads()} lanes of one thread: {', '.join(SIDES)}")
    numbers: dict[str, float] = {}
    for shape in SHAPES:
        rates = measure(shape, arguments.rows, arguments.rounds, arguments.device)
        print(f"{shape!s:24}" + " ".join(f"{rates[side]:10.0f}" for side in SIDES), flush=True)
        suffix = "" if shape == SHAPES[0] else f"_{shape}"
        numbers |= {f"ratio_to_{side}{suffix}": rates["actstore"] / rates[side] for side in SIDES[:-1]}
    print(", ".join(f"{name} {ratio:.2f}" for name, ratio in numbers.items()))
    if arguments.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
