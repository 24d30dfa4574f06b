"""The page of columns, from the glossary that terminals and notebooks show beside an answer."""

from collections.abc import Mapping

from actstore._view import glossary
from docs.hooks.tables import code, table

_HEAD = """# Columns of answers

This page defines the columns and numbers of answers. A notebook shows the same text when the pointer rests on a
column's title. Norms are in the units of the site, losses and entropies in nats.
"""
# Titles of the client's tables of columns, and the call that returns each.
SECTIONS: Mapping[str, tuple[str, str]] = {
    "STATISTICS": ("Statistics of features", "`features.statistics()`, `features.search()`, `feature.statistics()`"),
    "ACTIVE": ("Active features", "`features.active()`, `features.by_token()`, `features.by_text()`"),
    "COFIRING": ("Features that fire together", "`feature.cofiring()`"),
    "NEIGHBOURS": ("Neighbouring directions", "`feature.neighbors()`, `features.by_direction()`"),
    "NEIGHBORS": ("Neighboring directions", "`feature.neighbors()`, `features.by_direction()`"),
    "EXAMPLES": ("Examples", "`feature.top()` and the other ways to choose examples"),
    "LENS": ("Logit lens of a direction", "`feature.logit_lens()`"),
    "TEXT_ABLATION": ("Ablated text", "`feature.ablate_text()`"),
    "ATTENTION": ("Attention", "`lab.attention()`"),
    "INDUCTION": ("Induction scores", "`lab.induction_scores()`"),
    "TOKEN_COMPARISON": ("Replaced tokens", "`lab.compare_tokens()`"),
    "SITE_ABLATION": ("Ablated sites", "`lab.ablate()`"),
    "QUANTITIES": ("Check of an SAE", "`features.check()`"),
    "SUBLAYERS": ("What attention and MLP write", "`lab.weights()`"),
}


def page() -> str:
    """Writes a table for each kind of answer."""
    return _HEAD + "".join(_section(name, columns) for name, columns in tables().items())


def tables() -> dict[str, Mapping[str, str]]:
    """Maps the name of each table of columns to the client's own."""
    return {name: found for name, found in vars(glossary).items() if name.isupper()}


def _section(name: str, columns: Mapping[str, str]) -> str:
    title, calls = SECTIONS.get(name, (name.replace("_", " ").capitalize(), ""))
    intro = f"Returned by {calls}.\n\n" if calls else ""
    return f"\n## {title}\n\n{intro}" + table(
        ("column", "meaning"), ((code(key), text) for key, text in columns.items())
    )
