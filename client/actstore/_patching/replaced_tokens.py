"""Which replaced tokens of corrupt prompts a model treats unlike other tokens, and what that means for a sweep."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from actstore import _checks
from actstore._answer import Answer, plain_rows
from actstore._view import glossary

# A token stands out if its embedding's norm, or cosine to the mean embedding, is this many standard deviations of the
# ordinary tokens from their mean...
ODD_EMBEDDING_Z = 3.0
# ... or if an early head gives it this much more or less of its attention than it gives random tokens in its place, or
# if it sends this much more of its own attention elsewhere than they do...
ODD_ATTENTION = 0.25
# ... and the difference is this many standard deviations over these tokens, too.
ODD_ATTENTION_Z = 3.0
PLACE = ("corruption", "position", "prompt")


@dataclass(frozen=True, repr=False)
class TokenComparison(Answer):
    """Which replaced tokens a model treats unlike other tokens.

    There is a row for each corruption, position where it differs from the clean prompt, and prompt of the two. Columns
    are corruption, position, prompt (clean, corrupt), token, text; of the token's row of the embedding: norm, norm_z,
    norm_below (share of the ordinary tokens with smaller norms), cosine_to_mean, cosine_z, cosine_to_clean; and `head`,
    the early head whose attention to the position, by later queries, changes most from the clean to the corrupt run,
    with that `shift`; None at the last position. `odd` says by what the token stands out, and is empty if it does not.

    Why: Heimersheim & Janiak, "A circuit for Python docstrings in a 4-layer attention-only transformer", replaced one
    token by another that an early head treats in its own way, and patching showed that instead of the task.

    Attributes:
        names: The corruptions.
        heads: Every head of the layers: attention, usual_attention and attention_deviation (over random ordinary tokens
            in the token's place), shift; moved, usual_moved and moved_deviation (share of the position's own attention
            that goes elsewhere than those tokens send it).
    """

    names: tuple[str, ...]
    heads: pa.Table

    @property
    def verdicts(self) -> dict[str, str]:
        """A sentence for each corruption: which of its tokens stand out, and by what."""
        return {name: self._verdict(name) for name in self.names}

    def reacting(self, name: str) -> dict[tuple[int, int], str]:
        """The heads that treat a token of a corruption, or the clean one in its place, unlike other tokens.

        Args:
            name: The corruption.

        Returns:
            The text of the first such token, by (layer, head).
        """
        _checks.one_of(name, "name", self.names)
        rows = (row for row in self.heads.to_pylist() if row["corruption"] == name and any(_departures(row)))
        texts = {tuple(row[key] for key in PLACE): row["text"] for row in self}
        return {(row["layer"], row["head"]): texts[tuple(row[key] for key in PLACE)] for row in reversed(list(rows))}

    def to_dict(self) -> dict[str, Any]:
        """All of this as plain values, ready for JSON."""
        return {"verdicts": self.verdicts, "heads": plain_rows(self.heads), **super().to_dict()}

    def _verdict(self, name: str) -> str:
        rows = [row for row in self if row["corruption"] == name]
        odd = [f"{row['text']!r} at {row['position']} ({row['prompt']}): {row['odd']}" for row in rows if row["odd"]]
        odd = list(dict.fromkeys(odd))
        if not odd:
            places = len(rows) // 2
            return f"{name}: no token stands out, of {places} that are replaced and {places} in their place"
        where = ", ".join(f"{layer}.{head}" for layer, head in sorted(self.reacting(name)))
        at = f" at heads {where}, and behind them," if where else ""
        return (
            f"{name}: {'; '.join(odd)}. Its effects{at} may be of what this token is to the model and not of the task: "
            "compare a corruption with tokens of one kind"
        )

    def _definitions(self) -> Mapping[str, str]:
        return glossary.TOKEN_COMPARISON

    def _title(self) -> str:
        return f"Replaced tokens of {len(self.names)} corruptions, among the vocabulary of {self.provenance.model}"

    def _notes(self) -> list[str]:
        return [*self.verdicts.values(), *super()._notes()]


def token_table(tokens: pa.Table, heads: pa.Table) -> pa.Table:
    """Adds to each token what heads do with it. Both tables name the corruption in a column."""
    by_place: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in heads.to_pylist():
        by_place.setdefault(tuple(row[key] for key in PLACE), []).append(row)
    columns: dict[str, list[Any]] = {"head": [], "shift": [], "odd": []}
    for row in tokens.to_pylist():
        own = by_place[tuple(row[key] for key in PLACE)]
        moved = [each for each in own if each["shift"] is not None]
        largest = max(moved, key=lambda each: abs(each["shift"]), default=None)
        columns["head"].append(None if largest is None else f"{largest['layer']}.{largest['head']}")
        columns["shift"].append(None if largest is None else largest["shift"])
        columns["odd"].append("; ".join([*_odd_embedding(row), *_odd_attention(own)]))
    kinds = {"head": pa.string(), "shift": pa.float64(), "odd": pa.string()}
    for name, values in columns.items():
        tokens = tokens.append_column(name, pa.array(values, kinds[name]))
    return tokens


def _odd_embedding(row: Mapping[str, Any]) -> Iterator[str]:
    for what, z in (("norm of its embedding", row["norm_z"]), ("cosine to the mean embedding", row["cosine_z"])):
        if z is not None and abs(z) >= ODD_EMBEDDING_Z:
            side = "above" if z > 0 else "below"
            yield f"the {what} is {abs(z):.3g} deviations {side} the vocabulary's ({ODD_EMBEDDING_Z:g} stand out)"


def _odd_attention(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A sentence on the head that departs most from what is usual."""
    found = [(size, text) for row in rows for size, text in _departures(row)]
    if found:
        more = f", and {len(found) - 1:,} more" if len(found) > 1 else ""
        yield f"{max(found)[1]} ({ODD_ATTENTION:g} and {ODD_ATTENTION_Z:g} deviations stand out{more})"


def _departures(row: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    """How far from what is usual, and in words."""
    head = f"head {row['layer']}.{row['head']}"
    if row["attention"] is not None:
        apart = abs(row["attention"] - row["usual_attention"])
        if apart >= ODD_ATTENTION and apart >= ODD_ATTENTION_Z * row["attention_deviation"]:
            usual = f"{row['usual_attention']:.2f} ± {row['attention_deviation']:.2f}"
            yield apart, f"{head} puts {row['attention']:.2f} of later attention on it, on random tokens {usual}"
    apart = row["moved"] - row["usual_moved"]
    if apart >= ODD_ATTENTION and apart >= ODD_ATTENTION_Z * row["moved_deviation"]:
        usual = f"{row['usual_moved']:.2f} ± {row['moved_deviation']:.2f}"
        yield apart, f"{head} sends {row['moved']:.2f} of its attention elsewhere, of random tokens {usual}"
