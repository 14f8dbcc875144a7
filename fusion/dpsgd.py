"""Private training of one partner's own model: Poisson-sampled, clipped, noised gradient steps (DP-SGD).

Follows Abadi et al., "Deep learning with differential privacy" (2016), and closes the places where that usually leaks:

    charge     the whole run is charged to the ledger before the first row is looked at
    sample     every record takes part in a step with a public rate, by bits of the operating system
    gradient   of one record alone, clipped, as whole numbers whose length is at most SCALE, checked in integers
    sum        exact, in int64; an empty sample sums to zero and the step is taken all the same
    noise      discrete Gaussian of `fusion.noise`, at least noise_multiplier * SCALE
    update     divided by a public constant, never by the size of the sample or of the dataset

Gradients are taken one record at a time, on one thread. In a batch the last bits of a record's gradient depend on how
many others there are (other kernels for other shapes), so one record more would move all the others a little, and the
sum by more than its bound. For the same reason the model runs in evaluation mode: dropout and batch statistics would
tie records together. A small network takes about 0.5 ms a record.

What one step releases is a Poisson-sampled discrete Gaussian of sensitivity SCALE; at whole orders its Renyi divergence
is that of the continuous one (docs/privacy.md), which is what `fusion.accountants` charges.

Refuses a rate of zero, rates or counts that are not given, models with layers that tie records together (Opacus's
validator knows them), and to train without a ledger.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fusion.accountants import SampledGaussianRelease
from fusion.errors import BudgetError, DataError, ModelError
from fusion.noise import discrete_gaussian

if TYPE_CHECKING:
    from fusion.ledger import Ledger, Reservation

SCALE = 2**20  # a gradient of norm clip_norm in whole units: finer than the noise by far, and squares stay below 2^53
MAX_RECORDS = 2**30

Ints = NDArray[np.int64]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class TrainingPlan:
    """All that a run is charged for and steered by. Public: none of it may be computed from the rows."""

    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    learning_rate: float
    batch_constant: float  # what the sum of gradients is divided by: a guess of sampling_rate * rows, made beforehand
    momentum: float = 0.0

    @property
    def mechanism(self) -> SampledGaussianRelease:
        return SampledGaussianRelease(self.noise_multiplier, self.sampling_rate, self.steps)

    def check(self) -> None:
        """BudgetError for values that no run can have."""
        self.mechanism.check()
        for name in ("clip_norm", "learning_rate", "batch_constant"):
            if not 0 < getattr(self, name) < math.inf:
                raise BudgetError(f"{name} must be positive and finite; choose another")
        if not 0 <= self.momentum < 1:
            raise BudgetError("the momentum must be at least 0 and below 1; choose another")


def train_private(
    model: torch.nn.Module,
    features: torch.Tensor,
    targets: torch.Tensor,
    loss: Loss,
    plan: TrainingPlan,
    *,
    ledger: Ledger,
    dataset: str,
    task_id: bytes,
    delta: float,
    default_cap_epsilon: float,
    cap_epsilon: float | None = None,
    note: str = "",
) -> Reservation:
    """Train `model` in place on rows (n, ...) and targets (n, ...); the unit is one row, added or removed.

    `loss` gives the loss of a batch of one; it and the model's first weights must not come from the rows. The result
    may leave once its bytes are `ready` in the ledger under the reservation returned. BudgetError, DataError and
    ModelError leave weights and budget as they were; whatever goes wrong later, the budget stays spent.
    """
    plan.check()
    check_model(model)
    if len(features) != len(targets) or len(features) > MAX_RECORDS:
        raise DataError(f"every row needs a target, and training takes at most {MAX_RECORDS} rows; check the data")
    reserved = ledger.reserve_training(
        dataset, task_id, plan.mechanism, delta, cap_epsilon, note, default_cap_epsilon=default_cap_epsilon
    )
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=plan.learning_rate, momentum=plan.momentum)
    for _step in range(plan.steps):
        sample = poisson_sample(len(features), plan.sampling_rate)
        with _one_thread():
            total = gradient_sum(model, features[sample], targets[sample], loss, plan.clip_norm)
        noised = discrete_gaussian(total, noise_units(plan.noise_multiplier)).astype(np.float64)
        _set_gradient(model, noised * (plan.clip_norm / SCALE / plan.batch_constant))
        optimizer.step()
    return reserved


def check_model(model: torch.nn.Module) -> None:
    """ModelError if a layer mixes the records of a batch or cannot give a gradient for each (BatchNorm, say)."""
    from opacus.validators import ModuleValidator  # takes a second to load

    model.train()  # the validator looks at models as they are trained; ours run in evaluation mode all the same
    problems = ModuleValidator.validate(model, strict=False)
    if problems:
        first = str(problems[0]).split(". ")[0].rstrip(".")
        raise ModelError(
            f"this model cannot be trained privately: {first}; use LayerNorm or GroupNorm, or leave it out"
        )


def poisson_sample(records: int, rate: float) -> NDArray[np.int64]:
    """Indices of a sample in which every record is with probability floor(rate * 2^63) / 2^63, independently."""
    bits = np.frombuffer(os.urandom(8 * records), dtype=np.uint64) >> np.uint64(1)
    return np.flatnonzero(bits < np.uint64(int(rate * 2**63))).astype(np.int64)


def noise_units(noise_multiplier: float) -> int:
    """Deviation of the noise in the units of `gradient_sum`, rounded up."""
    return math.ceil(noise_multiplier * SCALE)


def gradient_sum(
    model: torch.nn.Module, features: torch.Tensor, targets: torch.Tensor, loss: Loss, clip_norm: float
) -> Ints:
    """(p,) exact sum over the records of their clipped gradients, in units of clip_norm / SCALE."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    total = np.zeros(sum(weight.numel() for weight in weights), dtype=np.int64)
    for at in range(len(features)):
        # A copy of its own: the bits of the result must not depend on where in memory the record lies.
        row, target = features[at : at + 1].clone(), targets[at : at + 1].clone()
        gradients = torch.autograd.grad(loss(model(row), target), weights, allow_unused=True, materialize_grads=True)
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        total += quantized(flat.numpy().astype(np.float64), clip_norm)
    return total


def quantized(gradient: NDArray[np.float64], clip_norm: float) -> Ints:
    """(p,) the gradient clipped to clip_norm, in whole units of clip_norm / SCALE, of length at most SCALE.

    A gradient that is not finite counts as zero, and so does one whose whole numbers are too long after all: the bound
    does not rest on floating point.
    """
    if not np.isfinite(gradient).all():
        return np.zeros(len(gradient), dtype=np.int64)
    largest = float(np.abs(gradient).max(initial=0.0))
    if largest == 0.0:
        return np.zeros(len(gradient), dtype=np.int64)
    norm = largest * float(np.linalg.norm(gradient / largest))  # of huge entries, too
    # A hair below SCALE, so that rounding in the norm does not push a clipped gradient over the bound.
    units = np.trunc(gradient / max(norm, clip_norm) * (SCALE * (1 - 1e-9)))
    if not np.isfinite(units).all() or float((units * units).sum()) > SCALE**2:  # exact: whole numbers below 2^53
        return np.zeros(len(gradient), dtype=np.int64)
    return units.astype(np.int64)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _set_gradient(model: torch.nn.Module, gradient: NDArray[np.float64]) -> None:
    """The noisy gradient, where the optimizer looks for it."""
    start = 0
    for weight in model.parameters():
        if weight.requires_grad:
            piece = torch.from_numpy(gradient[start : start + weight.numel()])
            weight.grad = piece.reshape(weight.shape).to(weight.dtype)
            start += weight.numel()
