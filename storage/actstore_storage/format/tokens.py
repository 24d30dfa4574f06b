"""Classes of tokens: their flags, their numbers, and which of them an answer leaves out."""

import numpy as np
import numpy.typing as npt

from actstore_storage.errors import BadRequest

BOS, SPECIAL, SINK = 1, 2, 4  # bits of a token's flags. A class's number is its index here.
# A class's number is its place here.
TOKEN_CLASSES = ("text", "bos", "special", "sink")
EXCLUDABLE = ("bos", "special", "sink")
# The beginning-of-sequence token is an attention sink whose norm and features dominate those of text.
DEFAULT_EXCLUSION = frozenset({"bos"})


def token_classes(flags: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.bool_]]:
    """Masks of the tokens of each class. Classes are exclusive: BOS before special before sink, and the
    rest is text.
    """
    bos = (flags & BOS) != 0
    special = ((flags & SPECIAL) != 0) & ~bos
    sink = ((flags & SINK) != 0) & ~bos & ~special
    return dict(zip(TOKEN_CLASSES, (~bos & ~special & ~sink, bos, special, sink), strict=True))


def class_numbers(flags: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """The number of each token's class."""
    classes = token_classes(flags.astype(np.uint8))
    return np.select([classes[name] for name in TOKEN_CLASSES], list(range(len(TOKEN_CLASSES))))


def numbers_of_names(names: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    """The number of each class in a column of stored statistics."""
    numbers = {name: number for number, name in enumerate(TOKEN_CLASSES)}
    return np.array([numbers[name] for name in names], np.int64)


def kept_classes(exclude: frozenset[str]) -> tuple[str, ...]:
    """The token classes that are not excluded. Errors: BadRequest for one that cannot be excluded."""
    unknown = exclude - set(EXCLUDABLE)
    if unknown:
        value = sorted(unknown)
        raise BadRequest(f"cannot exclude {value}", field="exclude", value=value, allowed=EXCLUDABLE)
    return tuple(name for name in TOKEN_CLASSES if name not in exclude)


def kept_numbers(exclude: frozenset[str]) -> list[int]:
    """The numbers of the token classes that are not excluded."""
    return [TOKEN_CLASSES.index(name) for name in kept_classes(exclude)]


def kept_rows(flags: npt.NDArray[np.uint8], exclude: frozenset[str]) -> npt.NDArray[np.bool_]:
    """Which tokens are not excluded, by their flags."""
    classes = token_classes(flags)
    kept: npt.NDArray[np.bool_] = np.logical_or.reduce([classes[name] for name in kept_classes(exclude)])
    return kept
