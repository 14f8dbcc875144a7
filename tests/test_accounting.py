"""The privacy figures, checked against dp-accounting and against the definitions."""

import itertools
import math

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant, common, privacy_loss_distribution, privacy_loss_mechanism
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st

from fusion import accounting

EPSILONS = [0.001, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 20.0]
DELTAS = [1e-10, 1e-6, 1e-5]


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("delta", DELTAS)
def test_the_noise_scale_is_that_of_dp_accounting(epsilon: float, delta: float) -> None:
    sigma = accounting.noise_scale(1.0, epsilon, delta)
    wanted = privacy_loss_mechanism.GaussianPrivacyLoss.from_privacy_guarantee(
        common.DifferentialPrivacyParameters(epsilon, delta - accounting.DISCRETE_SLACK)
    )
    assert sigma == pytest.approx(wanted.standard_deviation, rel=1e-6)
    assert accounting.delta_of(1.0 / sigma, epsilon) <= delta


@pytest.mark.parametrize(("epsilon", "sigma"), [(0.5, 7.03), (1.0, 3.73), (2.0, 1.99), (4.0, 1.08), (8.0, 0.60)])
def test_the_published_noise_scales_are_met(epsilon: float, sigma: float) -> None:
    assert accounting.noise_scale(1.0, epsilon, 1e-5) == pytest.approx(sigma, abs=0.006)


@pytest.mark.parametrize("mu", [0.05, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("epsilon", [0.05, 0.7, 3.0])
def test_delta_is_that_of_dp_accounting(mu: float, epsilon: float) -> None:
    wanted = privacy_loss_mechanism.GaussianPrivacyLoss(1.0 / mu).get_delta_for_epsilon(epsilon)
    assert accounting.delta_of(mu, epsilon) == pytest.approx(wanted, rel=1e-9, abs=1e-18)


def test_composition_is_that_of_a_privacy_loss_distribution() -> None:
    mus = [0.1, 0.25, 0.25, 0.4]
    composed = privacy_loss_distribution.from_gaussian_mechanism(1 / mus[0])
    for mu in mus[1:]:
        composed = composed.compose(privacy_loss_distribution.from_gaussian_mechanism(1 / mu))
    ours = accounting.epsilon_of(accounting.compose(mus), 1e-6)
    assert ours == pytest.approx(composed.get_epsilon_for_delta(1e-6), rel=1e-3)


GRID = list(itertools.product([0.8, 2.0, 7.03, 30.0], [1, 10, 100]))


@pytest.mark.parametrize(("sigma", "releases"), GRID)
def test_many_releases_cost_what_a_privacy_loss_distribution_says(sigma: float, releases: int) -> None:
    """Within 0.02 %; the distribution is discretized pessimistically, so ours is never above it."""
    ours = accounting.epsilon_of(accounting.compose([1 / sigma] * releases), 1e-6)
    event = dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(sigma), releases)
    theirs = PLDAccountant(value_discretization_interval=1e-3).compose(event).get_epsilon(1e-6)
    assert ours * (1 - 1e-9) <= theirs <= ours * 1.0002


@pytest.mark.parametrize(("sigma", "releases"), GRID)
@pytest.mark.parametrize("delta", [1e-5, 1e-6, 1e-10])
def test_many_releases_cost_at_most_what_renyi_accounting_says(sigma: float, releases: int, delta: float) -> None:
    """Renyi accounting is an upper bound with up to an eighth of slack at these sizes."""
    ours = accounting.epsilon_of(accounting.compose([1 / sigma] * releases), delta)
    event = dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(sigma), releases)
    assert ours <= RdpAccountant().compose(event).get_epsilon(delta) <= 1.13 * ours


def test_releases_of_different_sizes_compose_like_their_distributions() -> None:
    sizes = [(0.9, 1), (3.0, 7), (12.0, 40), (50.0, 200)]
    ours = accounting.epsilon_of(accounting.compose([1 / sigma for sigma, count in sizes for _ in range(count)]), 1e-5)
    events = [dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(sigma), count) for sigma, count in sizes]
    composed = dp_event.ComposedDpEvent(events)
    assert PLDAccountant(value_discretization_interval=1e-3).compose(composed).get_epsilon(1e-5) == pytest.approx(
        ours, rel=2e-4
    )
    assert ours <= RdpAccountant().compose(composed).get_epsilon(1e-5) <= 1.13 * ours


def test_a_discrete_gaussian_of_scale_200_already_has_the_privacy_of_the_continuous_one() -> None:
    discrete = privacy_loss_mechanism.DiscreteGaussianPrivacyLoss(200.0, sensitivity=40)
    assert discrete.get_delta_for_epsilon(0.8) == pytest.approx(accounting.delta_of(0.2, 0.8), rel=1e-3)


@given(epsilon=st.floats(0.001, 20), delta=st.floats(1e-10, 1e-5))
def test_mu_and_epsilon_undo_each_other_on_the_safe_side(epsilon: float, delta: float) -> None:
    mu = accounting.mu_of(epsilon, delta)
    assert accounting.delta_of(mu, epsilon) <= delta
    assert accounting.delta_of(mu * (1 + 1e-9), epsilon) > delta
    assert accounting.epsilon_of(mu, delta) == pytest.approx(epsilon, rel=1e-6)


@given(mu=st.floats(0.01, 8), more=st.floats(1.0001, 4), epsilon=st.floats(0.01, 20))
def test_a_larger_mu_never_gives_a_smaller_delta(mu: float, more: float, epsilon: float) -> None:
    assert accounting.delta_of(mu * more, epsilon) >= accounting.delta_of(mu, epsilon)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("delta", DELTAS)
def test_whole_numbers_cost_less_than_the_slack_that_is_charged_for_them(epsilon: float, delta: float) -> None:
    """The bound that docs/privacy.md derives, at the smallest noise and the largest summary allowed."""
    mu = accounting.mu_of(epsilon, delta)
    smallest_sigma = max(accounting.MIN_SIGMA, 2**32 / mu / math.sqrt(2))
    far = 12.0  # deviations
    log_ratio = accounting.MAX_ENTRIES * (far**2 + 2) / (24 * smallest_sigma**2)
    tail = accounting.MAX_ENTRIES * math.erfc(far / math.sqrt(2)) * 2
    steepest = math.erfc((epsilon / mu - mu / 2) / math.sqrt(2)) / 2  # |d delta / d epsilon| <= Phi(mu/2 - eps/mu)
    slack = 3 * log_ratio * steepest + log_ratio * delta + tail * (1 + math.exp(epsilon))
    assert slack < accounting.DISCRETE_SLACK


def test_the_ratio_of_rounded_and_discrete_gaussian_stays_within_the_derived_bound() -> None:
    sigma = 40.0
    total = math.fsum(math.exp(-(k**2) / (2 * sigma**2)) for k in range(-800, 801))
    for k in range(0, 481, 7):  # up to 12 deviations
        edges = (k - 0.5) / sigma / math.sqrt(2), (k + 0.5) / sigma / math.sqrt(2)
        rounded = (math.erfc(edges[0]) - math.erfc(edges[1])) / 2
        discrete = math.exp(-(k**2) / (2 * sigma**2)) / total
        assert abs(math.log(rounded / discrete)) <= ((k / sigma) ** 2 + 2) / (24 * sigma**2)


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0, 1e-6), (-1, 1e-6), (math.nan, 1e-6), (math.inf, 1e-6), (1, 0), (1, 1), (1, math.nan)]
)
def test_impossible_privacy_parameters_are_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ValueError, match="epsilon must be positive"):
        accounting.mu_of(epsilon, delta)
