"""The verbs of activation patching: sweep over the cells of two prompts, and compare the tokens that differ in them."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, get_args

from actstore._cli.options import add_options, add_plot, add_verb, asked_of, lab_of, say, show
from actstore._errors import refused
from actstore._patching.values import PatchedSae, Receivers
from actstore_api.records.patching import PatchDirection, PatchPositions, PatchSource, PathMlps, SaeError, Screen

KINDS = "resid_pre, attn_out, resid_mid, mlp_out, resid_post, q, k, v, pattern, z, embedding, features"
# Of lab.patch.
ASKED: dict[str, dict[str, Any]] = {
    "clean": {"required": True, "help": "prompt"},
    "corrupt": {"required": True, "help": "prompt with as many tokens, unless spans are named"},
    "answers": {"required": True, "nargs": 2, "metavar": ("CLEAN", "CORRUPT"), "help": "one token each"},
    "sites": {"nargs": "+", "help": f"of {KINDS} (default: resid_pre, attn_out, mlp_out, z)"},
    "layers": {"type": int, "nargs": "+", "help": "default: every layer"},
    "heads": {"type": int, "nargs": "+", "help": "default: every head"},
    "positions": {
        "choices": get_args(PatchPositions),
        "default": "each",
        "help": "positions that are patched: each alone, all at once, or the last",
    },
    "window_layers": {"type": int, "default": 1, "help": "layers side by side, replaced together"},
    "source": {
        "choices": get_args(PatchSource),
        "default": "prompt",
        "help": "what replaces the activation: the other prompt's, zeros, or rows of a stored run",
    },
    "stored": {"metavar": "RUN", "help": "of mean and resample: the run whose rows are taken"},
    "fresh": {"action": "store_true", "help": "compute it again, even where the answer was kept"},
    "directions": {"nargs": "+", "choices": get_args(PatchDirection), "help": "default: both"},
    "revision": {"default": "", "help": "revision of the model, for one with checkpoints"},
}
# Of the values that lab.patch takes.
PATCHED_SAE: dict[str, dict[str, Any]] = {
    "sae": {"help": "patch the features of this SAE"},
    "features": {"type": int, "nargs": "+", "help": "of the SAE; default: all that are active"},
    "sae_error": {"choices": get_args(SaeError), "help": "what becomes of the SAE's error (default: kept)"},
}
RECEIVERS: dict[str, dict[str, Any]] = {
    "receivers": {
        "nargs": "+",
        "help": "path patching: sites send to these alone: q.9.6, k.9, v.9, mlp_in.3, or logits",
    },
    "path_mlps": {"choices": get_args(PathMlps), "help": "what MLPs between the two do (default: recomputed)"},
}
SCREEN: dict[str, dict[str, Any]] = {
    "screen": {"type": int, "metavar": "CELLS", "help": "estimate all cells, compute these many of the largest"},
    "grad_drop": {"action": "store_true", "default": None, "help": "of a screen: see effects that cancel"},
}


def add_patch(verbs: Any) -> None:
    verb = add_verb(verbs, patch, "replace one activation at a time and see how far the answer moves")
    verb.add_argument("model", help="name of the model")
    for asked in (ASKED, PATCHED_SAE, RECEIVERS, SCREEN):
        add_options(verb, asked)
    verb.add_argument(
        "--span",
        nargs=3,
        metavar=("NAME", "CLEAN", "CORRUPT"),
        action="append",
        default=[],
        help="text of each prompt that plays the same part, in place of positions; may be repeated",
    )
    verb.add_argument("--estimate", action="store_true", help="print cells, token-layers, bytes and seconds; run none")
    add_plot(verb)


def patch(options: argparse.Namespace) -> None:
    asked = asked_of(options, ASKED)
    asked["spans"] = {name: (clean, corrupt) for name, clean, corrupt in options.span} or None
    asked["sae"] = _value(options, PatchedSae, PATCHED_SAE)
    asked["receivers"] = _value(options, Receivers, RECEIVERS)
    asked["screen"] = _value(options, Screen, SCREEN)
    with lab_of(options) as lab:
        if options.estimate:
            estimate = lab.estimate_patch(options.model, **asked)
            say(options, asdict(estimate), repr(estimate))
            return
        sweep = lab.patch(options.model, **asked)
    show(options, sweep)


def _value(options: argparse.Namespace, made: Callable[..., Any], asked: Mapping[str, Any]) -> Any:
    """Makes one value from several options. The first option is required for it: None if that was not given.

    Errors: BadRequest if other options were given without the first.
    """
    first, *more = asked_of(options, asked).items()
    said = {name: value for name, value in more if value is not None}
    if first[1] is not None:
        return made(first[1], **said)
    for name, value in said.items():
        message = f"--{name.replace('_', '-')} says nothing without --{first[0]}"
        raise refused(message, name, repr(value), f"none, or --{first[0]} too")
    return None


def add_compare_tokens(verbs: Any) -> None:
    verb = add_verb(verbs, compare_tokens, "which replaced tokens of corrupt prompts does a model treat unlike others?")
    verb.add_argument("model", help="name of the model")
    verb.add_argument("--clean", required=True, help="prompt")
    verb.add_argument("--corrupt", required=True, nargs="+", metavar="TEXT", help="prompts with as many tokens")
    verb.add_argument("--layers", type=int, nargs="+", help="of heads that are looked at (default: the first third)")
    verb.add_argument("--draws", type=int, help="random tokens beside each (default: 128, or as many as there are)")
    verb.add_argument("--seed", type=int, default=0, help="seed of the ordinary tokens that are drawn")
    verb.add_argument("--revision", default="", help="revision of the model, for one with checkpoints")


def compare_tokens(options: argparse.Namespace) -> None:
    """Corrupt prompts have no names in a shell but themselves."""
    corrupt = {text: text for text in options.corrupt}
    asked = asked_of(options, ("clean", "layers", "draws", "seed", "revision"))
    with lab_of(options) as lab:
        show(options, lab.compare_tokens(options.model, corrupt=corrupt, **asked))
