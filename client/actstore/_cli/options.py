"""What the command's verbs share: how each is named, where it asks, and how it says and draws what it found."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actstore import _checks as _arguments
from actstore._connect import connect
from actstore._errors import refused
from actstore._lab import Lab

# Exit statuses: UNSOUND is an answer that is bad news, of `fsck`, `check-sae` and `status`.
DONE, FAILED, USAGE, UNSOUND, INTERRUPTED = 0, 1, 2, 3, 130


def add_verb(
    verbs: Any, act: Callable[[argparse.Namespace], int | None], says: str, *, asks: bool = True
) -> argparse.ArgumentParser:
    name = act.__name__.replace("_", "-")
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=says, description=says)
    verb.set_defaults(act=act)
    verb.add_argument("--json", action="store_true", help="one JSON object on stdout")
    if asks:
        verb.add_argument(
            "--address", help="host:port, ./folder or s3://bucket/prefix (default: as actstore.connect())"
        )
    return verb


def add_exclude(verb: argparse.ArgumentParser, *more: str) -> None:
    choices = (*_arguments.TOKEN_CLASSES, *more)
    verb.add_argument(
        "--exclude", nargs="*", default=["bos"], choices=choices, help="tokens to leave out (default: bos)"
    )


def add_plot(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it into a file; needs the extra `plot`")


def lab_of(options: argparse.Namespace) -> Lab:
    return connect(options.address)


def show(options: argparse.Namespace, answer: Any) -> None:
    if hasattr(answer, "plot") and hasattr(options, "plot"):
        save(options, answer.plot)
    say(options, answer.to_dict(), repr(answer))


def say(options: argparse.Namespace, found: dict[str, Any], text: str) -> None:
    print(json.dumps(found) if options.json else text, flush=True)


def save(options: argparse.Namespace, plot: Callable[..., Any], **how: Any) -> None:
    """A plot is an Axes or a whole Figure."""
    if options.plot is None:
        return
    drawn = plot(**how)
    figure = getattr(drawn, "figure", drawn)
    try:
        figure.savefig(options.plot, dpi=150)
    except ValueError as error:  # of a format that there is none of
        message = f"no plot can be written to {options.plot}: {error}"
        raise refused(message, "plot", options.plot, "a name that ends in .png, .svg or .pdf") from error
    print(f"plot: {options.plot}", file=sys.stderr)
