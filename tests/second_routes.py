"""Figures by a second route: what the tests compare the product's own bookkeeping with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.accountants import GaussianAccountant, GaussianRelease
from fusion.summaries import Blocks
from fusion.summaries.moments import CROSS, DIAGONAL, SQUARES, UPPER, outputs
from fusion.task import Task, dimension


@dataclass(frozen=True)
class Moments:
    """Sums in their matrix form, in units of 2^-32; `target_square` is None for classification."""

    gram: NDArray[np.int64]  # (d, d), symmetric
    cross: NDArray[np.int64]  # (d, C), or (d, 1) for regression
    target_square: int | None


def assemble(task: Task, sums: Blocks) -> Moments:
    """Matrices from the blocks of one summary, in integers: the upper triangle comes row by row."""
    d = dimension(task)
    gram = np.zeros((d, d), dtype=np.int64)
    gram[np.triu(np.ones((d, d), dtype=np.bool_), k=1)] = sums[UPPER]
    gram += gram.T
    gram[np.diag_indices(d)] = sums[DIAGONAL]
    target_square = None if task.label.classes else int(sums[SQUARES][0])
    return Moments(gram, sums[CROSS].reshape(d, outputs(task)), target_square)


def cost_of(epsilon: float, delta: float) -> int:
    """What one Gaussian release costs in a dataset that adds up Gaussian releases."""
    return GaussianAccountant().cost(GaussianRelease(epsilon, delta))[0]
