"""`actstore norms`: the norms of one run or of several side by side, and how they grow."""

import argparse
from collections.abc import Iterable
from functools import partial
from typing import Any, get_args

from actstore._cli.options import add_exclude, add_plot, add_verb, asked_of, lab_of, save, say
from actstore._errors import refused
from actstore._lab import Lab
from actstore._norms.answer import POSITION_0, SIZES, NormAnswer
from actstore._norms.asking import NormGrouping
from actstore._norms.growth import Growth, plot_growth
from actstore._norms.profiles import drawn_kind
from actstore._runs.run import Run
from actstore_api.records.norm import NormQuantity

CHECKPOINT, TOKEN = "checkpoint", "token"


def add_norms(verbs: Any) -> None:
    verb = add_verb(verbs, norms, "L2 norms by site and layer, and how they grow")
    verb.add_argument("run", help="name of the run")
    verb.add_argument("more", nargs="*", metavar="run", help="growth of several, each by itself; with --by, norms")
    verb.add_argument("--sites", nargs="+", help="site kinds or sites (default: all of the run)")
    fit = "fit the growth of a site kind; for several runs also of one site, as resid_post.3, over training"
    verb.add_argument("--fit", nargs="?", const="resid_post", metavar="SITE", help=fit)
    layers = "layers of the fit, side by side: 1 2 3, or FIRST:END without END, as 1:4 (default: all)"
    verb.add_argument("--layers", type=_range, nargs="+", metavar="LAYER", help=layers)
    by = "what a row is for (default: layer); for several runs, side by side, with separability"
    verb.add_argument("--by", choices=(*get_args(NormGrouping), TOKEN, CHECKPOINT), help=by)
    only = "with --by token: FIRST:END without END, FIRST:, or one alone"
    verb.add_argument("--sequences", type=_sequences, metavar="FIRST:END", help=only)
    verb.add_argument(
        "--steps", type=float, nargs="+", help="training step of each run (default: from the revisions' names)"
    )
    verb.add_argument("--quantity", choices=get_args(NormQuantity), default="l2", help="default: l2")
    verb.add_argument("--exact", action="store_true", help="quantiles of every token's own norm, not of sketches")
    add_exclude(verb, POSITION_0)
    add_plot(verb)


def norms(options: argparse.Namespace) -> None:
    _check(options)
    with lab_of(options) as lab:
        if options.more or options.by == CHECKPOINT:
            (_norms_of_several if options.by else _growth_of_several)(options, lab)
        else:
            _norms_of_one(options, lab.run(options.run))


def _check(options: argparse.Namespace) -> None:
    """What options say of each other. Errors: BadRequest."""
    several = bool(options.more)
    if (options.by == TOKEN) != (options.sequences is not None) or (several and options.by == TOKEN):
        given = f"of {1 + len(options.more)} runs" if several else options.by or "layer"
        allowed = "--by token --sequences 0:4, of one run"
        raise refused("norms by token need one run and --sequences", "sequences", given, allowed)
    if options.steps and not several and options.by != CHECKPOINT:
        allowed = "runs of other revisions beside it, or --by checkpoint"
        raise refused("a profile of one run has no steps of training", "steps", options.steps, allowed)


def _norms_of_one(options: argparse.Namespace, run: Run) -> None:
    found: dict[str, NormAnswer] = {}
    over = asked_of(options, ("quantity", "exclude"))
    growth = run.fit_growth(options.fit, layers=_layers(options), **over) if options.fit else None
    if options.by == TOKEN:
        tokens = run.token_norms(options.sequences, options.sites, **over)
        save(options, tokens.plot, site=options.fit)
        found["profile"] = tokens
    else:
        profile = run.norms(options.sites, by=options.by or "layer", exact=options.exact, **over)
        save(options, profile.plot, site=options.fit, growth=growth)
        found["profile"] = profile
    _say(options, found if growth is None else {**found, "growth": growth})


def _say(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Each answer by its name, or one after another."""
    say(options, {name: answer.to_dict() for name, answer in found.items()}, "\n\n".join(map(repr, found.values())))


def _sequences(value: str) -> slice:
    first, colon, end = value.partition(":")
    try:
        start = int(first or 0)
        return slice(start, (int(end) if end else None) if colon else start + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not FIRST:END, FIRST: or one number, as 0:4") from None


def _range(value: str) -> Iterable[int]:
    first, colon, end = value.partition(":")
    try:
        return range(int(first), int(end) if colon else int(first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a layer or FIRST:END, as 3 or 1:4") from None


def _layers(options: argparse.Namespace) -> list[int] | None:
    return None if options.layers is None else [layer for some in options.layers for layer in some]


def _growth_of_several(options: argparse.Namespace, lab: Lab) -> None:
    """A single site is followed over training, and a kind of site over the layers of each run."""
    if options.sites:
        allowed = "--fit with a site kind or a site; with --by, norms of several runs at --sites"
        raise refused("growth of several runs takes --fit in place of --sites", "sites", options.sites, allowed)
    if options.exact:
        message = "growth is fitted to means, which are always exact"
        raise refused(message, "exact", "given", "with --by, norms of several runs")
    answers = _fits(options, lab, options.fit or "resid_post", asked_of(options, ("exclude", "quantity")))
    save(options, partial(plot_growth, answers))
    say(options, {"growth": [answer.to_dict() for answer in answers]}, "\n\n".join(map(repr, answers)))


def _fits(options: argparse.Namespace, lab: Lab, site: str, over: dict[str, Any]) -> list[Growth]:
    runs, layers = [options.run, *options.more], _layers(options)
    kind, dot, layer = site.rpartition(".")
    if dot:
        if layers is not None:
            raise refused("growth over training needs one site", "layers", layers, "none, and a site: resid_post.3")
        if not layer.isdecimal():
            raise refused(f"{site!r} is not a site", "fit", site, "resid_post, or a site of it as resid_post.3")
        return lab.checkpoints(runs, options.steps).fit_growth("checkpoint", kind, layers=[int(layer)], **over)
    if options.steps:
        message = "--steps is for growth over training, which needs one site"
        raise refused(message, "steps", options.steps, "--fit with a site: resid_post.3")
    return [lab.run(run).fit_growth(site, layers=layers, **over) for run in runs]


def _norms_of_several(options: argparse.Namespace, lab: Lab) -> None:
    """Side by side, and where both axes are there, whether they change norms apart from each other."""
    by: NormGrouping = "layer" if options.by == CHECKPOINT else options.by
    checkpoints = lab.checkpoints([options.run, *options.more], options.steps)
    over = asked_of(options, ("exclude", "quantity"))
    profile = checkpoints.norms(options.sites, by=by, exact=options.exact, **over)
    save(options, profile.plot, site=options.fit)
    found: dict[str, NormAnswer] = {"profile": profile}
    if by == "layer" and options.quantity in SIZES and options.more:
        kind = drawn_kind(profile.table["site"].to_pylist(), options.fit)
        found["separability"] = checkpoints.separability(kind, layers=_layers(options), **over)
    _say(options, found)
