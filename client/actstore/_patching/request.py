"""What a caller asks of a sweep, checked as far as the client can."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actstore import _checks as _arguments
from actstore._errors import refused
from actstore._records import Stretch, SweepRequest


def sweep_request(asked: Mapping[str, Any]) -> SweepRequest:
    """`asked`: the arguments of `Lab.patch`, by name."""
    where, chosen = _arguments.patch_positions(asked["positions"])
    return SweepRequest(
        model=_arguments.text(asked["model"], "model"),
        pairs=_arguments.prompt_pairs(asked["clean"], asked["corrupt"], asked["answers"]),
        model_revision=_arguments.text(asked["revision"], "revision"),
        sites=_arguments.names(asked["sites"], "sites"),
        layers=_counts(asked["layers"], "layers"),
        heads=_counts(asked["heads"], "heads"),
        directions=_arguments.choices(asked["directions"], "directions", _arguments.DIRECTIONS),
        positions=where,
        only_positions=chosen,
        window_layers=_arguments.count(asked["window_layers"], "window_layers"),
        source=_arguments.choices(asked["source"], "source", _arguments.PATCH_SOURCES)[0],
        joint=_arguments.joint_cells(asked["joint"] or {}),
        screen=_arguments.screen(asked["screen"], asked["qk_correction"], asked["grad_drop"]),
        bos=_arguments.tristate(asked["bos"], "bos"),
        source_run=_arguments.text(asked["source_run"], "source_run"),
        source_exclude=_arguments.exclusion(asked["source_exclude"], "source_exclude"),
        source_seed=_arguments.count(asked["source_seed"], "source_seed"),
        sae=_arguments.text(asked["sae"], "sae"),
        features=_counts(asked["features"], "features"),
        sae_error=_arguments.choices(asked["sae_error"], "sae_error", _arguments.SAE_ERRORS)[0],
        spans=_spans(asked["spans"] or {}),
        receivers=_arguments.names(asked["receivers"], "receivers"),
        path_mlps=_arguments.choices(asked["path_mlps"], "path_mlps", _arguments.PATH_MLPS)[0],
        fresh=_arguments.switch(asked["fresh"], "fresh"),
    )


def _counts(values: Iterable[int] | None, field: str) -> tuple[int, ...]:
    return tuple(_arguments.count(value, field) for value in (() if values is None else values))


def _spans(spans: Any) -> dict[str, tuple[Stretch, Stretch]]:
    """One part that is meant of both prompts, or one of each."""
    if not isinstance(spans, Mapping):
        message = "spans has, by name, the tokens that play the same part in both prompts"
        raise refused(message, "spans", repr(spans), '{"subject": ("Mary", "John"), "end": range(9, 12)}')
    found = {}
    for name, parts in spans.items():
        both = (parts, parts) if isinstance(parts, str | range | slice) else parts
        if not isinstance(both, Sequence) or len(both) != 2:
            message = f"span {name!r} is a part of the clean prompt and one of the corrupt prompt"
            raise refused(
                message, "spans", repr(parts), '("Mary", "John"), (range(3, 5), range(4, 6)), or one for both'
            )
        found[_arguments.words(name, "spans")] = _stretch(both[0]), _stretch(both[1])
    return found


def _stretch(part: Any) -> Stretch:
    if isinstance(part, str):
        return _arguments.text(part, "spans")
    first, size = _arguments.stretch(part, "spans")
    if size is None:
        raise refused(f"span {part} has no end", "spans", repr(part), "text, or a range such as range(3, 5)")
    return first, first + size
