"""Turns the contract's selection of tokens into storage's filter."""

from actstore_api.records.activation import TokenSelection
from actstore_api.records.terms import Range
from actstore_storage.runs.token_filter import TokenFilter


def token_filter(where: TokenSelection | None, exclude: frozenset[str] = frozenset()) -> TokenFilter:
    """A filter for rows that meet every condition of the selection and are not of the excluded classes; None passes
    every row.
    """
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
    """The same without an exclusion, which is a separate argument there; None if all tokens are selected."""
    return None if where is None else token_filter(where)
