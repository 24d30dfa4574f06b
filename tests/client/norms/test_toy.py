"""Toys of growth over depth and training, against closed forms and conserved quantities, and what the fit says."""

import math

import numpy as np
import pytest

import actstore
from actstore import BadRequest, simulate_depth


def test_partial_sums_have_the_ratios_of_their_closed_form() -> None:
    """Computed by hand from w_i(x) = sum of sqrt(x)^n / n!, n from 5 - i to 9."""
    found = simulate_depth("partial_sum", n_layers=5, n_steps=20)
    ratios = found.norms()[:, 1:] / found.norms()[:, :-1]
    assert ratios[0] == pytest.approx([4.229, 3.291, 2.392, 1.582], abs=6e-4)
    assert ratios[-1] == pytest.approx([1.268, 1.142, 1.055, 1.012], abs=6e-4)
    exact = [sum(math.sqrt(7) ** n / math.factorial(n) for n in range(5 - i, 10)) for i in range(1, 6)]
    assert found.norms()[found.steps.index(7)] == pytest.approx(exact, rel=1e-12)
    assert found.fit_growth("layer").verdict == "slower"
    assert found.fit_growth("layer", step=1).rate > found.fit_growth("layer").rate


def test_a_chain_of_two_equal_weights_follows_the_logistic_curve() -> None:
    """dP/dt = 2 P (y - P) for P = w^2: P(t) = y / (1 + (y / P_0 - 1) exp(-2 y t))."""
    rate = 1e-4
    found = simulate_depth(n_layers=2, n_steps=20_000, learning_rate=rate, target=2.0, initial=(0.3, 0.3))
    t = rate * np.array(found.steps)
    exact = 2.0 / (1 + (2.0 / 0.09 - 1) * np.exp(-4.0 * t))
    assert found.norms().prod(axis=1) == pytest.approx(exact, rel=2e-3)


def test_a_chain_keeps_the_differences_of_squares_and_ends_where_they_say() -> None:
    found = simulate_depth(n_layers=5, n_steps=400_000, learning_rate=1e-4, target=3.0, initial=(0.1, 0.5))
    squares = found.norms() ** 2
    assert np.ptp(squares - squares[:, :1], axis=0).max() < 1e-4
    low, high = 0.0, 10.0  # w_1^2 by bisection of prod(w_1^2 + c_i) = 9
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (middle + squares[0] - squares[0, 0]).prod() < 9 else (low, middle)
    assert squares[-1] == pytest.approx(low + squares[0] - squares[0, 0], rel=1e-4)
    assert found.norms()[-1, [0, -1]] == pytest.approx([1.206, 1.302], abs=1e-3)
    last = found.fit_growth("layer").points["ratio"].to_pylist()[1:]
    assert last == pytest.approx([1.010, 1.017, 1.023, 1.028], abs=6e-4)
    assert found.fit_growth("checkpoint", layer=0).verdict != "exponential"


def test_a_deep_linear_network_is_as_many_chains_as_it_is_wide() -> None:
    """Orthogonal times a number, towards orthogonal times a number: where the product's directions agree, each singular
    value is a scalar chain; at width 1 all of it is one.
    """
    deep = simulate_depth(
        "deep_linear", width=1, n_layers=4, n_steps=3000, learning_rate=1e-3, initial=(0.7, 0.9), seed=3
    )
    signs = np.random.default_rng(3)
    product = np.prod([np.linalg.qr(signs.standard_normal((1, 1)))[0].item() for _ in range(5)])
    chain = simulate_depth(n_layers=4, n_steps=3000, learning_rate=1e-3, initial=(0.7, 0.9), target=3.0 * product)
    assert deep.norms() == pytest.approx(chain.norms(), rel=1e-9)


def test_a_deep_linear_network_keeps_what_gradient_flow_keeps() -> None:
    """The trace of W_{i+1}^T W_{i+1} - W_i W_i^T: differences of squared Frobenius norms."""
    found = simulate_depth("deep_linear", width=6, n_layers=3, n_steps=40_000, learning_rate=1e-4, initial=(0.5, 0.8))
    squares = found.norms() ** 2
    assert np.ptp(squares - squares[:, :1], axis=0).max() < 1e-3 * squares.max()
    assert np.ptp(squares[:, 0]) > 1


def test_the_fit_is_that_of_runs_on_either_axis() -> None:
    found = simulate_depth(n_layers=6, n_steps=1000)
    growth = found.fit_growth("layer", step=0)
    slope, _ = np.polyfit(range(6), np.log(np.linspace(0.1, 0.5, 6)), 1)
    assert growth.rate == pytest.approx(math.exp(slope))
    assert isinstance(growth, actstore.Growth)
    assert growth.rate_interval is None
    over = found.fit_growth("checkpoint", layer=2)
    assert over.points["step"].to_pylist() == found.steps
    assert "simulated" in repr(over)
    assert found.plot().get_yscale() == "log"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"kind": "transformer"}, "kind"),
        ({"n_layers": 1}, "n_layers"),
        ({"n_steps": 0}, "n_steps"),
        ({"width": 1000, "kind": "deep_linear"}, "width"),
        ({"initial": (0.1,)}, "initial"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": 100.0}, "learning_rate"),
    ],
)
def test_refusals(options, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        simulate_depth(**options)
    assert caught.value.field == field


def test_what_was_not_recorded_is_not_fitted() -> None:
    for axis, options in (("layer", {"step": 0.5}), ("checkpoint", {"layer": 9})):
        with pytest.raises(BadRequest) as caught:
            simulate_depth(n_steps=10).fit_growth(axis, **options)
        assert caught.value.field == next(iter(options))
