"""Rows of numbers and categories -> feature vectors.

Every column becomes one block of coordinates, and all blocks work alike. A column has k public points: the
values of a category, or evenly spaced numbers from `lower` to `upper` (two, unless the task gives `bins`).
The points are the corners of a regular simplex in k - 1 dimensions, of radius 1 and centered at the origin. A
category sits on its corner; a number walks in straight lines from corner to corner; so a plain number is
simply scaled to [-1, 1], and "yes / no" is +1 / -1. The last coordinate of a block is 1 where the cell is
missing (the others are then 0).

Why a simplex and not one coordinate per category: one-hot rows share a large common mean, which would take
most of the unit of norm that privacy grants to a row and says nothing; and it costs one more dimension of
noise per column.

The row of blocks is divided by the public `clip_norm` and pulled onto the unit ball where it still lies
outside:

    u = v / max(||v||, clip_norm)        x = [sqrt(1 - beta^2) u ; beta]

The bias beta comes last. Everything here is element by element, in a fixed order, so that the vector of a row
never depends on the rows around it (a matrix product may round differently with the size of the batch). The
exported model repeats these few steps from the same constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.task import CategoryColumn, NumberColumn, Task, column_width, tabular_columns

if TYPE_CHECKING:
    from fusion.dataset import Batch

Floats = NDArray[np.float64]


def simplex(corners: int) -> Floats:
    """(k, k-1): unit corners of a regular simplex around the origin; for k = 2 the numbers -1 and +1.

    Corner i differs from corner j > i only from coordinate i on: coordinate i is -1/(k-1-i) of what corner i
    itself has there. Square roots and divisions only, which are exactly rounded on every machine.
    """
    points = np.zeros((corners, corners - 1))
    left = 1.0  # squared length that coordinate i and the later ones must still add
    for i in range(corners - 1):
        below = corners - 1 - i
        height = math.sqrt(left)
        points[i, i] = -height
        points[i + 1 :, i] = height / below
        left -= left / (below * below)
    return points


@dataclass(frozen=True)
class NumberBlock:
    """A number between public bounds, walking over the corners of a simplex."""

    name: str
    lower: float
    upper: float
    points: Floats  # (k, k-1)
    offset: int  # first coordinate of the block in x
    width: int  # k: k-1 coordinates of the simplex, then the missing indicator

    def coordinates(self, batch: Batch) -> Floats:
        """(n, width), from `batch.numbers[name]`; NaN is missing, what lies outside the bounds is clipped."""
        raw = batch.numbers[self.name]
        missing = np.isnan(raw)
        value = np.clip(np.where(missing, self.lower, raw), self.lower, self.upper)
        steps = len(self.points) - 1
        place = (value - self.lower) * (steps / (self.upper - self.lower))
        if steps == 1:  # the formula below for the corners -1 and 1, with less to do
            share = np.clip(place, 0.0, 1.0)[:, None]
            return _with_missing(share - (1.0 - share), missing)
        corner = np.minimum(place.astype(np.int64), steps - 1)
        share = np.clip(place - corner, 0.0, 1.0)[:, None]
        walked = self.points[corner] * (1.0 - share) + self.points[corner + 1] * share
        return _with_missing(walked, missing)


@dataclass(frozen=True)
class CategoryBlock:
    """One of a public list of values, on its corner of a simplex."""

    name: str
    values: tuple[str, ...]
    points: Floats  # (k, k-1)
    offset: int
    width: int

    def coordinates(self, batch: Batch) -> Floats:
        """(n, width), from the indices in `batch.categories[name]`; one outside the values is missing."""
        index = batch.categories[self.name]
        missing = (index < 0) | (index >= len(self.values))
        return _with_missing(self.points[np.where(missing, 0, index)], missing)


Block = NumberBlock | CategoryBlock


def _with_missing(coordinates: Floats, missing: NDArray[np.bool_]) -> Floats:
    blocks = np.zeros((len(missing), coordinates.shape[1] + 1), order="F")
    np.copyto(blocks[:, :-1], coordinates, where=~missing[:, None])
    blocks[:, -1] = missing
    return blocks


@dataclass(frozen=True)
class TabularRows:
    """The public constants of an encoding, and the encoding itself."""

    blocks: tuple[Block, ...]
    clip_norm: float
    bias: float  # beta, the last coordinate of every x

    @classmethod
    def of(cls, task: Task, bias: float | None = None) -> TabularRows:
        """The encoding of the columns of `task`, with its bias or another."""
        blocks: list[Block] = []
        offset = 0
        for column in tabular_columns(task):
            blocks.append(_block(column, offset))
            offset += column_width(column)
        # Between the norm of a row of centered numbers, about sqrt(columns / 3), and that of a row of categories.
        clip_norm = math.sqrt(len(task.columns) / 2)
        return cls(tuple(blocks), clip_norm, task.encoder.bias if bias is None else bias)

    @property
    def dimension(self) -> int:
        """d: the coordinates of x, bias included."""
        return 1 + sum(block.width for block in self.blocks)

    @property
    def feature_scale(self) -> float:
        """sqrt(1 - beta^2)."""
        return math.sqrt(1.0 - self.bias * self.bias)

    def encode(self, batch: Batch) -> Floats:
        """(n, d): one x per row, finite and of norm at most 1 (up to rounding) even for infinite numbers."""
        x = np.empty((len(batch), self.dimension), order="F")  # filled and squared column by column
        squares = np.zeros(len(batch))
        for block in self.blocks:
            part = block.coordinates(batch)
            x[:, block.offset : block.offset + block.width] = part
            for square in (part * part).T:
                squares += square
        radius = np.maximum(np.sqrt(squares), self.clip_norm)
        x[:, :-1] *= (self.feature_scale / radius)[:, None]
        x[:, -1] = self.bias
        return x


def _block(column: NumberColumn | CategoryColumn, offset: int) -> Block:
    width = column_width(column)
    points = simplex(width)
    if isinstance(column, NumberColumn):
        return NumberBlock(column.name, column.lower, column.upper, points, offset, width)
    return CategoryBlock(column.name, column.values, points, offset, width)
