"""The verbs of SAE features: the page of one, the search for some, and whether an SAE is right for its model."""

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from actstore._cli.options import DONE, UNSOUND, add_exclude, add_plot, add_verb, asked_of, lab_of, show
from actstore._errors import refused
from actstore_api.records.feature import ActiveFeatureOrder, FeatureStatistic, SampleExamples
from actstore_api.records.sae import CheckSae

STATISTICS, ACTIVE_ORDERS = get_args(FeatureStatistic), get_args(ActiveFeatureOrder)


def add_feature(verbs: Any) -> None:
    verb = add_verb(verbs, feature, "the page of an SAE feature: what makes it fire, how often, and what it writes")
    verb.add_argument("run", help="name of the run")
    verb.add_argument("sae", help="name of the SAE")
    verb.add_argument("index", type=int, help="index of the feature, from 0")
    verb.add_argument(
        "-k", type=int, default=SampleExamples.k, help="examples of a kind at most (default: %(default)s)"
    )
    verb.add_argument("--stored-only", action="store_true", help="leave out what a model has to answer")
    verb.add_argument("--html", type=Path, metavar="FILE.html", help="write the page for a browser")
    add_exclude(verb)
    add_plot(verb)


def feature(options: argparse.Namespace) -> None:
    with lab_of(options) as lab:
        asked = lab.run(options.run).feature(options.sae, options.index)
        page = asked.page(options.k, exclude=options.exclude, live=not options.stored_only)
    if options.html is not None:
        page.save_html(options.html)
        print(f"page: {options.html}", file=sys.stderr)
    show(options, page)


def add_features(verbs: Any) -> None:
    verb = add_verb(verbs, features, "find features by statistics, or by a text or token on which they fire")
    verb.add_argument("run", help="name of the run")
    verb.add_argument("sae", help="name of the SAE")
    chosen = verb.add_mutually_exclusive_group()
    text = "most active first, relative to density; runs a model; --density is the only bound"
    chosen.add_argument("--text", help=text)
    chosen.add_argument("--token", help="an id, or a text of one token, which runs a model; takes no bounds")
    for name in STATISTICS:
        option = f"--{name.replace('_', '-')}"
        verb.add_argument(option, type=_bound, nargs=2, metavar=("LOW", "HIGH"), help="both included; - for no bound")
    orders = f"of {', '.join(STATISTICS)}; with --text or --token of {', '.join(ACTIVE_ORDERS)}"
    verb.add_argument("--order", help=orders)
    verb.add_argument("--ascending", action="store_true", help="smallest first")
    verb.add_argument("--with-token-r2", action="store_true", help="show it, though no bound asks for it")
    verb.add_argument("-k", type=int, default=SampleExamples.k, help="features at most (default: %(default)s)")
    add_exclude(verb)


def _bound(value: str) -> float | None:
    return None if value == "-" else float(value)


def features(options: argparse.Namespace) -> None:
    bounds = {name: bound for name, bound in asked_of(options, STATISTICS).items() if bound is not None}
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
        message = f"with --text or --token, features cannot be searched by {name}"
        raise refused(message, name, value, allowed)


def add_check_sae(verbs: Any) -> None:
    verb = add_verb(verbs, check_sae, "is an SAE right for its model? exit status 3 where it does not look so")
    verb.add_argument("run", help="name of the run")
    verb.add_argument("sae", help="name of the SAE")
    verb.add_argument(
        "--n-tokens",
        type=int,
        default=CheckSae.tokens,
        help="about how many stored tokens to look at (default: %(default)s)",
    )


def check_sae(options: argparse.Namespace) -> int:
    with lab_of(options) as lab:
        checked = lab.run(options.run).features(options.sae).check(options.n_tokens, warn=False)
    show(options, checked)
    return UNSOUND if checked.warnings else DONE
