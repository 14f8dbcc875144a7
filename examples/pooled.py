"""The peer without privacy: all raw rows in one place, every column, and a model from the textbook.

It owes nothing to the task's bounds and bins: numbers are centred and scaled by the training rows themselves, which
nobody could do in private, and texts are one-hot. Two classes get a logistic regression (the objective of
scikit-learn's `LogisticRegression(C=1)`, solved to its unique optimum), more classes and numbers a ridge regression.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.trial import Scores, Trial
from fusion.scoring import class_scores, number_scores, softmax
from fusion.task import CategoryColumn, Task, TextColumn, label_spellings

Floats = NDArray[np.float64]

LEAST_ROWS = 20  # rarer texts get no coordinate of their own
L2 = 1.0


def pooled_raw(trial: Trial, skip: Sequence[str]) -> Scores:
    """Scores of the textbook model on the trial's test rows; `skip` names columns that only say who a row is."""
    task = trial.task
    train = [row for files in trial.train.values() for path in files for row in _rows(path, task)]
    test = [row for path in trial.test for row in _rows(path, task)]
    columns = [name for name in train[0] if name not in {task.label.column, *skip}]
    categories = {column.name for column in task.columns if isinstance(column, CategoryColumn)}
    sentences = {column.name for column in task.columns if isinstance(column, TextColumn)}
    pairs = []
    for c in columns:
        cells = [row[c] for row in train], [row[c] for row in test]
        pairs.append(_sentences(*cells) if c in sentences else _column(*cells, text=c in categories))
    x = np.column_stack([*(one for one, _ in pairs), np.ones(len(train))])
    x_test = np.column_stack([*(two for _, two in pairs), np.ones(len(test))])
    if not task.label.classes:
        target, truth = (np.array([float(row[task.label.column]) for row in rows]) for rows in (train, test))
        return number_scores(x_test @ ridge(x, target[:, None])[:, 0], truth)
    names = label_spellings(task.label)
    label, truth = (np.array([names[row[task.label.column].strip()] for row in rows]) for rows in (train, test))
    if len(task.class_names) == 2:
        scores = x_test @ logistic(x, label)
        return class_scores(softmax(np.column_stack([np.zeros(len(scores)), scores])), truth)
    # a ridge regression gives no probabilities; its ranks serve for accuracy and AUC, its log loss means nothing
    indicators = np.equal.outer(label, np.arange(len(task.class_names))).astype(np.float64)
    return class_scores(softmax(x_test @ ridge(x, indicators)), truth) | {"log_loss": None}


def logistic(x: Floats, label: NDArray[np.int64]) -> Floats:
    """(d,) weights that minimize log loss + L2 ||w||^2 / 2."""
    from scipy.optimize import minimize

    def loss(weights: Floats) -> tuple[float, Floats]:
        z = x @ weights
        gradient = x.T @ (1.0 / (1.0 + np.exp(-z)) - label) + L2 * weights
        return float(np.logaddexp(0.0, z).sum() - label @ z + L2 * weights @ weights / 2.0), gradient

    found = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return np.asarray(found.x)


def ridge(x: Floats, targets: Floats) -> Floats:
    """(d, k) weights that minimize squared error + L2 ||w||^2."""
    return np.linalg.solve(x.T @ x + L2 * np.eye(x.shape[1]), x.T @ targets)


def _rows(path: Path, task: Task) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, None if task.csv.header else list(task.csv.names)))


def _column(train: Sequence[str], test: Sequence[str], *, text: bool) -> tuple[Floats, Floats]:
    """(n, k) and (m, k): a scaled number with an indicator of what is missing, or one-hot texts."""
    numbers = [np.array([_number(cell) for cell in cells]) for cells in (train, test)]
    if text or np.isnan(numbers[0]).mean() > 0.5:
        values = [value for value, count in sorted(Counter(train).items()) if count >= LEAST_ROWS]
        one, two = (np.equal.outer(np.array(cells), np.array(values)).astype(np.float64) for cells in (train, test))
        return one, two
    mean, scale = np.nanmean(numbers[0]), np.nanstd(numbers[0]) or 1.0
    one, two = (np.column_stack([np.nan_to_num((n - mean) / scale), np.isnan(n)]) for n in numbers)
    return one, two


def _sentences(train: Sequence[str], test: Sequence[str]) -> tuple[Floats, Floats]:
    """(n, 384) and (m, 384): the vectors of a public sentence model, as it gives them."""
    from fusion.encoders.minilm import Minilm, one_thread

    model = Minilm.load()
    with one_thread():
        one, two = (np.array([model.vector(text) for text in cells], dtype=np.float64) for cells in (train, test))
    return one, two


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
