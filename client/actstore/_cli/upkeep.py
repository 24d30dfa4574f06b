"""The verbs that read or remove a bucket's own objects: they take no service, but know the store of a stack here."""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from actstore._cli.options import DONE, UNSOUND, add_metrics, add_verb, say, write_metrics
from actstore._connect import connect
from actstore._errors import refused
from actstore._lab import Lab
from actstore._runs.rows import ExportLayout
from actstore._stack.folder import stack_store
from actstore_api.metrics import FSCK_FINDINGS, FSCK_RUN


def add_upkeep(verbs: Any) -> None:
    checking = add_verb(
        verbs, check, "compare a bucket with its commits; exit status 3 where it is not sound", of_bucket=True
    )
    checking.add_argument("run", nargs="?", help="default: every run")
    checking.add_argument("--quick", action="store_true", help="leave out what reads every byte")
    checking.add_argument("--remove-orphans", action="store_true", help="of runs that are not being captured")
    add_metrics(checking)
    removing = add_verb(verbs, remove, "remove a run from a bucket, for good", of_bucket=True)
    removing.add_argument("run", help="name of the run")
    removing.add_argument("--yes", action="store_true", help="without this nothing is removed")
    removing.add_argument(
        "--force", action="store_true", help="even one that is being captured, or whose rows other runs are over"
    )
    exporting = add_verb(
        verbs, export, "write a site's vectors from a bucket as files for other programs", of_bucket=True
    )
    exporting.add_argument("run", help="name of the run")
    exporting.add_argument("site", help="site whose vectors are written: resid_post.1")
    exporting.add_argument("folder", type=Path, help="new or empty folder that is written")
    exporting.add_argument(
        "--layout", choices=get_args(ExportLayout), default="safetensors", help="format of the files"
    )


def _bucket_of(options: argparse.Namespace) -> Lab:
    """Connects like `connect()` without an address, but to the store of a stack that runs here, not to its service."""
    return connect(options.address or os.environ.get("ACTSTORE_ADDRESS") or stack_store())


def check(options: argparse.Namespace) -> int:
    if options.metrics is not None and (options.run is not None or options.quick):
        part = "a run" if options.run is not None else "--quick"
        allowed = "actstore check --metrics FILE, without a run and without --quick"
        raise refused("metrics tell what a check of the whole bucket found, and when", "metrics", part, allowed)
    with _bucket_of(options) as lab:
        verdict = lab.check(options.run, quick=options.quick, remove_orphans=options.remove_orphans)
    write_metrics(options, metrics_text([finding["kind"] for finding in verdict.to_dict()["rows"]], time.time()))
    counts = {name: getattr(verdict, name) for name in ("sound", "runs", "shards", "objects", "bytes")}
    say(options, counts | {"findings": verdict.to_dict()["rows"]}, repr(verdict))
    return DONE if verdict.sound else UNSOUND


def metrics_text(kinds: Sequence[str], ran_at_seconds: float) -> str:
    """What was found, in Prometheus's text format, for the node exporter's textfile collector."""
    name, run, (label,) = FSCK_FINDINGS.name, FSCK_RUN.name, FSCK_FINDINGS.labels
    counts = [f'{name}{{kind="{kind}"}} {kinds.count(kind)}' for kind in label.values]
    return "\n".join([f"# TYPE {name} gauge", *counts, f"# TYPE {run} gauge", f"{run} {ran_at_seconds:.3f}"]) + "\n"


def remove(options: argparse.Namespace) -> None:
    with _bucket_of(options) as lab:
        if not options.yes:
            raise refused(f"this removes run {options.run} for good", "yes", "not given", "actstore remove RUN --yes")
        removed = lab.remove(options.run, force=options.force)
    say(options, {"run": options.run, "objects": removed}, f"{options.run}: {removed:,} objects removed")


def export(options: argparse.Namespace) -> None:
    with _bucket_of(options) as lab:
        written = lab.run(options.run).export(options.site, options.folder, layout=options.layout)
    unit = "contexts" if options.layout == "saelens" else "files"
    say(options, {"folder": str(options.folder), unit: written}, f"{options.folder}: {written:,} {unit}")
