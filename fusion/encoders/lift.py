"""Encoded rows -> random Fourier features, whose products approximate a Gaussian kernel: kernel methods on sums.

For an encoded row u (||u|| <= 1) and m public directions w_j with independent N(0, 2 gamma) entries,

    x = sqrt(1 - beta^2) / sqrt(m) [cos(w_1 u), ..., cos(w_m u), sin(w_1 u), ..., sin(w_m u)],  then beta

has norm 1 exactly, and x(u) x(v) - beta^2 comes close to (1 - beta^2) exp(-gamma ||u - v||^2): A. Rahimi, B. Recht,
"Random features for large-scale kernel machines", 2007.

A row must give the same bits in any batch and on any machine, which neither a product of matrices nor a library's
cosine grants. So both factors are whole numbers: u in units of 2^-24, the directions, counted in turns (w / 2 pi),
in units of 2^-14. Every partial sum of their product is at most 2^24 ||w|| 2^14 < 2^53 (Cauchy-Schwarz on the
absolute values), hence exact in float64 in any order. What is whole in the number of turns is dropped, exactly too,
and the sine of the rest is a polynomial, evaluated element by element with additions and multiplications alone.

The directions come from SHAKE-256 of the seed: each entry is the sum of twelve uniform whole numbers of 16 bits,
centered, which is Gaussian enough and the same forever, where a generator of a library may change its stream.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.encoders.tabular import TabularRows
from fusion.task import Lift, Task

if TYPE_CHECKING:
    from fusion.dataset import Batch

Floats = NDArray[np.float64]

ROW_UNITS = 2**24  # of a coordinate of u
TURN_UNITS = 2**14  # of a direction, in turns
SUMMANDS = 12  # uniform numbers on [0, 1) have variance 1/12
BLOCK_ROWS = 1_024  # rows lifted at a time: bounds the memory of what is in between
# Taylor's series of sin(2 pi t) / t in t^2, t in quarter turns at most: the first term left out is below 1e-18
SINE = tuple((-1.0) ** i * (2.0 * math.pi) ** (2 * i + 1) / math.factorial(2 * i + 1) for i in range(12))


def directions(lift: Lift, dimension: int) -> Floats:
    """(dimension, m) whole numbers: entries of w_j / 2 pi in units of 2^-14."""
    scale = math.sqrt(2.0 * lift.gamma) / (2.0 * math.pi) * TURN_UNITS / 2**16
    columns = []
    for j in range(lift.features // 2):
        stream = hashlib.shake_256(f"tidings-lift-1/{lift.seed}/{dimension}/{j}".encode())
        uniform = np.frombuffer(stream.digest(2 * SUMMANDS * dimension), dtype="<u2").astype(np.int64)
        columns.append(uniform.reshape(dimension, SUMMANDS).sum(axis=1) - SUMMANDS * (2**16 - 1) // 2)
    return np.asarray(np.rint(np.stack(columns, axis=1) * scale))


def sine_of_turns(turns: Floats) -> Floats:
    """sin(2 pi t), to 1e-15 and by the same bits everywhere; `turns` is of any size and less than 2^51."""
    rest = turns - np.floor(turns + 0.5)
    # sin(2 pi t) = sin(2 pi (1/2 - t)): fold onto a quarter turn on either side
    folded = np.copysign(np.minimum(np.abs(rest), 0.5 - np.abs(rest)), rest)
    squares = folded * folded
    value = np.full_like(folded, SINE[-1])
    for coefficient in SINE[-2::-1]:
        value = value * squares + coefficient
    return np.asarray(value * folded)


@dataclass(frozen=True)
class LiftedRows:
    """The public constants of a lift, and the encoding itself."""

    rows: TabularRows  # with bias 0
    weights: Floats  # (d of the rows, m), from `directions`
    bias: float

    @classmethod
    def of(cls, task: Task, lift: Lift) -> LiftedRows:
        """The lift of the columns of `task`."""
        rows = TabularRows.of(task, bias=0.0)
        return cls(rows, directions(lift, rows.dimension - 1), task.encoder.bias)

    @property
    def dimension(self) -> int:
        """d: the coordinates of x, bias included."""
        return 2 * int(self.weights.shape[1]) + 1

    @property
    def feature_scale(self) -> float:
        """sqrt((1 - beta^2) / m)."""
        return math.sqrt((1.0 - self.bias * self.bias) / self.weights.shape[1])

    def encode(self, batch: Batch) -> Floats:
        """(n, d): one x per row, of norm 1 (up to rounding)."""
        x = np.empty((len(batch), self.dimension))
        count = self.weights.shape[1]
        for start in range(0, len(batch), BLOCK_ROWS):
            part = slice(start, min(start + BLOCK_ROWS, len(batch)))
            whole = np.rint(self.rows.encode(batch.slice(part))[:, :-1] * ROW_UNITS)
            turns = (whole @ self.weights) * (1.0 / (ROW_UNITS * TURN_UNITS))
            x[part, :count] = sine_of_turns(turns + 0.25) * self.feature_scale
            x[part, count:-1] = sine_of_turns(turns) * self.feature_scale
        x[:, -1] = self.bias
        return x
