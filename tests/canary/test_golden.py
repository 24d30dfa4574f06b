"""The canary's golden numbers are those of the slow references."""

import json

from actstore._canary import check
from actstore._canary.questions import PROMPTS
from tests.canary.slow import TEXTS, Slow


def test_the_golden_numbers_are_those_of_plain_transformers() -> None:
    golden, slow = check.golden(), Slow().golden()
    assert slow["feature"] == golden["feature"]
    assert [said for name in check.CHECKS if (said := check._difference(slow[name], golden[name]))] == []


def test_the_questions_are_of_the_size_that_is_told() -> None:
    assert len(TEXTS.read_text().splitlines()) == 20
    assert len({json.loads(line)["text"] for line in TEXTS.read_text().splitlines()}) == 20
    assert [len(check.golden()[direction]) for direction in check.SWEEPS] == [10, 10]
    assert all(max(check.golden()[direction]) > 0.5 for direction in check.SWEEPS)
    assert len(PROMPTS) == 3
