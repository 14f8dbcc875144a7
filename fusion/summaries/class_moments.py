"""Class moments: the moments of each class by itself, so that classes may differ in covariance and not in mean alone.

For encoded rows x (||x|| <= 1, last coordinate beta) of each class c, in the fixed point of
`fusion.summaries.moments`:

    G_c = sum x x^T     (upper triangle, or the diagonal alone)        M_c = sum x

Counts come from the bias row of M, as everywhere. Classification only, and at most 64 dimensions: the numbers are
those of moments times the number of classes.

Sensitivity (adding or removing one record): that of moments, sqrt(1 + b^2), however many classes there are. A
record has one class, so of all G_c it changes one, by q q^T with ||svec(q q^T)|| = g <= 2^32, and of all M_c one,
by 2^16 q with 2^32 g <= 2^64. A record of no known class adds nothing. The diagonal alone is a part of svec: its
norm is smaller.

Unit = person, k kept rows, both factors scaled by 1/sqrt(k) before they are truncated: the rows of a person may lie in
several classes, and the norm over all G_c together is at most the sum of the norms of its rows' contributions,

    || (sum_{i in c} svec(q_i q_i^T))_c ||  <=  sum_i g_i  <=  2^32,

while M is what it is in moments. Hence the same Delta.

The sum over classes of G_c is the G of moments, with sqrt(C) times its noise: whatever works on moments works here. In
return every class has a covariance of its own (`fusion.class_gaussians`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from fusion.encoders import encoder_for
from fusion.errors import ModelError
from fusion.summaries import BlockLayout, Measured, Progress
from fusion.summaries.moments import (
    CROSS_WEIGHT,
    RowCount,
    outputs,
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

CLASS_DIAGONAL, CLASS_UPPER, CLASS_CROSS = "class_gram_diagonal", "class_gram_upper", "class_cross"


class ClassMomentsKind:
    """The summary kind `class-moments`; see the module for what is summed and why its sensitivity is what it is."""

    name = "class-moments"

    def layout(self, task: Task) -> tuple[BlockLayout, ...]:
        """Class by class: the diagonals, the upper triangles (row by row) if they are asked for; and M, row by row."""
        d, classes = dimension(task), outputs(task)
        diagonal = BlockLayout(CLASS_DIAGONAL, classes * d, 1.0)
        upper = BlockLayout(CLASS_UPPER, classes * d * (d - 1) // 2, math.sqrt(2.0))
        cross = BlockLayout(CLASS_CROSS, d * classes, CROSS_WEIGHT)
        return (diagonal, upper, cross) if is_full(task) else (diagonal, cross)

    def sensitivity(self, task: Task) -> float:
        """sqrt(1 + b^2)."""
        return math.sqrt(1.0 + CROSS_WEIGHT * CROSS_WEIGHT)

    def measure(self, task: Task, batches: Iterable[Batch], progress: Progress | None = None) -> Measured:
        """Exact sums of all rows; DataError above MAX_ROWS rows, before anything could overflow."""
        encoder, classes = encoder_for(task), outputs(task)
        d = encoder.dimension
        grams = np.zeros((classes, d, d), dtype=np.int64)
        cross = np.zeros((d, classes), dtype=np.int64)
        rows = RowCount(progress)
        for batch in rows.counted(batches):
            targets, shares = quantize_targets(task, batch), rows_sharing(task, batch)
            for part in parts_of(len(batch)):
                q, w = quantize(encoder.encode(batch.slice(part)), shares[part]), targets[part]
                cross += np.rint(q.T @ w).astype(np.int64)
                for c in range(classes):
                    own = q[w[:, c] > 0.0]
                    grams[c] += np.rint(own.T @ own).astype(np.int64)
        blocks = {CLASS_DIAGONAL: np.diagonal(grams, axis1=1, axis2=2).reshape(-1).copy()}
        if is_full(task):
            blocks[CLASS_UPPER] = grams[:, upper_triangle(d)].reshape(-1)
        blocks[CLASS_CROSS] = cross.reshape(-1)
        return Measured(blocks, rows.done)

    def problem(self, task: Task, sums: Sums) -> str | None:
        """See `fusion.plausibility`."""
        from fusion.class_gaussians import problem_of_classes

        return problem_of_classes(task, sums)

    def statistics(self, task: Task, sums: Sums) -> Statistics:
        """The sums over classes; ModelError where they hold variances alone."""
        from fusion.class_gaussians import pooled_statistics

        if not is_full(task):
            raise ModelError('class-moments with covariance = "diagonal" hold no covariances, which this needs')
        return pooled_statistics(task, sums)

    def profile(self, task: Task, sums: Sums) -> Profile:
        """See `fusion.profiles`; of the sums over classes."""
        from fusion.class_gaussians import pooled_statistics
        from fusion.class_means import ClassSums
        from fusion.profiles import profile_of_class_sums, profile_of_statistics
        from fusion.statistics import fixed_point_bias

        if is_full(task):
            return profile_of_statistics(pooled_statistics(task, sums))
        cross = sums.values(CLASS_CROSS).reshape(-1, len(task.label.classes))
        return profile_of_class_sums(ClassSums(cross, sums.sigma(CLASS_CROSS), fixed_point_bias(task)))

    def heads(self, task: Task) -> tuple[str, ...]:
        """Quadratic discriminants, a network and, where there are covariances, the other heads of moments."""
        from fusion.class_gaussians import OWN, QDA
        from fusion.heads import heads_of

        return (QDA, *heads_of(len(task.label.classes))) if is_full(task) else OWN

    def fit(self, fused: Fused, head: str | None, seed: bytes) -> Fitted:
        """See `fusion.class_gaussians`; what a release needs does not load it."""
        from fusion.class_gaussians import fit_class_moments

        return fit_class_moments(fused, head, seed)


CLASS_MOMENTS = ClassMomentsKind()


def is_full(task: Task) -> bool:
    """Whether covariances are summed, and not variances alone."""
    return task.class_moments is None or task.class_moments.covariance == "full"
