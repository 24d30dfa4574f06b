"""The verbs that fill the store: capture what a model shows, encode stored vectors with SAEs, and stop either."""

import argparse
import sys
from dataclasses import asdict
from typing import Any, get_args

from actstore._cli.options import add_options, add_verb, asked_of, lab_of, options_of, say, warn
from actstore._errors import refused
from actstore._lab import Lab
from actstore._runs.run import Capture, sae_findings
from actstore._runs.specification import Batching, Dataset
from actstore_api.records.capture import CaptureSpecification, DatasetOptions, DatasetReference, Positions
from actstore_api.records.terms import Dtype

POSITIONS_HELP = "last, every:STRIDE, random:FRACTION[:SEED] or active:SAE:FEATURE"
# Of lab.capture, of its Dataset and of its Batching.
ASKED: dict[str, dict[str, Any]] = {
    "dataset": {"required": True, "help": "name of the dataset; actstore datasets lists them"},
    "dense_sites": {"nargs": "+", "default": [], "help": "stored as whole vectors: resid_post, or resid_post.2"},
    "norm_sites": {"nargs": "+", "help": "sites whose L2 norms are stored (default: every site)"},
    "revision": {"default": "", "help": "revision of the model, for one with checkpoints"},
    "run": {"help": "name of the run (default: made from model, dataset and options)"},
    "dtype": {"default": "float32", "choices": get_args(Dtype), "help": "element type that the model computes in"},
    **options_of(CaptureSpecification),
    **options_of(DatasetReference),
}
OF_DATASET = tuple(options_of(DatasetOptions))


def add_capture(verbs: Any) -> None:
    verb = add_verb(verbs, capture, "run a model over text and store what it shows")
    verb.add_argument("model", help="name of the model")
    add_options(verb, ASKED)
    verb.add_argument("--revisions", nargs="+", help="capture each of these; --run names RUN-REVISION")
    verb.add_argument("--positions", help=f"whose vectors are stored: {POSITIONS_HELP} (default: all)")
    verb.add_argument(
        "--estimate", action="store_true", help="print tokens, bytes by product and seconds; store nothing"
    )
    _add_following(verb)


def capture(options: argparse.Namespace) -> None:
    asked = _asked(options)
    with lab_of(options) as lab:
        if options.revisions:
            _capture_revisions(options, lab, asked)
            return
        if options.estimate:
            estimate = lab.estimate_capture(options.model, **asked)
            say(options, asdict(estimate), repr(estimate))
            return
        _follow(options, lab.capture(options.model, **asked))


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of lab.capture."""
    asked = asked_of(options, ASKED) | {"positions": _positions(options)}
    asked["dataset"] = Dataset(asked["dataset"], **{name: asked.pop(name) for name in OF_DATASET})
    return asked | {"batching": Batching(packing=asked.pop("packing"))}


def _capture_revisions(options: argparse.Namespace, lab: Lab, asked: dict[str, Any]) -> None:
    if asked.pop("revision") or options.estimate:
        given = "estimate" if options.estimate else "revision"
        raise refused(f"--{given} is of one revision, and --revisions of several", given, "given", "one of the two")
    started = lab.capture_revisions(options.model, options.revisions, **asked)
    if not options.no_wait:
        started.wait(check_saes=False)
    found = {"runs": list(started.runs)}
    say(options, found, "\n".join(started.runs))


def _positions(options: argparse.Namespace) -> Positions | None:
    """Reads --positions: last, every:4, random:0.1 or random:0.1:SEED, active:SAE:FEATURE."""
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


def add_encode(verbs: Any) -> None:
    verb = add_verb(verbs, encode, "run SAEs over a run's stored vectors, without its model, as a new run")
    verb.add_argument("run", help="name of the run")
    verb.add_argument("saes", nargs="+", metavar="sae", help="names of the SAEs")
    verb.add_argument("--run", dest="new_run", metavar="NAME", help="name of the new run (default: made as in capture)")
    _add_following(verb)


def encode(options: argparse.Namespace) -> None:
    with lab_of(options) as lab:
        _follow(options, lab.run(options.run).encode(options.saes, run=options.new_run))


def _add_following(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--no-wait", action="store_true", help="return as soon as the capture is accepted")
    verb.add_argument("--no-check", action="store_true", help="do not look whether the SAEs are right for the model")


def _follow(options: argparse.Namespace, started: Capture) -> None:
    """Wait for the end, unless told otherwise, and say what became of the run."""
    if options.no_wait:
        say(options, {"run": started.run}, repr(started))
        return
    run = started.wait(check_saes=False)
    if started.dataset_files.note:
        print(f"actstore: {started.dataset_files.note}", file=sys.stderr)
    warnings = [] if options.no_check else list(sae_findings(run))
    warn(warnings)
    facts = {"run": run.name, "complete": run.complete, "tokens": run.tokens_committed, "warnings": warnings}
    facts["dataset_files"] = asdict(started.dataset_files)
    say(options, facts, repr(run))


def add_cancel(verbs: Any) -> None:
    verb = add_verb(verbs, cancel, "stop a capture; what is committed stays readable")
    verb.add_argument("run", help="name of the run")


def cancel(options: argparse.Namespace) -> None:
    with lab_of(options) as lab:
        news = lab.attach(options.run).cancel()
    text = f"{news.run}: {news.state}, {news.shards_committed} of {news.shards_total} shards stay readable"
    say(options, {"run": news.run, "state": news.state, "tokens": news.tokens_committed}, text)
