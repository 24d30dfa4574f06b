"""Flags attention sinks: tokens whose residual has a norm far above the median of their sequence."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from actstore_storage.format.tokens import SINK
from actstore_storage.runs.shard_writer import TokenRows


def with_sinks(
    tokens: TokenRows,
    offsets: Int[NDArray[np.int64], " sequence_and_one"],
    norms: Mapping[str, NDArray[np.float32]],
    ratio: float | None,
) -> TokenRows:
    """Adds the flag SINK where a norm at any resid_post exceeds `ratio` times the median of its sequence there."""
    looked_at = [values for site, values in norms.items() if site.startswith("resid_post.")]
    if ratio is None or not looked_at:
        return tokens
    stacked = np.stack(looked_at)
    is_sink = np.zeros(len(tokens.flags), np.bool_)
    for first, last in pairwise(offsets):
        part = stacked[:, first:last]
        is_sink[first:last] = (part > ratio * _medians(part)).any(axis=0)
    return replace(tokens, flags=np.where(is_sink, tokens.flags | np.uint8(SINK), tokens.flags))


def _medians(norms: NDArray[np.float32]) -> NDArray[np.float32]:
    """[site, 1] of [site, position]: medians without NaN, because a NaN would hide its sequence's sinks."""
    found: NDArray[np.float32] = np.median(norms, axis=1, keepdims=True)
    for site in np.flatnonzero(np.isnan(found[:, 0])):
        numbers = norms[site][~np.isnan(norms[site])]
        if len(numbers):
            found[site] = np.median(numbers)
    return found
