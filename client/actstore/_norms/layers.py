"""Layers as callers list them, and as the contract has them, from the first to before an end."""

from collections.abc import Iterable
from itertools import pairwise

from actstore import _checks
from actstore._errors import refused
from actstore_api.records.terms import Range


def layer_range(layers: Iterable[int] | None) -> Range | None:
    """Makes the contract's range of layers that are listed and lie side by side. None: every layer.

    Errors: BadRequest for an empty collection, and where a layer in between is not listed.
    """
    listed = sorted(set(_checks.some_numbers(layers, "layers")))
    if not listed:
        return None
    first, end = listed[0], listed[-1] + 1
    if gaps := [_between(low, high) for low, high in pairwise(listed) if high > low + 1]:
        missing, shown = ", ".join(gaps), ", ".join(map(str, listed))
        allowed = f"consecutive layers, as range({first}, {end})"
        raise refused(f"layers {shown} leave out {missing} in between", "layers", shown, allowed)
    return Range(first, end)


def _between(low: int, high: int) -> str:
    return str(low + 1) if high == low + 2 else f"{low + 1} to {high - 1}"


def layers_of(layers: Range) -> tuple[int, ...]:
    """Lists the layers of an answer's range, which always has an end."""
    return tuple(range(layers.first, layers.end or 0))
