"""Residual moments: class sums first, then the second moments of rows about the node's own noisy class means.

What a linear discriminant needs is how rows scatter *within* classes. From `moments` it is a difference: G minus what
class means make of it; with noise in those means, the difference is worst along the very directions that matter, and
most of the norm that privacy grants to a row goes into its mean. So this kind releases twice, in one go:

    1.  M = sum x onehot(y)^T                                                              with noise sigma / b
    2.  R = sum r r^T     r = (x - a_y) / max(rho, ||x - a_y||)     (features without the bias)   with noise sigma
        L = sum min(1, ||x - a_y||^2)                                                      with noise sigma / l

The center a_c is made from the M that carries its noise already, by this node for itself: its class mean, shrunk toward
0 by what noise adds to its length (the positive part of W. James, C. Stein, "Estimation with quadratic loss", 1961). A
class with few rows gets a center near 0, and R then holds plain second moments. Residuals longer than rho are drawn in
to rho, which is taken as the unit: all rows count about equally (an angular scatter, as of D. Tyler, "A
distribution-free M-estimator of multivariate scatter", 1987), and none counts more than 1. L gives back the scale.

Sensitivity. Everything is integer sums as in `fusion.summaries.moments`: one record, or one person, adds at most 2^32
(1 in units of the sums) to M. Given M with its noise, the centers are fixed numbers; r = trunc(2^16 ...) has at most
norm 2^16, so that the same argument bounds what R gains, and a row adds at most 2^32 / k to L. The second mechanism
may depend on what the first one published: Gaussian mechanisms compose adaptively as if they were released
together (J. Dong, A. Roth, W. Su, "Gaussian differential privacy", 2022, corollary 3.3), with

    mu^2 = b^2 / sigma^2 + (1 + l^2) / sigma^2,    which is that of one release of    Delta = sqrt(1 + b^2 + l^2).

Unlike moments, what is summed depends on how rows are split into nodes (through the centers, slightly), so a fused
model is the same bits for the same set of summaries but not for every partition of the rows. With 10 nodes of
Fashion-MNIST it gains 1 to 2 points at epsilon = 1 over moments, split by class, by Dirichlet(0.1) or evenly; with
some hundred rows of a class per node and epsilon = 1 noise leaves no center, and moments are as good or better.

Encoded rows are read once and kept until the second sums, 4 bytes a coordinate: DataError above MAX_KEPT_BYTES.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.encoders import encoder_for
from fusion.errors import DataError, ModelError
from fusion.summaries import UNIT, BlockLayout, Blocks, Measured, Progress
from fusion.summaries.moments import (
    CACHED_ROWS,
    FIXED_POINT,
    Products,
    RowCount,
    parts_of,
    quantize,
    quantize_targets,
    rows_sharing,
    upper_triangle,
)
from fusion.task import Task, dimension

if TYPE_CHECKING:
    from fusion.dataset import Batch
    from fusion.fitting import Fitted
    from fusion.fuse import Fused
    from fusion.profiles import Profile
    from fusion.statistics import Statistics
    from fusion.sums import Sums

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CROSS, DIAGONAL, UPPER, LENGTHS = "cross", "residual_diagonal", "residual_upper", "residual_lengths"
CROSS_WEIGHT = 0.625  # b: 28 % of mu^2 for class sums; 15 to 50 % are as good or nearly
LENGTHS_WEIGHT = 0.125  # l: 1 % of mu^2
RADIUS = 0.6  # rho; 0.45 to 0.75 are as good on pictures, where residuals are 0.5 to 1 long
MAX_KEPT_BYTES = 2**32


@dataclass(frozen=True)
class KeptRows:
    """Encoded rows of one batch: trunc(2^16 x) without the bias (n, d - 1), class (n,), and k of the row's person."""

    features: NDArray[np.int32]
    label: Ints
    shares: Ints

    def slice(self, part: slice) -> KeptRows:
        """The rows `part` of these."""
        return KeptRows(self.features[part], self.label[part], self.shares[part])


class ResidualMomentsKind:
    """The summary kind `residual-moments`; see the module."""

    name = "residual-moments"

    def layout(self, task: Task) -> tuple[BlockLayout, ...]:
        """M (row by row), diagonal and upper triangle of R (row by row), and L."""
        d = dimension(task)
        return (
            BlockLayout(CROSS, d * len(task.label.classes), CROSS_WEIGHT),
            BlockLayout(DIAGONAL, d - 1, 1.0),
            BlockLayout(UPPER, (d - 1) * (d - 2) // 2, math.sqrt(2.0)),
            BlockLayout(LENGTHS, 1, LENGTHS_WEIGHT),
        )

    def sensitivity(self, task: Task) -> float:
        """sqrt(1 + b^2 + l^2)."""
        return math.sqrt(1.0 + CROSS_WEIGHT**2 + LENGTHS_WEIGHT**2)

    def measure(self, task: Task, batches: Iterable[Batch], progress: Progress | None = None) -> Measured:
        """M, and how to sum the rest once M has its noise; DataError above MAX_ROWS or MAX_KEPT_BYTES."""
        encoder = encoder_for(task)
        cross = np.zeros((encoder.dimension, len(task.label.classes)), dtype=np.int64)
        kept: list[KeptRows] = []
        rows = RowCount(progress)
        for batch in rows.counted(batches):
            if rows.done * 4 * encoder.dimension > MAX_KEPT_BYTES:
                raise DataError(f"{rows.done} rows or more do not fit in memory; release parts, or a task of moments")
            targets, shares = quantize_targets(task, batch), rows_sharing(task, batch)
            for part in parts_of(len(batch)):
                x = encoder.encode(batch.slice(part))
                cross += np.rint(quantize(x, shares[part]).T @ targets[part]).astype(np.int64)
                whole = quantize(x, np.ones_like(shares[part]))[:, :-1].astype(np.int32)
                kept.append(KeptRows(whole, np.asarray(batch.label)[part], shares[part]))

        def then(noised: Blocks, sigmas: dict[str, int]) -> Blocks:
            return residual_sums(kept, centers(task, noised[CROSS], sigmas[CROSS]))

        return Measured({CROSS: cross.reshape(-1)}, rows.done, then=then)

    def problem(self, task: Task, sums: Sums) -> str | None:
        """See `fusion.plausibility`."""
        from fusion.plausibility import problem_of_residuals
        from fusion.residual_fit import residuals_of

        return problem_of_residuals(residuals_of(task, sums))

    def statistics(self, task: Task, sums: Sums) -> Statistics:
        """ModelError: residuals are not the moments of rows."""
        raise ModelError("summaries of kind residual-moments hold no moments of rows, which this needs; use moments")

    def profile(self, task: Task, sums: Sums) -> Profile:
        """See `fusion.profiles`."""
        from fusion.profiles import profile_of_residuals
        from fusion.residual_fit import residuals_of

        return profile_of_residuals(residuals_of(task, sums))

    def heads(self, task: Task) -> tuple[str, ...]:
        """One alone."""
        from fusion.residual_fit import HEAD

        return (HEAD,)

    def fit(self, fused: Fused, head: str | None, seed: bytes) -> Fitted:
        """See `fusion.residual_fit`; what a release needs does not load it."""
        from fusion.residual_fit import fit_residuals

        return fit_residuals(fused)


RESIDUAL_MOMENTS = ResidualMomentsKind()


def centers(task: Task, noised_cross: Ints, sigma: int) -> Floats:
    """(C + 1, d - 1) whole numbers in units of 2^-16: a center per class, and 0 for a row without one.

    From the noisy class sums, in units of 2^-32 with noise of deviation `sigma`; no center is longer than 1.
    """
    sums = noised_cross.reshape(dimension(task), -1).astype(np.float64)
    features, counts = sums[:-1], np.maximum(sums[-1] / task.encoder.bias, float(UNIT))
    squares = (features * features).sum(axis=0)
    noise = float(sigma) ** 2 * len(features)
    kept = 1.0 - noise / np.maximum(squares, max(noise, 1.0))
    means = kept * features / counts
    means /= np.maximum(np.sqrt((means * means).sum(axis=0)), 1.0)
    return np.vstack([np.rint(FIXED_POINT * means).T, np.zeros((1, len(features)))])


def residual_sums(kept: Iterable[KeptRows], center: Floats) -> Blocks:
    """R and L of the rows, in units of 2^-32."""
    features = center.shape[1]
    products = Products(features, 0)
    lengths = 0
    for batch in kept:
        for part in parts_of(len(batch.label), CACHED_ROWS):
            rows = batch.slice(part)
            r, squares = residuals(rows, center)
            products.add(r, np.empty((len(r), 0)))
            lengths += int((np.minimum(squares, UNIT).astype(np.int64) // rows.shares).sum())
    scatter, _nothing = products.sums()
    return {
        DIAGONAL: scatter.diagonal().copy(),
        UPPER: scatter[upper_triangle(features)],
        LENGTHS: np.array([lengths], dtype=np.int64),
    }


def residuals(rows: KeptRows, center: Floats) -> tuple[Floats, Floats]:
    """r (n, d - 1) as whole numbers, and the squared lengths (n,) of x - a in units of 2^-32.

    Lengths are exact: sums of at most 4,096 squares below 2^36. `quantize` checks the norm of r once more.
    """
    known = (rows.label >= 0) & (rows.label < len(center) - 1)
    difference = rows.features - center[np.where(known, rows.label, len(center) - 1)]
    squares = (difference * difference).sum(axis=1)
    radius = np.maximum(np.sqrt(squares), RADIUS * FIXED_POINT)
    return quantize(difference / radius[:, None], rows.shares), squares
