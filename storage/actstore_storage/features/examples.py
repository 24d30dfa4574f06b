"""Examples: activations with the text around them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket.side_by_side import read_side_by_side
from actstore_storage.errors import check_limit
from actstore_storage.features.entries import Entries
from actstore_storage.features.reader import FeatureReader
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import features_product
from actstore_storage.parquet.reading import open_product
from actstore_storage.parquet.row_groups import read_between
from actstore_storage.registry.token_texts import token_texts
from actstore_storage.runs.document_sources import SOURCE_FIELDS, source_of
from actstore_storage.runs.tokens import SequenceTokens, sequence_tokens

WINDOW_TOKENS_MAX = 1024
# For a feature with fewer activations than this all are read, to show it on every token of the windows. For denser
# features the rows around each example are read from the shards.
FEW_ENTRIES = 65_536

EXAMPLES = pa.schema(
    [
        ("rank", pa.int32()),
        ("activation", pa.float32()),
        ("sequence", pa.int64()),
        ("position", pa.int32()),
        ("document", pa.int64()),
        *SOURCE_FIELDS,
        ("first_position", pa.int32()),
        ("tokens", pa.list_(pa.int32())),
        ("texts", pa.list_(pa.string())),
        ("activations", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Window:
    """The numbers of tokens before and after the example's own. Errors: BadRequest above WINDOW_TOKENS_MAX."""

    tokens_before: int = 12
    tokens_after: int = 6

    def __post_init__(self) -> None:
        check_limit(self.tokens_before, WINDOW_TOKENS_MAX, "tokens_before", least=0)
        check_limit(self.tokens_after, WINDOW_TOKENS_MAX, "tokens_after", least=0)

    def tokens_of(self, context_length: int) -> int:
        """The most tokens that a window in a sequence of this length has."""
        return min(self.tokens_before + 1 + self.tokens_after, context_length)


def examples_table(
    reader: FeatureReader, feature: int, entries: Entries, window: Window, few_entries: int = FEW_ENTRIES
) -> pa.Table:
    """Adds the text around each entry. One row per entry, in their order; `rank` counts from 1. Windows show every
    token of their sequence, and the feature on each of them, even tokens that the question excludes.
    """
    snapshot = reader.snapshot
    texts = token_texts(snapshot.bucket, snapshot.record.specification.tokenizer_sha256)
    shown = list(_shown(reader, feature, entries, window, few_entries))
    counts = [len(example.tokens) for example in shown]
    tokens = _joined([example.tokens for example in shown], np.int32)
    in_order = [text for example in shown for text in texts.in_order(example.tokens.tolist())]
    columns = (
        np.arange(1, len(shown) + 1, dtype=np.int32),
        entries.activation,
        entries.sequence,
        entries.position,
        entries.document,
        [example.source for example in shown],
        [example.row for example in shown],
        [int(example.positions[0]) for example in shown],
        _lists(pa.array(tokens), counts),
        _lists(pa.array(in_order, pa.string()), counts),
        _lists(pa.array(_joined([example.activations for example in shown], np.float32)), counts),
    )
    return pa.Table.from_arrays([_array(*each) for each in zip(columns, EXAMPLES.types, strict=True)], schema=EXAMPLES)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def _joined(parts: Sequence[npt.NDArray[Any]], kind: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *parts]).astype(kind, copy=False)


def _lists(values: pa.Array, counts: Sequence[int]) -> pa.ListArray:
    """Cuts values into lists of these lengths."""
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *counts]), pa.int32()), values)


@dataclass(frozen=True)
class _Shown:
    """For each entry, its window and its document's source."""

    positions: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]
    activations: npt.NDArray[np.float32]
    source: str | None = None
    row: int | None = None


def _shown(reader: FeatureReader, feature: int, entries: Entries, window: Window, few_entries: int) -> Iterator[_Shown]:
    """One per entry."""
    if (
        window == Window(0, 0) and not reader.snapshot.record.document_sources
    ):  # the entries already have everything else
        for i in range(len(entries)):
            yield _Shown(entries.position[i : i + 1], entries.token[i : i + 1], entries.activation[i : i + 1])
        return
    stretches = _stretches(reader, entries, window)
    if window == Window(0, 0):
        yield from (_of_stretch(one, entries.activation[i : i + 1]) for i, one in enumerate(stretches))
        return
    everything = reader.ranking(feature, frozenset())
    if everything.total <= few_entries:
        activations = _among(everything.all(), entries, stretches)
    else:
        activations = _from_shards(reader, feature, stretches)
    for stretch, values in zip(stretches, activations, strict=True):
        yield _of_stretch(stretch, values)


def _of_stretch(stretch: "_Stretch", activations: npt.NDArray[np.float32]) -> _Shown:
    return _Shown(stretch.positions, stretch.tokens, activations, stretch.source, stretch.row)


@dataclass(frozen=True)
class _Stretch:
    """Consecutive tokens of a sequence, and the shard's row of the first one."""

    commit: Commit
    first_row: int
    positions: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]
    source: str | None
    row: int | None


def _stretches(reader: FeatureReader, entries: Entries, window: Window) -> list[_Stretch]:
    sequences = entries.sequence.tolist()
    found = sequence_tokens(reader.snapshot, sequences, reader.cache)
    places = zip(sequences, entries.position.tolist(), strict=True)
    return [_stretch(found[sequence], position, window) for sequence, position in places]


def _stretch(tokens: SequenceTokens, position: int, window: Window) -> _Stretch:
    at = tokens.column("position")
    first, end = at.searchsorted([position - window.tokens_before, position + window.tokens_after + 1]).tolist()
    source, row = source_of(tokens.rows, tokens.first + first)
    first_row = tokens.first_row + tokens.first + first
    return _Stretch(tokens.commit, first_row, at[first:end], tokens.column("token")[first:end], source, row)


def _among(every: Entries, entries: Entries, stretches: list[_Stretch]) -> list[npt.NDArray[np.float32]]:
    """The feature on each token of each stretch, from all of its activations."""
    keys = _keys(every.sequence, every.position)
    order = np.argsort(keys)
    keys, values = keys[order], every.activation[order]
    counts = [len(stretch.positions) for stretch in stretches]
    positions = _joined([stretch.positions for stretch in stretches], np.int32)
    shown = _keys(np.repeat(entries.sequence, counts), positions)
    own = np.zeros(len(shown), np.float32)
    if len(keys):
        places = keys.searchsorted(shown).clip(max=len(keys) - 1)
        there = keys[places] == shown
        own[there] = values[places[there]]
    return np.split(own, np.cumsum(counts)[:-1]) if counts else []


def _from_shards(reader: FeatureReader, feature: int, stretches: list[_Stretch]) -> list[npt.NDArray[np.float32]]:
    """The same, from the shards' own rows."""
    product = features_product(reader.sae)
    by_shard: dict[int, list[int]] = {}
    for place, stretch in enumerate(stretches):
        by_shard.setdefault(stretch.commit.shard, []).append(place)

    def read(places: list[int]) -> list[tuple[int, npt.NDArray[np.float32]]]:
        held: dict[int, pa.Table] = {}
        with open_product(reader.snapshot.bucket, stretches[places[0]].commit, product) as file:
            return [(place, _on_stretch(file, feature, stretches[place], held)) for place in places]

    found = dict(one for part in read_side_by_side(read, by_shard.values()) for one in part)
    return [found[place] for place in range(len(stretches))]


def _on_stretch(
    file: pq.ParquetFile, feature: int, stretch: _Stretch, held: dict[int, pa.Table]
) -> npt.NDArray[np.float32]:
    values = np.zeros(len(stretch.tokens), np.float32)
    last = stretch.first_row + len(values) - 1
    _, rows = read_between(file, "row", stretch.first_row, last, ("row", "feature", "activation"), held)
    row = rows["row"].to_numpy()
    here = (row >= stretch.first_row) & (row <= last) & (rows["feature"].to_numpy() == feature)
    values[row[here] - stretch.first_row] = rows["activation"].to_numpy()[here]
    return values


def _keys(sequence: npt.NDArray[np.int64], position: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    return (sequence.astype(np.int64) << 32) | position.astype(np.int64)
