"""Quantiles, groups and histograms of norms in memory, against NumPy and by their definitions."""

import numpy as np
import pytest

from actstore_storage.errors import BadRequest
from actstore_storage.norms.rows import (
    HISTOGRAM_BINS_MAX,
    KeptTokens,
    check_bins,
    exact_quantiles,
    group_norms,
    histogram_rows,
)

QUANTILES = (0.0, 0.05, 0.25, 0.5, 2 / 3, 0.95, 1.0)


@pytest.mark.parametrize("exclude_position_0", [False, True])
@pytest.mark.parametrize("exclude", [(), ("bos",), ("bos", "special", "sink")])
def test_tokens_that_count(exclude: tuple[str, ...], *, exclude_position_0: bool) -> None:
    """One by one, by a token's class and position; answers name both, and statistics by class tell classes alone."""
    classes, positions = ("bos", "text", "sink", "special", "text", "special"), (0, 1, 2, 3, 0, 0)
    flags = [{"text": 0, "bos": 1, "special": 2, "sink": 4}[name] for name in classes]
    kept = KeptTokens(frozenset(exclude), exclude_position_0)
    assert kept.mask({"flags": np.array(flags), "position": np.array(positions)}).tolist() == [
        name not in exclude and not (exclude_position_0 and position == 0)
        for name, position in zip(classes, positions, strict=True)
    ]
    assert kept.left_out == {*exclude, *(("position_0",) if exclude_position_0 else ())}
    assert kept.told_by_class is not exclude_position_0


def test_a_mask_by_class_needs_no_positions() -> None:
    assert KeptTokens().mask({"flags": np.array([0, 1])}).tolist() == [True, False]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_quantiles_are_those_of_numpy(count: int) -> None:
    values = np.random.default_rng(count).lognormal(size=count).astype(np.float32)
    expected = np.quantile(values.astype(np.float64), QUANTILES)
    assert exact_quantiles(values.copy(), QUANTILES) == pytest.approx(expected.tolist(), rel=1e-12)


def test_quantiles_do_not_depend_on_the_order_in_which_they_are_asked() -> None:
    values = np.arange(10, dtype=np.float32)
    assert exact_quantiles(values, (1.0, 0.0, 0.5, 1.0)) == [9, 0, 4.5, 9]


def test_groups_are_those_of_their_labels() -> None:
    rng = np.random.default_rng(0)
    values, labels = rng.lognormal(size=200).astype(np.float32), rng.integers(-2, 5, 200)
    labels[labels == 3] = 4  # nobody's
    found = list(group_norms(values.copy(), labels.copy(), (0.25, 1.0)))
    assert [label for label, _, _ in found] == sorted(set(labels.tolist()))
    for label, moments, quantiles in found:
        own = values[labels == label].astype(np.float64)
        assert (moments.count, moments.minimum, moments.maximum) == (len(own), own.min(), own.max())
        assert moments.mean == pytest.approx(own.mean(), rel=1e-9)
        assert quantiles == pytest.approx(np.quantile(own, (0.25, 1.0)).tolist(), rel=1e-12)


def test_a_group_of_one_value_is_a_group() -> None:
    """The first of them, too, with the next label right behind it."""
    found = list(group_norms(np.array([5, 6, 8], np.float32), np.array([3, 4, 4]), ()))
    assert [(label, moments.count, moments.mean) for label, moments, _ in found] == [(3, 1, 5), (4, 2, 7)]


def test_groups_without_labels_are_one_and_of_nothing_none() -> None:
    values = np.array([3, 1, 2], np.float32)
    [(label, moments, quantiles)] = group_norms(values, None, (0.5,))
    assert (label, moments.count, moments.mean, quantiles) == (None, 3, 2, [2])
    for labels in (None, np.array([7, 7, 7])):
        [(_, _, quantiles)] = group_norms(values, labels, ())
        assert quantiles == []
        assert list(group_norms(values[:0], labels, (0.5,))) == []


def test_bins_of_values_above_0_are_of_equal_ratio() -> None:
    values = np.array([1, 1.5, 2, 7.9, 8, 8], np.float32)
    rows = histogram_rows(values, 3, ())
    bounds = [rows[0]["low"], *(row["high"] for row in rows)]
    assert bounds == pytest.approx([1, 2, 4, 8], rel=1e-12)
    assert [row["low"] for row in rows[1:]] == bounds[1:-1]
    assert [row["count"] for row in rows] == [2, 1, 3]  # each holds its low end, and the last one both


def test_bins_are_of_equal_ratio_however_small_the_values_are() -> None:
    rows = histogram_rows(np.array([1 / 64, 1 / 4]), 2, ())
    assert [row["high"] for row in rows] == pytest.approx([1 / 16, 1 / 4], rel=1e-12)


@pytest.mark.parametrize("least", [0.0, -1.0])
def test_bins_of_other_values_are_of_equal_width(least: float) -> None:
    rows = histogram_rows(np.array([least, 3.0]), 2, ())
    assert [(row["low"], row["high"], row["count"]) for row in rows] == [
        (least, (least + 3) / 2, 1),
        ((least + 3) / 2, 3, 1),
    ]


@pytest.mark.parametrize("bins", [1, 7, 40])
def test_every_value_lies_in_a_bin(bins: int) -> None:
    """The outer bounds are the least and the largest value, and no rounding of them."""
    for seed in range(20):
        values = np.random.default_rng(seed).lognormal(size=50).astype(np.float32)
        rows = histogram_rows(values, bins, ())
        assert len(rows) == bins
        assert (rows[0]["low"], rows[-1]["high"]) == (float(values.min()), float(values.max()))
        assert sum(row["count"] for row in rows) == 50


def test_edges_are_kept_and_what_lies_outside_is_not_counted() -> None:
    rows = histogram_rows(np.array([0.5, 1, 2, 3, 9]), 0, (1, 2, 3))
    assert rows == [{"low": 1, "high": 2, "count": 1}, {"low": 2, "high": 3, "count": 2}]


def test_a_value_counts_for_as_many_as_it_stands_for() -> None:
    rows = histogram_rows(np.array([1.0, 2, 4]), 2, (), np.array([5, 0, 7]))
    assert [row["count"] for row in rows] == [5, 7]


@pytest.mark.parametrize(
    ("bins", "edges", "field", "reason"),
    [
        (0, (), "bins", "ARGUMENT_INVALID"),
        (HISTOGRAM_BINS_MAX + 1, (), "bins", "LIMIT_EXCEEDED"),
        (5, (1.0,), "edges", "ARGUMENT_INVALID"),
        (0, (1.0, 1.0), "edges", "ARGUMENT_INVALID"),
        (0, (2.0, 1.0), "edges", "ARGUMENT_INVALID"),
        (0, (1.0, 3.0, 2.0), "edges", "ARGUMENT_INVALID"),
        (0, (1.0, float("inf")), "edges", "ARGUMENT_INVALID"),
        (0, tuple(range(HISTOGRAM_BINS_MAX + 2)), "edges", "LIMIT_EXCEEDED"),
    ],
)
def test_bins_that_are_none(bins: int, edges: tuple[float, ...], field: str, reason: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_bins(bins, edges)
    assert (caught.value.details["field"], caught.value.reason) == (field, reason)


def test_bins_and_edges_up_to_the_limit() -> None:
    check_bins(1, ())
    check_bins(HISTOGRAM_BINS_MAX, ())
    check_bins(0, (1.0, 2.0))
    check_bins(0, tuple(range(HISTOGRAM_BINS_MAX + 1)))
