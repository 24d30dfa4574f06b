"""`python -m actstore_service.access new-token NAME`: makes a token, printed once, with its lines for the file."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from actstore_service.access.access_file import read_access
from actstore_service.access.principals import Role
from actstore_service.access.tokens import new_token, sha256_of
from actstore_storage.errors import ActstoreError

DAYS = 90


def main(arguments: Sequence[str] | None = None) -> int:
    options = access_parser().parse_args(arguments)
    try:
        act = {"new-token": _new_token, "check": _check}[options.command]
        act(options)
    except (ActstoreError, OSError) as error:
        print(f"actstore_service.access: {error}", file=sys.stderr)
        return 1
    return 0


def access_parser() -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = argparse.ArgumentParser(prog="python -m actstore_service.access", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("new-token", help="make a token, and the lines for the access file")
    making.add_argument("name", help="the principal's name")
    making.add_argument("--roles", nargs="+", choices=[role.value for role in Role], default=[Role.READER.value])
    making.add_argument("--run-prefixes", nargs="+", default=["*"], help="beginnings of names of runs; *: every run")
    making.add_argument("--days", type=int, default=DAYS, help=f"days until it expires (default: {DAYS})")
    checking = commands.add_parser("check", help="read an access file as the service would")
    checking.add_argument("file", type=Path)
    return parser


def _new_token(options: argparse.Namespace) -> None:
    """The token on stdout, which nobody can print again; the lines, which hold no secret, on stdout after it."""
    token = new_token()
    lines = _lines(options, token)
    read_access(lines.encode())  # what the service would refuse is refused here
    print(f"{token}\n\n{lines}", end="")


def _lines(options: argparse.Namespace, token: str) -> str:
    expires = (datetime.now(UTC) + timedelta(days=options.days)).replace(microsecond=0)
    return (
        f"[[principals]]\nname = {_quoted(options.name)}\nroles = {_listed(options.roles)}\n"
        f"run_prefixes = {_listed(options.run_prefixes)}\n\n[[principals.tokens]]\n"
        f'sha256 = "{sha256_of(token)}"\nexpires = {expires.isoformat()}\n'
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _listed(words: Sequence[str]) -> str:
    return f"[{', '.join(map(_quoted, words))}]"


def _check(options: argparse.Namespace) -> None:
    found = read_access(options.file.read_bytes())
    print(f"{len(found.tokens)} tokens, {len(found.certificates)} certificates")


if __name__ == "__main__":
    sys.exit(main())
