"""Whatever is handed to an argument of a live call, the lab asks the question or refuses it by the argument's name."""

import inspect
from typing import Any

import numpy as np
import pytest

from actstore import BadRequest, Lab

ODD = (
    None, 3, -1, 2**40, 2.5, float("nan"), True, "nonsense", "", "\ud800", b"ab", object(), [], (), {}, [None], [["a"]],
    {"a": 1}, [-1], np.array([]), range(0), iter(()),
)  # fmt: skip
TEXT, PAIR = {"text": "a b"}, {"clean": "a b", "corrupt": "a c", "answers": (" a", " b")}
CALLS: dict[str, dict[str, Any]] = {
    "tokens": TEXT,
    "attention": TEXT,
    "logit_lens": TEXT,
    "induction_scores": {},
    "steer": {"prompt": "a b", "direction": [1.0], "site": "resid_post.1", "strength": 1},
    "ablate": {"texts": "a b"},
    "weights": {},
    "compare_tokens": {"clean": "a b", "corrupt": {"other": "a c"}},
    "patch": PAIR,
    "estimate_patch": PAIR,
}
# What steers is said by two of these four, so that a refusal may name another of them.
TOGETHER = ("direction", "site", "sae", "feature")
# What the workers know, and no client: any text may be right.
OPEN = {
    "model", "revision", "text", "prompt", "texts", "clean", "corrupt", "answers", "target", "site", "sites", "stored",
    "sae", "receivers", "spans", "joint", "direction",
}  # fmt: skip


class Asked(Exception):
    """The question went out."""


class NobodyThere:
    """Where every question ends."""

    def ask(self, question: object) -> object:
        raise Asked

    def listen(self, question: object) -> object:
        raise Asked


ARGUMENTS = [
    (call, name) for call in CALLS for name in inspect.signature(getattr(Lab, call)).parameters if name != "self"
]


def refusal_of(call: str, asked: dict[str, Any]) -> BadRequest | None:
    """None: the question goes out."""
    try:
        getattr(Lab(NobodyThere()), call)(**asked)
    except Asked:
        return None
    except BadRequest as refusal:
        return refusal
    raise AssertionError("nothing was asked")


@pytest.mark.parametrize(("call", "argument"), ARGUMENTS)
def test_an_odd_argument_is_refused_by_its_name(call: str, argument: str) -> None:
    for odd in ODD:
        refusal = refusal_of(call, {"model": "m"} | CALLS[call] | {argument: odd})
        if refusal is None:
            assert not isinstance(odd, str) or argument in OPEN
            assert not isinstance(odd, bytes | float) or argument in ("strength", "temperature")
        else:
            assert refusal.field in (TOGETHER if argument in TOGETHER else (argument,))
            assert refusal.allowed


def test_a_call_as_it_is_meant_goes_out() -> None:
    for call, asked in CALLS.items():
        with pytest.raises(Asked):
            getattr(Lab(NobodyThere()), call)("m", **asked)
