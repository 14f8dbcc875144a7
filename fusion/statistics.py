"""Sums as statistics: the moments of all rows, and how noisy each of them is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import squareform

from fusion.summaries.moments import CROSS, DIAGONAL, FIXED_POINT, SQUARES, UPPER, outputs
from fusion.sums import Sums
from fusion.task import Task

Floats = NDArray[np.float64]


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
    granularity: float = 0.0  # relative error that the fixed point of persons with several rows leaves in counts

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


def statistics_of(task: Task, sums: Sums) -> Statistics:
    """The moments in `sums`, as float64 in units of 1, each rounded once."""
    cross, bias = sums.values(CROSS).reshape(-1, outputs(task)), fixed_point_bias(task)
    classes = len(task.label.classes)
    return Statistics(
        classes=classes,
        bias=bias,
        diagonal=sums.values(DIAGONAL),
        upper=sums.values(UPPER),
        cross=cross,
        target_square=float((cross[-1] / bias).sum()) if classes else float(sums.values(SQUARES)[0]),
        gram_sigma=sums.sigma(DIAGONAL),
        cross_sigma=sums.sigma(CROSS),
        target_sigma=0.0 if classes else sums.sigma(SQUARES),
        granularity=granularity(task),
    )


def fixed_point_bias(task: Task) -> float:
    """beta as it is summed: truncated to fixed point."""
    return int(task.encoder.bias * FIXED_POINT) / FIXED_POINT


def granularity(task: Task) -> float:
    """How far counts that are read from different blocks may differ, as a share of the rows, for fixed point alone.

    A person's row of a share 1/k is truncated after division by sqrt(k): the bias entry and the class entry then
    stand each within one unit of 2^16 / sqrt(k) of their true ratio. Whole rows agree exactly.
    """
    person = task.privacy.person
    if person is None or person.max_rows == 1:
        return 0.0
    return float(np.sqrt(person.max_rows)) / FIXED_POINT * (1.0 + 2.0 / task.encoder.bias)
