"""Accountants: what a release costs, as whole numbers that add up, and what a cap allows in the same numbers.

A cost is a tuple of integers in units of 2^-40, rounded up; a cap is the same, rounded down. A release fits if, at one
entry of the tuple at least, what was spent and its cost together stay within the cap.

* `gaussian` has one entry, mu^2. Gaussian releases add up exactly in it, also when each is chosen after seeing the
  earlier ones (Smith & Thakurta 2022).
* `renyi` has one entry for each order of ORDERS: the Renyi divergence of the release at that order. For one fixed order
  the sum may be chosen adaptively too (Feldman & Zrnic 2021, theorem 3.1). "One order at least" is a union over orders:
  the cap of each is computed at delta / len(ORDERS), so that all together stay within delta (docs/privacy.md).

The divergences of a Poisson-sampled Gaussian come from dp-accounting. All orders are whole numbers: there the formula
of Mironov, Talwar & Zhang (2019, section 3.3) holds for the discrete Gaussian exactly as for the continuous one.

Unknown mechanisms are refused, never approximated: a Poisson-sampled release has no mu, so `gaussian` refuses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from fusion.accounting import epsilon_of, mu_of
from fusion.errors import BudgetError

COST_UNITS = 2**40
MAX_COST = 2**60  # no cap comes near it; keeps every sum that is told to peers inside 64 bits
ORDERS = (2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 64, 128, 256)
ROUNDING = 1e-9  # relative: far more than the floating-point error of the formulas
MIN_NOISE_MULTIPLIER = 0.1
MAX_NOISE_MULTIPLIER = 1e4
MAX_STEPS = 10**7

Costs = tuple[int, ...]


@dataclass(frozen=True)
class GaussianRelease:
    """Gaussian noise calibrated to (epsilon, delta)."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class SampledGaussianRelease:
    """`steps` Gaussian releases, each of a fresh Poisson sample: every record takes part with `sampling_rate`.

    `noise_multiplier` is sigma / Delta of one step, Delta for adding or removing one record of the sample. All public.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def check(self) -> None:
        """BudgetError for NaN, zero, negative or absurd values."""
        if not MIN_NOISE_MULTIPLIER <= self.noise_multiplier <= MAX_NOISE_MULTIPLIER:
            raise BudgetError(
                f"the noise multiplier must be from {MIN_NOISE_MULTIPLIER:g} to {MAX_NOISE_MULTIPLIER:g}; choose again"
            )
        if not 0 < self.sampling_rate <= 1:
            raise BudgetError("the sampling rate must be over 0 and at most 1; choose another")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= MAX_STEPS:
            raise BudgetError(f"the number of steps must be a whole number from 1 to {MAX_STEPS}; choose another")


Mechanism = GaussianRelease | SampledGaussianRelease


class Accountant(Protocol):
    """How the releases of one dataset are added up."""

    name: str
    entries: int

    def cost(self, mechanism: Mechanism) -> Costs:
        """What a release costs, rounded up; BudgetError if this accountant cannot tell."""

    def cap(self, epsilon: float, delta: float) -> Costs:
        """What (epsilon, delta) allows in all, rounded down; a negative entry allows nothing."""

    def epsilon(self, spent: Costs, delta: float) -> float:
        """The smallest epsilon, at delta, of releases that cost this much together."""

    def left_mu(self, left: Costs) -> float:
        """The mu of the largest Gaussian release that fits in what is left."""


class GaussianAccountant:
    """mu^2 of Gaussian releases: exact."""

    name = "gaussian"
    entries = 1

    def cost(self, mechanism: Mechanism) -> Costs:
        if not isinstance(mechanism, GaussianRelease):
            raise BudgetError(
                "this dataset's budget adds up Gaussian releases alone, fixed at its first use, and sampled training "
                "cannot be added to them tightly; publish a summary of it instead, or train on rows not released before"
            )
        return (min(math.ceil(mu_of(mechanism.epsilon, mechanism.delta) ** 2 * COST_UNITS), MAX_COST),)

    def cap(self, epsilon: float, delta: float) -> Costs:
        # Rounded up like a cost, so that one release may spend all of it: half a unit of 2^-40 is far below ROUNDING.
        return self.cost(GaussianRelease(epsilon, delta))

    def epsilon(self, spent: Costs, delta: float) -> float:
        return epsilon_of(math.sqrt(spent[0] / COST_UNITS), delta)

    def left_mu(self, left: Costs) -> float:
        return math.sqrt(max(0, left[0]) / COST_UNITS)


class RenyiAccountant:
    """Renyi divergences at whole orders."""

    name = "renyi"
    entries = len(ORDERS)

    def cost(self, mechanism: Mechanism) -> Costs:
        if isinstance(mechanism, GaussianRelease):
            mu = mu_of(mechanism.epsilon, mechanism.delta)
            divergences = [order * mu * mu / 2 for order in ORDERS]
        else:
            mechanism.check()
            divergences = sampled_divergences(mechanism)
        return tuple(_rounded_up(value) for value in divergences)

    def cap(self, epsilon: float, delta: float) -> Costs:
        share = delta / len(ORDERS)
        return tuple(math.floor((epsilon - _conversion(order, share)) * COST_UNITS) for order in ORDERS)

    def epsilon(self, spent: Costs, delta: float) -> float:
        if not any(spent):
            return 0.0
        share = delta / len(ORDERS)
        pairs = zip(ORDERS, spent, strict=True)
        return max(0.0, min(cost / COST_UNITS + _conversion(order, share) for order, cost in pairs))

    def left_mu(self, left: Costs) -> float:
        return math.sqrt(max(0.0, *(2 * rest / order for order, rest in zip(ORDERS, left, strict=True))) / COST_UNITS)


ACCOUNTANTS: dict[str, Accountant] = {one.name: one for one in (GaussianAccountant(), RenyiAccountant())}


def accountant_for(mechanism: Mechanism) -> Accountant:
    """The accountant that a dataset gets if this is its first release."""
    return ACCOUNTANTS["gaussian" if isinstance(mechanism, GaussianRelease) else "renyi"]


def sampled_divergences(mechanism: SampledGaussianRelease) -> list[float]:
    """Renyi divergence at each of ORDERS of all steps together, for adding or removing one record."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent  # takes a second to load
    from dp_accounting.rdp import RdpAccountant

    step = PoissonSampledDpEvent(mechanism.sampling_rate, GaussianDpEvent(mechanism.noise_multiplier))
    return [float(value) for value in RdpAccountant(ORDERS).compose(step, mechanism.steps).rdp]


def add(*costs: Costs) -> Costs:
    """Entry by entry."""
    return tuple(map(sum, zip(*costs, strict=True)))


def largest(costs: list[Costs], entries: int) -> Costs:
    """Entry by entry; zeros if there are none."""
    return tuple(map(max, zip(*costs, strict=True))) if costs else (0,) * entries


def _rounded_up(divergence: float) -> int:
    scaled = divergence * (1 + ROUNDING) * COST_UNITS
    return MAX_COST if not scaled < MAX_COST else max(1, math.ceil(scaled))


def _conversion(order: int, delta: float) -> float:
    """What turns a Renyi divergence at this order into epsilon at delta (Canonne, Kamath & Steinke 2020, prop. 12)."""
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
