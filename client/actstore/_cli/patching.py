"""The verbs of activation patching: sweep over the cells of two prompts, and compare the tokens that differ in them."""

import argparse
from dataclasses import asdict
from typing import Any, get_args

from actstore._cli.options import add_options, add_plot, add_verb, asked_of, lab_of, say, show
from actstore_api.records.patching import PatchDirection, PatchPositions, PatchSource, PathMlps, SaeError

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
    "source_run": {"default": "", "help": "of mean and resample: the run whose rows are taken"},
    "sae": {"default": "", "help": "patch the features of this SAE"},
    "features": {"type": int, "nargs": "+", "help": "of the SAE; default: all that are active"},
    "sae_error": {
        "choices": get_args(SaeError),
        "default": "kept",
        "help": "what becomes of what the SAE leaves unexplained",
    },
    "receivers": {
        "nargs": "+",
        "help": "path patching: sites send to these alone: q.9.6, k.9, v.9, mlp_in.3, or logits",
    },
    "path_mlps": {"choices": get_args(PathMlps), "default": "recomputed", "help": "between the two"},
    "screen": {"type": int, "metavar": "CELLS", "help": "estimate all cells, compute these many of the largest"},
    "grad_drop": {"action": "store_true", "help": "of a screen: see effects that cancel"},
    "fresh": {"action": "store_true", "help": "compute it again, even where the answer was kept"},
    "directions": {"nargs": "+", "choices": get_args(PatchDirection), "help": "default: both"},
    "revision": {"default": "", "help": "revision of the model, for one with checkpoints"},
}


def add_patch(verbs: Any) -> None:
    verb = add_verb(verbs, patch, "replace one activation at a time and see how far the answer moves")
    verb.add_argument("model", help="name of the model")
    add_options(verb, ASKED)
    verb.add_argument(
        "--span",
        nargs=3,
        metavar=("NAME", "CLEAN", "CORRUPT"),
        action="append",
        default=[],
        help="text of each prompt that plays the same part, in place of positions; may be repeated",
    )
    verb.add_argument("--dry-run", action="store_true", help="print cells, token-layers, bytes and seconds; run none")
    add_plot(verb)


def patch(options: argparse.Namespace) -> None:
    asked = asked_of(options, ASKED)
    asked["spans"] = {name: (clean, corrupt) for name, clean, corrupt in options.span}
    with lab_of(options) as lab:
        if options.dry_run:
            estimate = lab.estimate_patch(options.model, **asked)
            say(options, asdict(estimate), repr(estimate))
            return
        sweep = lab.patch(options.model, **asked)
    show(options, sweep)


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
