"""Heads trained with torch on rows sampled from fused class-conditional Gaussians, as in One Shot Federation.

The rows follow from sums that carry their noise already, so that training on them costs no privacy, however long it
takes. The same seed gives the same bits: one thread, deterministic algorithms, a generator of its own.

`logistic` gives linear directions. `mlp` gives a network with one hidden layer, which can bend where classes differ in
covariance (summaries of kind class-moments); with one covariance for all classes the best rule is linear and a network
only adds its own error. Its rows come from t-distributions with the same centers and scales (`fusion.heads`: rows are
not Gaussian, and a network trained on Gaussian ones is too sure of itself).

torch is imported where it is used: whoever asks for another head needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]

LOGISTIC_ROWS = 4_096
LOGISTIC_STEPS = 60
LOGISTIC_DECAY = 1e-3  # of squared weights: keeps separable samples from growing them without end
HIDDEN = 48
MLP_STEPS = 400
MLP_ROWS = 512  # fresh ones in every step, so that there is nothing to overfit
MLP_RATE = 0.02
LEAST_SCALE = 1e-9


@dataclass(frozen=True)
class Gaussians:
    """Rows of class c are means[c] + factors[c] z with z standard normal."""

    means: Floats  # (C, k)
    factors: Floats  # (C, k, r), or (1, k, r) where all classes have one covariance
    priors: Floats  # (C,)


def logistic(gaussians: Gaussians, seed: bytes) -> Floats:
    """(k, C) weights of a multinomial logistic regression on sampled rows."""
    import torch

    with _alone(seed) as generator:
        classes, dimension = gaussians.means.shape
        x, label = _rows(gaussians, -(-LOGISTIC_ROWS // classes), generator, tail=None)
        weight = torch.zeros(dimension, classes, dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        class_weight = torch.from_numpy(gaussians.priors * classes)
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=LOGISTIC_STEPS, line_search_fn="strong_wolfe", tolerance_grad=1e-9
        )

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = torch.nn.functional.cross_entropy(x @ weight + bias, label, weight=class_weight)
            value = value + LOGISTIC_DECAY * (weight**2).sum() / 2
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]  # likewise
        return np.asarray(weight.detach().numpy(), dtype=np.float64)


def mlp(gaussians: Gaussians, tail: float, seed: bytes) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """(weight, bias) of two layers with a ReLU between them; rows have t-distributed tails of `tail` degrees."""
    import torch

    with _alone(seed) as generator:
        classes, dimension = gaussians.means.shape
        center, scale = _center_and_scale(gaussians)
        first = torch.randn(dimension, HIDDEN, generator=generator, dtype=torch.float64) * (2.0 / dimension) ** 0.5
        last = torch.randn(HIDDEN, classes, generator=generator, dtype=torch.float64) * (1.0 / HIDDEN) ** 0.5
        weights = [first, torch.zeros(HIDDEN, dtype=torch.float64), last, torch.zeros(classes, dtype=torch.float64)]
        for one in weights:
            one.requires_grad_()
        optimizer = torch.optim.Adam(weights, lr=MLP_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, MLP_STEPS)
        class_weight = torch.from_numpy(gaussians.priors * classes)
        for _ in range(MLP_STEPS):
            x, label = _rows(gaussians, -(-MLP_ROWS // classes), generator, tail)
            hidden = torch.relu((x - torch.from_numpy(center)) / torch.from_numpy(scale) @ weights[0] + weights[1])
            value = torch.nn.functional.cross_entropy(hidden @ weights[2] + weights[3], label, weight=class_weight)
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            schedule.step()
        trained = [np.asarray(one.detach().numpy(), dtype=np.float64) for one in weights]
    unscaled = trained[0] / scale[:, None]
    return (unscaled, trained[1] - center @ unscaled), (trained[2], trained[3])


def _center_and_scale(gaussians: Gaussians) -> tuple[Floats, Floats]:
    """(k,): mean and standard deviation of each feature; infinite for a constant, so that it gets no weight."""
    center = gaussians.priors @ gaussians.means
    between = gaussians.priors @ (gaussians.means - center) ** 2
    within = (gaussians.factors**2).sum(axis=2)
    shares = gaussians.priors if len(within) > 1 else np.ones(1)
    scale = np.sqrt(between + shares @ within)
    return center, np.where(scale > LEAST_SCALE, scale, np.inf)


def _rows(
    gaussians: Gaussians, rows_each: int, generator: torch.Generator, tail: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As many rows of each class, (n, k), and their classes; `tail` degrees of freedom, or Gaussian ones."""
    import torch

    classes, rank = len(gaussians.means), gaussians.factors.shape[2]
    z = torch.randn(classes, rows_each, rank, generator=generator, dtype=torch.float64)
    if tail is not None:
        squares = torch.randn(classes, rows_each, int(tail), generator=generator, dtype=torch.float64).square()
        z = z * (int(tail) / squares.sum(dim=2, keepdim=True)).sqrt()
    factors = torch.from_numpy(np.ascontiguousarray(gaussians.factors.transpose(0, 2, 1)))
    x = torch.from_numpy(np.ascontiguousarray(gaussians.means))[:, None, :] + z @ factors
    return x.flatten(0, 1), torch.arange(classes).repeat_interleave(rows_each)


@contextmanager
def _alone(seed: bytes) -> Iterator[torch.Generator]:
    """One thread and deterministic algorithms while the block lasts, and a generator of the seed."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield torch.Generator().manual_seed(int.from_bytes(seed[:8], "big") >> 1)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
