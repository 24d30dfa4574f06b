"""Layers as people name them, the first and the last one, and as the contract does, to before an end."""

from collections.abc import Sequence

from actstore import _checks
from actstore._errors import refused
from actstore_api.records.terms import Range


def layer_range(layers: Sequence[int] | None) -> Range | None:
    """Makes the contract's range of the first and the last layer, both included; None: every layer."""
    if layers is None:
        return None
    if len(layers) != 2:
        message = "layers is a pair: the first and the last layer, both included"
        raise refused(message, "layers", repr(layers), "(first, last)")
    return Range(_checks.count(layers[0], "layers"), _checks.count(layers[1], "layers") + 1)


def first_and_last(layers: Range) -> tuple[int, int]:
    """Names the first and the last layer of an answer's range, which always has an end."""
    return layers.first, (layers.end or 0) - 1
