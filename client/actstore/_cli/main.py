"""The command `actstore`: the client's calls from a shell. Tables for people; with --json one object for machines.

Exit status: 0 done, 1 refused or failed (one block on stderr says why, and the next step), 2 not a command, 3 a store
that `fsck` finds unsound, an SAE that `check-sae` finds wrong or a stack that `status` finds down, 130 Ctrl-C.
ACTSTORE_ADDRESS and ACTSTORE_TOKEN say where to ask, as for actstore.connect().
"""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actstore import _checks as _arguments
from actstore._cli.listings import add_listings
from actstore._cli.norms import add_norms
from actstore._cli.options import (
    DONE,
    FAILED,
    INTERRUPTED,
    UNSOUND,
    add_exclude,
    add_plot,
    add_verb,
    lab_of,
    say,
    show,
)
from actstore._cli.stack import add_stack
from actstore._cli.train import train_sae
from actstore._cli.upkeep import add_upkeep
from actstore._errors import ActstoreError, refused
from actstore._features.features import CHECKED_TOKENS
from actstore._lab import Lab
from actstore._questions import ACTIVE_ORDERS, DEFAULT_EXAMPLES, STATISTICS
from actstore._records import Positions
from actstore._runs.capture import Capture, sae_findings
from actstore._view import text as _text

POSITIONS_HELP = "last, every:STRIDE, random:FRACTION[:SEED] or active:SAE:FEATURE"
CAPTURE_OPTIONS = (
    "dataset",
    "sites",
    "norms",
    "saes",
    "revision",
    "context_length",
    "max_tokens",
    "dtype",
    "name",
    "text_field",
    "storage_dtype",
    "widen_on_overflow",
    "packing",
    "tokens_field",
    "max_documents",
    "sink_ratio",
    "source_field",
)
PATCH_OPTIONS = (
    "clean",
    "corrupt",
    "answers",
    "sites",
    "layers",
    "heads",
    "positions",
    "directions",
    "window_layers",
    "source",
    "source_run",
    "sae",
    "features",
    "sae_error",
    "receivers",
    "path_mlps",
    "screen",
    "grad_drop",
    "revision",
    "fresh",
)
TRAIN = "train-sae"


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    _escape_what_cannot_be_said()
    try:
        if given[:1] == [TRAIN]:  # whose options are the trainer's
            return train_sae(given[1:])
        options = _parser().parse_args(given)
        act: Callable[[argparse.Namespace], int | None] = options.act
        return act(options) or DONE
    except ActstoreError as error:
        print(f"actstore: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader left, as `head` does; say nothing more
        return FAILED
    except OSError as error:  # of a file or a stream that the caller named
        print(f"actstore: {error}", file=sys.stderr)
        return FAILED


def _escape_what_cannot_be_said() -> None:
    """Tokens and paths have any characters, and a terminal or a log perhaps only those of ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def capture(options: argparse.Namespace) -> None:
    asked = {name: getattr(options, name) for name in CAPTURE_OPTIONS} | {"positions": _positions(options)}
    with lab_of(options) as lab:
        if options.revisions:
            _capture_revisions(options, lab, asked)
            return
        if options.dry_run:
            estimate = lab.estimate(options.model, **asked)
            say(options, asdict(estimate), repr(estimate))
            return
        _follow(options, lab.capture(options.model, **asked))


def _capture_revisions(options: argparse.Namespace, lab: Lab, asked: dict[str, Any]) -> None:
    if asked.pop("revision") or options.dry_run:
        given = "dry-run" if options.dry_run else "revision"
        raise refused(f"--{given} is of one revision, and --revisions of several", given, "given", "one of the two")
    asked["name"] = asked["name"] or ""
    started = lab.capture_revisions(options.model, options.revisions, **asked)
    if not options.no_wait:
        started.wait(check_saes=False)
    found = {"runs": list(started.run_names)}
    say(options, found, "\n".join(started.run_names))


def encode(options: argparse.Namespace) -> None:
    with lab_of(options) as lab:
        _follow(options, lab.run(options.run).encode(options.saes, name=options.name))


def _follow(options: argparse.Namespace, started: Capture) -> None:
    """To the end, unless told otherwise."""
    if options.no_wait:
        say(options, {"run": started.run_name}, repr(started))
        return
    run = started.wait(check_saes=False)
    if started.dataset_files.note:
        print(f"actstore: {started.dataset_files.note}", file=sys.stderr)
    warnings = [] if options.no_check else list(sae_findings(run))
    for warning in warnings:
        print("\n".join(map(_text.line, f"actstore: {warning}".splitlines())), file=sys.stderr)
    facts = {"run": run.name, "complete": run.complete, "tokens": run.tokens_committed, "warnings": warnings}
    facts["dataset_files"] = asdict(started.dataset_files)
    say(options, facts, repr(run))


def _positions(options: argparse.Namespace) -> Positions | None:
    """Of --positions: last, every:4, random:0.1 or random:0.1:SEED, active:SAE:FEATURE."""
    kind, *rest = (options.positions or "all").split(":")
    try:
        match kind, rest:
            case "all", []:
                return None
            case "last", []:
                return Positions.last()
            case "every", [stride]:
                return Positions.every(int(stride))
            case "random", [fraction, *seed] if len(seed) < 2:
                return Positions.random(float(fraction), int(seed[0]) if seed else 0)
            case "active", [sae, feature]:
                return Positions.active(sae, int(feature))
    except ValueError:
        pass
    raise refused(f"--positions {options.positions!r} is not known", "positions", options.positions, POSITIONS_HELP)


def cancel(options: argparse.Namespace) -> None:
    with lab_of(options) as lab:
        news = lab.attach(options.run).cancel()
    text = f"{news.run}: {news.state}, {news.shards_committed} of {news.shards_total} shards stay readable"
    say(options, {"run": news.run, "state": news.state, "tokens": news.tokens_committed}, text)


def feature(options: argparse.Namespace) -> None:
    with lab_of(options) as lab:
        asked = lab.run(options.run).feature(options.sae, options.index)
        page = asked.page(options.k, exclude=options.exclude, live=not options.stored_only)
    if options.html is not None:
        page.save_html(options.html)
        print(f"page: {options.html}", file=sys.stderr)
    show(options, page)


def features(options: argparse.Namespace) -> None:
    bounds = {name: getattr(options, name) for name in STATISTICS if getattr(options, name) is not None}
    asked: dict[str, Any] = {"k": options.k, "exclude": options.exclude}
    if options.order is not None:
        asked["order"] = options.order
    with lab_of(options) as lab:
        every = lab.run(options.run).features(options.sae)
        if options.text is not None:
            density = bounds.pop("density", None)
            _no_bounds(bounds)
            found = every.by_text(options.text, density=density, **asked)
        elif options.token is not None:
            _no_bounds(bounds)
            token = int(options.token) if options.token.isdecimal() else options.token
            found = every.by_token(token, **asked)
        else:
            bounds |= {"ascending": options.ascending, "with_token_r2": options.with_token_r2}
            found = every.search(**bounds, **asked)
    show(options, found)


def _no_bounds(bounds: dict[str, Any]) -> None:
    for name, value in bounds.items():
        allowed = "with --text: --density; with --token: none"
        raise refused(f"features of a text or token are not searched by {name}", name, value, allowed)


def check_sae(options: argparse.Namespace) -> int:
    with lab_of(options) as lab:
        checked = lab.run(options.run).features(options.sae).check(options.tokens, warn=False)
    show(options, checked)
    return UNSOUND if checked.warnings else DONE


def patch(options: argparse.Namespace) -> None:
    asked = {name: getattr(options, name) for name in PATCH_OPTIONS}
    asked["spans"] = {name: (clean, corrupt) for name, clean, corrupt in options.span}
    with lab_of(options) as lab:
        if options.dry_run:
            estimate = lab.estimate_patch(options.model, **asked)
            say(options, asdict(estimate), repr(estimate))
            return
        sweep = lab.patch(options.model, **asked)
    show(options, sweep)


def compare_tokens(options: argparse.Namespace) -> None:
    """Corrupt prompts have no names in a shell but themselves."""
    corrupt = {text: text for text in options.corrupt}
    asked = {name: getattr(options, name) for name in ("clean", "layers", "draws", "seed", "revision")}
    with lab_of(options) as lab:
        show(options, lab.compare_tokens(options.model, corrupt=corrupt, **asked))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="actstore", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    add_stack(verbs)
    _add_capture(verbs)
    _add_encode(verbs)
    verbs.add_parser(TRAIN, add_help=False, help="train SAEs on a run's stored vectors, one or a sweep of them")
    cancelling = add_verb(verbs, cancel, "stop a capture; what is committed stays readable")
    cancelling.add_argument("run")
    add_listings(verbs)
    _add_feature(verbs)
    _add_features(verbs)
    _add_check_sae(verbs)
    add_norms(verbs)
    _add_patch(verbs)
    _add_compare_tokens(verbs)
    add_upkeep(verbs)
    return parser


def _add_capture(verbs: Any) -> None:
    verb = add_verb(verbs, capture, "run a model over text and store what it shows")
    verb.add_argument("model")
    verb.add_argument("--dataset", required=True)
    verb.add_argument("--sites", nargs="+", default=[], help="stored as whole vectors: resid_post, or resid_post.2")
    verb.add_argument("--norms", nargs="+", help="sites whose L2 norms are stored (default: every site)")
    verb.add_argument("--saes", nargs="+", default=[], help="SAEs whose features are stored")
    verb.add_argument("--revision", default="")
    verb.add_argument("--revisions", nargs="+", help="of several, a run each: with a name, NAME-REVISION")
    verb.add_argument("--name", help="of the run (default: made from model, dataset and specification)")
    verb.add_argument("--context-length", type=int, help="tokens in a sequence (default: the model's)")
    verb.add_argument("--max-tokens", type=int, help="tokens in all (default: the whole dataset)")
    verb.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    verb.add_argument("--storage-dtype", default="", choices=("", "float32", "bfloat16", "float16"), help="of vectors")
    verb.add_argument("--widen-on-overflow", action="store_true", help="store what does not fit as float32")
    verb.add_argument("--packing", action="store_true", help="several sequences to a row of a batch")
    verb.add_argument("--positions", help=f"whose vectors are stored: {POSITIONS_HELP} (default: all)")
    verb.add_argument("--text-field", default="", help="the column of a dataset of tables (default: text)")
    verb.add_argument("--tokens-field", default="", help="the column of token ids, where the dataset has them")
    verb.add_argument("--source-field", default="", help="the column that says where a document comes from, as a URL")
    verb.add_argument("--max-documents", type=int, help="documents in all (default: the whole dataset)")
    verb.add_argument("--sink-ratio", type=float, help="norm of a sink over its sequence's median (default: 10)")
    verb.add_argument(
        "--dry-run", action="store_true", help="print tokens, bytes by product and seconds; store nothing"
    )
    _add_following(verb)


def _add_following(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--no-wait", action="store_true", help="return as soon as the capture is accepted")
    verb.add_argument("--no-check", action="store_true", help="do not look whether the SAEs are right for the model")


def _add_encode(verbs: Any) -> None:
    verb = add_verb(verbs, encode, "run SAEs over a run's stored vectors, without its model, as a new run")
    verb.add_argument("run")
    verb.add_argument("saes", nargs="+", metavar="sae")
    verb.add_argument("--name", help="of the new run (default: made from model, dataset and specification)")
    _add_following(verb)


def _add_feature(verbs: Any) -> None:
    verb = add_verb(verbs, feature, "the page of an SAE feature: what makes it fire, how often, and what it writes")
    verb.add_argument("run")
    verb.add_argument("sae")
    verb.add_argument("index", type=int)
    verb.add_argument(
        "-k", type=int, default=DEFAULT_EXAMPLES, help="examples of a kind at most (default: %(default)s)"
    )
    verb.add_argument("--stored-only", action="store_true", help="leave out what a model has to answer")
    verb.add_argument("--html", type=Path, metavar="FILE.html", help="write the page for a browser")
    add_exclude(verb)
    add_plot(verb)


def _add_features(verbs: Any) -> None:
    verb = add_verb(verbs, features, "find features by statistics, or by a text or token on which they fire")
    verb.add_argument("run")
    verb.add_argument("sae")
    chosen = verb.add_mutually_exclusive_group()
    chosen.add_argument("--text", help="most active first, relative to density; runs a model; of the bounds, --density")
    chosen.add_argument("--token", help="an id, or a text of one token, which runs a model; takes no bounds")
    for name in STATISTICS:
        option = f"--{name.replace('_', '-')}"
        verb.add_argument(option, type=_bound, nargs=2, metavar=("LOW", "HIGH"), help="both included; - for no bound")
    orders = f"of {', '.join(STATISTICS)}; with --text or --token of {', '.join(ACTIVE_ORDERS)}"
    verb.add_argument("--order", help=orders)
    verb.add_argument("--ascending", action="store_true", help="smallest first")
    verb.add_argument("--with-token-r2", action="store_true", help="show it, though no bound asks for it")
    verb.add_argument("-k", type=int, default=DEFAULT_EXAMPLES, help="features at most (default: %(default)s)")
    add_exclude(verb)


def _bound(value: str) -> float | None:
    return None if value == "-" else float(value)


def _add_check_sae(verbs: Any) -> None:
    verb = add_verb(verbs, check_sae, "is an SAE right for its model? exit status 3 where it does not look so")
    verb.add_argument("run")
    verb.add_argument("sae")
    verb.add_argument(
        "--tokens", type=int, default=CHECKED_TOKENS, help="stored tokens to look at (default: %(default)s)"
    )


def _add_compare_tokens(verbs: Any) -> None:
    verb = add_verb(verbs, compare_tokens, "which replaced tokens of corrupt prompts does a model treat unlike others?")
    verb.add_argument("model")
    verb.add_argument("--clean", required=True, help="prompt")
    verb.add_argument("--corrupt", required=True, nargs="+", metavar="TEXT", help="prompts with as many tokens")
    verb.add_argument("--layers", type=int, nargs="+", help="of heads that are looked at (default: the first third)")
    verb.add_argument("--draws", type=int, help="random tokens beside each (default: 128, or as many as there are)")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--revision", default="")


def _add_patch(verbs: Any) -> None:
    verb = add_verb(verbs, patch, "replace one activation at a time and see how far the answer moves")
    verb.add_argument("model")
    verb.add_argument("--clean", required=True, help="prompt")
    verb.add_argument("--corrupt", required=True, help="prompt with as many tokens, unless spans are named")
    verb.add_argument("--answers", required=True, nargs=2, metavar=("CLEAN", "CORRUPT"), help="one token each")
    kinds = "resid_pre, attn_out, resid_mid, mlp_out, resid_post, q, k, v, pattern, z, embedding, features"
    verb.add_argument("--sites", nargs="+", help=f"of {kinds} (default: resid_pre, attn_out, mlp_out, z)")
    verb.add_argument("--layers", type=int, nargs="+", help="default: every layer")
    verb.add_argument("--heads", type=int, nargs="+", help="default: every head")
    verb.add_argument("--positions", choices=_arguments.PATCH_POSITIONS, default="each")
    verb.add_argument("--window-layers", type=int, default=1, help="layers side by side, replaced together")
    verb.add_argument(
        "--span",
        nargs=3,
        metavar=("NAME", "CLEAN", "CORRUPT"),
        action="append",
        default=[],
        help="text of each prompt that plays the same part, in place of positions; may be repeated",
    )
    verb.add_argument("--source", choices=_arguments.PATCH_SOURCES, default="prompt")
    verb.add_argument("--source-run", default="", help="of mean and resample: the run whose rows are taken")
    verb.add_argument("--sae", default="", help="patch the features of this SAE")
    verb.add_argument("--features", type=int, nargs="+", help="of the SAE; default: all that are active")
    verb.add_argument("--sae-error", choices=_arguments.SAE_ERRORS, default="kept")
    verb.add_argument(
        "--receivers", nargs="+", help="path patching: sites send to these alone: q.9.6, k.9, v.9, mlp_in.3, or logits"
    )
    verb.add_argument("--path-mlps", choices=_arguments.PATH_MLPS, default="recomputed", help="between the two")
    verb.add_argument(
        "--screen", type=int, metavar="CELLS", help="estimate all cells, compute these many of the largest"
    )
    verb.add_argument("--grad-drop", action="store_true", help="of a screen: see effects that cancel")
    verb.add_argument("--fresh", action="store_true", help="compute it again, even where the answer was kept")
    verb.add_argument("--dry-run", action="store_true", help="print cells, token-layers, bytes and seconds; run none")
    verb.add_argument("--directions", nargs="+", choices=_arguments.DIRECTIONS, help="default: both")
    verb.add_argument("--revision", default="")
    add_plot(verb)
