"""What the command's verbs share: how each is named, where it asks, and how it says and draws what it found."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from actstore._connect import connect
from actstore._errors import refused
from actstore._lab import Lab
from actstore_api.records.terms import Dtype, TokenClass, one_line

# Exit statuses: UNSOUND is an answer that is bad news, of `check`, `check-sae` and `status`. argparse exits with 2.
DONE, FAILED, UNSOUND, INTERRUPTED = 0, 1, 3, 130

# How argparse makes an option of a field, by the field's type.
_MADE: Mapping[Any, dict[str, Any]] = {
    str: {"default": ""},
    bool: {"action": "store_true"},
    int | None: {"type": int},
    float | None: {"type": float},
    tuple[str, ...]: {"nargs": "+", "default": []},
    Dtype | None: {"choices": get_args(Dtype)},
}


def add_verb(
    verbs: Any,
    act: Callable[[argparse.Namespace], int | None],
    says: str,
    *,
    asks: bool = True,
    of_bucket: bool = False,
) -> argparse.ArgumentParser:
    """A parser of the verb that `act` is named for, `check-sae` for `check_sae`; `asks`: a lab, at an address;
    `of_bucket`: one that no service can be asked.
    """
    name = act.__name__.replace("_", "-")
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=says, description=says)
    verb.set_defaults(act=act)
    verb.add_argument("--json", action="store_true", help="one JSON object on stdout")
    if asks:
        verb.add_argument(
            "--address", help="host:port, ./folder or s3://bucket/prefix (default: as actstore.connect())"
        )
    if asks and not of_bucket:
        add_connection(verb)
    return verb


def add_connection(verb: argparse.ArgumentParser) -> None:
    """Let a verb be told how to connect to a service. A token itself is no option: others would see it among the
    processes.
    """
    verb.add_argument("--token-file", metavar="FILE", help="file with the token (default: ACTSTORE_TOKEN_FILE)")
    verb.add_argument(
        "--tls",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="encrypt the connection to a service, or not (default: ACTSTORE_TLS)",
    )
    verb.add_argument(
        "--root-certificates",
        metavar="FILE",
        help="certificates of trusted authorities, in PEM (default: ACTSTORE_ROOT_CERTIFICATES)",
    )
    verb.add_argument(
        "--client-certificate",
        metavar="FILE",
        help="certificate of your own, for mutual TLS (default: ACTSTORE_CLIENT_CERTIFICATE)",
    )
    verb.add_argument("--client-key", metavar="FILE", help="key of that certificate (default: ACTSTORE_CLIENT_KEY)")
    verb.add_argument(
        "--authority",
        metavar="NAME",
        help="name in the service's certificate, if not the host of the address (default: ACTSTORE_AUTHORITY)",
    )


def add_options(verb: argparse.ArgumentParser, asked: Mapping[str, Mapping[str, Any]]) -> None:
    """Add an option for each keyword of a call, `--text-field` for `text_field`, made as argparse is told by name."""
    for name, how in asked.items():
        verb.add_argument(f"--{name.replace('_', '-')}", **how)


def options_of(record: type[Any]) -> dict[str, dict[str, Any]]:
    """Options from the fields of a record that have a `help`; a field's type decides how argparse reads it."""
    types = get_type_hints(record)
    said = (field for field in fields(record) if "help" in field.metadata)
    return {field.name: {**_MADE[types[field.name]], "help": field.metadata["help"]} for field in said}


def asked_of(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The options of these names, as the keywords of a call."""
    return {name: getattr(options, name) for name in names}


def add_exclude(verb: argparse.ArgumentParser, *more: str) -> None:
    """Let a verb leave out tokens of some classes, and of what `more` names."""
    choices = (*get_args(TokenClass), *more)
    verb.add_argument(
        "--exclude", nargs="*", default=["bos"], choices=choices, help="tokens to leave out (default: bos)"
    )


def add_plot(verb: argparse.ArgumentParser) -> None:
    """Let a verb draw what it answers."""
    verb.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it into a file; needs the extra `plot`")


def add_metrics(verb: argparse.ArgumentParser) -> None:
    """Let a verb leave its result for Prometheus."""
    verb.add_argument("--metrics", type=Path, metavar="FILE", help="write the result for Prometheus's node exporter")


def write_metrics(options: argparse.Namespace, text: str) -> None:
    """Write the file that was named, if one was: at once, because a collector may read at any time."""
    path: Path | None = options.metrics
    if path is not None:
        new = path.with_name(f".{path.name}.new")
        new.write_text(text)
        new.replace(path)


def lab_of(options: argparse.Namespace) -> Lab:
    """The lab at the address that was given, or where connect() finds one."""
    names = ("token_file", "tls", "root_certificates", "client_certificate", "client_key", "authority")
    return connect(options.address, **asked_of(options, names))


def show(options: argparse.Namespace, answer: Any) -> None:
    """Say an answer, and draw it where both the verb and the answer can."""
    if hasattr(answer, "plot") and hasattr(options, "plot"):
        save(options, answer.plot)
    say(options, answer.to_dict(), repr(answer))


def say(options: argparse.Namespace, found: dict[str, Any], text: str) -> None:
    """Print one JSON object where that was asked for, else the text."""
    print(json.dumps(found) if options.json else text, flush=True)


def warn(warnings: Iterable[str]) -> None:
    """Print sentences from elsewhere on stderr, a line of theirs a line."""
    for warning in warnings:
        print("\n".join(map(one_line, f"actstore: {warning}".splitlines())), file=sys.stderr)


def save(options: argparse.Namespace, plot: Callable[..., Any], **how: Any) -> None:
    """Draw into the file that was named, if one was."""
    if options.plot is None:
        return
    drawn = plot(**how)
    figure = getattr(drawn, "figure", drawn)  # an Axes has one, and a Figure is one
    try:
        figure.savefig(options.plot, dpi=150)
    except ValueError as error:  # of a format that there is none of
        message = f"no plot can be written to {options.plot}: {error}"
        raise refused(message, "plot", options.plot, "a name that ends in .png, .svg or .pdf") from error
    print(f"plot: {options.plot}", file=sys.stderr)
