"""Tables of what a sweep found: their columns, which of them may be null, and where they are."""

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actstore_api.records.patching import Screen
from actstore_worker.patching.direct import Share
from actstore_worker.patching.metrics import Metrics
from actstore_worker.patching.plan import Entry
from actstore_worker.patching.tables import ComputedCells, baseline_table, cell_table, direct_table, token_table

TEXTS = ("<bos>", "a", "b")
GRID = (Entry((), "z", 1, 2, 3), Entry((), "features", 0, feature=7), Entry((), "joint", name="both"))
ALWAYS = ["pair", "direction", "site", "unchanged"]
WHERE_THERE = ["layer", "position", "head", "feature", "name", "token"]
METRICS = ["logit_difference", "log_probability", "probability", "loss", "rank", "kl"]
NORMALIZED = ["normalized", "normalized_log_probability", "normalized_probability", "normalized_loss", "normalized_kl"]


def metrics(*values: float) -> Metrics:
    """Each metric with the same numbers."""
    return Metrics(*(np.array(values) for _ in fields(Metrics)))


def table(
    screen: Screen | None = None,
    estimates: tuple[float, ...] | None = None,
    exact: tuple[bool, ...] = (True, True, True),
    sides: tuple[float, float] = (0.0, 2.0),
) -> pa.Table:
    """Of a grid of three rows, those that are exact with 1, 2 and 3."""
    plan: Any = SimpleNamespace(grid=GRID, screen=screen)
    computed = ComputedCells(
        range(3),
        np.array([False, True, False]),
        np.array(exact),
        metrics(*range(1, 1 + sum(exact))),
        *(metrics(side) for side in sides),
        None if estimates is None else np.array(estimates),
    )
    return cell_table(plan, 4, "noise", TEXTS, computed)


def test_a_row_says_where_it_is_and_what_is_of_no_place_is_null() -> None:
    rows = table().to_pylist()
    assert [{name: row[name] for name in (*ALWAYS, *WHERE_THERE)} for row in rows] == [
        {"pair": 4, "direction": "noise", "site": site, "unchanged": unchanged}
        | dict(zip(WHERE_THERE, place, strict=True))
        for site, unchanged, *place in (
            ("z", False, 1, 2, 3, None, None, "b"),
            ("features", True, 0, None, None, 7, None, None),
            ("joint", False, None, None, None, None, "both", None),
        )
    ]


def test_where_all_is_computed_every_metric_has_a_number() -> None:
    found = table()
    assert sorted(found.column_names) == sorted([*ALWAYS, *WHERE_THERE, *METRICS, *NORMALIZED])
    assert [field.name for field in found.schema if not field.nullable] == [*ALWAYS, *METRICS]
    for name in METRICS:
        assert found[name].to_pylist() == [1, 2, 3]
    for name in NORMALIZED:
        assert found[name].to_pylist() == [0.5, 1, 1.5]


def test_what_a_screen_did_not_choose_has_an_estimate_alone() -> None:
    found = table(Screen(2), (1.0, -4.0, -0.0), exact=(True, False, True))
    assert [field.name for field in found.schema if not field.nullable] == ALWAYS
    assert found["kl"].to_pylist() == [1, None, 2]
    assert found["normalized"].to_pylist() == [0.5, None, 1]
    assert found["estimate"].to_pylist() == [0.5, -2, 0]
    assert not np.signbit(found["estimate"].to_numpy()[2])
    assert "estimate" not in table(Screen(2), None).column_names
    assert "estimate" not in table(None, (1.0, 2.0, 3.0)).column_names


@pytest.mark.parametrize(("grad_drop", "expected"), [(False, -0.5), (True, 0.5)])
def test_an_estimate_without_a_sign_stays_without_one(grad_drop: bool, expected: float) -> None:
    """Where the source run's logit difference is the smaller one."""
    found = table(Screen(3, grad_drop=grad_drop), (1.0, 1.0, 1.0), sides=(2.0, 0.0))
    assert found["estimate"].to_pylist() == [expected] * 3


def test_between_sides_that_are_one_there_are_no_shares() -> None:
    found = table(Screen(3), (1.0, 2.0, 3.0), sides=(2.0, 2.0 + 1e-6))
    for name in (*NORMALIZED, "estimate"):
        assert found[name].null_count == 3
    assert found["kl"].null_count == 0
    assert table(Screen(3), (1.0, 2.0, 3.0), sides=(0.0, 1e-3))["estimate"].to_pylist() == [1e3, 2e3, 3e3]


def test_baselines_are_of_both_prompts_and_of_no_divergence() -> None:
    found = baseline_table([(metrics(1.0), metrics(2.0)), (metrics(3.0), metrics(4.0))])
    assert found.column_names == ["pair", "prompt", *METRICS[:-1]]
    assert all(field.nullable for field in found.schema)
    assert found.to_pylist() == [
        {"pair": pair, "prompt": prompt} | dict.fromkeys(METRICS[:-1], value)
        for pair, prompt, value in ((0, "clean", 1), (0, "corrupt", 2), (1, "clean", 3), (1, "corrupt", 4))
    ]


def test_shares_are_of_both_prompts() -> None:
    clean, corrupt = (Share("embedding", 0.5), Share("z", -1.0, 2, 3)), (Share("bias", 0.25),)
    found = direct_table([(clean, corrupt)])
    assert [field.name for field in found.schema if not field.nullable] == ["pair", "prompt", "part", "share"]
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (0, "clean", "embedding", None, None, 0.5),
        (0, "clean", "z", 2, 3, -1.0),
        (0, "corrupt", "bias", None, None, 0.25),
    ]


def test_past_the_end_of_the_shorter_prompt_there_is_no_token() -> None:
    assert token_table(("a", "b", "c"), ("a",)).to_pydict() == {
        "position": [0, 1, 2], "clean": ["a", "b", "c"], "corrupt": ["a", None, None],
    }  # fmt: skip
    assert token_table(("a",), ("b", "c"))["clean"].to_pylist() == ["a", None]
