"""What listens to a path, and where what is sent gets to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from actstore_storage.format.sites import Site
from actstore_worker.patching.kernels.full import Cell

# A place in the residual stream: (l, 0) before layer l, (l, 1) between its attention and its MLP.
Point = tuple[int, int]


@dataclass(frozen=True)
class Receivers:
    """`sites` take all at once what reaches them; of mlp_in that is the MLP's output, of logits resid_post of the last
    layer. `through_mlps`: MLPs on the way make what they will of what has been sent, and are not held. `is_parallel`:
    attention and MLP of a layer read the same residual.
    """

    sites: tuple[Site, ...]
    is_parallel: bool
    through_mlps: bool

    def cells(self, sent: Sequence[Cell], length: int) -> tuple[Cell, ...]:
        """Where a run with what was sent to its receivers differs from the base run, of a prompt of that length."""
        return tuple(self._cells(sent, length))

    def are_reached(self, sent: Sequence[Cell], length: int) -> bool:
        return any(True for _ in self._cells(sent, length))

    def hear(self, sender: Site) -> bool:
        """Whether any of them reads the residual after that site was written into it."""
        return any(enters(sender) <= self.reads(site) for site in self.sites)

    def reads(self, receiver: Site) -> Point:
        """Where a receiver reads the residual."""
        if receiver.kind == "resid_post":
            return receiver.layer + 1, 0
        return (receiver.layer, 1) if receiver.kind == "mlp_out" and not self.is_parallel else (receiver.layer, 0)

    def _cells(self, sent: Sequence[Cell], length: int) -> Iterator[Cell]:
        """A receiver that lies behind another is held at every position that the other can change, at what came past
        it: what a head that receives makes of it is not sent on.
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
    """From where on the residual has what is written at a site."""
    if site.kind == "resid_pre":
        return site.layer, 0
    return (site.layer + 1, 0) if site.kind in ("mlp_out", "resid_post") else (site.layer, 1)
