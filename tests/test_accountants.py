"""Accountants: integer costs, checked against dp-accounting's Renyi and privacy-loss accountants on a grid."""

from __future__ import annotations

import math
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st
from second_routes import cost_of

from fusion.accountants import (
    ACCOUNTANTS,
    COST_UNITS,
    ORDERS,
    GaussianRelease,
    SampledGaussianRelease,
    add,
    sampled_divergences,
)
from fusion.accounting import epsilon_of, mu_of
from fusion.errors import BudgetError
from fusion.ledger import Ledger

RENYI, GAUSSIAN = ACCOUNTANTS["renyi"], ACCOUNTANTS["gaussian"]
DELTA = 1e-5
TASK_ID = bytes(32)
GRID = [
    SampledGaussianRelease(noise, rate, steps)
    for noise in (0.8, 1.2, 4.0)
    for rate in (0.001, 0.01, 0.1, 1.0)
    for steps in (1, 100, 2_000)
]


def event(release: SampledGaussianRelease, count: int = 1) -> dp_accounting.DpEvent:
    step = PoissonSampledDpEvent(release.sampling_rate, GaussianDpEvent(release.noise_multiplier))
    return dp_accounting.SelfComposedDpEvent(step, release.steps * count)


@pytest.mark.parametrize("release", GRID, ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_the_epsilon_of_training_is_at_least_that_of_dp_accounting_and_little_more(
    release: SampledGaussianRelease, count: int
) -> None:
    costs = RENYI.cost(release)
    ours = RENYI.epsilon(tuple(count * cost for cost in costs), DELTA)
    theirs, order = RdpAccountant(ORDERS).compose(event(release, count)).get_epsilon_and_optimal_order(DELTA)
    assert theirs <= ours * (1 + 1e-9) + 1e-9
    # The union over the orders, at most: it divides delta by their number.
    assert ours <= theirs * (1 + 1e-6) + math.log(len(ORDERS)) / (order - 1)


@pytest.mark.parametrize("rate", [0.005, 0.01, 0.05])
@pytest.mark.parametrize("noise", [1.0, 2.0, 4.0])
def test_for_training_as_it_is_done_the_grid_and_the_union_cost_less_than_a_quarter(noise: float, rate: float) -> None:
    release = SampledGaussianRelease(noise, rate, 2_000)
    orders = [1.5, *range(2, 513)]
    assert RENYI.epsilon(RENYI.cost(release), DELTA) <= 1.25 * RdpAccountant(orders).compose(
        event(release)
    ).get_epsilon(DELTA)


@pytest.mark.parametrize(
    "release", [one for one in GRID if one.sampling_rate < 1 and one.steps <= 100 and one.noise_multiplier > 1], ids=str
)
def test_the_epsilon_of_training_is_at_least_that_of_its_privacy_loss_distribution(
    release: SampledGaussianRelease,
) -> None:
    exact = PLDAccountant(value_discretization_interval=1e-3).compose(event(release)).get_epsilon(DELTA)
    assert RENYI.epsilon(RENYI.cost(release), DELTA) >= exact - 1e-3


@pytest.mark.parametrize("release", [one for one in GRID if one.sampling_rate == 1.0], ids=str)
def test_without_sampling_the_divergences_are_those_of_a_gaussian(release: SampledGaussianRelease) -> None:
    mu_squared = release.steps / release.noise_multiplier**2
    wanted = [order * mu_squared / 2 for order in ORDERS]
    assert sampled_divergences(release) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("release", GRID[::5], ids=str)
def test_the_divergence_at_whole_orders_is_the_binomial_formula(release: SampledGaussianRelease) -> None:
    """Mironov, Talwar & Zhang 2019, section 3.3, in exact integers where that is feasible: a second route."""
    q, variance = release.sampling_rate, release.noise_multiplier**2
    for order, divergence in zip(ORDERS[:6], sampled_divergences(release), strict=False):
        terms = [
            math.comb(order, k) * (1 - q) ** (order - k) * q**k * math.exp((k * k - k) / (2 * variance))
            for k in range(order + 1)
        ]
        wanted = release.steps * math.log(math.fsum(terms)) / (order - 1)
        assert divergence == pytest.approx(wanted, rel=1e-6, abs=1e-9 * release.steps)


def test_the_formula_holds_for_the_discrete_gaussian_at_whole_orders_even_with_little_noise() -> None:
    """Summed over the integers themselves, for a shift of 3 and sigma 2: no grid so fine that it would not matter."""
    q, sigma, shift, order = 0.2, 2.0, 3, 4
    support = range(-34, 38)
    total = math.fsum(math.exp(-k * k / (2 * sigma**2)) for k in support)
    q0 = {k: math.exp(-k * k / (2 * sigma**2)) / total for k in support}
    p0 = {k: math.exp(-((k - shift) ** 2) / (2 * sigma**2)) / total for k in support}
    mixed = {k: (1 - q) * q0[k] + q * p0[k] for k in support}
    seen = math.log(math.fsum(mixed[k] ** order * q0[k] ** (1 - order) for k in support)) / (order - 1)
    back = math.log(math.fsum(q0[k] ** order * mixed[k] ** (1 - order) for k in support)) / (order - 1)
    (formula,) = RdpAccountant([order]).compose(PoissonSampledDpEvent(q, GaussianDpEvent(sigma / shift))).rdp
    assert seen == pytest.approx(formula, rel=1e-9)
    assert back <= seen


@given(st.floats(0.01, 20), st.floats(1e-10, 1e-5))
def test_one_release_fits_its_own_gaussian_cap_and_nothing_more(epsilon: float, delta: float) -> None:
    assert GAUSSIAN.cap(epsilon, delta) == GAUSSIAN.cost(GaussianRelease(epsilon, delta))
    assert GAUSSIAN.epsilon(GAUSSIAN.cap(epsilon, delta), delta) == pytest.approx(epsilon, rel=1e-4)


@given(st.floats(0.05, 20), st.floats(1e-10, 1e-5))
def test_what_a_renyi_cap_allows_is_at_most_the_cap(epsilon: float, delta: float) -> None:
    for index, allowed in enumerate(RENYI.cap(epsilon, delta)):
        if allowed > 0:
            # Everything spent at one order alone, the others hopeless: the worst that the filter admits.
            spent = tuple(allowed if at == index else 10**30 for at in range(len(ORDERS)))
            assert RENYI.epsilon(spent, delta) <= epsilon * (1 + 1e-12)


@given(st.floats(0.05, 4), st.floats(0.05, 4))
def test_a_gaussian_release_costs_a_renyi_dataset_what_zcdp_says(one: float, other: float) -> None:
    costs = add(*(RENYI.cost(GaussianRelease(epsilon, DELTA)) for epsilon in (one, other)))
    rho = (mu_of(one, DELTA) ** 2 + mu_of(other, DELTA) ** 2) / 2
    assert [cost / COST_UNITS for cost in costs] == pytest.approx([order * rho for order in ORDERS], rel=1e-6)
    exact = epsilon_of(math.sqrt(2 * rho), DELTA)
    assert exact <= RENYI.epsilon(costs, DELTA) <= 1.4 * exact + 0.05


@pytest.mark.parametrize(
    "release",
    [
        SampledGaussianRelease(math.nan, 0.1, 10),
        SampledGaussianRelease(0.0, 0.1, 10),
        SampledGaussianRelease(-1.0, 0.1, 10),
        SampledGaussianRelease(math.inf, 0.1, 10),
        SampledGaussianRelease(1.0, 0.0, 10),
        SampledGaussianRelease(1.0, 1.1, 10),
        SampledGaussianRelease(1.0, math.nan, 10),
        SampledGaussianRelease(1.0, 0.1, 0),
        SampledGaussianRelease(1.0, 0.1, 10**9),
        SampledGaussianRelease(1.0, 0.1, True),
        SampledGaussianRelease(1.0, 0.1, 1.5),  # type: ignore[arg-type]  # what a careless caller may pass
    ],
    ids=str,
)
def test_impossible_training_is_refused(release: SampledGaussianRelease, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    with pytest.raises(BudgetError, match="must be"):
        ledger.reserve_training("default", TASK_ID, release, DELTA, None, default_cap_epsilon=3.0)
    assert ledger.head() == bytes(32)


# --- in the ledger --------------------------------------------------------------------------------------------

TRAINING = SampledGaussianRelease(1.1, 0.01, 1_000)


def test_training_is_charged_and_refused_like_any_release(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    reserved = ledger.reserve_training("default", TASK_ID, TRAINING, DELTA, None, default_cap_epsilon=3.0)
    (account,) = ledger.statement()
    assert account.accountant == "renyi"
    assert reserved.position == 2
    wanted = RdpAccountant(ORDERS).compose(event(TRAINING)).get_epsilon(DELTA)
    assert wanted <= account.spent_epsilon <= 1.3 * wanted
    assert account.entries[0].epsilon == account.spent_epsilon
    longer = SampledGaussianRelease(1.1, 0.01, 20_000)
    with pytest.raises(BudgetError, match="over the budget"):
        ledger.reserve_training("default", TASK_ID, longer, DELTA, None, default_cap_epsilon=3.0)
    ledger.reserve_training("default", TASK_ID, TRAINING, DELTA, None, default_cap_epsilon=3.0)
    assert ledger.statement()[0].spent_epsilon <= 3.0


def test_a_summary_can_be_charged_to_a_dataset_that_trains_and_what_is_left_can_be_spent(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.reserve_training("default", TASK_ID, TRAINING, DELTA, None, default_cap_epsilon=4.0)
    left = ledger.statement()[0].left_epsilon
    assert left > 0.5
    with pytest.raises(BudgetError, match="over the budget"):
        ledger.reserve("default", TASK_ID, left + 0.01, DELTA, None, default_cap_epsilon=4.0)
    ledger.reserve("default", TASK_ID, left, DELTA, None, default_cap_epsilon=4.0)
    assert ledger.statement()[0].spent_epsilon <= 4.0


def test_training_on_a_dataset_that_adds_up_gaussians_is_refused_with_an_explanation(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.reserve("default", TASK_ID, 0.5, DELTA, None, default_cap_epsilon=3.0)
    with pytest.raises(BudgetError, match="adds up Gaussian releases alone, fixed at its first use"):
        ledger.reserve_training("default", TASK_ID, TRAINING, DELTA, None, default_cap_epsilon=3.0)
    assert ledger.totals().datasets[0].charged == (cost_of(0.5, DELTA),)
