"""Prompts of the docstring experiment: which argument does a docstring name next?

    def target(self, table, new, check, results, content, code):
        \"\"\"example support top

        :param check: mark window
        :param results: sign block
        :param

The answer is ` content`: what comes after `results` in the definition, which has two arguments before those that the
docstring names and one behind them. After Heimersheim & Janiak 2023, "A circuit for Python docstrings in a 4-layer
attention-only transformer", in the form that Conmy et al. 2023 (ACDC) took over: reST style, three matching arguments,
two before, one after, three words about the method and two about each argument.

The same question in a form that is less of a riddle, for models that have seen few docstrings of the kind (style
"call"):

    def target(self, table, new, check, results, content, code):
        return self._update(check, results,
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

# Each is one token with and without a leading space in the bundled tokenizer (and a common word, so one token in most
# others), and not a builtin. All prompts have the same number of words, so they have the same number of tokens, and a
# role has the same position in all of them. No name is also a word.
NAMES = (
    "data", "name", "file", "value", "test", "new", "result", "line", "user", "key", "default", "request", "path",
    "output", "node", "item", "url", "response", "text", "version", "function", "log", "string", "field", "start",
    "number", "values", "sub", "index", "error", "current", "context", "message", "check", "create", "size", "event",
    "state", "row", "obj", "parser", "end", "files", "form", "fields", "instance", "label", "run", "action", "target",
    "array", "code", "num", "table", "source", "msg", "config", "first", "options", "module", "group", "content",
    "client", "filename", "last", "read", "command", "val", "base", "color", "order", "found", "count", "match", "tag",
    "parent", "call", "token", "server", "host", "date", "mode", "expected", "info", "valid", "header", "option",
    "task", "shape", "load", "names", "port", "old", "resource", "root",
)  # fmt: skip
WORDS = (
    "issue", "process", "position", "act", "section", "back", "support", "manager", "example", "window", "method",
    "future", "pattern", "tree", "rest", "space", "top", "argument", "element", "sign", "show", "memory", "bar",
    "second", "reader", "copy", "length", "pair", "comment", "link", "writer", "package", "entry", "limit", "mark",
    "address", "block", "connection",
)  # fmt: skip
STYLES = ("rest", "call")
# A and B are in the docstring, or in the call, too; C is the answer.
MATCHING, BEFORE, AFTER = 3, 2, 1
METHOD_WORDS, ARGUMENT_WORDS = 3, 2


@dataclass(frozen=True)
class DocstringPrompt:
    """A clean prompt, its corrupt candidates by name, and the answers, with their leading space.

    `matching` are A, B and C. `wrong` are the other arguments' names, in the clean prompt and in all the corrupt ones.
    """

    clean: str
    corrupt: dict[str, str]
    matching: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def answer(self) -> str:
        return self.matching[-1]


def docstring_prompt(seed: int, style: str = STYLES[0]) -> DocstringPrompt:
    """Makes a prompt and its corruptions, which replace names by new ones: `random_doc` A and B in the docstring;
    `random_def` A and B in the definition, so that the docstring refers to nothing; `random_answer` C in the
    definition; `random_answer_doc` does that and `random_doc`; `random_random` replaces A, B and C in the definition
    and, by others, A and B in the docstring. `random_def_doc` gives A and B the same new names in both places, so that
    C is still the right answer.
    """
    if style not in STYLES:
        raise ValueError(f"style {style!r} is none of {', '.join(STYLES)}")
    generator = random.Random(seed)  # noqa: S311 (prompts, no secrets)
    sizes = (1, BEFORE, MATCHING, AFTER, 1, MATCHING - 1, MATCHING, MATCHING - 1)
    names = iter(generator.sample(NAMES, sum(sizes)))
    parts = [[next(names) for _ in range(size)] for size in sizes]
    (method,), before, matching, after, other_answer, other_pair, random_def, random_doc = parts
    words = generator.sample(WORDS, METHOD_WORDS + ARGUMENT_WORDS * (MATCHING - 1))
    documented = style == "rest"

    def prompt(defined: Sequence[str], named: Sequence[str]) -> str:
        return f"\ndef {method}(self, {', '.join([*before, *defined, *after])}):\n" + (
            _docstring(named, words) if documented else _call(named)
        )

    pair, without_pair, without_answer = matching[:-1], [*other_pair, matching[-1]], [*matching[:-1], *other_answer]
    corrupt = {
        "random_doc": prompt(matching, other_pair),
        "random_def": prompt(without_pair, pair),
        "random_answer": prompt(without_answer, pair),
        "random_def_doc": prompt(without_pair, other_pair),
        "random_answer_doc": prompt(without_answer, other_pair),
        "random_random": prompt(random_def, random_doc),
    }
    wrong = tuple(f" {name}" for part in parts[1:] for name in part if name != matching[-1])
    return DocstringPrompt(prompt(matching, pair), corrupt, tuple(f" {name}" for name in matching), wrong)


def _docstring(named: Sequence[str], words: Sequence[str]) -> str:
    about = words[METHOD_WORDS:]
    lines = [
        f"    :param {name}: {' '.join(about[ARGUMENT_WORDS * i : ARGUMENT_WORDS * (i + 1)])}\n"
        for i, name in enumerate(named)
    ]
    return f'    """{" ".join(words[:METHOD_WORDS])}\n\n{"".join(lines)}    :param'


def _call(named: Sequence[str]) -> str:
    return f"    return self._update({', '.join(named)},"
