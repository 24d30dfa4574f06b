"""Which tokens an answer leaves out, and what a refused number looks like."""

import numpy as np
import numpy.typing as npt

from actstore_storage.errors import BadRequest
from actstore_storage.format.commit import TOKEN_CLASSES
from actstore_storage.runs.feature_index import token_classes

EXCLUDABLE = ("bos", "special", "sink")
# The beginning-of-sequence token is an attention sink whose norm and features drown those of text.
DEFAULT_EXCLUSION = frozenset({"bos"})


def kept_classes(exclude: frozenset[str]) -> tuple[str, ...]:
    """The token classes that count."""
    unknown = exclude - set(EXCLUDABLE)
    if unknown:
        value = sorted(unknown)
        raise BadRequest(f"cannot exclude {value}", field="exclude", value=value, allowed=EXCLUDABLE)
    return tuple(name for name in TOKEN_CLASSES if name not in exclude)


def kept_rows(flags: npt.NDArray[np.uint8], exclude: frozenset[str]) -> npt.NDArray[np.bool_]:
    classes = token_classes(flags)
    kept: npt.NDArray[np.bool_] = np.logical_or.reduce([classes[name] for name in kept_classes(exclude)])
    return kept


def check_limit(value: int, limit: int, field: str, least: int = 1, because: str = "") -> None:
    """Refuses a number below `least` as wrong, and one above `limit` as too much, with both numbers; `because` is what
    the caller can say of why the limit counts here.
    """
    allowed = f"{least} to {limit}"
    if value < least:
        raise BadRequest(f"{field} is {value}, the least is {least}", field=field, value=value, allowed=allowed)
    if value > limit:
        message = f"{field} is {value}, the limit is {limit}" + (f": {because}" if because else "")
        raise BadRequest(message, reason="LIMIT_EXCEEDED", field=field, value=value, allowed=allowed)
