"""What an encoded text says of each feature that fires on it."""

import numpy as np
import pyarrow as pa

from actstore._features.live import EncodedText


def fires_on(encoded: EncodedText) -> pa.Table:
    """Sums up an encoded text: one row for each feature, by index, over tokens that are neither BOS nor special."""
    tokens = encoded.tokens
    plain = ~np.asarray(tokens["special"].to_pylist(), bool)
    positions, texts = tokens["position"].to_numpy()[plain], np.array(tokens["text"].to_pylist(), object)[plain]
    position, feature = (encoded.table[name].to_numpy() for name in ("position", "feature"))
    here = np.isin(position, positions)
    position, feature, activation = position[here], feature[here], encoded.table["activation"].to_numpy()[here]
    order = np.lexsort((position, -activation, feature))
    found, first, active = np.unique(feature[order], return_index=True, return_counts=True)
    strongest = order[first]
    sums = np.bincount(np.searchsorted(found, feature), activation.astype(np.float64), len(found))
    return pa.table(
        {
            "feature": pa.array(found.astype(np.int32)),
            "active_tokens": pa.array(active.astype(np.int64)),
            "mean": pa.array(sums / max(1, len(positions))),
            "maximum": pa.array(activation[strongest]),
            "share": pa.array(active / max(1, len(positions))),
            "position": pa.array(position[strongest].astype(np.int32)),
            "text": pa.array(texts[np.searchsorted(positions, position[strongest])], pa.string()),
        }
    )


def with_lift(fires: pa.Table, statistics: pa.Table) -> pa.Table:
    """Puts density and lift beside features that fire; `statistics` has the same features in the same order."""
    density = statistics["density"].to_numpy()
    share = fires["share"].to_numpy()
    lift = np.divide(share, density, out=np.full(len(share), np.nan), where=density > 0)
    table = fires.drop_columns(["share"])
    table = table.add_column(4, "density", pa.array(density))
    return table.add_column(5, "lift", pa.array(lift, from_pandas=True))
