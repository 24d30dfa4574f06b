"""`actstore canary`: questions whose answers are known, asked of a service as a researcher asks them."""

import argparse
from typing import Any

from actstore._canary import check
from actstore._cli.options import DONE, UNSOUND, add_metrics, add_verb, lab_of, say, write_metrics


def add_canary(verbs: Any) -> None:
    verb = add_verb(verbs, canary, "ask what has a known answer; exit status 3 where an answer is wrong")
    add_metrics(verb)


def canary(options: argparse.Namespace) -> int:
    with lab_of(options) as lab:
        verdict = check.canary(lab)
    write_metrics(options, check.metrics_text(verdict))
    told = {"right": verdict.right, "wrong": dict(verdict.wrong), "found": dict(verdict.found)}
    say(options, told | {"seconds": verdict.seconds}, _in_words(verdict))
    return DONE if verdict.right else UNSOUND


def _in_words(verdict: check.Verdict) -> str:
    return "\n".join(f"{name:<14}{verdict.wrong.get(name, 'as expected')}" for name in check.CHECKS)
