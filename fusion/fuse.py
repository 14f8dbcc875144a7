"""Summaries of many partners -> one set of statistics: check each, add as integers, say how noisy the sum is.

Adding happens in whole units of 2^-32, so the result is the same bits in any order, and taking one summary out again
is exact. Each summary must first look like what an honest release could be, given the noise that its claim implies;
one that does not is quarantined with a reason in words and left out.

The checks depend on that one summary alone, so every node quarantines the same ones. With noise of known size an
honest summary fails one of them with a probability below 1e-6 (bounds below). They catch what is scaled, absurd or
inconsistent, and nothing else: whoever sums invented rows passes, and the only partner with rows of a class can say
what it likes about that class.

Bounds, for a Gaussian vector e in d dimensions with independent entries of deviation s: P(||e|| > s (sqrt(d) + t)) <=
exp(-t^2/2), and for a symmetric E with diagonal deviation s, off-diagonal s/sqrt(2): P(-lambda_min(E) > s (sqrt(2d)
+ t)) <= exp(-t^2/2) (K. Davidson, S. Szarek, "Local operator theory, random matrices and Banach spaces", 2001).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.spatial.distance import squareform

from fusion.denoise import spectral_edge
from fusion.errors import NothingToFuse
from fusion.summaries import UNIT, Blocks
from fusion.summaries.moments import CROSS, DIAGONAL, FIXED_POINT, MAX_ROWS, SQUARES, UPPER, outputs
from fusion.summary import Summary
from fusion.task import Task

Floats = NDArray[np.float64]

DEVIATIONS = 6.0  # t above: exp(-18) = 1.5e-8 for each check
ROUNDING = 1e-9  # relative slack for floating point, which matters only where there is no noise


@dataclass(frozen=True)
class Contribution:
    """One summary, the record that carried it and the key of the partner it comes from (32 bytes each)."""

    record_id: bytes
    origin: bytes
    summary: Summary


@dataclass(frozen=True)
class Statistics:
    """Sums over all rows x (||x|| <= 1, last coordinate `bias`) with their noise, in units of 1.

    gram (d, d) = sum x x^T is kept as its diagonal and its upper triangle, row by row. cross (d, C) = sum x
    onehot(y)^T, or (d, 1) = sum x t with t in [-1, 1]. target_square = sum t^2 (for classes: the number of rows).
    `*_sigma` are standard deviations of the noise: gram's on its diagonal (1/sqrt(2) of it elsewhere), cross's on
    each entry.
    """

    classes: int  # 0 for regression
    bias: float
    diagonal: Floats
    upper: Floats
    cross: Floats
    target_square: float
    gram_sigma: float
    cross_sigma: float
    target_sigma: float

    @property
    def dimension(self) -> int:
        return len(self.diagonal)

    @cached_property
    def gram(self) -> Floats:
        """(d, d), symmetric."""
        matrix = squareform(self.upper, checks=False) if self.dimension > 1 else np.zeros((1, 1))
        np.fill_diagonal(matrix, self.diagonal)
        return np.asarray(matrix)

    @property
    def row_sum(self) -> Floats:
        """(d,): sum x, from the bias column of gram."""
        ends = np.cumsum(np.arange(self.dimension - 1, 0, -1)) - 1
        return np.append(self.upper[ends], self.diagonal[-1]) / self.bias

    @property
    def noiseless(self) -> bool:
        return self.gram_sigma == 0.0

    @property
    def counts(self) -> Floats:
        """(C,): estimated rows per class, from the bias row of `cross`; may be negative by noise."""
        return np.asarray(self.cross[-1] / self.bias)

    @property
    def count_sigma(self) -> float:
        return self.cross_sigma / self.bias

    def seen(self, deviations: float) -> NDArray[np.bool_]:
        """(C,): the classes whose count exceeds that many standard deviations of its noise."""
        return self.counts > max(deviations * self.count_sigma, 0.5)

    @property
    def rows(self) -> float:
        """The estimated number of rows."""
        return float(self.counts.sum()) if self.classes else float(self.diagonal[-1]) / self.bias**2


@dataclass(frozen=True)
class Sums:
    """Integer sums of summaries, split at the point: `whole` + `fraction` / 2^32. Neither part can overflow int64.

    `variances` holds 12 times the variance of each block's noise as Python integers, exact like the sums.
    """

    whole: Blocks
    fraction: Blocks
    variances: dict[str, int]

    @classmethod
    def of(cls, summary: Summary) -> Sums:
        values = summary.sums()
        # rounding to whole steps of s adds (s^2 - 1) / 12 to the variance
        variances = {name: 12 * summary.sigmas[name] ** 2 + summary.steps[name] ** 2 - 1 for name in values}
        whole = {name: block >> 32 for name, block in values.items()}
        fraction = {name: block & (UNIT - 1) for name, block in values.items()}
        return cls(whole, fraction, variances)

    def plus(self, other: Sums) -> Sums:
        return self._combined(other, 1)

    def minus(self, other: Sums) -> Sums:
        """What is left without `other`, which must be one of the summands."""
        return self._combined(other, -1)

    def _combined(self, other: Sums, sign: int) -> Sums:
        return Sums(
            {name: block + sign * other.whole[name] for name, block in self.whole.items()},
            {name: block + sign * other.fraction[name] for name, block in self.fraction.items()},
            {name: value + sign * other.variances[name] for name, value in self.variances.items()},
        )

    def statistics(self, task: Task) -> Statistics:
        """The sums as float64 in units of 1, each rounded once."""
        values = {name: block + self.fraction[name] / UNIT for name, block in self.whole.items()}
        cross = values[CROSS].reshape(-1, outputs(task))
        bias = int(task.encoder.bias * FIXED_POINT) / FIXED_POINT  # as it was summed: truncated to fixed point
        classes = len(task.label.classes)
        return Statistics(
            classes=classes,
            bias=bias,
            diagonal=values[DIAGONAL],
            upper=values[UPPER],
            cross=cross,
            target_square=float((cross[-1] / bias).sum()) if classes else float(values[SQUARES][0]),
            gram_sigma=self._sigma(DIAGONAL),
            cross_sigma=self._sigma(CROSS),
            target_sigma=0.0 if classes else self._sigma(SQUARES),
        )

    def _sigma(self, block: str) -> float:
        return float(np.sqrt(self.variances[block] / 12)) / UNIT


@dataclass(frozen=True)
class Fused:
    """What fusing gave: the summaries used (by record id), those quarantined with the reason, and the sums."""

    task: Task
    sums: Sums
    used: tuple[Contribution, ...]
    quarantined: tuple[tuple[Contribution, str], ...]

    @cached_property
    def statistics(self) -> Statistics:
        return self.sums.statistics(self.task)


def fuse(task: Task, contributions: Iterable[Contribution]) -> Fused:
    """The exact sum of all plausible summaries of `task`; the same record given twice counts once.

    The caller passes at most one live summary per origin and part of its data. NothingToFuse when none is usable.
    """
    ordered = sorted({one.record_id: one for one in contributions}.values(), key=lambda one: one.record_id)
    if not ordered:
        raise NothingToFuse("there is no summary of this task here yet; publish one, or wait for a peer's")
    task_id = task.id  # hashed once
    used: list[Contribution] = []
    quarantined: list[tuple[Contribution, str]] = []
    for one in ordered:
        foreign = one.summary.task_id != task_id
        reason = "it belongs to another task" if foreign else implausibility(task, one.summary)
        if reason is None:
            used.append(one)
        else:
            quarantined.append((one, reason))
    if not used:
        raise NothingToFuse(f"none of the {len(ordered)} summaries of this task is plausible: {quarantined[0][1]}")
    return Fused(task, total(used), tuple(used), tuple(quarantined))


def total(contributions: Sequence[Contribution]) -> Sums:
    """The sum of one or more summaries."""
    sums = Sums.of(contributions[0].summary)
    for one in contributions[1:]:
        sums = sums.plus(Sums.of(one.summary))
    return sums


def implausibility(task: Task, summary: Summary) -> str | None:
    """Why no honest release looks like this summary, in words; None where one could."""
    return problem_of(Sums.of(summary).statistics(task))


def problem_of(statistics: Statistics) -> str | None:
    """The first check that these statistics, of one summary, fail."""
    slack = ROUNDING * (1.0 + abs(statistics.rows))
    check_label = _implausible_classes if statistics.classes else _implausible_target
    return check_label(statistics, slack) or _implausible_gram(statistics, slack)


def _implausible_classes(statistics: Statistics, slack: float) -> str | None:
    """Counts, class sums, and the column that G and M both hold: sum_c M_c = G[:, bias] / bias."""
    d, sigma = statistics.dimension, statistics.cross_sigma
    count_noise = DEVIATIONS * statistics.count_sigma
    if (statistics.counts < -count_noise - slack).any():
        return "it counts fewer than no rows in a class"
    if statistics.rows > MAX_ROWS + np.sqrt(statistics.classes) * count_noise:
        return f"it counts more rows than the {MAX_ROWS} that a release may have"
    norms = np.linalg.norm(statistics.cross, axis=0)
    if (norms > statistics.counts + count_noise + sigma * (np.sqrt(d) + DEVIATIONS) + slack).any():
        return "the feature sum of a class is longer than its number of rows allows"
    gap = statistics.cross.sum(axis=1) - statistics.row_sum
    gap_sigma = np.hypot(np.sqrt(statistics.classes) * sigma, statistics.gram_sigma / statistics.bias)
    if np.linalg.norm(gap) > gap_sigma * (np.sqrt(d) + DEVIATIONS) + slack:
        return "its class sums and its second moments contradict each other"
    return None


def _implausible_target(statistics: Statistics, slack: float) -> str | None:
    """The number of rows, and sums over a target within [-1, 1]."""
    d, sigma = statistics.dimension, statistics.cross_sigma
    row_noise = DEVIATIONS * statistics.gram_sigma / statistics.bias**2
    if statistics.rows > MAX_ROWS + row_noise:
        return f"it counts more rows than the {MAX_ROWS} that a release may have"
    most = statistics.rows + row_noise + slack
    if np.linalg.norm(statistics.cross) > most + sigma * (np.sqrt(d) + DEVIATIONS):
        return "the sum of features times target is longer than the number of rows allows"
    target_noise = DEVIATIONS * statistics.target_sigma
    if not -target_noise - slack <= statistics.target_square <= most + target_noise:
        return "the sum of squared targets does not fit the number of rows"
    return None


def _implausible_gram(statistics: Statistics, slack: float) -> str | None:
    """tr G is at most the number of rows, and no eigenvalue of G lies below what noise can do."""
    d, sigma = statistics.dimension, statistics.gram_sigma
    row_sigma = (
        np.sqrt(statistics.classes) * statistics.count_sigma if statistics.classes else sigma / statistics.bias**2
    )
    trace_noise = DEVIATIONS * (np.sqrt(d) * sigma + row_sigma)
    if statistics.diagonal.sum() > statistics.rows + trace_noise + slack:
        return "its second moments are larger than its number of rows allows"
    floor = spectral_edge(d, sigma) + DEVIATIONS * sigma + slack
    if not _positive_definite(statistics, floor):
        return "its second moments are not those of any rows, whatever the noise"
    return None


def _positive_definite(statistics: Statistics, shift: float) -> bool:
    """Whether gram + shift I has a Cholesky factor, in single precision: a fortieth of the work of eigenvalues.

    The shift grows by the bound on what rounding can do, about n d 2^-24, far below the noise for a million rows.
    """
    d = statistics.dimension
    shift += d * 2.0**-24 * abs(statistics.rows)
    matrix = np.zeros((d, d), dtype=np.float32)
    matrix[~np.tri(d, dtype=np.bool_)] = statistics.upper
    np.fill_diagonal(matrix, statistics.diagonal + shift)
    return bool(lapack.spotrf(matrix.T, lower=1, clean=0, overwrite_a=1)[1] == 0)
