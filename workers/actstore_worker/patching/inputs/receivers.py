"""Finds the receivers of a sweep, and checks that a path leads to each of them."""

from collections.abc import Collection, Iterable, Sequence

from actstore_api.records.patching import RunSweep
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site, parse_site
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.kinds import EMBEDDING, FEATURES
from actstore_worker.patching.kernels.receivers import Receivers, enters

RECEIVERS_MAX = 128
# Kinds that can send: they change the residual at their own position only. q, k and v act through their head's z.
SENDER_KINDS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "pattern", "z")
# What can receive inside a layer: attention's inputs by head, and the MLP's input.
_OF_HEADS, _MLP = ("q", "k", "v"), "mlp_in"
# The receiver after all layers: the input of the final norm and the unembedding.
LOGITS = "logits"


def find_receivers(model: LanguageModel, request: RunSweep) -> Receivers | None:
    """Returns the receivers of a request; None if there are none. Errors: BadRequest for a receiver that the model does
    not have, too many of them, logits together with others, and options that cannot be combined with receivers.
    """
    if not request.receivers:
        if request.path_mlps != RunSweep.path_mlps:
            message = "path_mlps applies to MLPs between senders and receivers, but no receivers were given"
            raise BadRequest(message, field="receivers", value="", allowed="receivers, with path_mlps")
        return None
    _check_alone(request)
    sites = tuple(dict.fromkeys(_parse(model, text) for text in _counted(request.receivers)))
    return Receivers(sites, "resid_mid" not in model.kinds, request.path_mlps == "recomputed")


def check_heard(receivers: Receivers | None, senders: Collection[Site], request: RunSweep) -> None:
    """Refuses site kinds that cannot send, a requested layer or site kind without a path to a receiver, and a receiver
    without a path from a sender: BadRequest. `senders` are those of the grid: sites with a path to some receiver, and
    an SAE's site.
    """
    if receivers is None:
        return
    _check_senders([kind for kind in request.sites if kind not in (EMBEDDING, FEATURES)])
    _check_senders(site.kind for site in senders)
    for layer in request.layers:
        if not any(site.layer == layer for site in senders):
            _refuse_deaf(f"layer {layer}", "layers", layer)
    for kind in request.sites:
        if kind in SENDER_KINDS and not any(site.kind == kind for site in senders):
            _refuse_deaf(kind, "sites", kind)
    for text, receiver in zip(map(_named, receivers.sites), receivers.sites, strict=True):
        if not any(enters(site) <= receivers.reads(receiver) for site in senders):
            raise BadRequest(
                f"receiver {text} cannot be reached: it reads the residual stream before any sender writes to it",
                field="receivers",
                value=text,
                allowed="receivers after a sender",
            )


def _check_senders(kinds: Iterable[str]) -> None:
    for kind in kinds:
        if kind not in SENDER_KINDS:
            raise BadRequest(
                f"{kind} cannot send: it changes the residual stream only through z, also at later positions; use z",
                reason="SITE_UNKNOWN",
                field="sites",
                value=kind,
                allowed=SENDER_KINDS,
            )


def _refuse_deaf(sender: str, field: str, value: object) -> None:
    raise BadRequest(
        f"{sender} cannot reach any receiver: all receivers read the residual stream before it",
        field=field,
        value=value,
        allowed="senders before a receiver",
    )


def _check_alone(request: RunSweep) -> None:
    """Refuses options that cannot be combined with receivers, because a path starts at one site of one layer."""
    found: dict[str, object] = {}
    if request.joint:
        found["joint"] = ", ".join(joint.name for joint in request.joint)
    if request.window_layers != 1:
        found["window_layers"] = request.window_layers
    if request.screen is not None:
        found["screen"] = request.screen.exact_cells
    for field, value in found.items():
        message = (
            f"each path to the receivers starts at one site, and all are computed: {field} cannot be given with "
            "receivers"
        )
        raise BadRequest(message, field=field, value=value, allowed="none, if there are receivers")


def _counted(asked: Sequence[str]) -> Sequence[str]:
    if len(asked) > RECEIVERS_MAX:
        raise BadRequest(
            f"{len(asked)} receivers are too many; a sweep can have at most {RECEIVERS_MAX}",
            reason="LIMIT_EXCEEDED",
            field="receivers",
            value=len(asked),
            allowed=f"at most {RECEIVERS_MAX}",
        )
    if LOGITS in asked and set(asked) != {LOGITS}:
        raise BadRequest(
            f"receiver {LOGITS!r} measures only the direct path into the logits, so other receivers would have no "
            "effect: use a separate sweep for them",
            field="receivers",
            value=", ".join(asked),
            allowed=f"{LOGITS} alone, or others without it",
        )
    return asked


def _parse(model: LanguageModel, text: str) -> Site:
    if text == LOGITS:
        return Site(model.layer_count - 1, "resid_post")
    kinds = (*_OF_HEADS, *((_MLP,) if "mlp_out" in model.kinds else ()))
    try:
        found = parse_site(text, kinds, model.layer_count, model.head_counts)
    except BadRequest as error:
        allowed = f"{error.details['allowed']}, {LOGITS}"
        message = f"{text!r} cannot be a receiver: {error.message}"
        raise BadRequest(message, reason=error.reason, field="receivers", value=text, allowed=allowed) from None
    return Site(found.layer, "mlp_out") if found.kind == _MLP else found


def _named(receiver: Site) -> str:
    return {"mlp_out": f"{_MLP}.{receiver.layer}", "resid_post": LOGITS}.get(receiver.kind, str(receiver))
