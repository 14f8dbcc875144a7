"""Noise: the right distribution, fresh every time, exact at the sizes a release uses."""

import math
import os

import numpy as np
import pytest
from scipy import stats

from fusion.noise import MAX_SIGMA, discrete_gaussian

RARE = 1e-6  # a test of chance fails by chance this seldom
RELEASE_SIGMA = 5 * 2**32


def draws(count: int, sigma: int) -> np.ndarray:
    return discrete_gaussian(np.zeros(count, dtype=np.int64), sigma)


def frequencies_p_value(sample: np.ndarray, sigma: int) -> float:
    """Chi-squared: the frequency of every value within 3 deviations, and of all others together."""
    reach = 3 * sigma
    support = np.arange(-reach, reach + 1)
    weights = np.exp(-(support**2) / (2 * sigma**2))
    expected = weights / np.exp(-(np.arange(-40 * sigma, 40 * sigma + 1) ** 2) / (2 * sigma**2)).sum() * len(sample)
    observed = np.bincount(sample[np.abs(sample) <= reach] + reach, minlength=len(support))
    rest = len(sample) - observed.sum(), len(sample) - expected.sum()
    return float(stats.chisquare([*observed, rest[0]], [*expected, rest[1]]).pvalue)


def bins_p_value(sample: np.ndarray, sigma: int, bins: int) -> float:
    """Chi-squared: bins of equal probability under the normal, whole numbers being fine enough at these scales."""
    edges = stats.norm.ppf(np.linspace(0, 1, bins + 1)[1:-1]) * sigma
    observed = np.bincount(np.searchsorted(edges, sample), minlength=bins)
    return float(stats.chisquare(observed).pvalue)


@pytest.mark.parametrize("sigma", [1, 3, 20])
def test_small_noise_has_exactly_the_discrete_gaussian_frequencies(sigma: int) -> None:
    assert frequencies_p_value(draws(20_000, sigma), sigma) > RARE


def test_release_noise_fills_bins_of_equal_probability_equally() -> None:
    assert bins_p_value(draws(20_000, RELEASE_SIGMA), RELEASE_SIGMA, 100) > RARE


@pytest.mark.soak
@pytest.mark.parametrize("sigma", [1, 2, 7, 50, 400])
def test_hundreds_of_thousands_of_small_draws_have_the_exact_frequencies(sigma: int) -> None:
    assert frequencies_p_value(draws(400_000, sigma), sigma) > RARE


@pytest.mark.soak
@pytest.mark.parametrize("sigma", [2**30, RELEASE_SIGMA, 2**40, MAX_SIGMA])
def test_hundreds_of_thousands_of_release_draws_fill_bins_equally(sigma: int) -> None:
    sample = draws(400_000, sigma)
    assert bins_p_value(sample, sigma, 1_000) > RARE
    low, high = stats.chi2.ppf([RARE, 1 - RARE], len(sample))
    assert low < ((sample / sigma) ** 2).sum() < high
    for modulus in (2, 3, 5, 16, 257):  # the low digits are uniform: nothing is scaled up from a coarser grid
        assert stats.chisquare(np.bincount(sample % modulus, minlength=modulus)).pvalue > RARE


def test_release_noise_is_gaussian_with_the_stated_deviation() -> None:
    sample = draws(20_000, RELEASE_SIGMA) / RELEASE_SIGMA
    assert stats.kstest(sample, "norm").pvalue > RARE
    low, high = stats.chi2.ppf([RARE, 1 - RARE], len(sample)) / len(sample)
    assert low < (sample**2).mean() < high


def test_every_low_bit_of_release_noise_is_used() -> None:
    """Scaling a coarse sample up would leave low bits that never change, which is how such noise was broken."""
    sample = draws(4_000, RELEASE_SIGMA)
    for bit in range(20):
        ones = int(((sample >> bit) & 1).sum())
        assert stats.binomtest(ones, len(sample)).pvalue > RARE


def test_neighboring_entries_are_independent() -> None:
    sample = draws(20_000, RELEASE_SIGMA) / RELEASE_SIGMA
    for lag in (1, 2, 7):
        assert abs((sample[:-lag] * sample[lag:]).mean()) < 5.5 / math.sqrt(len(sample))


def test_noise_is_added_to_the_values_and_not_scaled_with_them() -> None:
    values = np.array([2**62, -(2**62), 0, 7] * 500, dtype=np.int64)
    difference = discrete_gaussian(values, RELEASE_SIGMA) - values
    assert stats.kstest(difference / RELEASE_SIGMA, "norm").pvalue > RARE


def test_the_largest_noise_does_not_saturate_at_the_largest_sum() -> None:
    values = np.full(2_000, 2**62, dtype=np.int64)
    difference = discrete_gaussian(values, MAX_SIGMA) - values
    assert stats.kstest(difference / MAX_SIGMA, "norm").pvalue > RARE


def test_no_draw_is_repeated_by_a_forked_process() -> None:
    discrete_gaussian(np.zeros(8, dtype=np.int64), RELEASE_SIGMA)  # whatever state there is exists before the fork
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, draws(8, RELEASE_SIGMA).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(read_end, 64), dtype=np.int64)
    os.close(read_end)
    os.close(write_end)
    assert len(theirs) == 8
    assert not set(theirs.tolist()) & set(draws(8, RELEASE_SIGMA).tolist())


@pytest.mark.parametrize("sigma", [0, -1, MAX_SIGMA + 1])
def test_a_scale_out_of_range_is_refused(sigma: int) -> None:
    with pytest.raises(ValueError, match="scale of the noise"):
        draws(3, sigma)


@pytest.mark.parametrize(
    "values",
    [np.zeros(3), np.zeros((2, 2), dtype=np.int64), np.array([2**62 + 1]), np.array([-(2**63)])],
)
def test_values_that_noise_could_overflow_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="vector of int64"):
        discrete_gaussian(values, 1)
