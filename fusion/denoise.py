"""Removes privacy noise from a second-moment matrix, as far as its eigenvalues allow.

A fused Gram matrix is G + E: G sums x x^T over private rows and E is Gaussian with standard deviation s on the
diagonal and s/sqrt(2) off it (the Gaussian orthogonal ensemble), s being public. Nothing is known of the
eigenvectors of G beforehand, so the best we can do is to keep those of G + E and mend the eigenvalues: the
rotation-invariant estimator for additive noise of

    J. Bun, R. Allez, J.-P. Bouchaud, M. Potters, "Rotational invariant estimator for general noisy matrices",
    IEEE Trans. Information Theory 62(12), 2016, section IV-A;
    in the spirit of O. Ledoit, S. Peche, "Eigenvectors of some large sample covariance matrix ensembles", 2011.

It estimates q_i^T G q_i for every noisy eigenvector q_i. Two things that the limit of large d gives by itself are
enforced for finite d: the estimates rise with the noisy eigenvalues (isotonic regression) and none is negative.

Works on sums that carry their noise already, hence costs no privacy. Nothing here draws or removes noise
from a release before it is published.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spectrum:
    """A symmetric positive semidefinite matrix by its eigenvalues (ascending) and eigenvectors (columns)."""

    values: NDArray[np.float64]
    vectors: NDArray[np.float64]

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        return (self.vectors * self.values) @ self.vectors.T

    def form(self, right: NDArray[np.float64]) -> NDArray[np.float64]:
        """right^T matrix right, for right of shape [d, k]: d^2 k operations where the matrix itself takes d^3."""
        along = self.vectors.T @ right
        return (along.T * self.values) @ along

    def solve(self, right: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
        """(matrix + ridge I)^-1 right, for right of shape [d, k]."""
        return self.vectors @ ((self.vectors.T @ right) / (self.values + ridge)[:, None])


@dataclass(frozen=True)
class Denoised(Spectrum):
    """The denoised form of a matrix whose own eigenvalues, noise included, are `noisy_values`."""

    noisy_values: NDArray[np.float64]


def spectral_edge(dimension: int, sigma: float) -> float:
    """Where the eigenvalues of the noise end as d grows: s sqrt(2d) for diagonal standard deviation s."""
    return sigma * float(np.sqrt(2.0 * dimension))


def denoise(gram: NDArray[np.float64], sigma: float) -> Denoised:
    """The spectrum of a symmetric [d, d] sum whose noise has standard deviation `sigma` on the diagonal.

    sigma = 0 means that there is nothing to remove: the eigenvalues come back as they are (at least 0).
    """
    noisy_values, vectors = np.linalg.eigh(gram)
    if sigma == 0.0:
        return Denoised(np.maximum(noisy_values, 0.0), vectors, noisy_values)
    estimates = _rotation_invariant(noisy_values, sigma)
    return Denoised(np.maximum(_isotonic(estimates), 0.0), vectors, noisy_values)


def semicircle_variance(dimension: int, sigma: float) -> float:
    """v = s^2 d/2: the variance of the semicircle law that the eigenvalues of the noise follow."""
    return sigma**2 * dimension / 2.0


def squared_spectrum(spectrum: Denoised, sigma: float) -> NDArray[np.float64]:
    """(d,): estimates q_i^T G^2 q_i for the eigenvectors q_i of G + E, whose denoised form is `spectrum`.

    With g = h + i pi rho the Stieltjes transform of the noisy spectrum at l_i, the overlaps of noisy and true
    eigenvectors (J. Bun et al., section III-A) sum to

        q_i^T G^2 q_i = xi_i^2 + v (1 - v |g|^2),

    where the second term, between 0 and v, is what G does across the noisy eigenvectors: sum_j!=i (q_i^T G q_j)^2.
    It is v for an eigenvalue far from the others and 0 within a spectrum of nothing but noise.
    """
    if sigma == 0.0:
        return spectrum.values**2
    variance = semicircle_variance(len(spectrum.noisy_values), sigma)
    hilbert, density = _stieltjes(spectrum.noisy_values, variance)
    return np.asarray(spectrum.values**2 + variance * np.clip(1.0 - variance * (hilbert**2 + density**2), 0.0, 1.0))


def _stieltjes(noisy_values: NDArray[np.float64], variance: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(h, pi rho) at every l_i: Hilbert transform and density of the l_j, smoothed at the scale of their spacing."""
    smoothing = np.sqrt(variance / len(noisy_values))
    gaps = noisy_values[:, None] - noisy_values[None, :]
    inverses = gaps * gaps
    inverses += smoothing**2
    np.reciprocal(inverses, out=inverses)
    density = smoothing * inverses.mean(axis=1)
    inverses *= gaps
    return inverses.mean(axis=1), density


def _rotation_invariant(noisy_values: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """xi_i = l_i - 2 v h(l_i), with v = s^2 d/2 the variance of the noise's semicircle.

    h is the Hilbert transform of the density of the l_j, smoothed at the scale eta = sqrt(v/d) of their spacing.
    """
    variance = semicircle_variance(len(noisy_values), sigma)
    hilbert, _density = _stieltjes(noisy_values, variance)
    return np.asarray(noisy_values - 2.0 * variance * hilbert)


def _isotonic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-decreasing sequence nearest to `values` in least squares, by pooling adjacent violators."""
    means: list[float] = []
    sizes: list[int] = []
    for value in values.tolist():
        mean, size = value, 1
        while means and means[-1] > mean:
            left_mean, left_size = means.pop(), sizes.pop()
            mean = (left_mean * left_size + mean * size) / (left_size + size)
            size += left_size
        means.append(mean)
        sizes.append(size)
    return np.repeat(means, sizes)
