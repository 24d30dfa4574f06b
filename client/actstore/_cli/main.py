"""The command `actstore`: the client's calls from a shell. Tables for people; with --json one object for machines.

Exit status: 0 done, 1 refused or failed (one block on stderr says why, and the next step), 2 not a command, 3 a store
that `check` finds unsound, an SAE that `check-sae` finds wrong, a stack that `status` finds down or an answer that
`canary` finds wrong, 130 Ctrl-C.
ACTSTORE_ADDRESS and ACTSTORE_TOKEN or ACTSTORE_TOKEN_FILE say where to ask, as for actstore.connect().
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

from actstore._cli.canary import add_canary
from actstore._cli.capture import add_cancel, add_capture, add_encode
from actstore._cli.features import add_check_sae, add_feature, add_features
from actstore._cli.listings import add_listings
from actstore._cli.norms import add_norms
from actstore._cli.options import DONE, FAILED, INTERRUPTED
from actstore._cli.patching import add_compare_tokens, add_patch
from actstore._cli.stack import add_stack
from actstore._cli.train import TRAIN, add_train_sae, train_sae
from actstore._cli.upkeep import add_upkeep
from actstore._errors import ActstoreError
from actstore_api.logs.traces import end_traces, start_traces

# As `actstore --help` lists them.
VERBS = (
    add_stack,
    add_capture,
    add_encode,
    add_train_sae,
    add_cancel,
    add_listings,
    add_feature,
    add_features,
    add_check_sae,
    add_norms,
    add_patch,
    add_compare_tokens,
    add_upkeep,
    add_canary,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of one command line, by default this process's own."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _escape_what_cannot_be_said()
    start_traces("client", os.environ)
    try:
        if given[:1] == [TRAIN]:  # whose options are the trainer's
            return train_sae(given[1:])
        options = command_parser().parse_args(given)
        act: Callable[[argparse.Namespace], int | None] = options.act
        return act(options) or DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader left, as `head` does; say nothing more
        return FAILED
    except (ActstoreError, OSError) as error:  # the latter of a file or a stream that the caller named
        print(f"actstore: {error}", file=sys.stderr)
        return FAILED
    finally:
        end_traces()


def _escape_what_cannot_be_said() -> None:
    """Tokens and paths have any characters, and a terminal or a log perhaps only those of ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def command_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command; the reference of the command is written from it."""
    parser = argparse.ArgumentParser(
        prog="actstore", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in VERBS:
        add(verbs)
    return parser
