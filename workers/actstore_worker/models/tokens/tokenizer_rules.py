"""Refuses a tokenizer whose rules could take far more time or memory than a text needs.

The tokenizers library runs them in one piece: nothing stops it once it has begun.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from actstore_worker.files.damage import DamagedFile

# The largest published tokenizers have some 10,000 added tokens; each takes 0.1 ms when a model is read.
ADDED_MAX = 1 << 16
# Values of a rule. The largest published rules have some dozens, but for a list of characters, which is one text.
RULE_VALUES_MAX = 4096
# How many times longer a text may become by the rules for its characters. Published ones replace a character by one.
GROWTH_MAX = 64
# Characters that a rule puts in front of a text, and of a word that WordPiece looks up: both are 1 to 100 usually.
PREPENDED_MAX, WORD_CHARACTERS_MAX = 64, 1024
# A regular expression has far more time than it needs for a repeated character: usual ones take some 10 ms.
_REPEATED, REPEATED_SECONDS = 20_000, 0.5
_REPEATED_ALWAYS, _REPEATED_MOST = "a1 .\n_", 32
_RULES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def check_rules(told: Mapping[str, Any]) -> None:
    """Checks what tokenizer.json says. Errors: DamagedFile with the rule, its value and what is allowed."""
    for name in _RULES:
        if sum(1 for _ in _values(told.get(name))) > RULE_VALUES_MAX:
            raise DamagedFile(f"its {name} has more than {RULE_VALUES_MAX} values")
        _check_growth(name, told.get(name))
    added = told.get("added_tokens")
    if isinstance(added, list) and len(added) > ADDED_MAX:
        raise DamagedFile(f"it has {len(added)} added tokens; the limit is {ADDED_MAX}")
    model = told.get("model")
    longest = model.get("max_input_chars_per_word") if isinstance(model, dict) else None
    if isinstance(longest, int) and longest > WORD_CHARACTERS_MAX:
        raise DamagedFile(f"its max_input_chars_per_word is {longest}; the limit is {WORD_CHARACTERS_MAX}")


def check_expressions(told: Mapping[str, Any], backend: Any) -> None:
    """Lets regular expressions split long texts of one character: those that a usual text has, and those that the
    expressions name. Each would take minutes if time grew with the square of the text's length.

    Errors: DamagedFile; what the library raises.
    """
    expressions = [text for name in _RULES[:2] for text in _expressions(told.get(name))]
    for character in (
        list(dict.fromkeys(_REPEATED_ALWAYS + "".join(expressions)))[:_REPEATED_MOST] if expressions else ()
    ):
        begun = time.thread_time()  # which other work on the machine does not make longer
        text = character * _REPEATED
        for step in (backend.normalizer and backend.normalizer.normalize_str, _split(backend)):
            if step:
                step(text)
        if (seconds := time.thread_time() - begun) > REPEATED_SECONDS:
            raise DamagedFile(
                f"its regular expressions take {seconds:.1f} s for {_REPEATED} times {character!r}; the limit is "
                f"{REPEATED_SECONDS} s"
            )


def _split(backend: Any) -> Any:
    return backend.pre_tokenizer and backend.pre_tokenizer.pre_tokenize_str


def _check_growth(name: str, rule: object) -> None:
    growth = 1.0
    for part in _tables(rule):
        if part.get("type") == "Replace":
            pattern = part.get("pattern")
            replaced = pattern.get("String") if isinstance(pattern, dict) else None
            # An expression may match between two characters.
            content = len(str(part.get("content", "")))
            growth *= max(1.0, content / len(replaced) if isinstance(replaced, str) and replaced else 1 + content)
        if len(str(part.get("prepend", ""))) > PREPENDED_MAX:
            raise DamagedFile(f"its {name} puts more than {PREPENDED_MAX} characters in front of a text")
    if growth > GROWTH_MAX:
        raise DamagedFile(f"its {name} can make a text {growth:.0f} times longer; the limit is {GROWTH_MAX}")


def _expressions(rule: object) -> Iterator[str]:
    for part in _tables(rule):
        if isinstance(part.get("Regex"), str):
            yield part["Regex"]


def _tables(rule: object) -> Iterator[Mapping[str, Any]]:
    yield from (value for value in _values(rule) if isinstance(value, dict))


def _values(rule: object) -> Iterator[object]:
    """The rule and every value in it."""
    yield rule
    if isinstance(rule, dict | list):
        for part in rule.values() if isinstance(rule, dict) else rule:
            yield from _values(part)
