"""Finds features by the tokens on which they fire: on chosen tokens, or together with another feature; from the shards'
rows.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.errors import BadRequest, check_limit
from actstore_storage.features.reader import FeatureReader
from actstore_storage.features.table import scored, statistics_columns
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import features_product
from actstore_storage.format.tokens import DEFAULT_EXCLUSION, kept_rows
from actstore_storage.parquet.reading import open_product
from actstore_storage.parquet.row_groups import groups_between
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import TokenFilter
from actstore_storage.runs.tokens import shard_tokens

FEATURES_SHOWN_MAX = 10_000
ORDERS = ("mean", "maximum", "active_tokens", "lift")


def active_features(
    snapshot: Snapshot,
    sae: str,
    keep: TokenFilter,
    *,
    k: int = 20,
    order: str = "mean",
    exclude: frozenset[str] = DEFAULT_EXCLUSION,
) -> pa.Table:
    """Finds the features most active on chosen tokens: of an id, a sequence, a document, or a combination.

    Columns: feature, active_tokens (of the chosen ones), mean (over all chosen tokens, zeros included), maximum,
    density (over the snapshot), lift (the fraction of chosen tokens on which it fires, divided by its density). Empty
    if no token is chosen. `exclude` applies in addition to the filter's own.
    """
    _check_order(order, k)
    reader = FeatureReader(snapshot, sae)
    count, total = np.zeros(reader.d_sae, np.int64), np.zeros(reader.d_sae)
    maximum, chosen_tokens = np.zeros(reader.d_sae, np.float32), 0
    for commit in keep.commits(snapshot):
        tokens = shard_tokens(snapshot.bucket, commit)
        chosen = keep.mask(tokens) & kept_rows(tokens["flags"].to_numpy(), exclude)
        chosen_tokens += int(chosen.sum())
        for feature, activation in _on_rows(snapshot, commit, sae, chosen):
            count += np.bincount(feature, minlength=reader.d_sae)
            total += np.bincount(feature, activation, reader.d_sae)
            np.maximum.at(maximum, feature, activation)
    density = statistics_columns(reader, exclude)["density"]
    fires = np.flatnonzero(count)
    lift = (count / max(1, chosen_tokens))[fires] / density[fires]
    table = pa.table(
        {
            "feature": pa.array(fires.astype(np.int32)),
            "active_tokens": pa.array(count[fires]),
            "mean": pa.array(total[fires] / max(1, chosen_tokens)),
            "maximum": pa.array(maximum[fires]),
            "density": pa.array(density[fires]),
            "lift": pa.array(lift),
        }
    )
    return scored(table, k, order)


def cofiring_features(
    snapshot: Snapshot,
    sae: str,
    feature: int,
    *,
    k: int = 20,
    least_tokens: int = 5,
    exclude: frozenset[str] = DEFAULT_EXCLUSION,
) -> pa.Table:
    """Finds features g that fire on the same tokens as this one, f, by lift: P(f and g) / (P(f) P(g)), which is 1 if
    they are independent.

    Columns: feature, both_tokens, share (P(g | f)), density (P(g)), lift. Pairs that share fewer than `least_tokens`
    tokens are left out, because their lift is mostly chance.
    """
    check_limit(k, FEATURES_SHOWN_MAX, "k")
    check_limit(least_tokens, 2**32 - 1, "least_tokens")
    reader = FeatureReader(snapshot, sae)
    entries = reader.ranking(feature, exclude).all()
    size = snapshot.record.specification.sequences_per_shard
    both = np.zeros(reader.d_sae, np.int64)
    for shard in np.unique(entries.sequence // size).tolist():
        [commit] = snapshot.commits.of_each([shard])
        here = entries.take(entries.sequence // size == shard)
        chosen = _rows_at(shard_tokens(snapshot.bucket, commit), here.sequence, here.position)
        for other, _ in _on_rows(snapshot, commit, sae, chosen):
            both += np.bincount(other, minlength=reader.d_sae)
    both[feature] = 0
    density = statistics_columns(reader, exclude)["density"]
    fires = np.flatnonzero(both >= least_tokens)
    share = both[fires] / max(1, len(entries))
    table = pa.table(
        {
            "feature": pa.array(fires.astype(np.int32)),
            "both_tokens": pa.array(both[fires]),
            "share": pa.array(share),
            "density": pa.array(density[fires]),
            "lift": pa.array(share / density[fires]),
        }
    )
    return scored(table, k, "lift")


def _on_rows(
    snapshot: Snapshot, commit: Commit, sae: str, chosen: npt.NDArray[np.bool_]
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
    """(feature, activation) of the nonzeros on these rows, row group by row group; other row groups are not read."""
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return
    with open_product(snapshot.bucket, commit, features_product(sae)) as file:
        column = file.schema_arrow.names.index("row")
        for group in groups_between(file, "row", int(rows[0]), int(rows[-1])):
            bounds = file.metadata.row_group(group).column(column).statistics
            if chosen[bounds.min : bounds.max + 1].any():
                table = file.read_row_group(group, use_threads=False)
                here = chosen[table["row"].to_numpy()]
                yield table["feature"].to_numpy()[here], table["activation"].to_numpy()[here]


def _rows_at(
    tokens: pa.Table, sequence: npt.NDArray[np.int64], position: npt.NDArray[np.int32]
) -> npt.NDArray[np.bool_]:
    """The indices of these rows among a shard's tokens."""
    keys = (tokens["sequence"].to_numpy() << 32) | tokens["position"].to_numpy()
    found = np.zeros(len(keys), bool)
    found[np.searchsorted(keys, (sequence << 32) | position)] = True
    return found


def _check_order(order: str, k: int) -> None:
    check_limit(k, FEATURES_SHOWN_MAX, "k")
    if order not in ORDERS:
        raise BadRequest(f"features cannot be ordered by {order!r}", field="order", value=order, allowed=ORDERS)
