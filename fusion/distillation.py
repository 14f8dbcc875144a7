"""Several partners' heads -> one head: distilled on sampled points, or averaged. No row, and no privacy cost.

Each partner k sent weights trained on its rows alone and noisy class sums. A head asked about rows unlike its own
answers with confidence all the same, so its word is weighed by its **coverage**: how likely the point is among the
rows of k,

    n_k p_k(x) = sum over classes c of n_kc exp(tau (x . m_kc - |m_kc|^2 / 2)),

a mixture of Gaussians about k's class means m_kc with one isotropic covariance I / tau, up to a factor that all
partners share. The vote is p(c | x) = sum_k n_k p_k(x) p_k(c | x) / sum_k n_k p_k(x), which is Bayes's rule for rows
that come from the partners' distributions.

* **distilled**: points are sampled about the released means, labeled by the vote, and one head of the task's shape is
  trained on the soft labels (G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network", 2015)
  with torch's L-BFGS in double precision, on one thread and from a seed. It starts from the average.
* **averaged**: hidden layers by rows, and the weights of a class by the rows of that class: a partner that never saw a
  class has no say in it. Good where partners are alike. Where each has a few classes only, it is not: nobody learned
  to tell apart what no partner has together.

A feature vector has length at most 1, so about a class mean m the squared deviations of a row add up to at most S =
1 - beta^2 - |m|^2. Points are sampled on the segments between two class means, with SPREAD^2 S / d of variance in every
direction: isotropic noise of the true length is all but invisible to a linear head, and points around the borders
between classes teach most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.class_means import ClassSums, class_sums_of
from fusion.fitting import Fitted
from fusion.heads import Layer, Layers
from fusion.scoring import softmax
from fusion.shapes import Weights, fresh_weights, head_shapes, settings_of, split
from fusion.statistics import fixed_point_bias
from fusion.summaries.model import class_offsets
from fusion.sums import Sums

if TYPE_CHECKING:
    import torch

    from fusion.fuse import Fused
    from fusion.task import Task

Floats = NDArray[np.float64]

DISTILLED, AVERAGED = "distilled", "averaged"
POINTS = 8_192
SPREAD = 2.0  # of sampled points, in deviations of an isotropic row; 1 teaches less of what lies between classes
SHARPNESS = 20.0  # tau S: as if rows scattered in 20 directions; higher trusts the nearest class mean more
LEAST_COUNT = 1e-9  # rows of a class that is not held: only matters where nobody holds any
DECAY = 1e-5  # of squared weights while distilling
ITERATIONS = 100
MEANINGS = {
    DISTILLED: "coverage-weighted vote of the partners' heads, distilled on sampled points",
    AVERAGED: "partners' weights averaged, those of a class by its rows",
}


@dataclass(frozen=True)
class Partner:
    """One partner's head and what its noisy class sums say."""

    weights: Weights
    offsets: Floats  # (C,) log shares of its classes, which it was trained with
    counts: Floats  # (C,) rows per class, LEAST_COUNT where none can be told from noise
    means: Floats  # (d - 1, C) class means of the features without the bias


def fit_models(fused: Fused, head: str | None, seed: bytes) -> Fitted:
    """One head from the summaries that fusing used, `distilled` unless it is asked to be `averaged`."""
    chosen = head or DISTILLED
    task, total = fused.task, class_sums_of(fused.task, fused.sums)
    partners = partners_of(fused)
    weights = averaged(task, partners, class_offsets(total))
    if chosen == DISTILLED:
        points = sample_points(task, partners, seed)
        weights = distilled(weights, points, vote(task, partners, points))
    method = {
        "denoiser": "no",
        "head": chosen,
        "multiplier": 1.0,
        "lambda": None,
        "choice": MEANINGS[chosen],
        "unseen_classes": [name for name, seen in zip(task.class_names, total.seen, strict=True) if not seen],
    }
    return Fitted(layers_of(weights), method, None)


def student_of(task: Task, teacher: Weights, sums: ClassSums) -> Weights:
    """A teacher distilled into the task's head on points about its node's own noisy class means."""
    seed = settings_of(task).seed
    points = sample_points(task, [_partner(teacher, sums, _class_means(sums))], seed.to_bytes(8, "big"))
    answers = softmax(forward(teacher, points))
    return distilled(fresh_weights(seed, head_shapes(task)), points, answers)


def partners_of(fused: Fused) -> list[Partner]:
    """In the order of record ids."""
    task, shapes = fused.task, head_shapes(fused.task)
    pooled = _class_means(class_sums_of(task, fused.sums))
    partners = []
    for one in fused.used:
        sums = Sums.of(one.summary)
        flat = np.concatenate([sums.values(f"weights{layer}") for layer in range(len(shapes))])
        partners.append(_partner(split(flat, shapes), class_sums_of(task, sums), pooled))
    return partners


def _partner(weights: Weights, sums: ClassSums, pooled: Floats) -> Partner:
    """Its class means are pulled toward those of all partners as far as its noise hides the difference."""
    rows = np.maximum(sums.counts, 1.0)
    difference = _shrunk(sums.sums[:-1] / rows - pooled, sums.sigma / rows)
    means = pooled + np.where(sums.seen, difference, 0.0)
    return Partner(weights, class_offsets(sums), np.where(sums.seen, sums.counts, LEAST_COUNT), means)


def _class_means(sums: ClassSums) -> Floats:
    """(d - 1, C), pulled toward 0, the center of the public features, as far as noise hides them."""
    rows = np.maximum(sums.counts, 1.0)
    return _shrunk(sums.sums[:-1] / rows, sums.sigma / rows)


def _shrunk(vectors: Floats, sigma: Floats) -> Floats:
    """Columns with noise of these deviations: the positive part of W. James, C. Stein, 1961."""
    lengths = np.maximum((vectors * vectors).sum(axis=0), 1e-300)
    return np.asarray(vectors * np.maximum(0.0, 1.0 - len(vectors) * sigma**2 / lengths))


# --- coverage, vote, points -------------------------------------------------------------------------------------


def vote(task: Task, partners: Sequence[Partner], x: Floats) -> Floats:
    """(n, C) the coverage-weighted vote on feature vectors x (n, d)."""
    sharpness = SHARPNESS / _mean_scatter(task, partners)
    coverage = np.stack([_log_coverage(one, x[:, :-1], sharpness) for one in partners])
    weight = np.exp(coverage - coverage.max(axis=0))
    votes = np.zeros((len(x), len(task.label.classes)))
    for one, share in zip(partners, weight / weight.sum(axis=0), strict=True):
        votes += share[:, None] * softmax(forward(one.weights, x) + one.offsets)
    return votes


def _log_coverage(partner: Partner, features: Floats, sharpness: float) -> Floats:
    """(n,) log of n_k p_k(x), up to a constant."""
    halves = (partner.means * partner.means).sum(axis=0) / 2.0
    terms = sharpness * (features @ partner.means - halves) + np.log(partner.counts)
    most = terms.max(axis=1)
    return np.asarray(most + np.log(np.exp(terms - most[:, None]).sum(axis=1)), dtype=np.float64)


def _scatter(task: Task, means: Floats) -> Floats:
    """S of each column: the most that rows of length 1 can scatter about it."""
    return np.asarray(np.maximum(1.0 - fixed_point_bias(task) ** 2 - (means * means).sum(axis=0), 1e-3))


def _mean_scatter(task: Task, partners: Sequence[Partner]) -> float:
    scatters = np.concatenate([_scatter(task, one.means) for one in partners])
    return float(np.average(scatters, weights=np.concatenate([one.counts for one in partners])))


def sample_points(task: Task, partners: Sequence[Partner], seed: bytes) -> Floats:
    """(POINTS, d) feature vectors about the segments between class means, chosen by their rows."""
    rng = np.random.default_rng(int.from_bytes(seed[:8], "big"))
    means = np.concatenate([one.means.T for one in partners])
    counts = np.concatenate([one.counts for one in partners])
    deviations = SPREAD * np.sqrt(_scatter(task, means.T) / means.shape[1])
    first, second = (rng.choice(len(means), POINTS, p=counts / counts.sum()) for _ in range(2))
    place = rng.uniform(size=(POINTS, 1))
    centers = place * means[first] + (1.0 - place) * means[second]
    noise = rng.standard_normal(centers.shape) * deviations[first][:, None]
    return np.column_stack([centers + noise, np.full(POINTS, fixed_point_bias(task))])


# --- heads ------------------------------------------------------------------------------------------------------


def averaged(task: Task, partners: Sequence[Partner], offsets: Floats) -> Weights:
    """Hidden layers by rows, the last by the rows of each class; the log shares of all rows go to the bias."""
    counts = np.stack([one.counts for one in partners])
    of_rows = counts.sum(axis=1) / counts.sum()
    of_class = counts / counts.sum(axis=0)
    layers = list(zip(*(one.weights for one in partners), strict=True))
    hidden = [sum(share * weight for share, weight in zip(of_rows, layer, strict=True)) for layer in layers[:-1]]
    last = np.zeros_like(layers[-1][0])
    for share, weight in zip(of_class, layers[-1], strict=True):
        last += share * weight
    last[-1] += offsets / (1.0 if hidden else fixed_point_bias(task))
    return (*(np.asarray(one) for one in hidden), last)


def distilled(start: Weights, points: Floats, answers: Floats) -> Weights:
    """A head of the shape of `start` trained on soft labels `answers` (n, C) of `points` (n, d)."""
    import torch

    with deterministic_torch():
        x, target = torch.from_numpy(points), torch.from_numpy(answers)
        weights = [torch.tensor(one, requires_grad=True) for one in start]
        optimizer = torch.optim.LBFGS(weights, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = torch.nn.functional.cross_entropy(_torch_forward(weights, x), target)
            value = value + DECAY / 2 * torch.stack([(one**2).sum() for one in weights]).sum()
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]  # likewise
        return tuple(np.array(one.detach().numpy()) for one in weights)


def _torch_forward(weights: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    import torch

    for weight in weights[:-1]:
        x = torch.relu(x @ weight)
        x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    return x @ weights[-1]


def forward(weights: Weights, x: Floats) -> Floats:
    """(n, C) logits."""
    for weight in weights[:-1]:
        x = np.column_stack([np.maximum(x @ weight, 0.0), np.ones(len(x))])
    return np.asarray(x @ weights[-1])


def layers_of(weights: Weights) -> Layers:
    """As a model file holds them: the last row of every later matrix is a bias."""
    first, *later = weights
    return (Layer(first, np.zeros(first.shape[1])), *(Layer(one[:-1], one[-1]) for one in later))


@contextmanager
def deterministic_torch() -> Iterator[None]:
    """One thread and deterministic kernels, put back as they were afterwards."""
    import torch

    threads, was = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(was)
