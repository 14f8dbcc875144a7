"""Partners in process, for tests of fusion: small tasks, rows with a signal in them, and their real summaries."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fusion.dataset import Batch
from fusion.fuse import Contribution
from fusion.release import exact_summary, measure, noisy_summary
from fusion.statistics import Statistics
from fusion.summary import Summary
from fusion.task import Task

Floats = NDArray[np.float64]

CLASSES_TOML = """
name = "ward"
kind = "classification"
[label]
column = "outcome"
classes = [ { name = "home", values = ["0"] }, { name = "ward", values = ["1"] }, { name = "icu", values = ["2"] } ]
[privacy]
max_epsilon = 10.0
delta = 1e-5
[[columns]]
name = "age"
type = "number"
lower = 0
upper = 100
bins = 3
[[columns]]
name = "label"
type = "number"
lower = -0.5
upper = 12
[[columns]]
name = "arrival"
type = "category"
values = ["walk", "ambulance", "7"]
[encoder]
kind = "tabular"
"""

NUMBER_TOML = """
name = "stay"
kind = "regression"
[label]
column = "days"
lower = 0
upper = 40
[privacy]
max_epsilon = 10.0
delta = 1e-5
[[columns]]
name = "age"
type = "number"
lower = 0
upper = 100
[[columns]]
name = "value"
type = "category"
values = ["a", "b"]
[encoder]
kind = "tabular"
"""

WARD = Task.from_toml(CLASSES_TOML, "ward.toml")
STAY = Task.from_toml(NUMBER_TOML, "stay.toml")


def ward_rows(count: int, seed: int, classes: Iterable[int] = (0, 1, 2)) -> Batch:
    """The old and those who come by ambulance stay; one row in ten lacks a cell."""
    rng = np.random.default_rng(seed)
    label = rng.choice(np.array(list(classes), dtype=np.int64), count)
    age = np.clip(25 + 25 * label + rng.normal(0, 12, count), 0, 100)
    score = np.clip(2 + 3 * label + rng.normal(0, 2, count), -0.5, 12)
    age[rng.random(count) < 0.1] = np.nan
    arrival = np.where(rng.random(count) < 0.1, -1, (rng.random(count) < 0.2 + 0.3 * label).astype(np.int64))
    return Batch({"age": age, "label": score}, {"arrival": arrival}, label, count)


def stay_rows(count: int, seed: int) -> Batch:
    """The older stay longer, and b stays longer than a."""
    rng = np.random.default_rng(seed)
    age, kind = rng.uniform(0, 100, count), rng.integers(0, 2, count)
    target = np.clip(-0.8 + age / 100 + 0.4 * kind + rng.normal(0, 0.1, count), -1, 1)
    return Batch({"age": age}, {"value": kind}, target, count)


def contribution(name: str, summary: Summary) -> Contribution:
    """A summary under the record id and origin that `name` hashes to."""
    record, origin = (hashlib.sha256(f"{kind} {name}".encode()).digest() for kind in ("record", "origin"))
    return Contribution(record, origin, summary)


def noisy(task: Task, rows: Batch, epsilon: float, name: str) -> Contribution:
    """What a partner with these rows would publish."""
    return contribution(name, noisy_summary(task, measure(task, [rows]), epsilon))


def exact(task: Task, rows: Batch, name: str) -> Contribution:
    """The same without noise."""
    return contribution(name, exact_summary(task, [rows]))


def statistics(x: Floats, y: NDArray[np.int64], classes: int, sigma: float, rng: np.random.Generator) -> Statistics:
    """Sums of feature vectors (n, d) whose last coordinate is the bias, with noise of deviation `sigma`."""
    d = x.shape[1]
    gram, cross = (
        x.T @ x + symmetric_noise(d, sigma, rng),
        x.T @ np.eye(classes)[y] + rng.normal(0, sigma, (d, classes)),
    )
    upper = gram[np.triu_indices(d, 1)]
    return Statistics(classes, x[0, -1], gram.diagonal().copy(), upper, cross, float(len(x)), sigma, sigma, 0.0)


def symmetric_noise(d: int, sigma: float, rng: np.random.Generator) -> Floats:
    """Deviation `sigma` on the diagonal, sigma / sqrt(2) off it."""
    values = rng.normal(0.0, sigma / np.sqrt(2.0), (d, d))
    return np.triu(values, 1) + np.triu(values, 1).T + np.diag(rng.normal(0.0, sigma, d))
