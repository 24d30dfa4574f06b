"""Selects which tokens' rows the dense sites of a run store. docs/reference/format.md describes it in words."""

import numpy as np
import numpy.typing as npt

from actstore_storage.format.specification import Positions

# Selections that need no model; by feature, which needs the model, is elsewhere.
KINDS_BY_PLACE = ("all", "last", "stride", "fraction")


def selected(
    positions: Positions, sequence: npt.NDArray[np.int64], position: npt.NDArray[np.int32]
) -> npt.NDArray[np.bool_]:
    """Selects the tokens whose rows are stored by their position only. Rows are those of whole sequences, in order of
    (sequence, position).
    """
    if positions.kind == "all":
        return np.ones(len(sequence), np.bool_)
    if positions.kind == "last":
        chosen = np.diff(sequence, append=-1) != 0
    elif positions.kind == "stride":
        chosen = position % positions.stride == 0
    elif positions.kind == "fraction":
        chosen = _uniform(positions.seed, sequence, position) < positions.fraction
    else:
        raise ValueError(f"{positions.kind} does not choose tokens by their position")
    return np.asarray(chosen, np.bool_)


def _uniform(seed: int, sequence: npt.NDArray[np.int64], position: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Uniform in [0, 1): the upper 53 bits of a hash, SplitMix64's finalizer applied to seed, sequence and position.

    A hash instead of a stream of random numbers, because a shard that is captured again must select the same tokens.
    """
    state = _mix(_mix(_mix(np.full(1, seed, np.uint64)) + sequence.astype(np.uint64)) + position.astype(np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Steele, Lea & Flood (2014), "Fast splittable pseudorandom number generators", figure 19, after one increment."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
