"""Training SAEs: the command starts the trainer as a process of its own, as `actstore up` starts its processes.

The trainer opens the store directly, so that it needs no service; encoding a run with what came out needs one.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from actstore._cli.options import add_connection, lab_of, warn
from actstore._errors import MissingLibrary, refused
from actstore._optional import install_extra
from actstore._runs.run import sae_findings
from actstore._stack.folder import stack_store
from actstore._stack.guard import Guarded

TRAIN = "train-sae"
MODULE = "actstore_worker.training"
# What a trainer that was interrupted, or whose terminal was closed, has to end; a sweep ends its Ray.
STOP_SECONDS = 30.0


def add_train_sae(verbs: Any) -> None:
    """For the list of verbs alone: the trainer parses what follows."""
    verbs.add_parser(TRAIN, add_help=False, help="train SAEs on a run's stored vectors, one or a sweep of them")


def train_sae(arguments: Sequence[str]) -> int:
    """The trainer's exit status. What is not told here is the trainer's own, which knows more of it."""
    options, own = client_parser().parse_known_args(arguments)
    check_installed()
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        command = [sys.executable, "-P", "-m", MODULE, *own, "--result", str(result)]
        environment = _environment(options.store, asked_for_help=_helps(own))
        status = _wait(Guarded(command, grace_seconds=STOP_SECONDS, env=environment))
        if options.encode and result.exists():
            _encode(options, json.loads(result.read_text())["trained"], as_json="--json" in own)
    return status


def _encode(options: argparse.Namespace, trained: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Encodes the run that the SAEs were trained on with all of them at once, so that its rows are read once."""
    names = [one["name"] for one in trained if "failed" not in one]
    if not names:
        return
    with lab_of(options) as lab:
        run = lab.run(trained[0]["run"]).encode(names).wait(check_saes=False)
        warnings = list(sae_findings(run))
    warn(warnings)
    print(json.dumps({"encoded": run.name}) if as_json else f"encoded as {run.name}", flush=True)


def _wait(process: Guarded) -> int:
    """A Ctrl-C is handed on to the trainer, which ends by itself."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)


def _environment(store: str | None, *, asked_for_help: bool) -> dict[str, str]:
    found = store or os.environ.get("ACTSTORE_STORE") or stack_store()
    if not found and not asked_for_help:
        allowed = "--store ./folder or s3://bucket/prefix, ACTSTORE_STORE, or a stack that runs here"
        raise refused("no store is named, and no stack runs here", "store", "", allowed)
    return {**os.environ, "ACTSTORE_STORE": found or ""}


def _helps(arguments: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(arguments))


def check_installed(spec: Callable[[str], object] = find_spec) -> None:
    for library in ("actstore_worker", "sae_lens"):
        if spec(library) is None:
            raise MissingLibrary(f"training needs {library}", next_step=install_extra("train"))


def client_parser() -> argparse.ArgumentParser:
    """Returns the parser of the options that the client reads itself; the trainer reads all others.

    No option may be abbreviated, because an abbreviation could also mean one of the trainer's options.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--store", help="bucket with the run (default: ACTSTORE_STORE, or that of a stack that runs here)"
    )
    parser.add_argument("--address", help="service for --encode (default: as actstore.connect())")
    add_connection(parser)
    parser.add_argument("--encode", action="store_true", help="then run the new SAE over the run's stored rows")
    return parser
