"""Whether the moments of one summary could be those of an honest release, given the noise that its claim implies.

With noise of known size an honest summary fails one of the checks with a probability below 1e-6 (bounds below). They
catch what is scaled, absurd or inconsistent, and nothing else: whoever sums invented rows passes, and the only partner
with rows of a class can say what it likes about that class.

Bounds, for a Gaussian vector e in d dimensions with independent entries of deviation s: P(||e|| > s (sqrt(d) + t)) <=
exp(-t^2/2), and for a symmetric E with diagonal deviation s, off-diagonal s/sqrt(2): P(-lambda_min(E) > s (sqrt(2d)
+ t)) <= exp(-t^2/2) (K. Davidson, S. Szarek, "Local operator theory, random matrices and Banach spaces", 2001).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from fusion.denoise import spectral_edge
from fusion.statistics import Statistics
from fusion.task import MAX_ROWS

if TYPE_CHECKING:
    from fusion.class_means import ClassSums
    from fusion.profiles import Profile
    from fusion.residual_fit import Residuals
    from fusion.task import Task

Floats = NDArray[np.float64]

DEVIATIONS = 6.0  # t above: exp(-18) = 1.5e-8 for each check
ROUNDING = 1e-9  # relative slack for floating point, which matters only where there is no noise


def problem_of(statistics: Statistics) -> str | None:
    """The first check that these statistics, of one summary, fail."""
    slack = (ROUNDING + statistics.granularity) * (1.0 + abs(statistics.rows))
    check_label = _implausible_classes if statistics.classes else _implausible_target
    return check_label(statistics, slack) or _implausible_gram(statistics, slack)


def _implausible_classes(statistics: Statistics, slack: float) -> str | None:
    """Counts, class sums, and the column that G and M both hold: sum_c M_c = G[:, bias] / bias."""
    d, sigma = statistics.dimension, statistics.cross_sigma
    problem = class_sums_problem(statistics.cross, statistics.counts, sigma, statistics.count_sigma, slack)
    if problem is not None:
        return problem
    gap = statistics.cross.sum(axis=1) - statistics.row_sum
    gap_sigma = np.hypot(np.sqrt(statistics.classes) * sigma, statistics.gram_sigma / statistics.bias)
    if np.linalg.norm(gap) > gap_sigma * (np.sqrt(d) + DEVIATIONS) + slack:
        return "its class sums and its second moments contradict each other"
    return None


def too_many_rows(task: Task, profile: Profile) -> str | None:
    """Whether a summary counts more rows than the task allows one release, whatever the noise."""
    noise = DEVIATIONS * np.sqrt(len(profile.counts)) * profile.count_sigma
    if profile.rows > task.max_rows * (1.0 + ROUNDING) + noise:
        return f"it counts more rows than the {task.max_rows:,} that its task allows a release"
    return None


def problem_of_class_sums(sums: ClassSums) -> str | None:
    """The first check that these class sums, of one summary, fail."""
    slack = (ROUNDING + sums.granularity) * (1.0 + abs(float(sums.counts.sum())))
    return class_sums_problem(sums.sums, sums.counts, sums.sigma, sums.count_sigma, slack)


def problem_of_variances(statistics: Statistics) -> str | None:
    """The same for statistics of classes whose Gram matrix is known on its diagonal alone."""
    slack = (ROUNDING + statistics.granularity) * (1.0 + abs(statistics.rows))
    problem = class_sums_problem(
        statistics.cross, statistics.counts, statistics.cross_sigma, statistics.count_sigma, slack
    )
    noise = np.sqrt(DEVIATIONS**2 + 2.0 * np.log(statistics.dimension)) * statistics.gram_sigma  # for all entries
    if problem is None and (statistics.diagonal < -noise - slack).any():
        return "it has negative sums of squares"
    return problem or _implausible_trace(statistics, slack)


def problem_of_residuals(residuals: Residuals) -> str | None:
    """The first check that these class sums and residual moments, of one summary, fail."""
    problem = problem_of_class_sums(residuals.classes)
    if problem is not None:
        return problem
    counts, d, sigma = residuals.classes.counts, len(residuals.moments), residuals.moments_sigma
    rows, slack = float(counts.sum()), (ROUNDING + residuals.classes.granularity) * (1.0 + abs(float(counts.sum())))
    most = rows + DEVIATIONS * np.sqrt(len(counts)) * residuals.classes.count_sigma + slack
    if np.trace(residuals.moments) > most + DEVIATIONS * np.sqrt(d) * sigma:
        return "its residual moments are larger than its number of rows allows"
    lengths_noise = DEVIATIONS * residuals.lengths_sigma
    if not -lengths_noise - ROUNDING <= residuals.lengths <= most + lengths_noise:
        return "the lengths of its residuals do not fit the number of rows"
    floor = spectral_edge(d, sigma) + DEVIATIONS * sigma + slack
    upper = residuals.moments[_above_diagonal(d)]
    if not _positive_definite(residuals.moments.diagonal(), upper, floor, rows):
        return "its residual moments are not those of any rows, whatever the noise"
    return None


def class_sums_problem(cross: Floats, counts: Floats, sigma: float, count_sigma: float, slack: float) -> str | None:
    """What is impossible about the counts (C,) and feature sums (d, C) of classes with noise of these deviations."""
    d, classes = cross.shape
    count_noise = DEVIATIONS * count_sigma
    if (counts < -count_noise - slack).any():
        return "it counts fewer than no rows in a class"
    if counts.sum() > MAX_ROWS + np.sqrt(classes) * count_noise:
        return f"it counts more rows than the {MAX_ROWS} that a release may have"
    norms = np.linalg.norm(cross, axis=0)
    if (norms > counts + count_noise + sigma * (np.sqrt(d) + DEVIATIONS) + slack).any():
        return "the feature sum of a class is longer than its number of rows allows"
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


def _implausible_trace(statistics: Statistics, slack: float) -> str | None:
    """tr G is at most the number of rows."""
    d, sigma = statistics.dimension, statistics.gram_sigma
    row_sigma = (
        np.sqrt(statistics.classes) * statistics.count_sigma if statistics.classes else sigma / statistics.bias**2
    )
    trace_noise = DEVIATIONS * (np.sqrt(d) * sigma + row_sigma)
    if statistics.diagonal.sum() > statistics.rows + trace_noise + slack:
        return "its second moments are larger than its number of rows allows"
    return None


def _implausible_gram(statistics: Statistics, slack: float) -> str | None:
    """tr G is at most the number of rows, and no eigenvalue of G lies below what noise can do."""
    problem = _implausible_trace(statistics, slack)
    if problem is not None:
        return problem
    d, sigma = statistics.dimension, statistics.gram_sigma
    floor = spectral_edge(d, sigma) + DEVIATIONS * sigma + slack
    if not _positive_definite(statistics.diagonal, statistics.upper, floor, statistics.rows):
        return "its second moments are not those of any rows, whatever the noise"
    return None


def _positive_definite(diagonal: Floats, upper: Floats, shift: float, rows: float) -> bool:
    """Whether a sum over `rows` has a Cholesky factor once `shift` I is added: a fortieth of the work of eigenvalues.

    Single precision: the shift grows by the bound on what rounding can do, about n d 2^-24, far below the noise for a
    million rows.
    """
    d = len(diagonal)
    shift += d * 2.0**-24 * abs(rows)
    matrix = np.empty((d, d), dtype=np.float32)  # LAPACK looks at one triangle
    matrix[_above_diagonal(d)] = upper
    np.fill_diagonal(matrix, diagonal + shift)
    return bool(lapack.spotrf(matrix.T, lower=1, clean=0, overwrite_a=1)[1] == 0)


@functools.lru_cache(maxsize=1)
def _above_diagonal(d: int) -> NDArray[np.bool_]:
    """(d, d): where the upper triangle is; the summaries of a task all ask for the same."""
    return ~np.tri(d, dtype=np.bool_)
