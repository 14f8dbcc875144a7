"""What summaries of most kinds have in common: sums of rows by class, in which partners can be compared.

Every row adds a vector of at most length `reach` to the column of its class. For a number t in [-1, 1] the two ends of
its scale take the place of classes: a row counts as (1 - t) / 2 of the lower and (1 + t) / 2 of the upper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.statistics import Statistics

if TYPE_CHECKING:
    from fusion.cell_counts import Tables
    from fusion.class_means import ClassSums
    from fusion.residual_fit import Residuals

Floats = NDArray[np.float64]

ENDS = ("low values", "high values")


@dataclass(frozen=True)
class Profile:
    """sums (p, C) of features without the bias, and rows (C,) per class, with the deviations of their noise, in rows;
    where there are any, squares (p, p) = sum x x^T, with noise of `squares_sigma` on the diagonal and 1 / sqrt(2) of it
    elsewhere.

    `sigma` and `count_sigma` are those of every entry of `sums` and `counts`, which are independent.
    """

    sums: Floats
    counts: Floats
    sigma: float
    count_sigma: float
    reach: float
    squares: Floats | None = None
    centered: bool = False  # squares are about the partner's own class means, of vectors of at most length 1
    squares_sigma: float = 0.0

    @property
    def rows(self) -> float:
        """The estimated number of rows; may be negative by noise."""
        return float(self.counts.sum())


def profile_of_class_sums(classes: ClassSums) -> Profile:
    """Of class sums (d, C) whose last row is the bias."""
    return Profile(classes.sums[:-1], classes.counts, classes.sigma, classes.count_sigma, _reach(classes.bias))


def profile_of_residuals(residuals: Residuals) -> Profile:
    """Of class sums, and moments of residuals about every partner's own class means."""
    profile = profile_of_class_sums(residuals.classes)
    return replace(profile, squares=residuals.moments, centered=True, squares_sigma=residuals.moments_sigma)


def profile_of_statistics(statistics: Statistics) -> Profile:
    """Of moments: M as it is; for a number, half the sum and half the difference of sum x and sum x t."""
    bias, squares, noise = statistics.bias, statistics.gram[:-1, :-1], statistics.gram_sigma
    if statistics.classes:
        counts, sigma = statistics.counts, statistics.cross_sigma
        return Profile(
            statistics.cross[:-1], counts, sigma, statistics.count_sigma, _reach(bias), squares, squares_sigma=noise
        )
    both, signed = statistics.row_sum, statistics.cross[:, 0]
    ends = np.column_stack([both - signed, both + signed]) / 2.0
    ends[-1] = (statistics.diagonal[-1] / bias + np.array([-1.0, 1.0]) * signed[-1]) / 2.0
    # The bias column of G off the diagonal has noise sigma / sqrt(2), on it sigma; both are divided by the bias.
    sigma = float(np.hypot(statistics.gram_sigma / np.sqrt(2.0) / bias, statistics.cross_sigma)) / 2.0
    count_sigma = float(np.hypot(statistics.gram_sigma / bias, statistics.cross_sigma)) / 2.0 / bias
    return Profile(ends[:-1], ends[-1] / bias, sigma, count_sigma, _reach(bias), squares, squares_sigma=noise)


def profile_of_tables(tables: Tables) -> Profile:
    """Of counts in cells: a row adds 1 to one cell of each of T partitions, a vector of length sqrt(T)."""
    reach = float(np.sqrt(len(tables.partitions.parts)))
    return Profile(tables.counts, tables.rows, tables.sigma, tables.rows_sigma, reach)


def _reach(bias: float) -> float:
    """An encoded row has at most length 1, its last coordinate `bias` included."""
    return float(np.sqrt(1.0 - bias**2))
