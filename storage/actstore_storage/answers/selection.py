"""Which tokens a question is about, in storage's words."""

from actstore_api.records.activation import TokenSelection
from actstore_api.records.terms import Range
from actstore_storage.runs.token_filter import TokenFilter


def token_filter(where: TokenSelection | None, exclude: frozenset[str] = frozenset()) -> TokenFilter:
    """Rows that pass every part of the selection, less those of the excluded classes; None passes every row."""
    chosen = where or TokenSelection()
    sequences = chosen.sequences or Range()
    return TokenFilter(
        first_sequence=sequences.first,
        end_sequence=sequences.end,
        tokens=chosen.tokens,
        documents=chosen.documents,
        first_position=chosen.positions.first if chosen.positions else None,
        end_position=chosen.positions.end if chosen.positions else None,
        exclude=exclude,
    )


def chosen_tokens(where: TokenSelection | None) -> TokenFilter | None:
    """The same without an exclusion, which stands beside it there; None where all tokens are meant."""
    return None if where is None else token_filter(where)
