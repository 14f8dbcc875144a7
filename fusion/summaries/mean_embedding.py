"""Mean embedding: the sum of encoded rows of each class, and nothing else; d C numbers in place of d^2 / 2.

For encoded rows x (||x|| <= 1, last coordinate beta), in the fixed point of `fusion.summaries.moments`:

    M = sum x onehot(y)^T                          (classification, C columns)
    M = sum x [(1 - t) / 2, (1 + t) / 2]           (regression, t in [-1, 1]: two columns)

With random Fourier features as x these are the kernel mean embeddings of the classes (A. Smola et al., "A Hilbert
space embedding for distributions", 2007). For regression the columns weigh each row by how far its target lies
toward either end: their sum is sum x, their difference sum x t.

Sensitivity (adding or removing one record): 1. Let g = sum_i q_i^2 <= 2^32 as there, and let w be the row's whole
numbers for the columns. Classification: one of them is 2^16, the others are 0. Regression: w = (2^16 - h, h) with 0
<= h <= 2^16. Either way no entry is negative and they add up to at most 2^16, hence ||w|| <= 2^16 (a sum of squares
is at most the square of the sum), and

    ||q w^T||  =  sqrt(g) ||w||  <=  2^32.

Unit = person, k kept rows: both factors are scaled by 1/sqrt(k) before they are truncated, k g_i <= 2^32, and the
entries of w_i add up to at most isqrt(2^32 / k), so

    || sum_i q_i w_i^T ||  <=  sqrt(sum_i g_i) sqrt(sum_i ||w_i||^2)  <=  2^32.

Moments spend sqrt(2) in place of 1, on sqrt(d) times as many numbers per feature. What they buy with it is the
covariance of the features; here that is a public guess (`fusion.class_means`). No left-out summary can score a model
either, because a squared error needs second moments.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from fusion.encoders import encoder_for
from fusion.errors import DataError, ModelError
from fusion.summaries import BlockLayout, Measured, Progress
from fusion.summaries.moments import (
    Floats,
    RowCount,
    outputs,
    parts_of,
    quantize,
    quantize_targets,
    rows_sharing,
    whole_shares,
)
from fusion.task import Task, dimension

if TYPE_CHECKING:
    from fusion.dataset import Batch
    from fusion.fitting import Fitted
    from fusion.fuse import Fused
    from fusion.profiles import Profile
    from fusion.statistics import Statistics
    from fusion.sums import Sums

CLASS_SUMS = "class_sums"


class MeanEmbeddingKind:
    """The summary kind `mean-embedding`; see the module for what is summed and why its sensitivity is 1."""

    name = "mean-embedding"

    def layout(self, task: Task) -> tuple[BlockLayout, ...]:
        """M, row by row."""
        return (BlockLayout(CLASS_SUMS, dimension(task) * columns(task), 1.0),)

    def sensitivity(self, task: Task) -> float:
        """1."""
        return 1.0

    def measure(self, task: Task, batches: Iterable[Batch], progress: Progress | None = None) -> Measured:
        """Exact sums of all rows; DataError above MAX_ROWS rows, before anything could overflow."""
        encoder = encoder_for(task)
        sums = np.zeros((encoder.dimension, columns(task)), dtype=np.int64)
        rows = RowCount(progress)
        for batch in rows.counted(batches):
            weights, shares = class_weights(task, batch), rows_sharing(task, batch)
            for part in parts_of(len(batch)):
                q = quantize(encoder.encode(batch.slice(part)), shares[part])
                sums += np.rint(q.T @ weights[part]).astype(np.int64)
        return Measured({CLASS_SUMS: sums.reshape(-1)}, rows.done)

    def problem(self, task: Task, sums: Sums) -> str | None:
        """See `fusion.plausibility`."""
        from fusion.class_means import class_sums_of
        from fusion.plausibility import problem_of_class_sums

        return problem_of_class_sums(class_sums_of(task, sums))

    def statistics(self, task: Task, sums: Sums) -> Statistics:
        """ModelError: there are no second moments."""
        raise ModelError("summaries of kind mean-embedding hold no second moments, which this needs; use moments")

    def profile(self, task: Task, sums: Sums) -> Profile:
        """See `fusion.profiles`."""
        from fusion.class_means import class_sums_of
        from fusion.profiles import profile_of_class_sums

        return profile_of_class_sums(class_sums_of(task, sums))

    def heads(self, task: Task) -> tuple[str, ...]:
        """One alone."""
        from fusion.class_means import HEAD

        return (HEAD,)

    def fit(self, fused: Fused, head: str | None, seed: bytes) -> Fitted:
        """See `fusion.class_means`; what a release needs does not load it."""
        from fusion.class_means import fit_class_means

        return fit_class_means(fused)


MEAN_EMBEDDING = MeanEmbeddingKind()


def columns(task: Task) -> int:
    """Columns of M: the classes, or two for regression."""
    return outputs(task) if task.label.classes else 2


def class_weights(task: Task, batch: Batch) -> Floats:
    """(n, columns) whole numbers, not negative, that add up to at most trunc(2^16 / sqrt(k)) in each row.

    Classes: all of it at the row's class. A number t: (1 + t) / 2 of it in the second column, the rest in the first; a
    row without a known number gets zeros.
    """
    if task.label.classes:
        return quantize_targets(task, batch)
    if batch.label is None:
        raise DataError("a summary needs the label of every row; name the label column")
    most = whole_shares(rows_sharing(task, batch))
    known = np.isfinite(batch.label)
    t = np.clip(np.where(known, batch.label, 0.0), -1.0, 1.0)
    high = np.floor(most * ((1.0 + t) / 2.0))
    weights: Floats = np.column_stack([most - high, high]) * known[:, None]
    return weights
