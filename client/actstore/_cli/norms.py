"""`actstore norms`: of one run, of several side by side, and how they grow."""

import argparse
from functools import partial
from typing import Any, get_args

from actstore._cli.options import add_exclude, add_plot, add_verb, asked_of, lab_of, save, say
from actstore._errors import refused
from actstore._lab import Lab
from actstore._norms.answer import POSITION_0, SIZES
from actstore._norms.growth import plot_growth
from actstore._norms.profiles import drawn_kind
from actstore_api.records.norm import GetNormProfile, NormGrouping, NormQuantity


def add_norms(verbs: Any) -> None:
    verb = add_verb(verbs, norms, "L2 norms by site and layer, and how they grow")
    verb.add_argument("run", help="name of the run")
    verb.add_argument("more", nargs="*", metavar="run", help="growth of several, each by itself; with --by, norms")
    verb.add_argument("--sites", nargs="+", help="site kinds or sites (default: all of the run)")
    fit = "fit the growth of a site kind; of several runs also of one site, as resid_post.3, over their training"
    verb.add_argument("--fit", nargs="?", const="resid_post", metavar="SITE", help=fit)
    verb.add_argument("--layers", type=int, nargs=2, metavar=("FIRST", "LAST"), help="of the fit, both included")
    by = "what rows are of (default: layer); of several runs, side by side, and are layer and checkpoint separable"
    verb.add_argument("--by", choices=get_args(NormGrouping), help=by)
    only = "of norms by token: FIRST:END, FIRST:, or one alone"
    verb.add_argument("--sequences", type=_sequences, metavar="FIRST:END", help=only)
    verb.add_argument(
        "--steps", type=float, nargs="+", help="of training, one a run (default: of the revisions' names)"
    )
    verb.add_argument("--quantity", choices=get_args(NormQuantity), default="l2", help="default: l2")
    verb.add_argument("--exact", action="store_true", help="quantiles of every token's own norm, not of sketches")
    add_exclude(verb, POSITION_0)
    add_plot(verb)


def norms(options: argparse.Namespace) -> None:
    with lab_of(options) as lab:
        if options.more or (options.by and options.steps):
            if options.sequences:
                asked = f"of {1 + len(options.more)} runs"
                raise refused("norms by token are of one run", "sequences", asked, "one run, --by token")
            (_norms_of_several if options.by else _growth_of_several)(options, lab)
            return
        if options.steps:
            allowed = "runs of other revisions beside it, or --by checkpoint"
            raise refused("a profile of one run has no steps of training", "steps", options.steps, allowed)
        profile = lab.run(options.run).norms(options.sites, sequences=options.sequences, **_asked(options))
        growth = profile.fit_growth(options.fit, options.layers) if options.fit else None
        save(options, profile.plot, fit=options.fit)
    answers = [profile] if growth is None else [profile, growth]
    names = ("profile", "growth")
    found = {name: answer.to_dict() for name, answer in zip(names, answers, strict=False)}
    say(options, found, "\n\n".join(map(repr, answers)))


def _sequences(value: str) -> slice:
    first, colon, end = value.partition(":")
    try:
        start = int(first or 0)
        return slice(start, (int(end) if end else None) if colon else start + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not FIRST:END, FIRST: or one number, as 0:4") from None


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    return asked_of(options, ("exclude", "quantity", "exact")) | {"by": options.by or GetNormProfile.by}


def _growth_of_several(options: argparse.Namespace, lab: Lab) -> None:
    """A single site is followed over training, and a kind of site over the layers of each run."""
    if options.sites:
        allowed = "--fit with a site kind or a site; with --by, norms of several runs at --sites"
        raise refused("growth of several runs is of one kind or site", "sites", options.sites, allowed)
    if options.exact:
        raise refused("growth is of means, which are exact", "exact", "given", "with --by, norms of several runs")
    runs, site = [options.run, *options.more], options.fit or "resid_post"
    asked = {"site": site, "layers": options.layers, "exclude": options.exclude, "quantity": options.quantity}
    if "." in site:
        answers = [lab.fit_growth(runs, "checkpoint", steps=options.steps, **asked)]
    else:
        answers = [lab.fit_growth(run, steps=options.steps, **asked) for run in runs]
    save(options, partial(plot_growth, answers))
    say(options, {"growth": [answer.to_dict() for answer in answers]}, "\n\n".join(map(repr, answers)))


def _norms_of_several(options: argparse.Namespace, lab: Lab) -> None:
    """Side by side, and where both axes are there, whether they change norms apart from each other."""
    checkpoints = lab.checkpoints([options.run, *options.more], options.steps)
    found: dict[str, Any] = {"profile": checkpoints.norms(options.sites, **_asked(options))}
    save(options, found["profile"].plot, fit=options.fit)
    if options.by in ("layer", "checkpoint") and options.quantity in SIZES:
        kind = drawn_kind(found["profile"].table["site"].to_pylist(), options.fit)
        over = {"exclude": options.exclude, "quantity": options.quantity}
        found["separability"] = checkpoints.separability(kind, options.layers, **over)
    say(options, {name: answer.to_dict() for name, answer in found.items()}, "\n\n".join(map(repr, found.values())))
