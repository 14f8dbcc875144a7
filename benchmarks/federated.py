"""The peers that train: federated averaging, with and without privacy, and one-shot averaging and ensembles.

* `fedavg`: B. McMahan et al., "Communication-efficient learning of deep networks from decentralized data", 2017.
  Every round each node trains the global model on its own rows, and the results are averaged by their rows.
* `dp_fedavg`: the same with DP-SGD (M. Abadi et al., 2016) by Opacus at each node. The epsilon of a node is that of
  the whole run: one noise multiplier, by Opacus's RDP accountant, for all steps of all rounds together. How many rows
  a node has, which weighs the average and sets the sampling rate, is taken to be public; that favors this peer.
* `one_shot`: each node trains alone, once. Averaged weights; or an ensemble, the mean of the nodes' probabilities;
  or that mean weighted, class by class, by the nodes' counts of the class (a private node spends a part of its epsilon
  on a noised histogram for it).

Everything is plain torch on rows (n, ...) and labels (n,); weights move as float32. Nothing here is private in the
sense of this project: the noise is that of torch's generator, seeded so that a run can be repeated.
"""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

HISTOGRAM_SHARE = 1 / 30
"""Of a private node's epsilon, spent on the histogram of its labels."""
RATE_STEPS_PER_OCTAVE = 1
"""Sampling rates are rounded up to powers of two, so that one search for the noise serves many nodes."""
WEIGHT_BYTES = 4


@dataclass(frozen=True)
class Rows:
    """The rows of one node, or of the test set."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Sgd:
    """Training at one node in one round."""

    learning_rate: float = 0.1
    batch: int = 32
    epochs: int = 1


@dataclass(frozen=True)
class PrivateSgd:
    """DP-SGD at one node: `batch` is the expected size of a Poisson sample."""

    epsilon: float
    delta: float
    learning_rate: float
    clip_norm: float
    batch: int
    epochs: int = 1


NewModel = Callable[[], nn.Module]
State = dict[str, torch.Tensor]


def fedavg(
    new_model: NewModel, nodes: Sequence[Rows], rounds: int, sgd: Sgd, generator: torch.Generator
) -> Iterator[nn.Module]:
    """The global model after every round; the same object each time."""
    return _rounds(new_model(), nodes, rounds, lambda model, node: train(model, node, sgd, generator))


def dp_fedavg(
    new_model: NewModel, nodes: Sequence[Rows], rounds: int, sgd: PrivateSgd, generator: torch.Generator
) -> Iterator[nn.Module]:
    """Likewise, each node (epsilon, delta)-private over all rounds."""
    return _rounds(new_model(), nodes, rounds, lambda model, node: train_private(model, node, sgd, rounds, generator))


def _rounds(
    model: nn.Module, nodes: Sequence[Rows], rounds: int, local: Callable[[nn.Module, Rows], None]
) -> Iterator[nn.Module]:
    for _ in range(rounds):
        states = []
        for node in nodes:
            own = copy.deepcopy(model)
            local(own, node)
            states.append(own.state_dict())
        model.load_state_dict(average(states, [len(node) for node in nodes]))
        yield model


def train(model: nn.Module, node: Rows, sgd: Sgd, generator: torch.Generator) -> None:
    """Stochastic gradient descent over shuffled batches, in place."""
    optimizer = torch.optim.SGD(model.parameters(), lr=sgd.learning_rate)
    for _ in range(sgd.epochs):
        for batch in torch.randperm(len(node), generator=generator).split(sgd.batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(node.x[batch]), node.y[batch]).backward()
            optimizer.step()


def train_private(model: nn.Module, node: Rows, sgd: PrivateSgd, rounds: int, generator: torch.Generator) -> None:
    """DP-SGD with Poisson sampling, in place; the noise suffices for `rounds` such calls on the same rows."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    rate = sampling_rate(len(node), sgd.batch)
    steps = sgd.epochs * math.ceil(1 / rate)
    module = GradSampleModule(model, loss_reduction="sum")  # a row's gradient is its own, whatever the sample's size
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=sgd.learning_rate),
        noise_multiplier=noise_multiplier(sgd.epsilon, sgd.delta, rate, rounds * steps),
        max_grad_norm=sgd.clip_norm,
        expected_batch_size=max(1.0, rate * len(node)),
        loss_reduction="mean",  # of the sum of clipped gradients and noise
        generator=generator,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hooks on inputs that need no gradient
        for _ in range(steps):
            chosen = torch.rand(len(node), generator=generator) < rate
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(node.x[chosen]), node.y[chosen], reduction="sum").backward()
            optimizer.step()
    module.remove_hooks()


def sampling_rate(rows: int, batch: int) -> float:
    """batch / rows, at most 1, rounded up to a power of two."""
    octaves = math.floor(RATE_STEPS_PER_OCTAVE * math.log2(max(1.0, rows / batch)))
    return float(2.0 ** (-octaves / RATE_STEPS_PER_OCTAVE))


@functools.cache
def noise_multiplier(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """By Opacus, for that many Poisson-sampled steps."""
    from opacus.accountants.utils import get_noise_multiplier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the best order is at the end of its range
        return float(
            get_noise_multiplier(
                target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant="rdp"
            )
        )


# --- one shot ---------------------------------------------------------------------------------------------------


def one_shot(new_model: NewModel, nodes: Sequence[Rows], sgd: Sgd, generator: torch.Generator) -> list[nn.Module]:
    """Each node's own model, from the same first weights."""
    first = new_model()
    models = [copy.deepcopy(first) for _ in nodes]
    for model, node in zip(models, nodes, strict=True):
        train(model, node, sgd, generator)
    return models


def private_one_shot(
    new_model: NewModel, nodes: Sequence[Rows], sgd: PrivateSgd, generator: torch.Generator
) -> list[nn.Module]:
    """Likewise, each by DP-SGD."""
    first = new_model()
    models = [copy.deepcopy(first) for _ in nodes]
    for model, node in zip(models, nodes, strict=True):
        train_private(model, node, sgd, 1, generator)
    return models


def averaged(models: Sequence[nn.Module], nodes: Sequence[Rows]) -> nn.Module:
    """One model of averaged weights."""
    model = copy.deepcopy(models[0])
    model.load_state_dict(average([one.state_dict() for one in models], [len(node) for node in nodes]))
    return model


def average(states: Sequence[State], weights: Sequence[float]) -> State:
    """The weighted mean of every tensor."""
    total = sum(weights)
    return {
        name: torch.stack([state[name] * (weight / total) for state, weight in zip(states, weights, strict=True)]).sum(
            0
        )
        for name in states[0]
    }


def counts(nodes: Sequence[Rows], classes: int) -> torch.Tensor:
    """(nodes, C): rows of each class."""
    return torch.stack([torch.bincount(node.y, minlength=classes) for node in nodes]).float()


def private_counts(nodes: Sequence[Rows], classes: int, epsilon: float, generator: torch.Generator) -> torch.Tensor:
    """(nodes, C): with Laplace noise of scale 1/epsilon, none below zero."""
    exact = counts(nodes, classes)
    uniform = torch.rand(exact.shape, generator=generator) - 0.5
    noise = -uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.4999999)) / epsilon
    return (exact + noise).clamp(min=0)


@torch.no_grad()
def ensemble_accuracy(models: Sequence[nn.Module], test: Rows, weights: torch.Tensor | None = None) -> float:
    """Of the mean of the models' probabilities, weighted by (models, C) where given."""
    votes = torch.stack([model(test.x).softmax(1) for model in models])  # (models, n, C)
    if weights is not None:
        votes = votes * (weights / weights.sum(0).clamp(min=1e-9))[:, None, :]
    return float((votes.sum(0).argmax(1) == test.y).float().mean())


@torch.no_grad()
def accuracy(model: nn.Module, test: Rows) -> float:
    """Share of test rows whose largest logit is that of their class."""
    return float((model(test.x).argmax(1) == test.y).float().mean())


# --- bytes ------------------------------------------------------------------------------------------------------


def model_bytes(model: nn.Module) -> int:
    """Of the weights as float32, without any framing."""
    return WEIGHT_BYTES * sum(weight.numel() for weight in model.parameters())


def round_bytes(model: nn.Module, nodes: int) -> int:
    """What the nodes of a round receive and send: the global model down, their own up."""
    return 2 * nodes * model_bytes(model)


# --- models -----------------------------------------------------------------------------------------------------


def seeded(build: Callable[[], nn.Module], seed: int) -> NewModel:
    """A model whose first weights depend on the seed alone."""

    def new_model() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build()

    return new_model


def tanh_cnn() -> nn.Module:
    """26,010 weights, for (n, 1, 28, 28): N. Papernot et al., "Tempered sigmoid activations for deep learning with
    differential privacy", 2021, table 1."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=2, padding=3),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, stride=2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def to_rows(x: np.ndarray, y: np.ndarray) -> Rows:
    """float32 rows and int64 labels."""
    return Rows(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)), torch.from_numpy(np.asarray(y, np.int64)))
