"""Fused sums as a population: class shares, class means and one common scatter of the rows behind them.

What rows are sampled from (`fusion.synthesize`). Noise is taken out as far as it can be known: second moments are
denoised, means are shrunk, and each number says how noisy it still is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.heads import Cleaned

if TYPE_CHECKING:
    from fusion.fuse import Fused

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """The number to predict, in [-1, 1]: its mean, covariances (D,) with the row, and variance with its noise."""

    mean: float
    covariances: Floats
    variance: float
    variance_noise: float


@dataclass(frozen=True)
class Population:
    """What the sums say of rows v before the division by their length, in units of x / sqrt(1 - beta^2): K classes (one
    for regression), D coordinates without the bias."""

    shares: Floats  # (K,)
    means: Floats  # (K, D)
    scatter: Floats  # (D, D), pooled within classes, a row
    variances: Floats  # (D,): its diagonal, not denoised, hence without bias
    variance_noise: float  # deviation of each of those
    products: Floats  # (D, D): E[x x^T], not denoised
    ridge: float
    target: Target | None = None


def population_of(fused: Fused) -> Population:
    """The fused sums, a row; ModelError where the summaries hold no moments."""
    statistics = fused.statistics
    cleaned = Cleaned.of(statistics)
    scale = 1.0 - statistics.bias**2
    products = statistics.gram[:-1, :-1] / (cleaned.rows * scale)
    if statistics.classes:
        shares, means, scatter = _classes(cleaned)
    else:
        mean = cleaned.mean
        shares, means = np.ones(1), mean[None, :]
        scatter = cleaned.total.matrix / cleaned.rows - np.outer(mean, mean)
    means = means[:, :-1] / np.sqrt(scale)
    return Population(
        shares=shares,
        means=means,
        scatter=_positive(scatter[:-1, :-1] / scale),
        variances=np.diag(products) - shares @ means**2,
        variance_noise=statistics.gram_sigma / (cleaned.rows * scale),
        products=products,
        ridge=cleaned.ridge(1.0) / (cleaned.rows * scale),
        target=None if statistics.classes else _target_of(cleaned, means[0]),
    )


def _classes(cleaned: Cleaned) -> tuple[Floats, Floats, Floats]:
    """Shares, means (C, d) and scatter of the classes that have rows; all classes alike if none clearly has.

    Noise makes the classes seem further apart than they are: what it adds to the squared distance of each from the mean
    of all rows is taken off (as in `Cleaned.mean`).
    """
    counts = np.where(cleaned.seen, np.maximum(cleaned.statistics.counts, 0.0), 0.0)
    shares = counts / counts.sum() if counts.sum() > 0.0 else np.full(len(counts), 1.0 / len(counts))
    deviations = (cleaned.means - cleaned.mean[:, None])[:-1]
    squares = np.sum(deviations**2, axis=0)
    noise = len(deviations) * (cleaned.statistics.cross_sigma / cleaned.counts) ** 2 * (1.0 - shares)
    kept = np.maximum(0.0, squares - noise) / np.maximum(squares, np.finfo(float).tiny)
    means = np.vstack([cleaned.mean[:-1, None] + kept * deviations, np.full(len(counts), cleaned.mean[-1])])
    return shares, means.T, cleaned.within.matrix / cleaned.rows


def _target_of(cleaned: Cleaned, row_mean: Floats) -> Target:
    statistics, rows = cleaned.statistics, cleaned.rows
    mean = float(statistics.cross[-1, 0]) / (statistics.bias * rows)
    crossed = statistics.cross[:-1, 0] / (rows * np.sqrt(1.0 - statistics.bias**2))
    variance = statistics.target_square / rows - mean**2
    return Target(float(np.clip(mean, -1.0, 1.0)), crossed - mean * row_mean, variance, statistics.target_sigma / rows)


def _positive(matrix: Floats) -> Floats:
    """The nearest positive semidefinite matrix."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2.0)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)
