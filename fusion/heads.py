"""Fused statistics -> model heads: dense layers from a feature vector x to one logit per class, or to a number.

Heads start from the denoised second moments and the class means mu_c = M_c / n_c.

* **bayes**, the default, has nothing to tune: `fusion.evidence` estimates the regression on class indicators (or on the
  number), shrinking every direction by what noise leaves of it.
* **ridge**: V = n (G + lambda I)^-1 mu, the regression on class indicators with each column scaled to one row per
  class; for regression w = (G + lambda I)^-1 (M - n m t) about the means m and t of features and target.
* **lda**: V = n (S + lambda I)^-1 mu with the pooled within-class scatter S = G - sum n_c mu_c mu_c^T. Without noise
  and lambda it finds the same directions as ridge (T. Hastie, A. Buja, R. Tibshirani, "Penalized discriminant
  analysis", 1995); with them it is a little better at small lambda.
* **synthetic**: rows are sampled from the class-conditional Gaussians N(mu_c, (S + lambda I) / n) and a multinomial
  logistic regression is trained on them with torch, as in One Shot Federation. Moments give all classes one common
  covariance, so it estimates the directions of lda with sampling error on top; it is there to be asked for.
* **mlp**: a network with one hidden layer on such rows (`fusion.synthetic`), for classes that differ in covariance.
* **mlp**: the same rows, and a network with one hidden layer (`fusion.synthetic`).

lambda = multiplier * edge (+ a numerical floor), where edge is where the eigenvalues of the fused privacy noise end.

Probabilities come without raw data, from the Gaussian model of the scores V^T x (`calibrated`): class means m_c =
V^T mu_c and one covariance Q / n make them a discriminant analysis in C dimensions,

    logits = T (A^T V^T x - diag(A^T m) / 2 + log pi)      A = n (Q + CAUTION edge V^T V)^-1 m      Q = V^T S V

The term with CAUTION is variance that the noise may hide. V was chosen where the noisy scatter looks small, so Q comes
out too small, and without the term probabilities are far too sure of themselves. On the heart data at epsilon = 1
(100 draws) CAUTION 0.25 / 0.5 / 1 gives log loss 0.68 / 0.49 / 0.48 and accuracy 79.5 / 79.5 / 79.2 %.

Rows are not Gaussian, and a model that takes them to be is too sure of classes far apart, with noise or without. T is
what a multivariate t-distribution with TAIL degrees of freedom makes of the slope of a log density ratio (`tempered`).
It changes no decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.denoise import Spectrum, denoise, spectral_edge
from fusion.evidence import centred, posterior
from fusion.statistics import Statistics

if TYPE_CHECKING:
    from fusion.synthetic import Gaussians

Floats = NDArray[np.float64]

CAUTION = 0.5  # share of the noise edge added to variances of scores; raising it makes the model less sure
TAIL = 4.0  # degrees of freedom: the usual choice for robust fits (K. Lange, R. Little, J. Taylor, 1989)
OPTIMISM = (
    0.8  # share of the canonical correlations that is believed; 1 trusts them as in-sample estimates never deserve
)
RIDGE_FLOOR = 1e-2  # in rows: all of lambda where there is no noise; bounds the weight of features no row has
SEEN_DEVIATIONS = 2.0  # a class counts as seen above this; lower lets in means of nothing but noise
RELU, SQUARE = "relu", "square"


@dataclass(frozen=True)
class Layer:
    """x -> x weight + bias; its activation follows unless it is the last."""

    weight: Floats  # (in, out)
    bias: Floats  # (out,)
    activation: str = RELU  # or SQUARE, element by element: what quadratic discriminants take


Layers = tuple[Layer, ...]


def forward(layers: Layers, x: Floats) -> Floats:
    """(n, out) for x (n, in)."""
    for position, layer in enumerate(layers):
        x = x @ layer.weight + layer.bias
        if position < len(layers) - 1:
            x = x * x if layer.activation == SQUARE else np.maximum(x, 0.0)
    return x


@dataclass(frozen=True)
class Cleaned:
    """Statistics, their second moments denoised, and what else heads derive from them."""

    statistics: Statistics

    @classmethod
    def of(cls, statistics: Statistics) -> Cleaned:
        """Nothing is computed yet: heads differ in what they need."""
        return cls(statistics)

    @cached_property
    def total(self) -> Spectrum:
        """The rotation-invariant estimate of the statistics' Gram matrix."""
        return denoise(self.statistics.gram, self.statistics.gram_sigma)

    @property
    def edge(self) -> float:
        return spectral_edge(self.statistics.dimension, self.statistics.gram_sigma)

    def ridge(self, multiplier: float) -> float:
        """lambda, in rows."""
        return multiplier * self.edge + RIDGE_FLOOR

    @property
    def hidden_variance(self) -> float:
        """In rows, per squared length of a direction: what noise may hide of the scatter along it."""
        return CAUTION * self.edge + RIDGE_FLOOR

    @property
    def rows(self) -> float:
        return max(self.statistics.rows, 1.0)

    @cached_property
    def mean(self) -> Floats:
        """(d,): the mean of all rows.

        The sum of rows is in the bias column of G and, for classes, in M too: both, weighted by their noise. Features
        are centered by public constants, so the mean is pulled toward 0 by what noise adds to its squared length
        (the positive part of W. James, C. Stein, "Estimation with quadratic loss", 1961).
        """
        statistics = self.statistics
        sums = statistics.row_sum[:-1]
        variance = statistics.gram_sigma**2 / 2.0 / statistics.bias**2
        if statistics.classes and not statistics.noiseless:
            other_variance = statistics.classes * statistics.cross_sigma**2
            share = variance / (variance + other_variance)
            sums = (1.0 - share) * sums + share * statistics.cross[:-1].sum(axis=1)
            variance = share * other_variance
        squares = float(sums @ sums)
        kept = max(0.0, 1.0 - len(sums) * variance / squares) if squares > 0.0 else 0.0
        return np.append(kept * sums / self.rows, statistics.bias)

    @property
    def target_mean(self) -> float:
        """The mean target of regression."""
        return float(self.statistics.cross[-1, 0]) / (self.statistics.bias * self.rows)

    @property
    def counts(self) -> Floats:
        """(C,): rows per class, at least one."""
        return np.maximum(self.statistics.counts, 1.0)

    @property
    def priors(self) -> Floats:
        """(C,): share of each class; its uncertainty counts as that many rows, so that noise rules no class out."""
        weights = np.maximum(self.statistics.counts, 0.0) + max(self.statistics.count_sigma, 1.0)
        return np.asarray(weights / weights.sum())

    @property
    def seen(self) -> NDArray[np.bool_]:
        """(C,): the classes that have rows as far as one can tell."""
        return self.statistics.seen(SEEN_DEVIATIONS)

    @cached_property
    def means(self) -> Floats:
        """(d, C): class means of x; an unseen class, of which nothing is known, gets the mean of all rows."""
        cross = self.statistics.cross
        deviations = cross / self.counts - cross.sum(axis=1, keepdims=True) / self.rows
        deviations[-1] = 0.0
        return np.asarray(self.mean[:, None] + np.where(self.seen, deviations, 0.0))

    @cached_property
    def within(self) -> Spectrum:
        """The pooled within-class scatter S; its negative eigenvalues, which noise makes, are set to 0."""
        between = (self.means * self.counts) @ self.means.T
        values, vectors = np.linalg.eigh(self.total.matrix - between)
        return Spectrum(np.maximum(values, 0.0), vectors)


@dataclass(frozen=True)
class Head:
    """One way to fit layers; `multipliers` of the noise edge are tried for lambda, 1 being the default."""

    name: str
    fit: Callable[[Cleaned, float, bytes], Layers]  # (cleaned, multiplier, seed)
    multipliers: tuple[float, ...]
    regression: bool
    has_lambda: bool = True
    linear: bool = True  # one layer: only then can sums score it


def bayes(cleaned: Cleaned, multiplier: float, seed: bytes) -> Layers:
    """Empirical Bayes regression on class indicators, read as a discriminant analysis; or on the number itself."""
    estimate = posterior(centred(cleaned))
    directions = np.vstack([estimate.weights, np.zeros((1, estimate.weights.shape[1]))])
    if not cleaned.statistics.classes:
        mean = cleaned.target_mean - directions.T @ cleaned.mean
        return (Layer(directions, mean),)
    if cleaned.statistics.classes == 2:  # one direction: only how sure to be along it is left to say
        return (calibrated(cleaned, directions),)
    return (_from_indicators(cleaned, directions, estimate.explained),)


def ridge(cleaned: Cleaned, multiplier: float, seed: bytes) -> Layers:
    """Regularized least squares, for classes or for a number."""
    if not cleaned.statistics.classes:
        return (_regression(cleaned, multiplier),)
    directions = cleaned.rows * cleaned.total.solve(cleaned.means, cleaned.ridge(multiplier))
    return (calibrated(cleaned, directions),)


def lda(cleaned: Cleaned, multiplier: float, seed: bytes) -> Layers:
    """Linear discriminant analysis with a shrunk pooled covariance."""
    directions = cleaned.rows * cleaned.within.solve(cleaned.means, cleaned.ridge(multiplier))
    return (calibrated(cleaned, directions),)


def synthetic(cleaned: Cleaned, multiplier: float, seed: bytes) -> Layers:
    """Logistic regression on rows sampled from the fused Gaussians; the same seed gives the same bits."""
    from fusion.synthetic import logistic

    return (calibrated(cleaned, logistic(_gaussians(cleaned, multiplier), seed)),)


def mlp(cleaned: Cleaned, multiplier: float, seed: bytes) -> Layers:
    """A network with one hidden layer, trained on rows sampled from the fused distributions."""
    return network(_gaussians(cleaned, multiplier), seed)


def network(gaussians: Gaussians, seed: bytes) -> Layers:
    """`fusion.synthetic.mlp` as layers."""
    from fusion.synthetic import mlp as trained

    (first, shift), (last, offsets) = trained(gaussians, TAIL, seed)
    return (Layer(first, shift), Layer(last, offsets))


def _gaussians(cleaned: Cleaned, multiplier: float) -> Gaussians:
    """Class means, and one covariance (S + lambda I) / n for all."""
    from fusion.synthetic import Gaussians

    scale = np.sqrt((cleaned.within.values + cleaned.ridge(multiplier)) / cleaned.rows)
    return Gaussians(cleaned.means.T, (cleaned.within.vectors * scale)[None], cleaned.priors)


HEADS = {
    head.name: head
    for head in (
        Head("bayes", bayes, (1.0,), regression=True, has_lambda=False),
        Head("lda", lda, (0.1, 0.3, 1.0, 3.0), regression=False),
        Head("ridge", ridge, (0.1, 0.3, 1.0, 3.0), regression=True),
        Head("synthetic", synthetic, (1.0,), regression=False),
        Head("mlp", mlp, (1.0,), regression=False, linear=False),
    )
}


def heads_of(classes: int) -> tuple[str, ...]:
    """Names of the heads for that many classes; for 0, of those for a regression."""
    return tuple(head.name for head in HEADS.values() if classes or head.regression)


def _from_indicators(cleaned: Cleaned, directions: Floats, explained: Floats) -> Layer:
    """Logits from scores u = W^T x, where W (d, C) estimates the regression on class indicators.

    A regression estimate that is neither too bold nor too timid has `explained` = U = W^T D = W^T T W: what classes and
    scores share is all the variance that scores have. Class means of u about the mean are then U / n_c and the
    scatter within classes U - U N^-1 U, with N = diag(n_c), so that the discriminant analysis of the scores needs no
    inverse of anything small: A = n (I - N^-1 U)^-1 N^-1. The eigenvalues of N^-1/2 U N^-1/2 are squared canonical
    correlations, in [0, 1).
    """
    root = 1.0 / np.sqrt(cleaned.counts)
    values, vectors = np.linalg.eigh(root[:, None] * explained * root)
    values = OPTIMISM * np.clip(values, 0.0, 1.0)
    mixing = cleaned.rows * root[:, None] * ((vectors / (1.0 - values)) @ vectors.T) * root
    score_means = ((vectors * values) @ vectors.T) * root / root[:, None]
    weight = directions @ mixing
    offsets = np.log(cleaned.priors) - np.sum(mixing * score_means, axis=0) / 2.0 - weight.T @ cleaned.mean
    return tempered(Layer(weight, offsets), mixing.T @ score_means, cleaned.priors)


def tempered(layer: Layer, mean_logits: Floats, priors: Floats) -> Layer:
    """The logits of `layer` times T = (nu + k) / (nu + k + D^2 / 2), for `mean_logits` (C, C): logits of class means.

    With t-distributed scores in k = C - 1 dimensions the log density ratio of two classes has the slope (nu + k) /
    (nu + delta^2) of the Gaussian one, delta^2 being the squared distance to the class mean. It is k on average for
    the own class and k + D^2 for another at squared distance D^2, here the mean over pairs of classes.
    """
    own = np.diag(mean_logits)
    distances = own[:, None] + own[None, :] - mean_logits - mean_logits.T
    pairs = np.outer(priors, priors) * (1.0 - np.eye(len(priors)))
    distance = max(float((distances * pairs).sum() / pairs.sum()), 0.0)
    freedom = TAIL + len(priors) - 1
    slope = freedom / (freedom + distance / 2.0)
    return Layer(slope * layer.weight, slope * layer.bias)


def calibrated(cleaned: Cleaned, directions: Floats) -> Layer:
    """The scores V^T x of `directions` V (d, C) as logits, by the formula at the top of the module."""
    score_means = directions.T @ cleaned.means
    between = (score_means * cleaned.counts) @ score_means.T
    values, vectors = np.linalg.eigh(cleaned.total.form(directions) - between)
    scatter = (vectors * np.maximum(values, 0.0)) @ vectors.T
    scatter += cleaned.hidden_variance * (directions.T @ directions)
    mixing = np.linalg.lstsq(scatter, cleaned.rows * score_means, rcond=1e-10)[0]
    offsets = np.log(cleaned.priors) - np.sum(mixing * score_means, axis=0) / 2.0
    return tempered(Layer(directions @ mixing, offsets), mixing.T @ score_means, cleaned.priors)


def _regression(cleaned: Cleaned, multiplier: float) -> Layer:
    """Ridge about the means; a slope then undoes the shrinkage as far as the variance of the scores allows."""
    statistics, rows, mean = cleaned.statistics, cleaned.rows, cleaned.mean
    target_mean = cleaned.target_mean
    covariance = statistics.cross[:, 0] - rows * target_mean * mean
    weight = cleaned.total.solve(covariance[:, None], cleaned.ridge(multiplier))[:, 0]
    scatter = float(cleaned.total.form(weight[:, None])[0, 0]) - rows * float(mean @ weight) ** 2
    variance = max(scatter, 0.0) + cleaned.hidden_variance * float(weight @ weight)
    slope = float(weight @ covariance) / variance if variance > 0.0 else 0.0
    return Layer(slope * weight[:, None], np.array([target_mean - slope * float(mean @ weight)]))
