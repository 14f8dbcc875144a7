"""Model: a small head trained on one partner's rows alone, and class means that say where it may be asked.

This is Fusion Learning (A. Kasturi, A. R. Ellore, C. Hota, "Fusion Learning: a one shot federated learning", 2020)
under differential privacy: local parameters and a description of the local distribution go out once, together. One
release holds, as one adaptive Gaussian mechanism:

    class sums    M = sum x onehot(y)^T, as in `fusion.summaries.mean_embedding`, with sensitivity 1
    gradients     `steps` noisy sums of clipped gradients (`fusion.training`), each of sensitivity 1 in units of the
                  clip; what is asked in step t depends on noisy answers before it, never on the rows otherwise

With the gradients weighted by w, the joint sensitivity is Delta^2 = 1 + steps w^2, and noise of deviation sigma on the
class sums and sigma / w on every gradient costs mu = Delta / sigma: Gaussian releases compose to mu^2 = sum mu_t^2,
also when each is chosen after the earlier ones (Dong, Roth & Su 2022, corollary 3.3). w is chosen so that the class
sums take `mean_share` of mu^2:

    w^2 = (1 - share) / (share steps),      hence  Delta = 1 / sqrt(share).

So the whole release is charged as one (epsilon, delta) before data is touched, like any other summary, and in the same
account.

What leaves is M, and the trained weights: a function of noisy numbers, in fixed steps and without noise of their own.
The gradients do not leave. Where the task names a larger teacher, the teacher is trained and then distilled into the
head on points sampled from the noisy class means (`fusion.distillation`), still at the node and still a function of
noisy numbers.

Weights do not add up. `fusion.distillation` says what is made of several partners' heads. Class sums do add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.accounting import mu_of
from fusion.encoders import encoder_for
from fusion.errors import DataError, ModelError
from fusion.shapes import MAX_WEIGHT, Weights, head_shapes, initial_weights, settings_of, trained_shapes
from fusion.summaries import UNIT, BlockLayout, Blocks, Measured, Progress
from fusion.summaries.mean_embedding import CLASS_SUMS
from fusion.summaries.moments import RowCount, parts_of, quantize, quantize_targets, rows_sharing
from fusion.task import Task, dimension
from fusion.training import Recipe, Rows, train

if TYPE_CHECKING:
    from fusion.class_means import ClassSums
    from fusion.dataset import Batch
    from fusion.fitting import Fitted
    from fusion.fuse import Fused
    from fusion.profiles import Profile
    from fusion.statistics import Statistics
    from fusion.sums import Sums

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

GRADIENTS = "gradients"
WEIGHT_STEP = 2**24  # 2^-8: moves the logit of a row, which has length 1, by less than noise does
MAX_KEPT_BYTES = 2**33  # rows are gone through once a step, so their features stay in memory
FEWEST_ROWS = 1_000
POOR_RATIO = 0.1  # of noise to the longest mean gradient over a whole run; above, class means do nearly as well


class ModelKind:
    """The summary kind `model`; see the module for what is released and why it costs what it does."""

    name = "model"

    def layout(self, task: Task) -> tuple[BlockLayout, ...]:
        """M (row by row), the gradients of all steps (not sent), and the weights of the head, layer after layer."""
        settings, classes = settings_of(task), len(task.label.classes)
        trained = sum(rows * columns for rows, columns in trained_shapes(task))
        return (
            BlockLayout(CLASS_SUMS, dimension(task) * classes, 1.0),
            BlockLayout(GRADIENTS, settings.steps * trained, _gradient_weight(task), sent=False),
            *(
                BlockLayout(f"weights{layer}", rows * columns, 1.0, step=WEIGHT_STEP, limit=int(MAX_WEIGHT * UNIT))
                for layer, (rows, columns) in enumerate(head_shapes(task))
            ),
        )

    def sensitivity(self, task: Task) -> float:
        """1 / sqrt(mean_share)."""
        return math.sqrt(1.0 + settings_of(task).steps * _gradient_weight(task) ** 2)

    def measure(self, task: Task, batches: Iterable[Batch], progress: Progress | None = None) -> Measured:
        """Exact class sums of all rows, and how to train on them once these have their noise.

        `progress` goes on to hear rows, once more for each step. DataError above MAX_ROWS rows or MAX_KEPT_BYTES.
        """
        sums, kept = encoded(task, batches, progress)

        def then(noised: Blocks, sigmas: dict[str, int]) -> Blocks:
            weights = trained(task, kept, noised[CLASS_SUMS], sigmas, progress)
            return {f"weights{layer}": _fixed_point(one) for layer, one in enumerate(weights)}

        return Measured({CLASS_SUMS: sums.reshape(-1)}, len(kept), then)

    def problem(self, task: Task, sums: Sums) -> str | None:
        """What class sums of no honest release look like; of weights only their range can be checked, on arrival."""
        from fusion.class_means import class_sums_of
        from fusion.plausibility import problem_of_class_sums

        return problem_of_class_sums(class_sums_of(task, sums))

    def statistics(self, task: Task, sums: Sums) -> Statistics:
        """ModelError: weights and class means hold no second moments."""
        raise ModelError(
            'summaries of kind "model" hold trained weights and class means, not the sums that this needs; '
            'use a task of kind "moments" for it'
        )

    def profile(self, task: Task, sums: Sums) -> Profile:
        """See `fusion.profiles`; of the class sums. Of weights they say nothing."""
        from fusion.class_means import class_sums_of
        from fusion.profiles import profile_of_class_sums

        return profile_of_class_sums(class_sums_of(task, sums))

    def heads(self, task: Task) -> tuple[str, ...]:
        """See `fusion.distillation`."""
        from fusion.distillation import MEANINGS

        return tuple(MEANINGS)

    def fit(self, fused: Fused, head: str | None, seed: bytes) -> Fitted:
        """See `fusion.distillation`."""
        from fusion.distillation import fit_models

        return fit_models(fused, head, seed)


MODEL = ModelKind()


def encoded(task: Task, batches: Iterable[Batch], progress: Progress | None = None) -> tuple[Ints, Rows]:
    """(d, C) exact class sums, and the encoded rows to train on."""
    encoder = encoder_for(task)
    sums = np.zeros((encoder.dimension, len(task.label.classes)), dtype=np.int64)
    features = [np.zeros((0, encoder.dimension), dtype=np.int32)]
    labels, sharing = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    rows = RowCount(progress)
    for batch in rows.counted(batches):
        check_memory(task, rows.done)
        targets, shares = quantize_targets(task, batch), rows_sharing(task, batch)
        for part in parts_of(len(batch)):
            x = encoder.encode(batch.slice(part))
            sums += np.rint(quantize(x, shares[part]).T @ targets[part]).astype(np.int64)
            features.append(quantize(x, np.ones_like(shares[part])).astype(np.int32))
        labels.append(np.asarray(batch.label, dtype=np.int64))
        sharing.append(shares)
    return sums, Rows(np.concatenate(features), np.concatenate(labels), np.concatenate(sharing))


def trained(
    task: Task, rows: Rows, noised_sums: Ints, sigmas: dict[str, int], progress: Progress | None = None
) -> Weights:
    """The weights of the task's head, from rows and noisy class sums in units of 2^-32."""
    from fusion.class_means import ClassSums
    from fusion.statistics import fixed_point_bias

    matrix = noised_sums.reshape(-1, len(task.label.classes)) / UNIT
    sums = ClassSums(matrix, sigmas[CLASS_SUMS] / UNIT, fixed_point_bias(task))
    told = None if progress is None else (lambda steps: progress((1 + steps) * len(rows)))
    weights = train(rows, initial_weights(task), recipe_of(task, sums), sigmas[GRADIENTS], told)
    if settings_of(task).teacher_hidden is None:
        return weights
    from fusion.distillation import student_of

    return student_of(task, weights, sums)


def _fixed_point(weight: Floats) -> Ints:
    """In units of 2^-32, within MAX_WEIGHT, which a student may leave."""
    return np.rint(np.clip(weight, -MAX_WEIGHT, MAX_WEIGHT) * UNIT).astype(np.int64).reshape(-1)


def _gradient_weight(task: Task) -> float:
    """w of the module's docstring."""
    settings = settings_of(task)
    return math.sqrt((1.0 - settings.mean_share) / (settings.mean_share * settings.steps))


def class_offsets(sums: ClassSums) -> Floats:
    """(C,) log shares of the classes; the noise of a count counts as that many rows, so that it rules no class out."""
    weights = np.maximum(sums.counts, 0.0) + max(sums.count_sigma, 1.0)
    return np.asarray(np.log(weights / weights.sum()))


def recipe_of(task: Task, sums: ClassSums) -> Recipe:
    """How to train, from the task and noisy class sums.

    Logits are trained with the log share of each class added (A. Menon et al., "Long-tail learning via logit
    adjustment", 2021): the weights then tell classes apart without knowing how frequent they are here, which differs
    between partners.
    """
    settings = settings_of(task)
    rows = max(sums.rows, math.sqrt(len(sums.counts)) * sums.count_sigma)
    return Recipe(settings.steps, settings.clip_norm, settings.learning_rate, rows, class_offsets(sums))


def check_memory(task: Task, rows: int) -> None:
    """DataError for more rows than memory should hold."""
    if 4 * rows * dimension(task) > MAX_KEPT_BYTES:
        most = MAX_KEPT_BYTES // (4 * dimension(task))
        raise DataError(f"training keeps its rows in memory, at most {most:,} of this task; publish them in parts")


def advice(task: Task, epsilon: float) -> str | None:
    """Why this kind is the wrong choice, from public figures alone: the task's expected rows and the noise."""
    settings = settings_of(task)
    weights = sum(rows * columns for rows, columns in trained_shapes(task))
    # The noise of the mean gradient over all steps, beside the clip: sqrt(weights) z / sqrt(steps) / rows.
    ratio = (
        math.sqrt(weights / (1.0 - settings.mean_share)) / mu_of(epsilon, task.privacy.delta) / settings.expected_rows
    )
    if settings.expected_rows >= FEWEST_ROWS and ratio <= POOR_RATIO:
        return None
    return (
        f'kind "model" is likely the wrong choice here: with the expected {settings.expected_rows:,} rows a node and '
        f"epsilon {epsilon:g}, noise is {ratio:.0%} of the longest gradient of {weights:,} weights (it takes at most "
        f'{POOR_RATIO:.0%}, and {FEWEST_ROWS:,} rows); kind "moments" does better on few rows'
    )
