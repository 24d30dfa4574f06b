"""`python -m actstore_worker.training RUN SITE`: trains SAEs on a run's stored rows, and registers them in its store.

Several widths or sparsities form a grid, whose trainings run in parallel on Ray. Running the same command again
continues where it stopped. Exit status: 0 all were trained, 1 some were not, 2 nothing was started. Only this module
reads the environment.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from actstore_api.logs.traces import carried, end_traces, received, start_traces
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError
from actstore_storage.settings.store import absolute
from actstore_worker.cluster.joining.process import prepare_ray, reserve_standard_output
from actstore_worker.errors import SettingsError
from actstore_worker.settings import read_trainer, s3_without_keys
from actstore_worker.training.advice import warnings_of
from actstore_worker.training.grid import DEFAULT_SPARSITY, Grid, trainings
from actstore_worker.training.job import Job, run_in_process_of_its_own, run_job
from actstore_worker.training.recipe import CHECKPOINT_STEPS, SPARSITY, Training

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
_EPILOG = """\
The store is ACTSTORE_STORE, a folder or s3://bucket/prefix, reached with ACTSTORE_S3_ENDPOINT and so on, as the workers
reach it. `actstore train-sae` also takes --store instead of that, and knows the store of a stack that runs here; with
--encode it has a service (--address) encode the run with what was trained."""
# Fields of Training that the command line sets directly.
_OPTIONS = ("batch_rows", "learning_rate", "seed", "normalise", "held_out_every", "dead_after_steps")


def main(arguments: Sequence[str] | None = None) -> int:
    options = trainer_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same end as for Ctrl-C
    start_traces("training", os.environ)
    with os.fdopen(reserve_standard_output(), "w", buffering=1) as output:
        try:
            jobs = _jobs(options)
            for warning in dict.fromkeys(warning for job in jobs for warning in warnings_of(job.training)):
                print(f"actstore: warning: {warning}", file=sys.stderr, flush=True)
            with received("training/TrainSaes", {}) as span:
                status = _run(jobs, _Teller(output, options.json, options.result))
                span.note(failed=status != DONE)
            return status
        except SettingsError as error:
            print(f"actstore: {error}", file=sys.stderr)
            return REFUSED
        except ActstoreError as error:
            print(f"actstore: {_in_words(error)}", file=sys.stderr)
            return REFUSED
        except KeyboardInterrupt:
            print("actstore: interrupted; run the same command to continue from the last checkpoint", file=sys.stderr)
            return INTERRUPTED
        finally:
            end_traces()


def _jobs(options: argparse.Namespace) -> list[Job]:
    settings = read_trainer(os.environ)
    store, s3 = absolute(settings.store, settings.s3)
    chosen = {name: getattr(options, name) for name in _OPTIONS} | {"exclude": tuple(options.exclude)}
    grid = Grid(
        run=options.run,
        site=options.site,
        architecture=options.architecture,
        widths=options.width,
        sparsities={"k": options.k, "l1": options.l1, "l0": options.l0},
        name=options.name,
        rows=options.rows,
        options=chosen,
    )
    found = trainings(open_bucket(store, s3), grid)
    return [Job(store, s3, one, options.checkpoint_steps, settings.log_form) for one in found]


def _run(jobs: list[Job], teller: "_Teller") -> int:
    outcomes = [_alone(jobs[0], teller)] if len(jobs) == 1 else _side_by_side(jobs, teller)
    teller.end(jobs, outcomes)
    return FAILED if any(isinstance(outcome, Exception) for outcome in outcomes) else DONE


def _side_by_side(jobs: list[Job], teller: "_Teller") -> list[Any]:
    """Jobs travel through Ray, which keeps copies, so the keys of an S3 store do not travel with them."""
    settings = read_trainer(os.environ)
    prepare_ray(os.environ, settings.ray_address)  # before Ray is imported, which reads it then
    from actstore_worker.cluster.tasks import side_by_side

    with TemporaryDirectory(prefix="actstore-") as folder:
        here = Path(folder) if settings.ray_address is None else None
        s3 = s3_without_keys(jobs[0].s3, here)
        sent = [replace(job, s3=s3, headers=carried()) for job in jobs]
        cluster = settings.ray_address, settings.ray_isolated_by
        return side_by_side(run_in_process_of_its_own, sent, teller.progress, *cluster)


def _alone(job: Job, teller: "_Teller") -> Any:
    try:
        return run_job(replace(job, headers=carried()), teller.progress)
    except ActstoreError as error:
        return error


class _Teller:
    """Prints progress: for people a line now and then, and a table at the end; for programs lines of JSON."""

    def __init__(self, output: TextIO, as_json: bool, result: Path | None) -> None:
        self._json, self._result = as_json, result
        self._print = partial(print, file=output, flush=True)

    def progress(self, now: Any) -> None:
        if self._json:
            self._print(json.dumps({"progress": asdict(now)}))
            return
        self._print(
            f"{now.name}  step {now.step:,} of {now.steps:,}  rows {now.rows:,} ({now.rows_per_second:,.0f}/s)  "
            f"loss {now.loss:.4g}  L0 {now.l0:.1f}  FVU {now.fvu:.3f}  "
            f"dead {'not counted yet' if now.dead is None else format(now.dead, ',')}"
        )

    def end(self, jobs: list[Job], outcomes: Sequence[Any]) -> None:
        found = [_row(job.training, outcome) for job, outcome in zip(jobs, outcomes, strict=True)]
        if self._result is not None:
            self._result.write_text(json.dumps({"trained": found}))
        if self._json:
            self._print(json.dumps({"trained": found}))
            return
        width = max(len(row["name"]) for row in found)
        self._print(f"\n{'SAE':<{width}}  {'L0':>8}  {'FVU':>7}  {'dead':>7}  {'seconds':>8}")
        for row in found:
            if "failed" in row:
                self._print(f"{row['name']:<{width}}  failed: {row['failed']['message']}")
            else:
                numbers = [_number(row.get("l0"), "8.1f"), _number(row.get("fvu"), "7.4f")]
                self._print("  ".join([f"{row['name']:<{width}}", *numbers, *_rest(row)]))


def _in_words(error: ActstoreError) -> str:
    allowed = error.details.get("allowed")
    return f"{error.message}\n  allowed: {allowed}" if allowed else error.message


def _row(training: Training, outcome: Any) -> dict[str, Any]:
    """One row: the result on held-out rows, or the error."""
    found: dict[str, Any] = {
        "name": training.name,
        "run": training.run,
        "architecture": training.architecture,
        "width": training.width,
        SPARSITY[training.architecture]: training.sparsity,
    }
    if isinstance(outcome, ActstoreError):
        return found | {"failed": {"reason": outcome.reason, "message": outcome.message, **outcome.details}}
    if isinstance(outcome, Exception):
        return found | {"failed": {"reason": "INTERNAL", "message": repr(outcome)}}
    quality = {} if outcome.quality is None else asdict(outcome.quality)
    return found | {"sha256": outcome.sha256, "rows": outcome.rows, "seconds": outcome.seconds} | quality


def _rest(row: dict[str, Any]) -> list[str]:
    return [_number(row.get("dead_share"), "7.1%"), _number(row["seconds"], "8.0f")]


def _number(value: float | None, how: str) -> str:
    return f"{'-':>{how.split('.')[0]}}" if value is None else format(value, how)


def trainer_parser() -> argparse.ArgumentParser:
    """Returns the parser of the trainer's own options; the reference of the command is written from it."""
    parser = argparse.ArgumentParser(
        prog="actstore train-sae",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    given = {field.name: field.default for field in fields(Training)}
    starts = ", ".join(f"{name} {value:g}" for name, value in DEFAULT_SPARSITY.items())
    parser.add_argument("run", help="name of a complete run that stores the site")
    parser.add_argument("site", help="site to train on, such as resid_post.3")
    parser.add_argument("--architecture", default="topk", help=f"one of {', '.join(SPARSITY)} (default: topk)")
    parser.add_argument(
        "--width", type=int, nargs="+", required=True, help="number of features (d_sae); several values train a grid"
    )
    parser.add_argument(
        "--k", type=float, nargs="+", default=[], help="active features per row (topk: exactly; batchtopk: on average)"
    )
    penalty = "the squared error is summed over a row's d elements: multiply coefficients for averaged errors by d"
    parser.add_argument("--l1", type=float, nargs="+", default=[], help=f"L1 coefficient (standard, gated); {penalty}")
    parser.add_argument("--l0", type=float, nargs="+", default=[], help="L0 coefficient (jumprelu)")
    parser.add_argument(
        "--name",
        default="",
        help=f"name of the SAE (default: made from the other arguments); default sparsity: {starts}",
    )
    parser.add_argument(
        "--rows", type=int, help="rows to train on in total, over several epochs if needed (default: one epoch)"
    )
    for name in ("batch_rows", "learning_rate", "seed", "held_out_every", "dead_after_steps"):
        kind = float if name == "learning_rate" else int
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=given[name], help="(default: %(default)s)")
    parser.add_argument("--exclude", nargs="*", default=["bos"], help="token classes to leave out (default: bos)")
    parser.add_argument(
        "--no-normalise", dest="normalise", action="store_false", help="train on rows without rescaling them"
    )
    parser.add_argument("--checkpoint-steps", type=int, default=CHECKPOINT_STEPS, help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON per progress report and at the end")
    parser.add_argument("--result", type=Path, metavar="FILE", help="also write the last line of JSON to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
