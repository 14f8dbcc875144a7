"""Rows of tables -> the cells that they fall into: one 1 for each public partition (`fusion.partitions`), else zeros.

    x = [ sqrt((1 - beta^2) / T) leaf ; beta ]

for T partitions, so that ||x|| = 1. A dense layer on x is a sum of one weight a partition and cell: an additive model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.partitions import Partitions, partitions_of
from fusion.task import Task

if TYPE_CHECKING:
    from fusion.dataset import Batch

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LeafRows:
    """The partitions, and the encoding by them."""

    partitions: Partitions
    bias: float

    @classmethod
    def of(cls, task: Task) -> LeafRows:
        """The encoding of a task of kind `histograms`."""
        return cls(partitions_of(task), task.encoder.bias)

    @property
    def dimension(self) -> int:
        """d: leaves and the bias."""
        return self.partitions.leaves + 1

    @property
    def leaf_scale(self) -> float:
        """sqrt((1 - beta^2) / T)."""
        return math.sqrt((1.0 - self.bias * self.bias) / len(self.partitions.parts))

    def encode(self, batch: Batch) -> Floats:
        """(n, d): one x per row."""
        x = np.zeros((len(batch), self.dimension))
        np.put_along_axis(x, self.partitions.of(batch), self.leaf_scale, axis=1)
        x[:, -1] = self.bias
        return x
