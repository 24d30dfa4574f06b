"""Checks that several parts of a sweep's request share."""

from collections.abc import Sequence
from typing import NoReturn

from actstore_api.records.patching import PatchSource, RunSweep
from actstore_storage.errors import BadRequest
from actstore_worker.patching.inputs.kinds import EMBEDDING, FEATURES
from actstore_worker.patching.inputs.prompts import PairTokens

# With the other sources, the direction only selects the base run.
STORED_SOURCES: tuple[PatchSource, ...] = ("mean", "resample")


def check_position(position: int, length: int, field: str) -> None:
    if not 0 <= position < length:
        raise BadRequest(
            f"the prompts have no position {position}: they have {length} tokens",
            field=field,
            value=position,
            allowed=f"0..{length - 1}",
        )


def check_count(count: int, most: int, field: str) -> None:
    if not 1 <= count <= most:
        raise BadRequest(
            f"{field}: {count}",
            reason="LIMIT_EXCEEDED" if count else "ARGUMENT_INVALID",
            field=field,
            value=count,
            allowed=f"1..{most}",
        )


def check_screen(request: RunSweep, cells: int) -> None:
    """Refuses cells of several layers or positions with a screen: the estimates of single cells do not add up to that
    of all.
    """
    if request.screen is None:
        return
    check_count(request.screen.exact_cells, cells, "screen.exact_cells")
    if request.joint:
        raise BadRequest(
            "a screen estimates single cells only, so joint cells need screen=None",
            field="joint",
            value=", ".join(joint.name for joint in request.joint),
            allowed="none, if there is a screen",
        )
    if request.window_layers != 1:
        raise BadRequest(
            "a screen estimates cells of one layer only, so windows need screen=None",
            field="window_layers",
            value=request.window_layers,
            allowed="1, if there is a screen",
        )
    asked = {"sites": FEATURES if request.sae else "", "spans": ", ".join(span.name for span in request.spans)}
    if EMBEDDING in request.sites and request.source != "prompt":
        asked["sites"] = EMBEDDING
    for field, value in asked.items():
        if value:
            raise BadRequest(
                f"a screen estimates layers at single positions only, so {value} needs screen=None",
                field=field,
                value=value,
                allowed="other sites, if there is a screen",
            )


def check_sources(request: RunSweep) -> None:
    """Refuses combinations of a source with a site or with a stored run that make no sense."""
    is_stored = request.source in STORED_SOURCES
    if is_stored != (request.stored is not None):
        raise BadRequest(
            f"source {request.source!r} " + ("needs the name of a run" if is_stored else "takes no run"),
            field="stored.run",
            value="" if request.stored is None else request.stored.run,
            allowed="a run's name" if is_stored else f"none, or source {' or '.join(STORED_SOURCES)}",
        )
    if is_stored and EMBEDDING in request.sites:
        _refuse_site(EMBEDDING, f"source {request.source!r} takes stored activations, and runs store no embeddings")
    if request.source == "mean" and request.sae:
        _refuse_site(
            FEATURES, "an SAE's features of a mean vector are not the mean of its features: use source 'resample'"
        )
    _check_sae_named(request)
    if request.sae and request.sites and FEATURES not in request.sites:
        message = f"SAE {request.sae!r} was given, but {FEATURES!r} is not among the sites"
        raise BadRequest(message, field="sites", value=request.sites, allowed=f"{FEATURES}, if there is an SAE")


def _check_sae_named(request: RunSweep) -> None:
    """Refuses arguments about features without an SAE."""
    said = {
        "features": FEATURES in request.sites or bool(request.features),
        "sae_error": request.sae_error != RunSweep.sae_error,
    }
    if not request.sae and any(said.values()):
        field = next(field for field, is_said in said.items() if is_said)
        raise BadRequest(f"{field} needs an SAE, and none was given", field="sae", value="", allowed="an SAE's name")


def check_spans_alone(request: RunSweep, pairs: Sequence[PairTokens]) -> None:
    """Refuses positions together with spans, and attention patterns with spans: a pattern is indexed by the positions
    of its own prompt.
    """
    if not request.spans:
        return
    for field, value in (
        ("positions", request.positions if request.positions != "each" else ""),
        ("only_positions", ", ".join(map(str, request.only_positions))),
        ("joint", ", ".join(joint.name for joint in request.joint)),
    ):
        if value:
            message = f"spans already say where to patch, so {field} cannot be given together with spans"
            raise BadRequest(message, field=field, value=value, allowed="none, if there are spans")
    if "pattern" in request.sites and not all(pair.aligned for pair in pairs):
        _refuse_site(
            "pattern", "attention weights are indexed by position, and with spans positions differ between the prompts"
        )


def _refuse_site(kind: str, why: str) -> NoReturn:
    raise BadRequest(why, field="sites", value=kind, allowed=f"sites other than {kind}")
