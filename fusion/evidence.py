"""Empirical Bayes regression on noisy sums: how much of every direction to believe, with nothing to tune.

Let T = sum (x - m)(x - m)^T and D = sum (x - m)(y - p)^T about the means m of features and p of labels (class
indicators, or a number t). The regression weights W solve T W = D; what is known is T + E and D + F, with privacy noise
E (diagonal deviation s) and F (each entry sigma, times what centering does to it), on top of the sampling noise of D,
whose covariance is u_c T with u_c the variance of label c.

Along the eigenvectors q_i of T + E, write z_i = q_i^T (D + F) and w_i = q_i^T W. Then z_i = sum_j (q_i^T T q_j) w_j +
noise. `fusion.denoise` estimates xi_i = q_i^T T q_i and (T^2)_ii = q_i^T T^2 q_i, so for weights drawn independently
with variance r_i the best estimate of w_i that is linear in z_i is

    w_i ~ f_i z_i      f_i = r_i xi_i / (r_i (T^2)_ii + u_c xi_i + sigma^2)

Ridge regression would have f_i = 1 / (xi_i + lambda) whatever the noise in T does to this direction. The prior is
Zellner's, r_i = g u_c / xi_i (A. Zellner, "On assessing prior distributions and Bayesian regression analysis with
g-prior distributions", 1986), floored at the scale sqrt(v) of the noise in T, where v = s^2 d / 2: weights are a priori
as large as the data are able to tell. One number g is left, the ratio of signal to noise. It is the most probable one
given the z_i (E. George, D. Foster, "Calibration and empirical Bayes variable selection", Biometrika 87, 2000) under
the prior density (1 + g / n)^(-3/2), the "hyper-g/n" of F. Liang et al., "Mixtures of g priors for Bayesian variable
selection", 2008, which keeps g off 0 where noise leaves little to see.

All of it is a function of the noisy sums: it costs no privacy, needs no partner to be left out, and works just as well
where every partner holds one class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.denoise import denoise, semicircle_variance, squared_spectrum

if TYPE_CHECKING:
    from fusion.heads import Cleaned

Floats = NDArray[np.float64]

FLOOR = 1e-2  # in rows: keeps directions that no row has from dividing by zero where there is no noise
GRID_DECADES = 10  # log10 g is sought within +- this
GRID_POINTS = 161
HYPER = 3.0  # a of the prior on g, as its authors have it
LEAST_VARIANCE = 1e-3  # of a target in [-1, 1]: noise may have made the estimate of it negative


@dataclass(frozen=True)
class Centred:
    """Second moments and cross moments about the means, without the bias coordinate, with what is known of their noise.

    `cross` (d-1, k) has one column per class or target; column c carries noise of covariance `cross_noise` (k, k) with
    the others in each entry, and sampling noise of covariance label_variance[c] times `gram`.
    """

    rows: float
    gram: Floats
    cross: Floats
    gram_sigma: float
    cross_noise: Floats
    label_variance: Floats


@dataclass(frozen=True)
class Posterior:
    """`weights` (d-1, k) estimates T^-1 D; `explained` (k, k) estimates W^T D, free of the noise that both share."""

    weights: Floats
    explained: Floats


def centred(cleaned: Cleaned) -> Centred:
    """The sums of `cleaned` about their means; a class that cannot be told from noise keeps nothing."""
    statistics, rows, mean = cleaned.statistics, cleaned.rows, cleaned.mean[:-1]
    gram = statistics.gram[:-1, :-1] - rows * np.outer(mean, mean)
    variance = statistics.cross_sigma**2
    if not statistics.classes:
        cross = statistics.cross[:-1] - rows * cleaned.target_mean * mean[:, None]
        spread = max(statistics.target_square / rows - cleaned.target_mean**2, LEAST_VARIANCE)
        return Centred(rows, gram, cross, statistics.gram_sigma, np.array([[variance]]), np.array([spread]))
    shares = cleaned.counts / cleaned.counts.sum()
    centering = (np.eye(len(shares)) - np.outer(np.ones(len(shares)), shares)) * cleaned.seen
    noise = variance * (centering.T @ centering)
    return Centred(rows, gram, statistics.cross[:-1] @ centering, statistics.gram_sigma, noise, shares * (1.0 - shares))


def posterior(sums: Centred) -> Posterior:
    """The estimate of the module's docstring."""
    spectrum = denoise(sums.gram, sums.gram_sigma)
    values = spectrum.values[:, None]
    squares = squared_spectrum(spectrum, sums.gram_sigma)[:, None]
    seen = spectrum.vectors.T @ sums.cross
    noise = sums.label_variance * values + np.diag(sums.cross_noise) + FLOOR**2
    scale = np.sqrt(semicircle_variance(len(values), sums.gram_sigma))
    prior = sums.label_variance / (values + scale + FLOOR)
    prior = prior * _most_probable(seen, prior * squares, noise, sums.rows)
    kept = prior * values / (prior * squares + noise)
    shared = kept.sum(axis=0)[:, None] * sums.cross_noise
    explained = (kept * seen).T @ seen - shared
    return Posterior(spectrum.vectors @ (kept * seen), (explained + explained.T) / 2.0)


def _most_probable(seen: Floats, signal: Floats, noise: Floats, rows: float) -> float:
    """g where `seen`, of independent Gaussians with variance g signal + noise, and the prior on log g are likeliest."""

    def surprise(g: float) -> float:
        variance = g * signal + noise
        log_prior = np.log(g) - HYPER / 2.0 * np.log1p(g / rows)
        return float((np.log(variance) + seen**2 / variance).sum() - 2.0 * log_prior)

    grid = np.logspace(-GRID_DECADES, GRID_DECADES, GRID_POINTS)
    for _ in range(2):
        best = int(np.argmin([surprise(g) for g in grid]))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        grid = np.geomspace(low, high, GRID_POINTS // 4)
    return float(grid[np.argmin([surprise(g) for g in grid])])
