"""Class sums alone -> a model: the nearest mean, or a regression along one direction; nothing is known of the scatter.

Deviations D_c of the class means from the mean of all rows carry noise of known variance v_c in every entry. If the
true ones had independent entries of variance a, their posterior means would be

    V_c = a / (a + v_c) D_c,

and a is what the sums themselves say: the mean over classes, weighted by their rows, of ||D_c||^2 / dim - v_c, at
least 0 (empirical Bayes; for one vector this is the shrinkage of W. James, C. Stein, "Estimation with quadratic
loss", 1961, toward the mean of all rows). Rows are compared by their scores V^T x. For probabilities one would need
the variance of these scores within a class, which class sums do not hold. What is public of it: encoded rows have
at most norm 1, so all variances of features together are at most tau = 1 - beta^2 - ||mean||^2. Along a direction
between classes there is taken to be rho = tau (1 / dim + SCATTER_SHARE): the mean over directions, and a share
more; then

    logits = A^T V^T (x - mean) - diag(A^T m) / 2 + log pi,     m = V^T V,     A = (rho V^T V)^-1 m.

A share, because the directions in which classes differ are those in which rows differ most. On heart, adult, taiwan
credit and california housing the true one was 0.10 to 0.20 for 29 to 38 features and 0.05 to 0.17 for lifts to 256
(training rows, no noise); on embedded sentences, 384 features, it was 0.014: probabilities are then far less
certain than they could be, while the ranking of classes is the same. For regression the covariance of features and
target takes the place of D; the slope comes from the same share.

A covariance of public reference rows (uniform within the bounds, run through the encoder) in place of the identity was
tried: no better on tables, worse on lifts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.fitting import Fitted
from fusion.heads import SEEN_DEVIATIONS, Layer
from fusion.statistics import fixed_point_bias, granularity
from fusion.summaries.mean_embedding import CLASS_SUMS, columns
from fusion.sums import Sums
from fusion.task import Task

if TYPE_CHECKING:
    from fusion.fuse import Fused

Floats = NDArray[np.float64]

HEAD = "nearest-mean"
SCATTER_SHARE = 0.1  # raising it makes models less sure and slopes smaller


@dataclass(frozen=True)
class ClassSums:
    """(d, C) sums of rows per class with their noise, in units of 1; for regression the two ends are the classes."""

    sums: Floats
    sigma: float
    bias: float
    granularity: float = 0.0  # as in `fusion.statistics.Statistics`

    @property
    def counts(self) -> Floats:
        """(C,): estimated rows per class; may be negative by noise."""
        return np.asarray(self.sums[-1] / self.bias)

    @property
    def count_sigma(self) -> float:
        return self.sigma / self.bias

    @property
    def rows(self) -> float:
        """The estimated number of rows, at least one."""
        return max(float(self.counts.sum()), 1.0)

    @property
    def mean(self) -> Floats:
        """(d - 1,): mean features of all rows, pulled toward 0 by what noise adds to its squared length."""
        mean = self.sums[:-1].sum(axis=1) / self.rows
        noise = self.sums.shape[1] * (self.sigma / self.rows) ** 2
        squares = float(mean @ mean)
        return np.asarray(mean * (max(0.0, 1.0 - len(mean) * noise / squares) if squares > 0.0 else 0.0))

    @property
    def scatter(self) -> float:
        """rho: the variance of rows that is taken to lie along any one direction between classes."""
        mean = self.mean
        return (SCATTER_SHARE + 1.0 / len(mean)) * max(1.0 - self.bias**2 - float(mean @ mean), SCATTER_SHARE)

    @property
    def seen(self) -> NDArray[np.bool_]:
        """(C,): the classes that have rows as far as one can tell."""
        return self.counts > max(SEEN_DEVIATIONS * self.count_sigma, 0.5)


def class_sums_of(task: Task, sums: Sums) -> ClassSums:
    """The class sums as float64 in units of 1, each rounded once."""
    values = sums.values(CLASS_SUMS).reshape(-1, columns(task))
    return ClassSums(values, sums.sigma(CLASS_SUMS), fixed_point_bias(task), granularity(task))


def fit_class_means(fused: Fused) -> Fitted:
    """The model of the sums."""
    task, sums = fused.task, class_sums_of(fused.task, fused.sums)
    deviations, variances, rows = _deviations(sums) if task.label.classes else _covariance(sums)
    signal = float(rows @ ((deviations**2).mean(axis=0) - variances)) / float(rows.sum())
    kept = max(signal, 0.0) / np.maximum(max(signal, 0.0) + variances, np.finfo(np.float64).tiny)
    weights = deviations * kept
    layer = _discriminants(sums, weights) if task.label.classes else _regression(sums, weights)
    method = {
        "denoiser": "no" if sums.sigma == 0.0 else "James-Stein",
        "head": HEAD,
        "multiplier": 1.0,
        "lambda": None,
        "choice": f"{float(rows @ (1.0 - kept)) / float(rows.sum()):.0%} shrunk away for noise, nothing to choose",
        "unseen_classes": [name for name, seen in zip(task.class_names, sums.seen, strict=False) if not seen],
    }
    return Fitted((layer,), method, None)


def _deviations(sums: ClassSums) -> tuple[Floats, Floats, Floats]:
    """D (d - 1, C), 0 for unseen classes; the variance of its noise per entry, and the rows that count, both (C,)."""
    counts, classes = np.maximum(sums.counts, 1.0), sums.sums.shape[1]
    means = sums.sums[:-1] / counts - sums.sums[:-1].sum(axis=1, keepdims=True) / sums.rows
    variances = sums.sigma**2 * ((1.0 / counts - 1.0 / sums.rows) ** 2 + (classes - 1) / sums.rows**2)
    return np.where(sums.seen, means, 0.0), variances, np.where(sums.seen, counts, 1e-9)


def _covariance(sums: ClassSums) -> tuple[Floats, Floats, Floats]:
    """The covariance of features and target as one column, the variance of its noise, and a weight of 1."""
    target = _target_mean(sums)
    low, high = sums.sums[:-1].T
    covariance = ((1.0 - target) * high - (1.0 + target) * low) / sums.rows
    variance = sums.sigma**2 * ((1.0 - target) ** 2 + (1.0 + target) ** 2) / sums.rows**2
    return covariance[:, None], np.array([variance]), np.ones(1)


def _target_mean(sums: ClassSums) -> float:
    low, high = sums.counts
    return float(np.clip((high - low) / sums.rows, -1.0, 1.0))


def _discriminants(sums: ClassSums, weights: Floats) -> Layer:
    means = weights.T @ weights
    mixing = np.linalg.lstsq(sums.scatter * means, means, rcond=1e-10)[0]
    priors = np.maximum(sums.counts, 0.0) + max(sums.count_sigma, 1.0)
    slopes = weights @ mixing
    offsets = np.log(priors / priors.sum()) - np.sum(mixing * means, axis=0) / 2.0 - sums.mean @ slopes
    return Layer(np.vstack([slopes, np.zeros((1, slopes.shape[1]))]), offsets)


def _regression(sums: ClassSums, weights: Floats) -> Layer:
    slopes = weights / sums.scatter
    return Layer(np.vstack([slopes, np.zeros((1, 1))]), _target_mean(sums) - sums.mean @ slopes)
