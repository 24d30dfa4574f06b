"""Which tokens are flagged as sinks, by norms alone; in a capture: test_stored_products.py."""

import numpy as np
import pytest

from actstore_storage.format.tokens import SINK
from actstore_storage.runs.shard_writer import TokenRows
from actstore_worker.capture.shards.sinks import with_sinks

SITE = "resid_post.0"


def flagged(norms: list[float]) -> list[int]:
    """Positions, in a sequence of these norms."""
    zeros = np.zeros(len(norms), np.int64)
    tokens = TokenRows(
        zeros, np.arange(len(norms), dtype=np.int32), zeros, zeros.astype(np.int32), zeros.astype(np.uint8)
    )
    offsets = np.array([0, len(norms)])
    found = with_sinks(tokens, offsets, {SITE: np.array(norms, np.float32)}, 10.0)
    return np.flatnonzero(found.flags & SINK).tolist()


@pytest.mark.parametrize(
    ("norms", "sinks"),
    [
        ([1, 1, 100, 1], [2]),
        ([1, 1, 100, 1, np.nan], [2]),
        ([1, 1, np.inf, 1, np.nan, np.nan, np.nan, np.nan], [2]),
        ([np.nan, np.nan], []),
        ([100], []),
    ],
)
def test_a_norm_that_is_no_number_hides_no_sink(norms, sinks):
    assert flagged(norms) == sinks
