"""Chooses head and lambda, and estimates quality, by leaving summaries out: no raw data, no privacy cost.

A model is fitted without some summaries and scored on their noisy sums. For a linear map W to the scale of the one-hot
label (or of the target), the squared error over the rows of summary k is

    E_k(W) = tr(W^T G_k W) - 2 tr(W^T M_k) + n_k,

which is linear in the sums: with noise of mean zero in them it is unbiased, and its noise has a known variance. W must
be fitted from the other summaries only. Heads have different scales of output, so each one's scores are first mapped
to the one-hot scale by least squares, on the statistics that the head was fitted from.

A challenger replaces the default only if it is better by TOLERANCE standard errors, where the standard error is the
larger of that of the known noise and that seen between summaries (the "one standard error rule" of L. Breiman et al.,
"Classification and regression trees", 1984; two here, since the luckiest of ten challengers is often one ahead).

What cannot be scored: a class that only the left-out summaries hold; then those are not used. Without noise there is
nothing to choose: the default does, so that the model never depends on how rows are split into summaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.heads import HEADS, SEEN_DEVIATIONS, TAIL, Cleaned, Layers
from fusion.statistics import Statistics
from fusion.summaries import kind_of
from fusion.sums import total

if TYPE_CHECKING:
    from fusion.fuse import Fused

Floats = NDArray[np.float64]

DEFAULT_HEAD = "bayes"  # nothing to tune, see docs/adr/0008
DEFAULT_MULTIPLIER = 1.0  # of lambda, for a head that was asked for; good from 600 to 60,000 rows of tables
TOLERANCE = 2.0  # standard errors
SURE_DEVIATIONS = 4.0  # a class is surely among the rest above this: 1 in 30,000 empty ones passes
MAX_GROUPS = 10  # summaries are left out in at most this many groups
GROUP_WORK = 512.0**3  # cubed dimensions spent on leaving out; beyond, fewer groups are scored, but at least one
SIMULATED_POINTS = 2_000
SIMULATED_NOISES = 40
MAX_SIMULATED_CLASSES = 100


@dataclass(frozen=True)
class Candidate:
    """A head by name, and the multiplier of the noise edge in its lambda."""

    head: str
    multiplier: float


@dataclass(frozen=True)
class Quality:
    """Estimates for the rows of partners left out of the fit, with the standard deviation that noise gives them.

    `relative_error`: squared error on the one-hot (or target) scale as a share of that of always predicting base
    rates (the mean): 1 is useless, 0 perfect. `accuracy` and `balanced_accuracy` (the mean over classes of the share
    that is recognized): if scores within each class have the tails that tempering supposes (`fusion.heads.TAIL`); their
    deviation adds that of as many rows at random.
    """

    relative_error: float
    relative_error_std: float
    groups: int
    accuracy: float | None = None
    accuracy_std: float | None = None
    balanced_accuracy: float | None = None
    balanced_accuracy_std: float | None = None


@dataclass(frozen=True)
class Selection:
    """What to fit, why in words, and how good it is likely to be (None where nothing could be left out)."""

    candidate: Candidate
    reason: str
    quality: Quality | None


@dataclass(frozen=True)
class Split:
    """Statistics without a group of summaries, cleaned, and those of the group."""

    rest: Cleaned
    group: Statistics


def select(fused: Fused, head: str | None, seed: bytes) -> Selection:
    """The head (`head`, or else the best) and its lambda."""
    statistics = fused.statistics
    default = default_candidate(head)
    if not HEADS[default.head].linear:
        return Selection(default, "as asked for: what is not linear cannot be scored on sums", None)
    splits = _splits(fused)
    subject = "lambda" if head else "head and lambda"
    if not splits:
        return Selection(default, f"default {subject}: no summary can be left out and scored", None)
    fits = {default: [fit_on_rest(default, split.rest, seed) for split in splits]}
    if statistics.noiseless:
        reason = f"default {subject}: without noise there is nothing to choose"
        return Selection(default, reason, _quality(fits[default], splits))
    for challenger in _challengers(default, head, statistics.classes):
        fits[challenger] = [fit_on_rest(challenger, split.rest, seed) for split in splits]
    best = _best(default, fits, splits)
    reason = f"default {subject}: nothing was clearly better on left-out summaries"
    if best != default:
        reason = f"{subject} clearly better than the default on left-out summaries"
    return Selection(best, reason, _quality(fits[best], splits))


def default_candidate(head: str | None) -> Candidate:
    """What is used unless there is evidence for something else."""
    return Candidate(head or DEFAULT_HEAD, DEFAULT_MULTIPLIER)


def _challengers(default: Candidate, asked: str | None, classes: int) -> list[Candidate]:
    """Other multipliers of the default's head and, unless one head was asked for, of the other tunable heads."""
    heads = [HEADS[default.head]] if asked else [one for one in HEADS.values() if len(one.multipliers) > 1]
    candidates = [
        Candidate(one.name, multiplier) for one in heads for multiplier in one.multipliers if classes or one.regression
    ]
    return [one for one in candidates if one != default]


# --- leaving out ------------------------------------------------------------------------------------------------


def _splits(fused: Fused) -> list[Split]:
    """Every group of summaries that can be left out and that time allows, in the order of record ids."""
    groups = [fused.used[start::MAX_GROUPS] for start in range(min(MAX_GROUPS, len(fused.used)))]
    if len(groups) < 2:
        return []
    kind = kind_of(fused.task)
    affordable = max(1, int(GROUP_WORK / fused.statistics.dimension**3))
    splits = []
    for members in groups[:affordable]:
        sums = total(members)
        rest, group = (kind.statistics(fused.task, one) for one in (fused.sums.minus(sums), sums))
        if not group.classes or not (group.seen(SEEN_DEVIATIONS) & ~rest.seen(SURE_DEVIATIONS)).any():
            splits.append(Split(Cleaned.of(rest), group))
    return splits


@dataclass(frozen=True)
class Fit:
    """A candidate fitted on the rest of a split."""

    logits: Floats  # (d, C): x -> logits up to a constant per row, offsets folded into the bias row
    weights: Floats  # (d, C): x -> the one-hot or target scale


def fit_on_rest(candidate: Candidate, rest: Cleaned, seed: bytes) -> Fit:
    """`candidate` on the statistics that are left."""
    layers = HEADS[candidate.head].fit(rest, candidate.multiplier, seed)
    logits = _linear_map(layers, rest.statistics.bias)
    return Fit(logits, _on_label_scale(logits, rest))


def _linear_map(layers: Layers, bias: float) -> Floats:
    """(d, C) of a head with one layer. Only differences between logits matter: their mean is taken out."""
    (layer,) = layers
    weights = layer.weight.copy()
    weights[-1] += layer.bias / bias
    return weights - weights.mean(axis=1, keepdims=True) if weights.shape[1] > 1 else weights


def _on_label_scale(logits: Floats, rest: Cleaned) -> Floats:
    """(d, C): the least-squares map from logits and a constant to the label, composed with the logits."""
    statistics = rest.statistics
    basis = np.column_stack([logits, _constant(statistics)])
    products = rest.total.form(basis)
    products[:-1, :-1] += rest.hidden_variance * (logits.T @ logits)
    return np.asarray(basis @ np.linalg.lstsq(products, basis.T @ statistics.cross, rcond=1e-10)[0])


def _constant(statistics: Statistics) -> Floats:
    """(d,): the map that takes every x to 1."""
    weights = np.zeros(statistics.dimension)
    weights[-1] = 1.0 / statistics.bias
    return weights


# --- squared errors ---------------------------------------------------------------------------------------------


def squared_error(weights: Floats, group: Statistics) -> float:
    """E_k(W) of the module's docstring."""
    products = float(np.sum(weights * (group.gram @ weights)) - 2.0 * np.sum(weights * group.cross))
    return products + group.target_square


def difference_variance(a: Floats, b: Floats, factor: float, group: Statistics) -> float:
    """The variance that noise in `group` gives E_k(a) - factor E_k(b), which is linear in G, M and n (or T).

    <A, G> for a symmetric A has variance sigma^2 ||A||^2, and ||a a^T - f b b^T||^2 needs only products of C columns.
    """
    quadratic = np.sum((a.T @ a) ** 2) - 2.0 * factor * np.sum((a.T @ b) ** 2) + factor**2 * np.sum((b.T @ b) ** 2)
    linear = -2.0 * (a - factor * b)
    if group.classes:  # n is read from the bias row of M
        linear = linear + (1.0 - factor) * _constant(group)[:, None]
    variance = group.gram_sigma**2 * quadratic + group.cross_sigma**2 * np.sum(linear**2)
    variance += ((1.0 - factor) * group.target_sigma) ** 2
    return max(float(variance), 0.0)  # rounding can take a difference of equals below zero


def _best(default: Candidate, fits: dict[Candidate, list[Fit]], splits: Sequence[Split]) -> Candidate:
    """The challenger with the largest gain over the default, if any gain stands out of its standard error."""
    best, lead = default, 0.0
    for candidate, fitted in fits.items():
        gains, variance = [], 0.0
        for ours, theirs, split in zip(fitted, fits[default], splits, strict=True):
            gains.append(squared_error(theirs.weights, split.group) - squared_error(ours.weights, split.group))
            variance += difference_variance(theirs.weights, ours.weights, 1.0, split.group)
        if len(gains) > 1:
            variance = max(variance, len(gains) * float(np.var(gains, ddof=1)))
        if sum(gains) > max(lead, TOLERANCE * float(np.sqrt(variance))):
            best, lead = candidate, sum(gains)
    return best


# --- quality ----------------------------------------------------------------------------------------------------


def _quality(fitted: Sequence[Fit], splits: Sequence[Split]) -> Quality | None:
    """Error relative to base rates; None where noise leaves not even the error of base rates above zero."""
    base = [base_rates(split.rest) for split in splits]
    error = sum(squared_error(fit.weights, split.group) for fit, split in zip(fitted, splits, strict=True))
    base_error = sum(squared_error(one, split.group) for one, split in zip(base, splits, strict=True))
    if base_error <= 0.0:
        return None
    ratio = error / base_error
    variance = sum(
        difference_variance(fit.weights, one, ratio, split.group)
        for fit, one, split in zip(fitted, base, splits, strict=True)
    )
    scores = _recognized([fit.logits for fit in fitted], splits)
    return Quality(ratio, float(np.sqrt(variance)) / base_error, len(splits), *scores)


def base_rates(rest: Cleaned) -> Floats:
    """(d, C): the map that takes every x to the share of each class (or to the mean target) in the rest."""
    statistics = rest.statistics
    rates = rest.priors if statistics.classes else statistics.cross[-1] / (statistics.bias * rest.rows)
    return np.outer(_constant(statistics), rates)


def _recognized(logits: Sequence[Floats], splits: Sequence[Split]) -> tuple[float, ...]:
    """Accuracy, balanced accuracy and their deviations on the left-out rows; nothing where it cannot be told.

    From the class means and pooled covariance of their logits, which are sums over splits of V^T M_k and V^T G_k V. The
    noise of these is known, so its effect is simulated: with V = Q R, V^T E V has the law of R^T E' R for small E',
    because the law of E does not change under rotations.
    """
    classes = splits[0].group.classes
    if not 2 <= classes <= MAX_SIMULATED_CLASSES:
        return ()
    bases = [np.column_stack([v, _constant(split.group)]) for v, split in zip(logits, splits, strict=True)]
    sums = np.sum([b.T @ split.group.cross for b, split in zip(bases, splits, strict=True)], axis=0)
    products = np.sum([v.T @ split.group.gram @ v for v, split in zip(logits, splits, strict=True)], axis=0)
    rng = np.random.default_rng(0)
    points = (
        rng.standard_normal((SIMULATED_POINTS, classes))
        * np.sqrt(TAIL / rng.chisquare(TAIL, SIMULATED_POINTS))[:, None]
    )
    factors = [np.linalg.qr(basis)[1] for basis in bases]
    trials = []
    for _ in range(SIMULATED_NOISES):
        noisy_sums, noisy_products = sums, products
        for factor, split in zip(factors, splits, strict=True):
            noise = rng.normal(0.0, split.group.cross_sigma, (len(factor), classes))
            noisy_sums = noisy_sums + factor.T @ noise
            small = _symmetric_noise(len(factor), split.group.gram_sigma, rng)
            noisy_products = noisy_products + (factor.T @ small @ factor)[:classes, :classes]
        trials.append(_scores(_recall(noisy_sums, noisy_products, points), sums[-1]))
    recall = _recall(sums, products, points)
    accuracy, balanced = _scores(recall, sums[-1])
    counts = np.maximum(sums[-1], 1.0)
    chance = recall * (1.0 - recall) / counts  # variance of each class's share among as many rows at random
    noise_std = np.std(trials, axis=0)
    return (
        accuracy,
        float(np.hypot(noise_std[0], np.sqrt(np.sum(counts**2 * chance)) / counts.sum())),
        balanced,
        float(np.hypot(noise_std[1], np.sqrt(np.sum(chance[_present(sums[-1])])) / _present(sums[-1]).sum())),
    )


def _present(counts: Floats) -> NDArray[np.bool_]:
    """The classes that balanced accuracy is a mean over; all where none has a row for sure."""
    present = counts >= 1.0
    return present if present.any() else np.ones(len(counts), dtype=np.bool_)


def _scores(recall: Floats, counts: Floats) -> tuple[float, float]:
    """Accuracy and balanced accuracy."""
    return float(np.average(recall, weights=np.maximum(counts, 1.0))), float(recall[_present(counts)].mean())


def _recall(sums: Floats, products: Floats, points: Floats) -> Floats:
    """(C,): share of each class whose largest logit is its own; `sums` (C + 1, C) ends with the row of counts."""
    counts = np.maximum(sums[-1], 1.0)
    means = sums[:-1] / counts
    within = (products - (means * counts) @ means.T) / counts.sum()
    values, vectors = np.linalg.eigh((within + within.T) / 2.0)
    spread = points @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    return np.array([float(((spread + means[:, c]).argmax(axis=1) == c).mean()) for c in range(len(counts))])


def _symmetric_noise(dimension: int, sigma: float, rng: np.random.Generator) -> Floats:
    """A draw from the law of the noise in G, to see what it does to an estimate; it protects nothing."""
    values = rng.normal(0.0, sigma / np.sqrt(2.0), (dimension, dimension))
    lower = np.tril(values, -1)
    return np.asarray(lower + lower.T + np.diag(values.diagonal() * np.sqrt(2.0)))
