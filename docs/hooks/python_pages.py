"""The pages of the Python client: every public name, by the noun that it is about, for mkdocstrings to write out."""

import inspect
from collections.abc import Mapping

import actstore

# The noun of each room of the client, and of each module of records; whatever is in none of them is about a lab.
_NOUNS: Mapping[str, str] = {
    "actstore._runs": "runs",
    "actstore._features": "features",
    "actstore._norms": "norms",
    "actstore._models": "models",
    "actstore._patching": "patching",
    "actstore._errors": "errors",
    "actstore_api.records.capture": "runs",
    "actstore_api.records.catalog": "runs",
    "actstore_api.records.patching": "patching",
    "actstore_api.records.norm": "norms",
    "actstore_api.records.feature": "features",
}
_HEADS: Mapping[str, str] = {
    "lab": """# Lab

`actstore.connect()` opens a lab, and a lab answers every question. A lab on a bucket without a service answers
questions about what is stored; a question to a model raises `BadRequest` there
([NEEDS_SERVICE](../errors.md#needs_service)).
""",
    "runs": """# Runs and captures

A capture runs a model over a dataset and stores activations. What it stored is a run.
[How to capture](../../how-to/capture.md) has the tasks.
""",
    "features": """# Features of an SAE

`run.features(sae)` answers questions about all features of an SAE, `run.feature(sae, index)` about one.
[Features](../../explanation/features.md) explains each number.
""",
    "norms": """# Norms

Norms of stored activations, how they grow over layers and over training, and norms of weights.
[Norms](../../explanation/norms.md) explains each number.
""",
    "models": """# Live answers of a model

What a model does with a text given now: attention, logit lens, steering, ablation.
[Live questions](../../explanation/live.md) explains each number.
""",
    "patching": """# Activation patching

Sweeps, their cells, and comparisons of corrupt prompts. [Activation patching](../../explanation/patching.md) explains
each number.
""",
    "errors": """# Error classes

The classes of errors that the client raises. [Error reasons](../errors.md) lists every reason with cause and remedy.
""",
}


def pages() -> dict[str, str]:
    """Writes a page for each noun.

    Returns:
        Markdown by noun; each public name is on one page.
    """
    names: dict[str, list[str]] = {noun: [] for noun in _HEADS}
    for name in actstore.__all__:
        names[noun_of(name)].append(name)
    return {noun: f"{head}\n{_listed(names[noun])}" for noun, head in _HEADS.items()}


def noun_of(name: str) -> str:
    """The noun that a public name is about, by the module that defines it."""
    module = getattr(inspect.unwrap(getattr(actstore, name)), "__module__", "")
    return next((noun for place, noun in _NOUNS.items() if f"{module}.".startswith(f"{place}.")), "lab")


def _listed(names: list[str]) -> str:
    return "".join(f"::: actstore.{name}\n\n" for name in sorted(names, key=_order))


def _order(name: str) -> tuple[bool, bool, str]:
    """`connect` and `Lab` first, then functions, then classes."""
    return name not in ("connect", "Lab", "AsyncLab"), inspect.isclass(getattr(actstore, name)), name
