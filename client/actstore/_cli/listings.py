"""The verbs that list models, SAEs, datasets, runs and captures."""

import argparse
from typing import Any

from actstore._cli.options import add_verb, lab_of, say, show


def add_listings(verbs: Any) -> None:
    add_verb(verbs, runs, "list the runs in the store")
    add_verb(verbs, captures, "list the captures that run or wait in the queue")
    add_verb(verbs, models, "list the models and SAEs that a capture can name, loaded before or not")
    add_verb(verbs, datasets, "list the datasets that a capture can name")


def models(options: argparse.Namespace) -> None:
    with lab_of(options) as lab:
        found = {"models": lab.models(), "saes": lab.saes()}
    say(
        options,
        {name: table.to_dict()["rows"] for name, table in found.items()},
        "\n\n".join(map(repr, found.values())),
    )


def runs(options: argparse.Namespace) -> None:
    with lab_of(options) as lab:
        show(options, lab.runs())


def captures(options: argparse.Namespace) -> None:
    with lab_of(options) as lab:
        show(options, lab.captures())


def datasets(options: argparse.Namespace) -> None:
    with lab_of(options) as lab:
        show(options, lab.datasets())
