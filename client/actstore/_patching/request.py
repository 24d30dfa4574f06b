"""The request for a sweep, checked as far as the client can."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, get_args

from actstore import _checks
from actstore._errors import refused
from actstore._patching.values import PatchedSae, Receivers, patched_sae, receivers_of, screen_of
from actstore._where import NamedRun, StoredRows, stored_rows, stretch
from actstore_api.records.patching import (
    CellReference,
    JointCells,
    PatchDirection,
    PatchPositions,
    PatchSource,
    PatchSpan,
    PromptPair,
    PromptRange,
    RunSweep,
    Screen,
)
from actstore_api.records.terms import TokenReference

# One pair of answers for all pairs of prompts, or one for each.
Answers = Sequence[str | int] | Sequence[Sequence[str | int]]
# A part of a prompt: text that is once in it, or token numbers.
SpanPart = str | range | slice
Spans = Mapping[str, SpanPart | tuple[SpanPart, SpanPart]]
Joint = Mapping[str, Iterable[tuple[str, int]]]


class PatchOptions(TypedDict, total=False):
    """Options of a sweep beside its prompts; `patch` says what each means."""

    sites: Iterable[str] | str | None
    layers: Iterable[int] | None
    heads: Iterable[int] | None
    positions: PatchPositions | Iterable[int]
    window_layers: int
    spans: Spans | None
    joint: Joint | None
    directions: Iterable[PatchDirection] | PatchDirection | None
    source: PatchSource
    stored: StoredRows | NamedRun | str | None
    sae: PatchedSae | str | None
    receivers: Receivers | Iterable[str] | str | None
    screen: Screen | int | None
    revision: str
    prepend_bos: bool | None
    fresh: bool


def sweep(
    model: str,
    clean: Any,
    corrupt: Any,
    answers: Any,
    *,
    sites: Iterable[str] | str | None = None,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    positions: PatchPositions | Iterable[int] = RunSweep.positions,
    window_layers: int = RunSweep.window_layers,
    spans: Spans | None = None,
    joint: Joint | None = None,
    directions: Iterable[PatchDirection] | PatchDirection | None = None,
    source: PatchSource = RunSweep.source,
    stored: StoredRows | NamedRun | str | None = None,
    sae: PatchedSae | str | None = None,
    receivers: Receivers | Iterable[str] | str | None = None,
    screen: Screen | int | None = None,
    revision: str = "",
    prepend_bos: bool | None = None,
    fresh: bool = RunSweep.fresh,
) -> RunSweep:
    """Makes the question for the sweep that these arguments ask for. Errors: BadRequest with the argument's name."""
    where, chosen = _positions(positions)
    cells, features = _joint_cells({} if joint is None else joint), patched_sae(sae)
    return RunSweep(
        **_checks.of_model(model, revision, prepend_bos),
        pairs=_pairs(clean, corrupt, answers),
        sites=_sites(sites, alone=not cells and features is None),
        layers=_checks.some_numbers(layers, "layers"),
        heads=_checks.some_numbers(heads, "heads"),
        window_layers=_checks.count(window_layers, "window_layers"),
        positions=where,
        only_positions=chosen,
        spans=_checks.some(_spans({} if spans is None else spans), spans, "spans"),
        joint=cells,
        **_of_sae(features),
        directions=_directions(directions),
        source=_checks.one_of(source, "source", get_args(PatchSource)),
        stored=stored_rows(stored),
        **_along_paths(receivers_of(receivers)),
        screen=screen_of(screen),
        fresh=_checks.switch(fresh, "fresh"),
    )


def _sites(sites: Iterable[str] | str | None, *, alone: bool) -> tuple[str, ...]:
    """The names of `sites`. They may be empty, except if they `alone` say what is patched."""
    return _checks.some_names(sites, "sites") if alone else _checks.names(sites, "sites")


def _directions(directions: Iterable[PatchDirection] | PatchDirection | None) -> tuple[PatchDirection, ...]:
    found = _checks.several_of(directions, "directions", get_args(PatchDirection))
    return _checks.some(found, directions, "directions")


def _of_sae(sae: PatchedSae | None) -> dict[str, Any]:
    if sae is None:
        return {}
    return {"sae": sae.sae, "features": tuple(sae.features or ()), "sae_error": sae.sae_error}


def _along_paths(receivers: Receivers | None) -> dict[str, Any]:
    if receivers is None:
        return {}
    return {"receivers": tuple(receivers.receivers), "path_mlps": receivers.path_mlps}


def _spans(spans: Any) -> tuple[PatchSpan, ...]:
    """Reads `spans`. Each is one part, for both prompts, or a pair with a part for each."""
    if not isinstance(spans, Mapping):
        message = "spans must be a dict from names to tokens that play the same part in both prompts"
        raise refused(message, "spans", repr(spans), '{"subject": ("Mary", "John"), "end": range(9, 12)}')
    found = []
    for name, parts in spans.items():
        both = (parts, parts) if isinstance(parts, str | range | slice) else parts
        if not isinstance(both, Sequence) or len(both) != 2:
            message = f"span {name!r} must be a pair: a part of the clean prompt and a part of the corrupt prompt"
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
    if len(cleans) != len(corrupts):
        message = f"{len(cleans)} clean prompts and {len(corrupts)} corrupt ones do not form pairs"
        raise refused(message, "corrupt", str(len(corrupts)), f"{len(cleans)} of them")
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
    if isinstance(pair, str | bytes) or not isinstance(pair, Sequence) or len(pair) != 2:
        message = "answers must be a pair: the answer to the clean prompt and the answer to the corrupt one"
        raise refused(message, "answers", repr(pair), '(" clean", " corrupt"), or their token ids')
    return _checks.answer(pair[0], "answers"), _checks.answer(pair[1], "answers")


def _positions(positions: Any) -> tuple[PatchPositions, tuple[int, ...]]:
    """A word, and the numbers that are meant by "each" (none: all of them)."""
    if isinstance(positions, str):
        return _checks.one_of(positions, "positions", get_args(PatchPositions)), ()
    if not _checks.several(positions):
        allowed = f"{', '.join(get_args(PatchPositions))}, or numbers"
        raise refused("positions must be a word or a list of numbers", "positions", repr(positions), allowed)
    found = tuple(_checks.count(position, "positions") for position in positions)
    return "each", _checks.some(found, positions, "positions")


def _joint_cells(joint: Any) -> tuple[JointCells, ...]:
    """Reads `joint`, a mapping from names to (site, position) of cells that are replaced together."""
    if not isinstance(joint, Mapping):
        message = "joint must be a dict from names to the cells that are replaced together"
        raise refused(message, "joint", repr(joint), '{"name": [("z.3.0", 12), ("mlp_out.1", 4)]}')
    return tuple(JointCells(_checks.words(name, "joint"), _cells(cells)) for name, cells in joint.items())


def _cells(cells: Any) -> tuple[CellReference, ...]:
    if not _checks.several(cells):
        raise refused("joint cells must be a list of cells", "joint", repr(cells), '[("z.3.0", 12), ("mlp_out.1", 4)]')
    return _checks.some(tuple(map(_cell, cells)), cells, "joint")


def _cell(cell: Any) -> CellReference:
    if isinstance(cell, str) or not isinstance(cell, Sequence) or len(cell) != 2:
        raise refused("a joint cell must be a pair of a site and a position", "joint", repr(cell), '("z.3.0", 12)')
    return CellReference(_checks.text(cell[0], "joint"), _checks.count(cell[1], "joint"))
