"""Examples: activations with the text around them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
from actstore_storage.format.products import TOKENS
from actstore_storage.parquet.reading import open_product
from actstore_storage.parquet.row_groups import read_between
from actstore_storage.registry.token_texts import token_texts
from actstore_storage.runs.document_sources import SOURCE_FIELDS, answered, source_columns

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
    rows = []
    for i, example in enumerate(_shown(reader, feature, entries, window, few_entries)):
        tokens = example.tokens.tolist()
        rows.append(
            {
                "rank": i + 1,
                "activation": entries.activation[i],
                "sequence": entries.sequence[i],
                "position": entries.position[i],
                "document": entries.document[i],
                "source": example.source,
                "row": example.row,
                "first_position": example.positions[0],
                "tokens": tokens,
                "texts": texts.in_order(tokens),
                "activations": example.activations.tolist(),
            }
        )
    return pa.Table.from_pylist(rows, EXAMPLES)


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
    size = reader.snapshot.record.specification.sequences_per_shard

    def look(shard: int) -> list[tuple[int, _Stretch]]:
        [commit] = reader.snapshot.commits.of_each([shard])
        here = np.flatnonzero(entries.sequence // size == shard)
        places = [(int(entries.sequence[i]), int(entries.position[i])) for i in here]
        return list(zip(here.tolist(), _in_shard(reader, commit, places, window), strict=True))

    shards = np.unique(entries.sequence // size).tolist()
    found = dict(one for part in read_side_by_side(look, shards) for one in part)
    return [found[i] for i in range(len(entries))]


def _in_shard(
    reader: FeatureReader, commit: Commit, places: Sequence[tuple[int, int]], window: Window
) -> list[_Stretch]:
    found = []
    with open_product(reader.snapshot.bucket, commit, TOKENS) as file:
        held: dict[int, pa.Table] = {}
        names = ("sequence", "position", "token", *source_columns(file))
        for sequence, position in places:
            first_row, rows = read_between(file, "sequence", sequence, sequence, names, held)
            in_sequence = np.flatnonzero(rows["sequence"].to_numpy() == sequence)
            at = rows["position"].to_numpy()[in_sequence]
            shown = in_sequence[(at >= position - window.tokens_before) & (at <= position + window.tokens_after)]
            positions, tokens = (rows[name].to_numpy()[shown] for name in ("position", "token"))
            source, row = (column[0].as_py() for column in answered(rows.slice(int(shown[0]), 1)))
            found.append(_Stretch(commit, first_row + int(shown[0]), positions, tokens, source, row))
    return found


def _among(every: Entries, entries: Entries, stretches: list[_Stretch]) -> list[npt.NDArray[np.float32]]:
    """The feature on each token of each stretch, from all of its activations."""
    keys = _keys(every.sequence, every.position)
    order = np.argsort(keys)
    keys, values = keys[order], every.activation[order]
    begins = _keys(entries.sequence, np.array([stretch.positions[0] for stretch in stretches], np.int32))
    found = []
    for begin, stretch in zip(begins.tolist(), stretches, strict=True):
        own = np.zeros(len(stretch.positions), np.float32)
        first, end = np.searchsorted(keys, [begin, begin + len(own)])
        own[keys[first:end] - begin] = values[first:end]
        found.append(own)
    return found


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
