"""What the client checks by itself: types that the wire could not carry, with the same errors whatever it talks to."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actstore._errors import refused
from actstore._records import Positions, Prompt, PromptPair, RowFilter, Screen

TOKEN_CLASSES = ("bos", "special", "sink")
DEFAULT_EXCLUSION = frozenset({"bos"})
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "in", "not in")
DIRECTIONS = ("denoise", "noise")
PATCH_SOURCES = ("prompt", "zero", "mean", "resample")
SAE_ERRORS = ("kept", "dropped", "patched")
PATH_MLPS = ("recomputed", "frozen")
PATCH_POSITIONS = ("each", "all", "last")
MAXIMUM_COUNT, MAXIMUM_TOKEN = 2**32 - 1, 2**31 - 1


def count(value: int, field: str, *, maximum: int = MAXIMUM_COUNT, reason: str = "ARGUMENT_INVALID") -> int:
    """A whole number that fits the wire's unsigned field; numpy's integers are welcome."""
    try:
        whole = value.__index__()
    except (AttributeError, TypeError):
        whole = -1
    if isinstance(value, bool) or not 0 <= whole <= maximum:
        message = f"{field} {value!r} is not a whole number from 0 to {maximum}"
        raise refused(message, field, repr(value), f"0..{maximum}", reason)
    return whole


def optional_count(value: int | None, field: str) -> int | None:
    return None if value is None else count(value, field)


def names(values: Iterable[str] | str | None, field: str) -> tuple[str, ...]:
    """Several names; one string counts as one name, never as its letters."""
    if not isinstance(values, str | Iterable | None):
        raise refused(f"{field} must be text, not {type(values).__name__}", field, repr(values), "a string, or several")
    found = (values,) if isinstance(values, str) else tuple(values or ())
    for name in found:
        text(name, field)
    return found


def text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise refused(f"{field} must be text, not {type(value).__name__}", field, repr(value), "a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise refused(f"{field} is not Unicode text: {error.reason}", field, repr(value), "UTF-8") from None
    return value


def fractions(values: Iterable[float] | None, field: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values or ())
    except (TypeError, ValueError):
        raise refused(f"{field} must be numbers", field, repr(values), "numbers between 0 and 1") from None


def number(value: float, field: str, *, least: float | None = None) -> float:
    """Finite; numpy's numbers are welcome, and booleans are none."""
    allowed = "a finite number" if least is None else f"{least:g} or more"
    try:
        found = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or (least is not None and found < least):
        raise refused(f"{field} {value!r} is not {allowed}", field, repr(value), allowed)
    return found


def bound(value: object, field: str) -> tuple[float | None, float | None]:
    """(low, high), both included; None leaves a side open, and None for the pair leaves both."""
    if value is None:
        return None, None
    if not isinstance(value, tuple | list) or len(value) != 2:
        message = f"{field} is a pair: the least and the greatest value, either of them None"
        raise refused(message, field, repr(value), "(low, high)")
    low, high = (None if side is None else number(side, field) for side in value)
    return low, high


def vector(values: object, field: str) -> tuple[float, ...]:
    """A direction: finite numbers, of which one is not 0."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise refused(f"{field} must be numbers", field, repr(values), "d_model numbers")
    found = tuple(number(value, field) for value in values)
    if not any(found):
        raise refused(f"{field} has no direction: all its numbers are 0", field, repr(found[:3]), "one that is not 0")
    return found


def words(value: object, field: str) -> str:
    """Text that is not empty."""
    found = text(value, field)
    if not found:
        raise refused(f"{field} is empty", field, "''", "text of at least one token")
    return found


def prompt(value: Any, field: str) -> Prompt:
    """Text that is not empty, or token ids: whole numbers, of numpy's or torch's too."""
    if isinstance(value, str):
        return words(value, field)
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, bytes | Mapping) or not isinstance(plain, Iterable):
        allowed = "a string, or whole numbers"
        raise refused(f"{field} is text or token ids, not {type(value).__name__}", field, repr(value), allowed)
    ids = tuple(token(one, field) for one in plain)
    if not ids:
        raise refused(f"{field} has no token ids", field, "()", "text, or token ids, of at least one token")
    return ids


def prompts(values: Any, field: str) -> tuple[Prompt, ...]:
    """As `alike_prompts`, and a single prompt is one of them."""
    if isinstance(values, str):
        return (words(values, field),)
    if not isinstance(values, Iterable):
        allowed = "a string, token ids, or several of them"
        raise refused(f"{field} must be text or token ids, not {type(values).__name__}", field, repr(values), allowed)
    several: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    if several and not any(isinstance(each, Iterable) for each in several):
        return (prompt(several, field),)
    return alike_prompts(several, field)


def alike_prompts(values: Iterable[Any], field: str) -> tuple[Prompt, ...]:
    """As `prompt` each. All are texts, or all are token ids; a mixture is refused."""
    found = tuple(prompt(each, field) for each in values)
    if len({isinstance(each, str) for each in found}) > 1:
        raise refused(f"{field} has texts and token ids", field, "both", "either of them")
    return found


def token(value: Any, field: str) -> int:
    return count(value, field, maximum=MAXIMUM_TOKEN)


def answer(value: object, field: str) -> str | int:
    """Text of one token, or its id."""
    return text(value, field) if isinstance(value, str) else token(value, field)


def features(values: Any, d_sae: int) -> tuple[int, ...]:
    """Indices of features, at least one; a single number counts as one."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        values = (values,)
    maximum = d_sae - 1
    found = tuple(count(value, "features", maximum=maximum, reason="FEATURE_OUT_OF_RANGE") for value in values)
    if not found:
        raise refused("features names none", "features", "()", f"indices from 0 to {d_sae - 1}")
    return found


def tristate(value: bool | None, field: str) -> bool | None:
    if value not in (None, True, False):
        raise refused(f"{field} is True, False or None", field, repr(value), "True, False, None")
    return value


def choices(values: Iterable[str] | str | None, field: str, allowed: Sequence[str]) -> tuple[str, ...]:
    found = names(values, field)
    for name in found:
        if name not in allowed:
            raise refused(f"{field} has no {name!r}: choose from {', '.join(allowed)}", field, name, allowed)
    return found


def chosen(value: str | None, field: str, allowed: Sequence[str]) -> str:
    """None is the first."""
    if value is None:
        return allowed[0]
    return choices(value, field, allowed)[0]


def whole_numbers(values: Iterable[int] | None, field: str, maximum: int) -> tuple[int, ...]:
    return tuple(count(value, field, maximum=maximum) for value in values or ())


def positions(value: object) -> Positions:
    """Numbers that the wire could not carry are refused here, the rest by the workers."""
    if value is None:
        return Positions()
    if not isinstance(value, Positions):
        allowed = "Positions.last(), .every(stride), .random(fraction, seed), .active(sae, feature)"
        raise refused(f"positions cannot be {value!r}", "positions", repr(value), allowed)
    choices(value.kind, "positions", ("all", "last", "stride", "fraction", "feature"))
    return Positions(
        kind=value.kind,
        stride=count(value.stride, "positions.stride"),
        fraction=fractions([value.fraction], "positions.fraction")[0],
        seed=count(value.seed, "positions.seed", maximum=2**64 - 1),
        sae=text(value.sae, "positions.sae"),
        feature=count(value.feature, "positions.feature"),
    )


def switch(value: bool, field: str) -> bool:
    if not isinstance(value, bool):
        raise refused(f"{field} is True or False", field, repr(value), "True, False")
    return value


def row_filters(values: object) -> tuple[RowFilter, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise refused(f"filters are several, not {values!r}", "filters", repr(values), "a list of filters")
    return tuple(_row_filter(value) for value in values)


def _row_filter(value: object) -> RowFilter:
    allowed = f"(column, one of {' '.join(COMPARISONS)}, value)"
    if not isinstance(value, tuple | list) or len(value) != 3 or value[1] not in COMPARISONS:
        raise refused(f"{value!r} is not a filter", "filters", repr(value), allowed)
    column, comparison, wanted = value
    several = comparison in ("in", "not in")
    if several and (isinstance(wanted, str) or not isinstance(wanted, Iterable)):
        raise refused(f"{comparison!r} compares with several values", "filters", repr(value), allowed)
    wanted_values = tuple(wanted) if several and isinstance(wanted, Iterable) else (wanted,)
    for one in wanted_values:
        if isinstance(one, str):
            text(one, "filters")
        elif type(one) not in (int, float, bool) or (type(one) is int and not -(2**63) <= one < 2**63):
            raise refused(f"a filter compares with text or numbers, not {one!r}", "filters", repr(value), allowed)
    return RowFilter(text(column, "filters"), comparison, wanted_values if several else wanted)


def exclusion(values: Iterable[str] | str | None, field: str = "exclude") -> frozenset[str]:
    """None is the default, BOS; an empty collection leaves nothing out."""
    return DEFAULT_EXCLUSION if values is None else frozenset(choices(values, field, TOKEN_CLASSES))


def layer_range(layers: Sequence[int] | None) -> tuple[int, int] | None:
    """The first and last layer, both included."""
    if layers is None:
        return None
    if len(layers) != 2:
        message = "layers is a pair: the first and the last layer, both included"
        raise refused(message, "layers", repr(layers), "(first, last)")
    return count(layers[0], "layers"), count(layers[1], "layers")


def stretch(values: object, field: str) -> tuple[int, int | None]:
    """(first, how many or None for all that follow) of a range or slice with step 1."""
    if values is None:
        return 0, None
    if not isinstance(values, range | slice):
        message = f"{field} is a range or a slice, such as range(10)"
        raise refused(message, field, repr(values), "range or slice")
    if values.step not in (None, 1):
        raise refused(f"{field} {values} has a step other than 1", field, repr(values), "step 1")
    first = count(values.start or 0, field)
    if values.stop is None:
        return first, None
    if (end := count(values.stop, field)) <= first:
        raise refused(f"there are no {field} in {values}", field, repr(values), f"an end above its first, {first}")
    return first, end - first


def prompt_pairs(clean: Any, corrupt: Any, answers: Any) -> tuple[PromptPair, ...]:
    """One pair, or lists of them; of answers, one pair for all or one each."""
    cleans, corrupts = prompts(clean, "clean"), prompts(corrupt, "corrupt")
    if not cleans or len(cleans) != len(corrupts):
        message = f"{len(cleans)} clean prompts and {len(corrupts)} corrupt ones are no pairs"
        raise refused(message, "corrupt", str(len(corrupts)), f"{max(1, len(cleans))} of them")
    several = isinstance(answers, Sequence) and bool(answers) and isinstance(answers[0], Iterable)
    pairs = answers if several and not isinstance(answers[0], str) else [answers] * len(cleans)
    if len(pairs) != len(cleans):
        message = f"{len(pairs)} pairs of answers for {len(cleans)} pairs of prompts"
        raise refused(message, "answers", str(len(pairs)), f"one pair, or {len(cleans)} of them")
    return tuple(
        PromptPair(clean, corrupt, _answers(pair)) for clean, corrupt, pair in zip(cleans, corrupts, pairs, strict=True)
    )


def _answers(pair: Any) -> tuple[str | int, str | int]:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        message = "answers is a pair: the answer to the clean prompt and the answer to the corrupt one"
        raise refused(message, "answers", repr(pair), '(" clean", " corrupt"), or their token ids')
    return answer(pair[0], "answers"), answer(pair[1], "answers")


def patch_positions(positions: Any) -> tuple[str, tuple[int, ...]]:
    """A word, and the numbers that are meant by "each" (none: all of them)."""
    if isinstance(positions, str):
        return choices(positions, "positions", PATCH_POSITIONS)[0], ()
    if not isinstance(positions, Iterable):
        allowed = f"{', '.join(PATCH_POSITIONS)}, or numbers"
        raise refused("positions are a word or numbers", "positions", repr(positions), allowed)
    return "each", tuple(count(position, "positions") for position in positions)


def screen(cells: int | None, qk_correction: bool, grad_drop: bool) -> Screen | None:
    """None where every cell is to be computed, and then nothing can be said of estimates."""
    corrected, dropped = switch(qk_correction, "qk_correction"), switch(grad_drop, "grad_drop")
    if cells is not None:
        return Screen(count(cells, "screen"), corrected, dropped)
    if dropped:
        raise refused("grad_drop is about estimates: it needs a screen", "grad_drop", "True", "False, or screen=100")
    return None


def joint_cells(joint: Any) -> dict[str, tuple[tuple[str, int], ...]]:
    """By name, (site, position) of cells that are replaced together."""
    if not isinstance(joint, Mapping):
        message = "joint has, by name, the cells that are replaced together"
        raise refused(message, "joint", repr(joint), '{"name": [("z.3.0", 12), ("mlp_out.1", 4)]}')
    return {text(name, "joint"): tuple(_cell(cell) for cell in cells) for name, cells in joint.items()}


def _cell(cell: Any) -> tuple[str, int]:
    if isinstance(cell, str) or not isinstance(cell, Sequence) or len(cell) != 2:
        raise refused("a cell is a site and a position", "joint", repr(cell), '("z.3.0", 12)')
    return text(cell[0], "joint"), count(cell[1], "joint")
