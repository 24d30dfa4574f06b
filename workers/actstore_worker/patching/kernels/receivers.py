"""The receivers of path patching, and where in the residual stream they read and senders write."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from actstore_storage.format.sites import Site
from actstore_worker.patching.kernels.full import Cell

# A point in the residual stream: (l, 0) is before layer l, (l, 1) is between its attention and its MLP.
Point = tuple[int, int]


@dataclass(frozen=True)
class Receivers:
    """The receivers of a sweep. All `sites` are patched together; the site of mlp_in is the MLP's output, the site of
    logits is resid_post of the last layer. `through_mlps`: MLPs between are recomputed instead of frozen.
    `is_parallel`: attention and MLP of a layer read the same residual.
    """

    sites: tuple[Site, ...]
    is_parallel: bool
    through_mlps: bool

    def cells(self, sent: Sequence[Cell], length: int) -> tuple[Cell, ...]:
        """Returns where a run with patched receivers differs from the base run, for a prompt of that length."""
        return tuple(self._cells(sent, length))

    def are_reached(self, sent: Sequence[Cell], length: int) -> bool:
        return any(True for _ in self._cells(sent, length))

    def hear(self, sender: Site) -> bool:
        """Whether any receiver reads the residual after that site was written to it."""
        return any(enters(sender) <= self.reads(site) for site in self.sites)

    def reads(self, receiver: Site) -> Point:
        """Returns the point at which a receiver reads the residual."""
        if receiver.kind == "resid_post":
            return receiver.layer + 1, 0
        return (receiver.layer, 1) if receiver.kind == "mlp_out" and not self.is_parallel else (receiver.layer, 0)

    def _cells(self, sent: Sequence[Cell], length: int) -> Iterator[Cell]:
        """If one receiver comes after another, it is set at every position that the earlier one can change, because its
        own effect on the later one must not count.
        """
        positions = sorted({cell.position for cell in sent})
        reached = [site for site in self.sites if sent and enters(sent[0].site) <= self.reads(site)]
        for site in reached:
            if site.kind == "resid_post":
                yield from (Cell(site, position) for position in positions if position == length - 1)
                continue
            is_behind = any(enters(other) <= self.reads(site) for other in reached)
            yield from (Cell(site, position) for position in (range(positions[0], length) if is_behind else positions))


def enters(site: Site) -> Point:
    """Returns the first point of the residual stream that contains what a site writes."""
    if site.kind == "resid_pre":
        return site.layer, 0
    return (site.layer + 1, 0) if site.kind in ("mlp_out", "resid_post") else (site.layer, 1)
