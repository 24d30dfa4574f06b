"""Names of sites in a model, as in TransformerLens.

`resid_post.3` (short) and `blocks.3.hook_resid_post` (long) are the same site; `resid_post` alone is a kind. Sites with
heads may name one of them: `z.3.5` is layer 3, head 5; without a head, the site is the concatenation of all heads.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from actstore_storage.errors import BadRequest

# In the order of a forward pass through a block; each is a vector of d_model. Only post-LN blocks have the last one:
# there resid_mid and resid_post are sums before their LayerNorm.
RESIDUAL_KINDS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "normalized_resid_post")
# Vectors of d_model outside the residual stream: the MLP's input, after its norm with gain and bias. TransformerLens
# calls it `mlp.hook_in`; its `hook_mlp_in` is another site, before the norm.
INNER_KINDS = ("mlp_input",)
# q, k and v before rotary embedding and their own norms; pattern: each head's attention weights, after softmax.
HEAD_KINDS = ("q", "k", "v", "pattern", "z")
KINDS = RESIDUAL_KINDS + INNER_KINDS + HEAD_KINDS
# No model has a million layers; Python reads no number of 4,300 digits.
_SHORT = re.compile(r"([a-z_]+)\.(\d{1,6})(?:\.(\d{1,6}))?")
_LONG = re.compile(r"blocks\.(\d{1,6})\.(attn\.|mlp\.)?hook_([a-z_]+)")
_LONG_NAMES = {kind: f"hook_{kind}" for kind in RESIDUAL_KINDS} | {kind: f"attn.hook_{kind}" for kind in HEAD_KINDS}
_LONG_NAMES["mlp_input"] = "mlp.hook_in"
_KINDS_BY_LONG_NAME = {name: kind for kind, name in _LONG_NAMES.items()}


@dataclass(frozen=True)
class Site:
    layer: int
    kind: str
    # One head of a site with heads; None: all of them, or a site without heads.
    head: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}" + ("" if self.head is None else f".{self.head}")

    @property
    def long_name(self) -> str:
        """TransformerLens's name; it has none for a single head."""
        return f"blocks.{self.layer}.{_LONG_NAMES[self.kind]}"

    @property
    def whole(self) -> "Site":
        """The site of which this is one head, or the site itself."""
        return Site(self.layer, self.kind)


def parse_site(
    text: str,
    kinds: Sequence[str] = KINDS,
    layer_count: int | None = None,
    head_counts: Mapping[str, int] | None = None,
) -> Site:
    """Reads a site's short or long name; refuses unknown kinds, and layers and heads out of range."""
    short, long = _SHORT.fullmatch(text), _LONG.fullmatch(text)
    if short:
        site = Site(int(short[2]), short[1], None if short[3] is None else int(short[3]))
    elif long and (kind := _KINDS_BY_LONG_NAME.get(f"{long[2] or ''}hook_{long[3]}")):
        site = Site(int(long[1]), kind)
    else:
        raise _unknown(text, kinds, layer_count)
    if site.kind not in kinds or (layer_count is not None and site.layer >= layer_count):
        raise _unknown(text, kinds, layer_count)
    if site.head is not None:
        _check_head(text, site.kind, site.head, head_counts)
    return site


def expand_sites(
    texts: Iterable[str], kinds: Sequence[str], layer_count: int, head_counts: Mapping[str, int] | None = None
) -> tuple[Site, ...]:
    """Reads names of sites, in order of layer, then of `kinds`, then of head; a bare kind stands for that site in every
    layer.
    """
    found: set[Site] = set()
    for text in texts:
        if text in kinds:
            found |= {Site(layer, text) for layer in range(layer_count)}
        else:
            found.add(parse_site(text, kinds, layer_count, head_counts))
    return tuple(
        sorted(found, key=lambda site: (site.layer, kinds.index(site.kind), -1 if site.head is None else site.head))
    )


def _check_head(text: str, kind: str, head: int, head_counts: Mapping[str, int] | None) -> None:
    if kind not in HEAD_KINDS:
        raise BadRequest(
            f"site {text!r} names a head, but {kind} has no heads",
            reason="SITE_UNKNOWN",
            field="site",
            value=text,
            allowed=f"{kind}.LAYER, or a head of {', '.join(HEAD_KINDS)}",
        )
    if head_counts is not None and head >= head_counts[kind]:
        raise BadRequest(
            f"site {text!r} names head {head}; {kind} has {head_counts[kind]} heads in this model",
            reason="SITE_UNKNOWN",
            field="site",
            value=text,
            allowed=f"heads 0..{head_counts[kind] - 1}",
        )


def why_missing(text: str, kinds: Sequence[str]) -> str:
    """Explains why a model with these kinds has no such site or kind, as the continuation of a sentence; empty if
    unknown.
    """
    long = _LONG.fullmatch(text)
    kind = (long[3] if long else text).partition(".")[0]
    if kind in kinds:
        return ""
    if kind == "resid_mid" and {"attn_out", "mlp_out"} <= set(kinds):
        return (
            ". In parallel blocks attention and MLP both read resid_pre and are added to it together, so there is no "
            "residual between them"
        )
    if kind in ("resid_mid", "mlp_out", "mlp_input") and "attn_out" in kinds and "mlp_out" not in kinds:
        return ". Its blocks have attention only, without an MLP"
    if kind == "normalized_resid_post" and "resid_post" in kinds:
        return ". Only post-LN blocks have a norm after the sum; here the next layer reads resid_post"
    return ""


def kinds_of_block(block: str) -> tuple[str, ...]:
    """The residual kinds of blocks with this wiring, as models are registered; all kinds for unknown wiring."""
    lacking = {"parallel": ("resid_mid", "normalized_resid_post"), "pre_ln": ("normalized_resid_post",)}.get(block, ())
    return tuple(kind for kind in RESIDUAL_KINDS if kind not in lacking)


def _unknown(text: str, kinds: Sequence[str], layer_count: int | None) -> BadRequest:
    layers = "LAYER" if layer_count is None else f"0..{layer_count - 1}"
    if why := why_missing(text, kinds):
        message = f"this model has no site {text!r}{why}"
    else:
        message = f"unknown site {text!r}: a site is KIND.LAYER with KIND one of {', '.join(kinds)} and LAYER {layers}"
    return BadRequest(
        message,
        reason="SITE_UNKNOWN",
        field="site",
        value=text,
        allowed=[f"{kind}.{layers}" for kind in kinds],
    )
