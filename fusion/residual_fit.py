"""Class sums and residual moments -> a linear discriminant.

The denoised R, brought back to the scale that L says, is the scatter S of rows within classes. With class means mu_c
= M_c / n_c about the mean of all rows and lambda = RIDGE edge, edge being where the eigenvalues of the noise in S end,

    V = n (S + lambda I)^-1 mu        logits = V^T x - (diag(mu^T V) - n v_c tr (S + lambda I)^-1) / 2 + log pi

is the discriminant analysis of R. A. Fisher with a shrunk covariance. Noise of variance v_c in every entry of mu_c
lengthens mu_c^T V_c by v_c n tr (S + lambda I)^-1 on average, which the offset takes back: without it, classes with
few rows would be chosen too seldom. For probabilities the logits are tempered: by the share of the squared distances
between class means that is not noise, and for rows that are not Gaussian (`fusion.heads.tempered`).

lambda was chosen on held-out training pictures: 0.02 to 0.1 are as good, at epsilon from 1 to 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import squareform

from fusion.class_means import ClassSums
from fusion.denoise import Spectrum, denoise, spectral_edge
from fusion.fitting import Fitted, rounded
from fusion.heads import RIDGE_FLOOR, Layer, tempered
from fusion.statistics import fixed_point_bias, granularity
from fusion.summaries.residual_moments import CROSS, DIAGONAL, LENGTHS, UPPER
from fusion.sums import Sums
from fusion.task import Task

if TYPE_CHECKING:
    from fusion.fuse import Fused

Floats = NDArray[np.float64]

HEAD = "lda"
RIDGE = 0.05  # lambda in edges of the noise


@dataclass(frozen=True)
class Residuals:
    """Class sums (d, C); the second moments (d - 1, d - 1) of residuals drawn in to length 1; their squared lengths."""

    classes: ClassSums
    moments: Floats
    moments_sigma: float
    lengths: float
    lengths_sigma: float

    @cached_property
    def within(self) -> Spectrum:
        """S: the denoised second moments, as large in all as the residuals were before they were drawn in."""
        spectrum = denoise(self.moments, self.moments_sigma)
        return Spectrum(spectrum.values * self.scale, spectrum.vectors)

    @property
    def scale(self) -> float:
        """From the drawn-in residuals to the real ones; noise cannot make it leave (0, 1]."""
        drawn_in = float(np.trace(self.moments))
        return float(np.clip(self.lengths / drawn_in, 1e-3, 1.0)) if drawn_in > 0.0 else 1.0

    @property
    def edge(self) -> float:
        """Where the eigenvalues of the noise in S end."""
        return self.scale * spectral_edge(len(self.moments), self.moments_sigma)


def residuals_of(task: Task, sums: Sums) -> Residuals:
    """The sums as float64 in units of 1, each rounded once."""
    cross = sums.values(CROSS).reshape(-1, len(task.label.classes))
    diagonal = sums.values(DIAGONAL)
    moments = squareform(sums.values(UPPER), checks=False) if len(diagonal) > 1 else np.zeros((1, 1))
    np.fill_diagonal(moments, diagonal)
    return Residuals(
        classes=ClassSums(cross, sums.sigma(CROSS), fixed_point_bias(task), granularity(task)),
        moments=np.asarray(moments),
        moments_sigma=sums.sigma(DIAGONAL),
        lengths=float(sums.values(LENGTHS)[0]),
        lengths_sigma=sums.sigma(LENGTHS),
    )


def fit_residuals(fused: Fused) -> Fitted:
    """The model of the sums."""
    residuals = residuals_of(fused.task, fused.sums)
    ridge = RIDGE * residuals.edge + RIDGE_FLOOR
    seen = residuals.classes.seen
    method = {
        "denoiser": "no" if residuals.moments_sigma == 0.0 else "rotation-invariant",
        "head": HEAD,
        "multiplier": RIDGE,
        "lambda": rounded(ridge),
        "choice": "the default lambda: residuals about centers of their own cannot score a model",
        "unseen_classes": [name for name, one in zip(fused.task.class_names, seen, strict=True) if not one],
    }
    return Fitted((discriminant(residuals, ridge),), method, None)


def discriminant(residuals: Residuals, ridge: float) -> Layer:
    """(d, C) weights and (C,) offsets by the formula at the top of the module."""
    classes, within = residuals.classes, residuals.within
    counts = np.maximum(classes.counts, 1.0)
    deviations = classes.sums[:-1] / counts - classes.sums[:-1].sum(axis=1, keepdims=True) / classes.rows
    deviations = np.where(classes.seen, deviations, 0.0)
    directions = classes.rows * within.solve(deviations, ridge)
    inverse_trace = classes.rows * float((1.0 / (within.values + ridge)).sum())
    by_noise = np.where(classes.seen, (classes.sigma / counts) ** 2 * inverse_trace, 0.0)
    priors = np.maximum(classes.counts, 0.0) + max(classes.count_sigma, 1.0)
    priors /= priors.sum()
    mean_logits = deviations.T @ directions
    offsets = np.log(priors) - (np.diag(mean_logits) - by_noise) / 2.0 - classes.mean @ directions
    layer = Layer(np.vstack([directions, np.zeros((1, len(priors)))]), offsets)
    return _believed(layer, mean_logits, by_noise, priors)


def _believed(layer: Layer, mean_logits: Floats, by_noise: Floats, priors: Floats) -> Layer:
    """The tempered layer; what noise adds to distances between class means is taken off before.

    Row x of class c is on average at mu_c without its noise, so that its logits differ less than those of the noisy
    mean: by the noise's share of the mean squared distances, weighted by priors.
    """
    own = float(priors @ np.diag(mean_logits))
    share = max(0.0, 1.0 - float(priors @ by_noise) / own) if own > 0.0 else 1.0
    return tempered(Layer(share * layer.weight, share * layer.bias), share**2 * mean_logits, priors)
