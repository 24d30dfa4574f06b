"""Metrics of logits, in double precision and in plain words; how far apart is far enough to be normalized."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore_worker.patching import metrics
from actstore_worker.patching.metrics import NORMALIZED, Metrics

ANSWERS = (3, 7)
VOCABULARY = 50


def logits(rows: int, *, largest: float = 5.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(rows, VOCABULARY, generator=generator) - 1) * largest


def slowly(found: Tensor, source: Tensor) -> dict[str, NDArray[np.float64]]:
    p, q = (torch.softmax(one.double(), -1).numpy() for one in (found, source))
    clean, corrupt = ANSWERS
    return {
        "logit_difference": (found[:, clean].double() - found[:, corrupt].double()).numpy(),
        "log_probability": np.log(p[:, clean]),
        "probability": p[:, clean],
        "loss": -np.log(p[:, clean]),
        "rank": np.array([sum(other > row[clean] for other in row) for row in found.tolist()]),
        "kl": (q * np.log(q / p)).sum(-1),
    }


@pytest.mark.parametrize("at_once", [1, 3 * VOCABULARY, 1 << 18])
@pytest.mark.parametrize("largest", [1e-3, 5.0, 200.0])
def test_metrics_are_their_definitions_however_many_rows_are_made_at_once(
    largest: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of logits whose exponentials float32 does not hold, too."""
    monkeypatch.setattr(metrics, "_ELEMENTS_AT_ONCE", at_once)
    rows, source = logits(8, largest=largest), logits(1, largest=largest, seed=1)
    found = Metrics.of(rows, ANSWERS, source[0])
    for name, expected in slowly(rows, source).items():
        assert getattr(found, name).dtype == np.float64
        np.testing.assert_allclose(getattr(found, name), expected, atol=2e-6 * max(1.0, largest), err_msg=name)


@pytest.mark.parametrize(
    ("at_once", "expected"), [(1, [1] * 8), (3 * VOCABULARY, [3, 3, 2]), (4 * VOCABULARY - 1, [3, 3, 2])]
)
def test_rows_are_made_in_parts_of_at_most_so_many_logits(
    at_once: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row at least. The first sum of exponentials is that of the source run."""
    sizes, log_sum_exp = list[int](), metrics._log_sum_exp

    def seeing(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return log_sum_exp(part)

    monkeypatch.setattr(metrics, "_ELEMENTS_AT_ONCE", at_once)
    monkeypatch.setattr(metrics, "_log_sum_exp", seeing)
    Metrics.of(logits(8), ANSWERS, logits(1, seed=1)[0])
    assert sizes == [1, *expected]


def test_a_loss_is_told_where_float32_would_say_none() -> None:
    """Of two tokens, x apart, it is log(1 + exp(-x)): of x = 17, far less than float32 has beside 1."""
    row = torch.tensor([[0.0, -17.0]])
    found = Metrics.of(row, (0, 1), row[0])
    assert found.loss == pytest.approx([np.log1p(np.exp(-17.0))], rel=1e-5)


def test_a_divergence_is_never_below_nothing() -> None:
    """Though its terms are rounded, each for itself, where it is next to nothing."""
    source = logits(1, largest=30.0)
    found = Metrics.of(source + 1e-5 * logits(200, largest=1.0, seed=1), ANSWERS, source[0])
    assert found.kl.min() == 0
    assert found.kl.max() < 1e-5


def test_equals_of_the_answer_do_not_come_before_it() -> None:
    row = torch.zeros(1, VOCABULARY)
    assert Metrics.of(row, ANSWERS, row[0]).rank.tolist() == [0]
    row[0, 5] = 1e-6
    assert Metrics.of(row, ANSWERS, row[0]).rank.tolist() == [1]


def test_half_precision_is_widened_first() -> None:
    """Else sums over the vocabulary would be rounded to eight bits."""
    rows, source = logits(4).bfloat16(), logits(1, seed=1).bfloat16()
    found = Metrics.of(rows, ANSWERS, source[0])
    for name, expected in slowly(rows.float(), source.float()).items():
        np.testing.assert_allclose(getattr(found, name), expected, atol=1e-5, err_msg=name)


def constant(value: float) -> Metrics:
    return Metrics(*(np.array([value]) for _ in fields(Metrics)))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("name", "apart"),
    [("logit_difference", 1e-3), ("log_probability", 1e-3), ("probability", 1e-5), ("loss", 1e-3), ("kl", 1e-4)],
)
def test_normalized_is_the_share_of_the_way_where_there_is_a_way(name: str, apart: float, sign: int) -> None:
    """From the base run, at 0, to the source run, at 1."""
    assert apart == NORMALIZED[name]
    base, near, far = constant(2.0), constant(2.0 + 0.99 * sign * apart), constant(2.0 + 1.01 * sign * apart)
    found = replace(base, **{name: np.array([2.0, 2.0 + 1.01 * sign * apart, 2.0 + 2.02 * sign * apart])})
    assert found.normalized(name, base, near) is None
    np.testing.assert_allclose(found.normalized(name, base, far), [0, 1, 2], atol=1e-9)
    assert found.normalized(name, constant(0.0), constant(sign * apart)) is not None  # just so far
