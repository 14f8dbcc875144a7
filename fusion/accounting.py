"""Gaussian differential privacy: from (epsilon, delta) to noise, and from many releases to one total.

A release with L2 sensitivity Delta and Gaussian noise of deviation sigma has mu = Delta / sigma. It is
(epsilon, delta)-differentially private exactly when (Balle & Wang 2018, "Improving the Gaussian mechanism for
differential privacy", theorem 8)

    delta >= Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu).

Releases compose to mu^2 = sum mu_i^2 (Dong, Roth & Su 2022, "Gaussian differential privacy", corollary 3.3),
also when each is chosen after seeing the earlier ones, as long as the sum stays under a bound fixed
beforehand (Smith & Thakurta 2022, "Fully adaptive composition for Gaussian differential privacy").

The noise that is drawn is the discrete Gaussian on whole numbers. With deviations of at least MIN_SIGMA units
and at most MAX_ENTRIES entries it differs from a Gaussian rounded to whole numbers by less than
DISCRETE_SLACK in delta (derived in docs/privacy.md); that slack is taken off delta before the noise is
calibrated.
"""

import math
from collections.abc import Callable, Iterable

DISCRETE_SLACK = 1e-12
MIN_SIGMA = 2**30
MAX_ENTRIES = 2**24

_BISECTIONS = 200  # halves any bracket of positive floats down to neighboring ones


def delta_of(mu: float, epsilon: float) -> float:
    """The smallest delta at which a mu-Gaussian release is (epsilon, delta)-private."""
    a = mu / 2 - epsilon / mu
    b = mu / 2 + epsilon / mu
    return max(0.0, _normal_cdf(a) - math.exp(epsilon) * _normal_cdf(-b))


def mu_of(epsilon: float, delta: float) -> float:
    """The largest mu (rounded down) at which a release is (epsilon, delta)-private."""
    _check(epsilon, delta)
    low, _high = _bisect(lambda mu: delta_of(mu, epsilon) <= delta, 1e-9, 64.0)
    return low


def epsilon_of(mu: float, delta: float) -> float:
    """The smallest epsilon (rounded up) at which a mu-Gaussian release is (epsilon, delta)-private."""
    if mu == 0:
        return 0.0
    _low, high = _bisect(lambda epsilon: delta_of(mu, epsilon) > delta, 0.0, 600.0)
    return high


def compose(mus: Iterable[float]) -> float:
    """The mu of all these releases together."""
    return math.sqrt(math.fsum(mu * mu for mu in mus))


def noise_scale(sensitivity: float, epsilon: float, delta: float) -> float:
    """sigma, in the units of `sensitivity`, for one release at (epsilon, delta) with discrete noise."""
    return sensitivity / mu_of(epsilon, delta - DISCRETE_SLACK)


def _check(epsilon: float, delta: float) -> None:
    if not (0 < epsilon < math.inf and 0 < delta < 1):
        raise ValueError("epsilon must be positive and finite, and delta between 0 and 1")


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """Neighbors (low, high) with holds(low) and not holds(high): the point where a property ends."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low, high


def _normal_cdf(z: float) -> float:
    return math.erfc(-z / math.sqrt(2.0)) / 2
