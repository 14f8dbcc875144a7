"""Moments: the sums a linear or Gaussian model needs, in one joint release.

For encoded rows x (||x|| <= 1, last coordinate beta) and a label y:

    G = sum x x^T                             (upper triangle)
    M = sum x onehot(y)^T                     (classification)
    M = sum x t,  T = sum t^2,  t in [-1, 1]  (regression)

Fixed point: q = trunc(2^16 x) as integers, so sum_i q_i^2 <= 2^32: truncation toward zero never lengthens a
vector. A product of two such numbers counts in units of 2^-32, and every block below is an integer sum in
those units. A float64 sum over 2^20 such rows is exact (its partial sums stay below 2^20 * 2^32 = 2^52 < 2^53, in
any order of summation), so BLAS may add them up before they go into int64, and the sums are the same bits however
the rows are split, ordered or batched.

Sensitivity (adding or removing one record). Let g = sum_i q_i^2 <= 2^32. svec stacks the diagonal of a
symmetric matrix and sqrt(2) times its upper triangle, hence ||svec(q q^T)||^2 = sum_ij (q_i q_j)^2 = g^2 <=
2^64.

* classification: M gains 2^16 q in one column: 2^32 g <= 2^64. With M weighted by b:  Delta^2 <= 2^64 (1 +
  b^2).
* regression: with w = trunc(2^16 t), |w| <= 2^16, M gains w q: w^2 g <= 2^64, and T gains w^2: w^4 <= 2^64.
  With both weighted by b:  Delta^2 <= 2^64 (1 + 2 b^2).

The weights are applied to the noise: the upper triangle is sent unscaled with noise sigma / sqrt(2), M and T
with noise sigma / b, which is the same mechanism. `fusion.release` rounds every one of these deviations up.

A row whose integers do not satisfy g <= 2^32 (an encoder's bug, not a row's fault) adds nothing at all, so
the bound above holds for whatever array `quantize` is given.

Unit = person. A person with k kept rows (fusion.persons) enters with the mean of what k separate persons would
add: the total G_p = (1/k) sum x x^T and M_p = (1/k) sum x onehot(y)^T, so that all rows of one person together weigh
what a single row weighs. No matrix per person is needed: both factors of every product are scaled by 1/sqrt(k)
*before* they are truncated,

    q_i = trunc(2^16 x_i / sqrt(k)),   w_i = trunc(2^16 / sqrt(k)) at the row's class, or trunc(2^16 t_i / sqrt(k)).

A row with k sum_j q_ij^2 > 2^32 adds nothing, and |w_i| <= isqrt(2^32 / k). So sum_i g_i <= 2^32 and sum_i w_i^2 <=
2^32 over the person's k rows, in whole numbers, and for everything that the person adds

    ||svec(sum q_i q_i^T)||  <=  sum_i g_i                               <=  2^32   (triangle inequality)
    ||sum q_i w_i^T||        <=  sum_i sqrt(g_i) |w_i|
                             <=  sqrt(sum_i g_i) sqrt(sum_i w_i^2)       <=  2^32   (Cauchy-Schwarz)
    sum w_i^2                                                            <=  2^32.

These are the bounds of a single row, hence the same Delta. k depends on the person's own rows alone, so adding or
removing a person leaves what all others add as it was, to the last bit: the difference between neighboring
datasets is exactly what that person adds. With k = 1 every formula is that of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.encoders import encoder_for
from fusion.errors import DataError
from fusion.summaries import UNIT, BlockLayout, Blocks, Measured, Progress
from fusion.task import MAX_ROWS, Task, dimension

if TYPE_CHECKING:
    from fusion.dataset import Batch
    from fusion.fitting import Fitted
    from fusion.fuse import Fused
    from fusion.profiles import Profile
    from fusion.statistics import Statistics
    from fusion.sums import Sums

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FIXED_POINT = 2**16  # one unit of a coordinate
assert FIXED_POINT**2 == UNIT  # noqa: S101 - a product of two coordinates counts in units of the sums
CROSS_WEIGHT = 1.0  # b: a larger one gives M more of the signal and G less; 0.7 to 1 is the plateau
BLOCK_ROWS = 4_096  # encoded at a time: memory stays flat in the number of rows
CACHED_ROWS = 512  # quantized at a time: at d = 512 they fit into a processor's cache until BLAS is done with them
EXACT_ROWS = 2**20  # of squared length 2^32 keep float64 sums exact

DIAGONAL, UPPER, CROSS, SQUARES = "gram_diagonal", "gram_upper", "cross", "target_square"


class MomentsKind:
    """The summary kind `moments`; see the module for what is summed and why its sensitivity is what it is."""

    name = "moments"

    def layout(self, task: Task) -> tuple[BlockLayout, ...]:
        """Diagonal and upper triangle of G (row by row), M (row by row), and T for regression."""
        d = dimension(task)
        blocks = (
            BlockLayout(DIAGONAL, d, 1.0),
            BlockLayout(UPPER, d * (d - 1) // 2, math.sqrt(2.0)),
            BlockLayout(CROSS, d * outputs(task), CROSS_WEIGHT),
        )
        return blocks if task.label.classes else (*blocks, BlockLayout(SQUARES, 1, CROSS_WEIGHT))

    def sensitivity(self, task: Task) -> float:
        """sqrt(1 + b^2), or sqrt(1 + 2 b^2) for regression."""
        weighted_blocks = 1 if task.label.classes else 2
        return math.sqrt(1.0 + weighted_blocks * CROSS_WEIGHT * CROSS_WEIGHT)

    def measure(self, task: Task, batches: Iterable[Batch], progress: Progress | None = None) -> Measured:
        """Exact sums of all rows; DataError above MAX_ROWS rows, before anything could overflow."""
        encoder = encoder_for(task)
        products = Products(encoder.dimension, outputs(task))
        squares = 0
        rows = RowCount(progress)
        for batch in rows.counted(batches):
            targets = quantize_targets(task, batch)
            shares = rows_sharing(task, batch)
            for part in parts_of(len(batch)):
                x, k, w = encoder.encode(batch.slice(part)), shares[part], targets[part]
                for piece in parts_of(len(x), CACHED_ROWS):
                    products.add(quantize(x[piece], k[piece]), w[piece])
                squares += int((w * w).sum())  # a whole number below 2^44
        gram, cross = products.sums()
        upper = gram[upper_triangle(encoder.dimension)]
        blocks: Blocks = {DIAGONAL: gram.diagonal().copy(), UPPER: upper, CROSS: cross.reshape(-1)}
        if not task.label.classes:
            blocks[SQUARES] = np.array([squares], dtype=np.int64)
        return Measured(blocks, rows.done)

    def problem(self, task: Task, sums: Sums) -> str | None:
        """See `fusion.plausibility`."""
        from fusion.plausibility import problem_of

        return problem_of(self.statistics(task, sums))

    def statistics(self, task: Task, sums: Sums) -> Statistics:
        """The sums as they are."""
        from fusion.statistics import statistics_of

        return statistics_of(task, sums)

    def profile(self, task: Task, sums: Sums) -> Profile:
        """See `fusion.profiles`."""
        from fusion.profiles import profile_of_statistics

        return profile_of_statistics(self.statistics(task, sums))

    def heads(self, task: Task) -> tuple[str, ...]:
        """See `fusion.heads`."""
        from fusion.heads import heads_of

        return heads_of(len(task.label.classes))

    def fit(self, fused: Fused, head: str | None, seed: bytes) -> Fitted:
        """See `fusion.fitting`; what a release needs does not load it."""
        from fusion.fitting import fit_moments

        return fit_moments(fused, head, seed)


MOMENTS = MomentsKind()


class Products:
    """Exact sums of q q^T and q w^T over rows of whole numbers, with sum q^2 and sum w^2 of a row at most 2^32.

    They collect in float64, where BLAS adds them, for as long as that is exact, and then go into int64.
    """

    def __init__(self, dimension: int, columns: int) -> None:
        self._gram = np.zeros((dimension, dimension), dtype=np.int64)
        self._cross = np.zeros((dimension, columns), dtype=np.int64)
        self._open_gram = np.zeros((dimension, dimension), order="F")  # its upper triangle
        self._open_cross = np.zeros((dimension, columns))
        self._open_rows = 0

    def add(self, q: Floats, w: Floats) -> None:
        """At most EXACT_ROWS rows q (n, d) and w (n, C) of whole numbers."""
        from scipy.linalg import blas

        if self._open_rows + len(q) > EXACT_ROWS:
            self._close()
        self._open_rows += len(q)
        # q q^T is symmetric: dsyrk does half the work of a matrix product, and nothing is copied.
        by_column = q.flags.f_contiguous
        self._open_gram = blas.dsyrk(
            1.0, q if by_column else q.T, beta=1.0, c=self._open_gram, trans=by_column, overwrite_c=1
        )
        self._open_cross += q.T @ w

    def sums(self) -> tuple[Ints, Ints]:
        """(d, d), of which only the upper triangle is filled, and (d, C)."""
        self._close()
        return self._gram, self._cross

    def _close(self) -> None:
        self._gram += self._open_gram.astype(np.int64)
        self._cross += self._open_cross.astype(np.int64)
        self._open_gram[:] = 0.0
        self._open_cross[:] = 0.0
        self._open_rows = 0


def outputs(task: Task) -> int:
    """Columns of M: the classes, or one for regression."""
    return len(task.label.classes) or 1


@dataclass
class RowCount:
    """Passes batches on, counts their rows and tells `progress`; every kind of summary takes its rows through one."""

    progress: Progress | None
    done: int = 0

    def counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; DataError above MAX_ROWS rows, before anything could overflow."""
        for batch in batches:
            self.done += len(batch)
            if self.done > MAX_ROWS:
                raise DataError(f"a release takes at most {MAX_ROWS} rows; split the data")
            yield batch
            if self.progress is not None:
                self.progress(self.done)


def rows_sharing(task: Task, batch: Batch) -> Ints:
    """(n,) k of each row: how many kept rows its person has; 1 where the unit is the row."""
    if task.privacy.person is None:
        return np.ones(len(batch), dtype=np.int64)
    if batch.person_rows is None:
        raise DataError("a task that protects persons needs its rows read by person, as a release reads them")
    return batch.person_rows


def quantize(x: Floats, k: Ints) -> Floats:
    """(n, d) whole numbers trunc(2^16 x / sqrt(k)), float64 for BLAS; a row too long or not finite is zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        q: Floats = x * (FIXED_POINT / np.sqrt(k.astype(np.float64)))[:, None]
        np.trunc(q, out=q)
        # Exact where every |q_j| <= 2^17 (d 2^34 <= 2^46 for d <= 4,096); otherwise it is too long anyhow, inf or NaN.
        squares = np.einsum("ij,ij->i", q, q)
        within = squares * k <= UNIT
    if not within.all():
        q[~within] = 0.0
    return q


def quantize_targets(task: Task, batch: Batch) -> Floats:
    """(n, C) whole numbers, trunc(2^16 / sqrt(k)) at each row's class; or (n, 1) trunc(2^16 t / sqrt(k)).

    No known label: zeros.
    """
    if batch.label is None:
        raise DataError("a summary needs the label of every row; name the label column")
    most = whole_shares(rows_sharing(task, batch))
    if task.label.classes:
        chosen = np.equal.outer(batch.label, np.arange(len(task.label.classes)))
        return chosen * most[:, None]
    t = np.nan_to_num(np.clip(batch.label, -1.0, 1.0), nan=0.0)
    scaled = np.trunc(t * (FIXED_POINT / np.sqrt(rows_sharing(task, batch).astype(np.float64))))
    targets: Floats = np.clip(scaled, -most, most)
    return targets.reshape(-1, 1)


def whole_shares(k: Ints) -> Floats:
    """trunc(2^16 / sqrt(k)) of each entry, by whole numbers alone: floor(sqrt(floor(2^32 / k)))."""
    distinct, place = np.unique(k, return_inverse=True)
    roots = np.array([math.isqrt(UNIT // int(one)) for one in distinct], dtype=np.float64)
    shares: Floats = roots[place]
    return shares


def upper_triangle(d: int) -> NDArray[np.bool_]:
    """True above the diagonal; picks entries row by row."""
    return np.triu(np.ones((d, d), dtype=np.bool_), k=1)


def parts_of(rows: int, most: int = BLOCK_ROWS) -> Iterator[slice]:
    """Slices of at most `most` rows."""
    for start in range(0, rows, most):
        yield slice(start, min(start + most, rows))
