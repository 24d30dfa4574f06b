"""Finds the sites whose norms, or another quantity of them, a run has."""

from collections.abc import Sequence

from actstore_storage.errors import BadRequest
from actstore_storage.format.norm_columns import (
    CENTRED_L2,
    L2,
    statistics_of,
)
from actstore_storage.format.sites import RESIDUAL_KINDS, Site, kinds_of_block, parse_site, why_missing
from actstore_storage.registry.models import block_of
from actstore_storage.runs.snapshot import Snapshot


def stored_sites(snapshot: Snapshot) -> list[Site]:
    """The sites whose norms the run stores, by kind, then layer."""
    found = [parse_site(text) for text in snapshot.record.specification.norm_sites]
    return sorted(found, key=lambda site: (RESIDUAL_KINDS.index(site.kind), site.layer))


def sites_with(snapshot: Snapshot, quantity: str) -> list[Site]:
    """The sites whose quantity the run has in every shard; for a run without commits, all sites whose norms
    it stores.
    """
    stored = stored_sites(snapshot)
    if quantity == L2 or not snapshot.tokens_committed:
        return stored
    return [site for site in stored if _in_every_shard(snapshot, site, quantity)]


def chosen_sites(snapshot: Snapshot, texts: Sequence[str], quantity: str) -> list[Site]:
    """The requested sites, or all of a kind. Errors: BadRequest SITE_UNKNOWN."""
    stored = sites_with(snapshot, quantity)
    chosen: set[Site] = set()
    for text in texts or ([] if stored else [quantity]):
        of_kind = {site for site in stored if site.kind == text}
        known_without = text in RESIDUAL_KINDS and not of_kind  # such as resid_mid of parallel blocks
        if (
            not stored
            or known_without
            or not (of_kind or {parse_site(text, RESIDUAL_KINDS, snapshot.record.layer_count)} & set(stored))
        ):
            raise unknown_site(snapshot, text, [str(site) for site in stored], quantity)
        chosen |= of_kind or {parse_site(text)}
    return [site for site in stored if site in chosen or not texts]


def _in_every_shard(snapshot: Snapshot, site: Site, quantity: str) -> bool:
    name, _ = statistics_of(quantity, site, snapshot.record.d_model)
    told = sum(moments.count for moments in snapshot.norm_moments(name).values())
    return told + snapshot.non_finite(name) == snapshot.tokens_committed


def unknown_site(snapshot: Snapshot, text: str, allowed: Sequence[str], quantity: str = L2) -> BadRequest:
    """Makes the error for a site or a kind whose quantity the run does not have."""
    what, where = ("norms" if quantity == L2 else quantity), "" if text == quantity else f" of {text!r}"
    block = block_of(snapshot.bucket, snapshot.record.specification)
    why = why_missing(text, kinds_of_block(block)) or ("" if quantity == L2 else _why_missing(snapshot))
    return BadRequest(
        f"run {snapshot.record.run} has no {what}{where}{why}",
        reason="SITE_UNKNOWN",
        field="site",
        value=text,
        allowed=allowed or f"none: this run was captured without {what}",
    )


def _why_missing(snapshot: Snapshot) -> str:
    """Centered norms exist for every site: a shard without them was captured by an early version that
    stored only L2.
    """
    if all(_in_every_shard(snapshot, site, CENTRED_L2) for site in stored_sites(snapshot)):
        return ": it is computed from neighboring sites, and the run lacks their norms or its blocks lack these sites"
    return ": some of its shards were captured by an early version that stored only L2 norms"


def check_all_have(snapshots: Sequence[Snapshot], places: Sequence[Site], quantity: str) -> None:
    """Refuses sites that a run does not have. Errors: BadRequest SITE_UNKNOWN with the first run and site."""
    for snapshot in snapshots:
        stored = sites_with(snapshot, quantity)
        for place in places:
            if place not in stored:
                raise unknown_site(snapshot, str(place), [str(site) for site in stored], quantity)
