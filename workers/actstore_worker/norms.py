"""Norms of activations and cosines between them, while a forward pass has the vectors; in float32."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actstore_storage.norm_columns import CENTRED_L2, COSINE_TO_STREAM, NormColumn
from actstore_storage.sites import Site

Keep = Callable[[str, Float[Tensor, "batch position"]], None]
# Of one site, in one go: so much of it, and of what it is compared with, stays in a core's cache while every sum
# over it is made.
_CHUNK_BYTES = 1 << 19


class BatchNorms:
    """Of one batch. `see` takes each site's vectors in the order of the forward pass, and hands on what comes out.

    It holds the vectors of a block with which later sites are compared. resid_post and the next resid_pre are one
    tensor: one norm. That tensor is held beside its norms, for an address means nothing once it is gone.
    """

    def __init__(self, norm_sites: Iterable[Site], columns: Iterable[NormColumn], keep: Keep) -> None:
        self._sites, self._keep = frozenset(norm_sites), keep
        self._centred = {column.site: column.name for column in columns if column.quantity == CENTRED_L2}
        pairs = [(column, *_in_order(column)) for column in columns if column.other is not None]
        self._cosines: dict[Site, list[tuple[str, Site]]] = {}
        for column, earlier, later in pairs:
            self._cosines.setdefault(later, []).append((column.name, earlier))
        self._earlier = {earlier for _, earlier, _ in pairs}
        self._held: dict[Site, tuple[Tensor, Tensor]] = {}
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def see(self, site: Site, vectors: Float[Tensor, "batch position d_model"]) -> None:
        if site not in self._sites:
            return
        pairs = self._cosines.get(site, ())
        dots: list[Tensor] = []
        if pairs or self._last is None or self._last[0] is not vectors:
            squares, sums, *dots = products(vectors, [self._held[earlier][0] for _, earlier in pairs])
            self._last = vectors, *l2_and_centred(squares, sums, vectors.shape[-1])
        _, l2, centred = self._last
        self._keep(str(site), l2)
        if site in self._centred:
            self._keep(self._centred[site], centred)
        for (name, earlier), dot in zip(pairs, dots, strict=True):
            self._keep(
                name, (dot / self._held[earlier][1].to(dot.device) / l2).clamp(-1, 1)
            )  # no number where one is 0
        if site in self._earlier:
            self._held = {held: found for held, found in self._held.items() if held.layer == site.layer}
            self._held[site] = vectors, l2


def l2_and_centred(
    squares: Float[Tensor, "batch position"], sums: Float[Tensor, "batch position"], d_model: int
) -> tuple[Float[Tensor, "batch position"], Float[Tensor, "batch position"]]:
    """The norm, and that of the vector less its mean, whose square is less by d_model times the mean's.

    A subtraction of what was summed, and not of each element, costs a tenth. It leaves an error of 1e-7 times the ratio
    of the two squares, which matters only where nearly all of a vector is its mean.
    """
    centred = squares.double() - sums.double().square() / d_model
    return squares.sqrt(), centred.clamp_min(0).sqrt().float()


def products(
    vectors: Float[Tensor, "batch position d_model"], others: Sequence[Float[Tensor, "batch position d_model"]]
) -> list[Float[Tensor, "batch position"]]:
    """In float32: sums of squares, sums, and dot products with each of the others."""
    others = [other.to(vectors.device) for other in others]
    if vectors.device.type == "cpu":
        return _products_in_memory(vectors, others)
    vectors = vectors.float()
    dots = [torch.linalg.vecdot(vectors, other.float()) for other in (vectors, *others)]
    return [dots[0], vectors.sum(-1), *dots[1:]]


def _products_in_memory(vectors: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
    """NumPy's, of chunks that a cache holds: three quarters of the time that it takes of whole vectors, where torch's
    dot product alone took two to seven times as long.
    """
    width = vectors.shape[-1]
    flat = [found.reshape(-1, width) for found in (vectors, *others)]
    found = np.empty((2 + len(others), len(flat[0])), np.float32)
    ones, rows = np.ones(width, np.float32), max(1, _CHUNK_BYTES // (4 * width))
    for first in range(0, len(flat[0]), rows):
        part = slice(first, first + rows)
        own, *beside = (tensor[part].float().numpy() for tensor in flat)
        np.vecdot(own, own, out=found[0, part])
        np.dot(own, ones, out=found[1, part])
        for number, other in enumerate(beside, 2):
            np.vecdot(own, other, out=found[number, part])
    return list(torch.from_numpy(found).view(-1, *vectors.shape[:-1]))


def _in_order(column: NormColumn) -> tuple[Site, Site]:
    """The column's two sites as a forward pass meets them: a sublayer writes after the stream was there."""
    assert column.other is not None  # noqa: S101
    return (column.other, column.site) if column.quantity == COSINE_TO_STREAM else (column.site, column.other)
