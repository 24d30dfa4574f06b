"""Computes norms of activations and cosines between them in float32, during the forward pass."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actstore_storage.format.norm_columns import CENTRED_L2, NormColumn
from actstore_storage.format.sites import Site

Keep = Callable[[str, Float[Tensor, "batch position"]], None]
# Bytes of a block's vectors that are processed together, so that they stay in a core's cache for all sums.
_CHUNK_BYTES = 1 << 20


class BatchNorms:
    """The norms of one batch. `see` takes each site's vectors in the order of the forward pass, and returns the results
    that are ready.

    It holds a block's vectors until all of them have arrived, so that each is read from memory once, and not again for
    each comparison. They must not be modified until then, which is true for all supported models, because they add out
    of place. resid_post and the next resid_pre are one tensor, so they share one norm. That tensor is kept with its
    norms, because an address means nothing after a tensor is freed.
    """

    def __init__(self, norm_sites: Iterable[Site], columns: Iterable[NormColumn], keep: Keep) -> None:
        self._sites, self._keep = frozenset(norm_sites), keep
        self._of_layer = Counter(site.layer for site in self._sites)
        self._centred = {column.site: column.name for column in columns if column.quantity == CENTRED_L2}
        self._cosines: dict[int, list[tuple[str, Site, Site]]] = defaultdict(list)
        for column in columns:
            if column.other is not None:
                self._cosines[column.site.layer].append((column.name, column.site, column.other))
        self._seen: dict[Site, Tensor] = {}
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def see(self, site: Site, vectors: Float[Tensor, "batch position d_model"]) -> None:
        if site not in self._sites:
            return
        self._seen[site] = vectors
        if len(self._seen) == self._of_layer[site.layer]:
            self._tell(self._seen, self._cosines[site.layer])
            self._seen = {}

    def _tell(self, seen: dict[Site, Tensor], cosines: Sequence[tuple[str, Site, Site]]) -> None:
        norms, fresh = {}, []
        for site, vectors in seen.items():
            if self._last is not None and vectors is self._last[0]:
                norms[site] = self._last[1:]
            else:
                fresh.append(site)
        sites = list(seen)
        at = [sites.index(site) for site in fresh]
        pairs = [(sites.index(one), sites.index(other)) for _, one, other in cosines]
        sums, dots = products(list(seen.values()), at, [*zip(at, at, strict=True), *pairs])
        if fresh:
            l2, centred = l2_and_centred(dots[: len(at)], sums, seen[sites[0]].shape[-1])
            norms |= dict(zip(fresh, zip(l2, centred, strict=True), strict=True))
        for site, (l2, centred) in norms.items():
            self._keep(str(site), l2)
            if site in self._centred:
                self._keep(self._centred[site], centred)
        for (name, one, other), dot in zip(cosines, dots[len(at) :], strict=True):
            cosine = dot / norms[other][0].to(dot.device) / norms[one][0].to(dot.device)  # NaN if one of them is 0.
            self._keep(name, cosine.clamp(-1, 1))
        self._last = seen[sites[-1]], *norms[sites[-1]]


def l2_and_centred(
    squares: Float[Tensor, "site batch position"], sums: Float[Tensor, "site batch position"], d_model: int
) -> tuple[Float[Tensor, "site batch position"], Float[Tensor, "site batch position"]]:
    """Norms, and norms of the vectors minus their means, whose squares are smaller by d_model times the squared mean.

    Subtracting sums instead of each element takes a tenth of the time. Its error is 1e-7 times the ratio of the two
    squares, which matters only if a vector consists almost entirely of its mean.
    """
    centred = squares.double() - sums.double().square() / d_model
    return squares.sqrt(), centred.clamp_min(0).sqrt().float()


def products(
    vectors: Sequence[Float[Tensor, "batch position d_model"]], sums: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> tuple[Float[Tensor, "sum batch position"], Float[Tensor, "pair batch position"]]:
    """In float32: the sums of these vectors' elements, and the dot products of these pairs."""
    vectors = [found.to(vectors[-1].device) for found in vectors]
    if vectors[-1].device.type == "cpu":
        return _products_in_memory(vectors, sums, pairs)
    wide = [found.float() for found in vectors]
    empty = wide[0].new_empty((0, *wide[0].shape[:-1]))
    return (
        torch.stack([wide[one].sum(-1) for one in sums]) if sums else empty,
        torch.stack([torch.linalg.vecdot(wide[one], wide[other]) for one, other in pairs]) if pairs else empty,
    )


def _products_in_memory(
    vectors: Sequence[Tensor], sums: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """NumPy's, on chunks that fit into a cache: on whole vectors it takes a third longer, and torch's dot product alone
    two to seven times as long.
    """
    d_model = vectors[0].shape[-1]
    flat = [found.reshape(-1, d_model) for found in vectors]
    in_numpy = [found.numpy() if found.dtype == torch.float32 else None for found in flat]  # slicing it is faster
    ones, rows = np.ones(d_model, np.float32), max(1, _CHUNK_BYTES // (4 * d_model * len(flat)))
    found = np.empty((len(sums) + len(pairs), len(flat[0])), np.float32)
    for first in range(0, len(flat[0]), rows):
        part = slice(first, first + rows)
        chunk = [
            tensor[part].float().numpy() if array is None else array[part]
            for tensor, array in zip(flat, in_numpy, strict=True)
        ]
        for number, one in enumerate(sums):
            np.dot(chunk[one], ones, out=found[number, part])
        for number, (one, other) in enumerate(pairs, len(sums)):
            np.vecdot(chunk[one], chunk[other], out=found[number, part])
    whole = torch.from_numpy(found).view(-1, *vectors[0].shape[:-1])
    return whole[: len(sums)], whole[len(sums) :]
