"""Names of places in a model, as TransformerLens names them.

`resid_post.3` (short) and `blocks.3.hook_resid_post` (long) are the same site; `resid_post` alone is a kind.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from actstore_storage.errors import BadRequest

# In the order in which a forward pass meets them in a block.
RESIDUAL_KINDS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
_SHORT = re.compile(r"([a-z_]+)\.(\d+)")
_LONG = re.compile(r"blocks\.(\d+)\.hook_([a-z_]+)")


@dataclass(frozen=True, order=True)
class Site:
    layer: int
    kind: str

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"


def parse_site(text: str, kinds: Sequence[str] = RESIDUAL_KINDS, layer_count: int | None = None) -> Site:
    """A site from its short or long name; refuses other kinds, and layers past the model's."""
    short, long = _SHORT.fullmatch(text), _LONG.fullmatch(text)
    if short:
        site = Site(int(short[2]), short[1])
    elif long:
        site = Site(int(long[1]), long[2])
    else:
        raise _unknown(text, kinds, layer_count)
    if site.kind not in kinds or (layer_count is not None and site.layer >= layer_count):
        raise _unknown(text, kinds, layer_count)
    return site


def expand_sites(texts: Iterable[str], kinds: Sequence[str], layer_count: int) -> tuple[Site, ...]:
    """Sites in layer order, then in order of `kinds`; a bare kind stands for that site of every layer."""
    found: set[Site] = set()
    for text in texts:
        if text in kinds:
            found |= {Site(layer, text) for layer in range(layer_count)}
        else:
            found.add(parse_site(text, kinds, layer_count))
    return tuple(sorted(found, key=lambda site: (site.layer, kinds.index(site.kind))))


def _unknown(text: str, kinds: Sequence[str], layer_count: int | None) -> BadRequest:
    layers = "LAYER" if layer_count is None else f"0..{layer_count - 1}"
    return BadRequest(
        f"unknown site {text!r}: a site is KIND.LAYER with KIND one of {', '.join(kinds)} and LAYER {layers}",
        reason="SITE_UNKNOWN",
        field="site",
        value=text,
        allowed=[f"{kind}.{layers}" for kind in kinds],
    )
