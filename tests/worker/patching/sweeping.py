"""What sweeps hand out, and when two of them say the same."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from actstore_api.records.patching import SweepCells
from actstore_worker.patching.updates import CheckedCells, SweepUpdate


def cells(updates: Sequence[SweepUpdate | SweepCells]) -> pa.Table:
    return pa.concat_tables(update.rows for update in updates if isinstance(update, CheckedCells | SweepCells))


def assert_same(found: pa.Table, expected: pa.Table) -> None:
    """But for rounding: which cells share a batch depends on the time that they take, and on other sweeps."""
    assert found.schema.equals(expected.schema)
    for name in expected.column_names:
        if pa.types.is_floating(expected[name].type):
            assert found[name].is_valid().equals(expected[name].is_valid())
            # A normalised effect is over a small difference, which enlarges rounding.
            rounding = 1e-3 if name.startswith("normalized") else 1e-5
            np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rounding, rounding)
        else:
            assert found[name].equals(expected[name]), name
