"""Moments of each class -> quadratic discriminant analysis, with covariances as far as noise lets them differ.

A class c has rows x of features (the bias left out) with mean mu_c and scatter S_c = G_c - n_c mu_c mu_c^T. S_c is
denoised like any second moment (`fusion.denoise`) and pulled toward the pooled covariance S / n:

    Sigma_c = (1 - a_c) S_c / n_c + a_c S / n + lambda_c I,       a_c = min(1, E_c / || S_c / n_c - S / n ||^2)

where E_c is the squared Frobenius norm that noise alone gives S_c / n_c on average, so that a class whose covariance
cannot be told from the pooled one gets the pooled one (the shrinkage intensity of O. Ledoit, M. Wolf, "A
well-conditioned estimator for large-dimensional covariance matrices", 2004, with privacy noise in the place of
sampling error; J. Friedman, "Regularized discriminant analysis", 1989, for the target). lambda_c is CAUTION times the
edge of what noise is left. E_c also counts the sampling error of so few rows, tr(S / n)^2 / n_c. With a_c = 1 for all
classes this is linear discriminant analysis.

    logits_c = T (log pi_c - log det Sigma_c / 2 - || R_c^T (x - mu_c) ||^2 / 2),      R_c R_c^T = Sigma_c^-1

Rows of tables are not Gaussian, and logits that suppose it are far too sure of themselves. T is the mean slope that
a t-distribution with TAIL degrees of freedom gives the log density ratio of two classes at squared distance D^2,
(TAIL + C - 1) / (TAIL + C - 1 + D^2 / 2), where D^2 + k is the mean of ||R_c^T (x - mu_c)||^2 over rows of other
classes. It changes no decision. The whole is a dense layer, its squares, and another dense layer: the model file
needs nothing but a square in place of a ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.class_means import ClassSums
from fusion.denoise import Spectrum, denoise, spectral_edge
from fusion.fitting import Fitted, fit_moments
from fusion.fuse import Fused
from fusion.heads import CAUTION, RIDGE_FLOOR, SEEN_DEVIATIONS, SQUARE, TAIL, Layer, Layers, network
from fusion.plausibility import problem_of, problem_of_class_sums, problem_of_variances
from fusion.statistics import Statistics, fixed_point_bias, granularity
from fusion.summaries.class_moments import CLASS_CROSS, CLASS_DIAGONAL, CLASS_UPPER, is_full
from fusion.summaries.moments import outputs
from fusion.sums import Sums
from fusion.synthetic import Gaussians
from fusion.task import Task, dimension

Floats = NDArray[np.float64]

QDA, MLP = "qda", "mlp"
OWN = (QDA, MLP)  # heads that use a covariance for each class


def pooled_statistics(task: Task, sums: Sums) -> Statistics:
    """The moments of all rows: sums over classes, with sqrt(C) times the noise of one; variances alone fill with 0."""
    return _statistics(task, sums, range(outputs(task)))


def _statistics(task: Task, sums: Sums, classes: range) -> Statistics:
    """The moments of the rows of these classes."""
    d, count = dimension(task), outputs(task)
    diagonal = sums.values(CLASS_DIAGONAL).reshape(count, d)[classes].sum(axis=0)
    pairs = d * (d - 1) // 2
    upper = sums.values(CLASS_UPPER).reshape(count, pairs)[classes].sum(axis=0) if is_full(task) else np.zeros(pairs)
    cross, bias = sums.values(CLASS_CROSS).reshape(d, count)[:, classes], fixed_point_bias(task)
    return Statistics(
        classes=len(classes),
        bias=bias,
        diagonal=diagonal,
        upper=upper,
        cross=cross,
        target_square=float((cross[-1] / bias).sum()),
        gram_sigma=sums.sigma(CLASS_DIAGONAL) * float(np.sqrt(len(classes))),
        cross_sigma=sums.sigma(CLASS_CROSS),
        target_sigma=0.0,
        granularity=granularity(task),
    )


def problem_of_classes(task: Task, sums: Sums) -> str | None:
    """The first check of `fusion.plausibility` that a class fails; for up to 50 classes all pass but for 1e-6."""
    check = problem_of if is_full(task) else problem_of_variances
    cross = sums.values(CLASS_CROSS).reshape(dimension(task), -1)
    classes = ClassSums(cross, sums.sigma(CLASS_CROSS), fixed_point_bias(task), granularity(task))
    together = problem_of_class_sums(classes)
    if together is not None:
        return together
    for c in range(outputs(task)):
        problem = check(_statistics(task, sums, range(c, c + 1)))
        if problem is not None:
            return problem
    return None


def fit_class_moments(fused: Fused, head: str | None, seed: bytes) -> Fitted:
    """Quadratic discriminants or a network, or a head of moments on the pooled sums.

    Without a head that is asked for: the best of moments where there are covariances, because a quadratic model cannot
    be scored on left-out sums (that takes fourth moments), and on tables it was mostly worse.
    """
    full = is_full(fused.task)
    if full and head not in OWN:
        return fit_moments(fused, head, seed)
    gaussians = ClassGaussians.of(fused.task, fused.sums)
    denoised = full and fused.sums.sigma(CLASS_DIAGONAL) > 0.0
    method = {
        "denoiser": "rotation-invariant" if denoised else "no",
        "head": head or QDA,
        "multiplier": 1.0,
        "lambda": None,
        "choice": f"covariances take {gaussians.priors @ gaussians.pooling:.0%} from the pooled one, for their noise",
        "unseen_classes": [name for name, seen in zip(fused.task.class_names, gaussians.seen, strict=True) if not seen],
    }
    layers = network(gaussians.sampled(), seed) if head == MLP else gaussians.layers()
    return Fitted(layers, method, None)


@dataclass(frozen=True)
class Covariance:
    """The covariance within some classes, as it came and denoised, and what noise is in it."""

    raw: Floats  # (k, k)
    clean: Floats  # (k, k)
    noise: float  # squared Frobenius norm that noise alone gives `raw` on average
    hidden: float  # variance that noise may hide along any direction

    @classmethod
    def of(cls, statistics: Statistics, means: Floats, full: bool) -> Covariance:
        """From the moments of classes with these means (C, k); `full` or variances alone."""
        rows, sigma, k = max(statistics.rows, 1.0), statistics.gram_sigma, means.shape[1]
        gram = statistics.gram[:-1, :-1]
        between = (means.T * np.maximum(statistics.counts, 0.0)) @ means
        if full:
            clean, edge, entries = denoise(gram, sigma).matrix, spectral_edge(k, sigma), k * (k + 1) / 2
        else:
            gram, between = np.diag(gram.diagonal()), np.diag(between.diagonal())
            clean, edge, entries = gram, spectral_edge(1, sigma), float(k)
        hidden = (CAUTION * edge + RIDGE_FLOOR) / rows
        return cls((gram - between) / rows, (clean - between) / rows, entries * (sigma / rows) ** 2, hidden)


@dataclass(frozen=True)
class ClassGaussians:
    """A Gaussian for each class, over the k = d - 1 features without the bias."""

    seen: NDArray[np.bool_]  # (C,)
    priors: Floats  # (C,)
    means: Floats  # (C, k)
    pooling: Floats  # (C,): a_c
    covariances: tuple[Spectrum, ...]  # Sigma_c

    @classmethod
    def of(cls, task: Task, sums: Sums) -> ClassGaussians:
        """The estimates at the top of the module; an unseen class gets the mean and the pooled covariance of all."""
        full, statistics = is_full(task), pooled_statistics(task, sums)
        seen = statistics.seen(SEEN_DEVIATIONS)
        of_all = statistics.cross[:-1].sum(axis=1) / max(statistics.rows, 1.0)
        own = (statistics.cross[:-1] / np.maximum(statistics.counts, 1.0)).T
        means = np.where(seen[:, None], own, of_all)
        pooled = Covariance.of(statistics, means, full)
        pooling, covariances = np.ones(len(seen)), []
        for c in range(len(seen)):
            alone = _statistics(task, sums, range(c, c + 1))
            ours = Covariance.of(alone, means[c : c + 1], full)
            if seen[c]:
                pooling[c] = _intensity(ours, pooled, alone.rows)
            mixed = (1.0 - pooling[c]) * ours.clean + pooling[c] * pooled.clean
            hidden = (1.0 - pooling[c]) * ours.hidden + pooling[c] * pooled.hidden
            values, vectors = np.linalg.eigh(mixed)
            covariances.append(Spectrum(np.maximum(values, 0.0) + hidden, vectors))
        weights = np.maximum(statistics.counts, 0.0) + max(statistics.count_sigma, 1.0)
        return cls(seen, weights / weights.sum(), means, pooling, tuple(covariances))

    def layers(self) -> Layers:
        """Squared distances to the class means, each in its class's own metric; then the discriminants."""
        classes, k = self.means.shape
        roots = [one.vectors / np.sqrt(one.values) for one in self.covariances]
        whitening = np.vstack([np.hstack(roots), np.zeros((1, classes * k))])
        shifts = np.concatenate([-mean @ root for mean, root in zip(self.means, roots, strict=True)])
        halves = np.repeat(-0.5 * np.eye(classes), k, axis=0)
        volumes = np.array([np.log(one.values).sum() for one in self.covariances])
        slope = self.slope
        offsets = slope * (np.log(self.priors) - volumes / 2.0)
        return (Layer(whitening, shifts, SQUARE), Layer(slope * halves, offsets))

    def sampled(self) -> Gaussians:
        """The same, to sample rows from; the bias is constant."""
        factors = np.array([one.vectors * np.sqrt(one.values) for one in self.covariances])
        constant = np.zeros((len(factors), 1, factors.shape[2]))
        means = np.column_stack([self.means, np.zeros(len(self.means))])
        return Gaussians(means, np.concatenate([factors, constant], axis=1), self.priors)

    @property
    def slope(self) -> float:
        """T: see the module."""
        within = np.einsum("c,cij->ij", self.priors, np.array([one.matrix for one in self.covariances]))
        center = self.priors @ self.means
        spread = (self.means.T * self.priors) @ self.means - np.outer(center, center)
        distance = 0.0
        for prior, mean, one in zip(self.priors, self.means, self.covariances, strict=True):
            others = within + spread + np.outer(center - mean, center - mean)
            scaled = one.vectors / np.sqrt(one.values)
            distance += float(prior * (np.sum(scaled * (others @ scaled)) - len(mean)))
        distance /= max(1.0 - float(self.priors @ self.priors), 1e-9)
        freedom = TAIL + len(self.priors) - 1
        return freedom / (freedom + max(distance, 0.0) / 2.0)


def _intensity(ours: Covariance, pooled: Covariance, rows: float) -> float:
    """a_c: what noise and as few rows as these give the squared distance of both, as a share of what it is."""
    sampling = float(np.trace(pooled.clean)) ** 2 / max(rows, 1.0)
    distance = float(((ours.raw - pooled.raw) ** 2).sum())
    expected = ours.noise + pooled.noise + sampling
    return min(1.0, expected / distance) if distance > 0.0 else 1.0
