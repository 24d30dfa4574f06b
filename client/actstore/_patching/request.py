"""What a caller asks of a sweep, checked as far as the client can."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, get_args

from actstore import _checks
from actstore._errors import refused
from actstore._where import Excluded, exclusion, stretch
from actstore_api.records.patching import (
    CellReference,
    JointCells,
    PatchDirection,
    PatchPositions,
    PatchSource,
    PatchSpan,
    PathMlps,
    PromptPair,
    PromptRange,
    RunSweep,
    SaeError,
    Screen,
    StoredSource,
)
from actstore_api.records.terms import TokenReference


class PatchOptions(TypedDict, total=False):
    """What a sweep may be told beside its prompts; `patch` says what each means."""

    sites: Iterable[str] | None
    layers: Iterable[int] | None
    heads: Iterable[int] | None
    positions: str | Iterable[int]
    directions: Iterable[str] | None
    window_layers: int
    source: str
    joint: Mapping[str, Iterable[tuple[str, int]]] | None
    screen: int | None
    qk_correction: bool
    grad_drop: bool
    source_run: str
    source_exclude: Excluded
    source_seed: int
    sae: str
    features: Iterable[int] | None
    sae_error: str
    spans: Mapping[str, Any] | None
    receivers: Iterable[str] | None
    path_mlps: str
    revision: str
    bos: bool | None
    fresh: bool


def sweep(
    model: str,
    clean: Any,
    corrupt: Any,
    answers: Any,
    *,
    sites: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    positions: str | Iterable[int] = RunSweep.positions,
    directions: Iterable[str] | None = None,
    window_layers: int = RunSweep.window_layers,
    source: str = RunSweep.source,
    joint: Mapping[str, Iterable[tuple[str, int]]] | None = None,
    screen: int | None = None,
    qk_correction: bool = Screen.qk_correction,
    grad_drop: bool = Screen.grad_drop,
    source_run: str = "",
    source_exclude: Excluded = None,
    source_seed: int = StoredSource.seed,
    sae: str = RunSweep.sae,
    features: Iterable[int] | None = None,
    sae_error: str = RunSweep.sae_error,
    spans: Mapping[str, Any] | None = None,
    receivers: Iterable[str] | None = None,
    path_mlps: str = RunSweep.path_mlps,
    revision: str = "",
    bos: bool | None = None,
    fresh: bool = RunSweep.fresh,
) -> RunSweep:
    """Makes the question for the sweep that these arguments ask for. Errors: BadRequest with the argument's name."""
    where, chosen = _positions(positions)
    return RunSweep(
        **_checks.of_model(model, revision, bos),
        pairs=_pairs(clean, corrupt, answers),
        sites=_checks.names(sites, "sites"),
        layers=_checks.whole_numbers(layers, "layers"),
        heads=_checks.whole_numbers(heads, "heads"),
        window_layers=_checks.count(window_layers, "window_layers"),
        positions=where,
        only_positions=chosen,
        spans=_spans(spans or {}),
        joint=_joint_cells(joint or {}),
        sae=_checks.text(sae, "sae"),
        features=_checks.whole_numbers(features, "features"),
        sae_error=_checks.one_of(sae_error, "sae_error", get_args(SaeError)),
        directions=_checks.several_of(directions, "directions", get_args(PatchDirection)),
        source=_checks.one_of(source, "source", get_args(PatchSource)),
        stored=_stored(source_run, source_exclude, source_seed),
        receivers=_checks.names(receivers, "receivers"),
        path_mlps=_checks.one_of(path_mlps, "path_mlps", get_args(PathMlps)),
        screen=_screen(screen, qk_correction, grad_drop),
        fresh=_checks.switch(fresh, "fresh"),
    )


def _stored(run: str, exclude: Excluded, seed: int) -> StoredSource | None:
    """Of the sources mean and resample; without a run there is none."""
    classes, number = exclusion(exclude, "source_exclude"), _checks.count(seed, "source_seed")
    return StoredSource(run, classes, number) if _checks.text(run, "source_run") else None


def _spans(spans: Any) -> tuple[PatchSpan, ...]:
    """One part that is meant of both prompts, or one of each."""
    if not isinstance(spans, Mapping):
        message = "spans has, by name, the tokens that play the same part in both prompts"
        raise refused(message, "spans", repr(spans), '{"subject": ("Mary", "John"), "end": range(9, 12)}')
    found = []
    for name, parts in spans.items():
        both = (parts, parts) if isinstance(parts, str | range | slice) else parts
        if not isinstance(both, Sequence) or len(both) != 2:
            message = f"span {name!r} is a part of the clean prompt and one of the corrupt prompt"
            raise refused(
                message, "spans", repr(parts), '("Mary", "John"), (range(3, 5), range(4, 6)), or one for both'
            )
        found.append(PatchSpan(_checks.words(name, "spans"), _part(both[0]), _part(both[1])))
    return tuple(found)


def _part(part: Any) -> PromptRange:
    if isinstance(part, str):
        return _checks.text(part, "spans")
    found = stretch(part, "spans")
    if found is None or found.end is None:
        raise refused(f"span {part} has no end", "spans", repr(part), "text, or a range such as range(3, 5)")
    return found


def _pairs(clean: Any, corrupt: Any, answers: Any) -> tuple[PromptPair, ...]:
    """One pair, or lists of them; of answers, one pair for all or one each."""
    cleans, corrupts = _checks.prompts(clean, "clean"), _checks.prompts(corrupt, "corrupt")
    if not cleans or len(cleans) != len(corrupts):
        message = f"{len(cleans)} clean prompts and {len(corrupts)} corrupt ones are no pairs"
        raise refused(message, "corrupt", str(len(corrupts)), f"{max(1, len(cleans))} of them")
    several = isinstance(answers, Sequence) and bool(answers) and isinstance(answers[0], Iterable)
    pairs = answers if several and not isinstance(answers[0], str) else [answers] * len(cleans)
    if len(pairs) != len(cleans):
        message = f"{len(pairs)} pairs of answers for {len(cleans)} pairs of prompts"
        raise refused(message, "answers", str(len(pairs)), f"one pair, or {len(cleans)} of them")
    return tuple(
        PromptPair(clean, corrupt, *_answers(pair))
        for clean, corrupt, pair in zip(cleans, corrupts, pairs, strict=True)
    )


def _answers(pair: Any) -> tuple[TokenReference, TokenReference]:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        message = "answers is a pair: the answer to the clean prompt and the answer to the corrupt one"
        raise refused(message, "answers", repr(pair), '(" clean", " corrupt"), or their token ids')
    return _checks.answer(pair[0], "answers"), _checks.answer(pair[1], "answers")


def _positions(positions: Any) -> tuple[PatchPositions, tuple[int, ...]]:
    """A word, and the numbers that are meant by "each" (none: all of them)."""
    if isinstance(positions, str):
        return _checks.one_of(positions, "positions", get_args(PatchPositions)), ()
    if not isinstance(positions, Iterable):
        allowed = f"{', '.join(get_args(PatchPositions))}, or numbers"
        raise refused("positions are a word or numbers", "positions", repr(positions), allowed)
    return "each", tuple(_checks.count(position, "positions") for position in positions)


def _screen(cells: int | None, qk_correction: bool, grad_drop: bool) -> Screen | None:
    """None where every cell is to be computed, and then nothing can be said of estimates."""
    corrected, dropped = _checks.switch(qk_correction, "qk_correction"), _checks.switch(grad_drop, "grad_drop")
    if cells is not None:
        return Screen(_checks.count(cells, "screen"), corrected, dropped)
    if dropped:
        raise refused("grad_drop is about estimates: it needs a screen", "grad_drop", "True", "False, or screen=100")
    return None


def _joint_cells(joint: Any) -> tuple[JointCells, ...]:
    """Of a mapping from names to (site, position) of cells that are replaced together."""
    if not isinstance(joint, Mapping):
        message = "joint has, by name, the cells that are replaced together"
        raise refused(message, "joint", repr(joint), '{"name": [("z.3.0", 12), ("mlp_out.1", 4)]}')
    return tuple(JointCells(_checks.text(name, "joint"), tuple(map(_cell, cells))) for name, cells in joint.items())


def _cell(cell: Any) -> CellReference:
    if isinstance(cell, str) or not isinstance(cell, Sequence) or len(cell) != 2:
        raise refused("a cell is a site and a position", "joint", repr(cell), '("z.3.0", 12)')
    return CellReference(_checks.text(cell[0], "joint"), _checks.count(cell[1], "joint"))
