"""One task, rows at several partners, and test rows: alone, fused in private, and pooled, in this process.

Nothing here is published and no budget is charged: the noise is drawn anew as often as it takes to say how much it
changes. What a partner would really do is in `examples.gossip`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.artifact import Model, label_scale
from fusion.dataset import read_batches, release_batches
from fusion.encoders import encoder_for
from fusion.fuse import Contribution
from fusion.heads import forward
from fusion.model import build_model
from fusion.release import exact_summary, measure, noisy_summary
from fusion.scoring import class_scores, number_scores, softmax
from fusion.summaries import Measured
from fusion.summary import Summary
from fusion.task import Task

Scores = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """`train` holds the files of each partner, `test` those of the rows that everything is scored on."""

    task: Task
    train: Mapping[str, tuple[Path, ...]]
    test: tuple[Path, ...]

    @property
    def measure_of_success(self) -> str:
        """The score that is looked at first: AUC of two classes, accuracy of more, R^2 of a number."""
        classes = len(self.task.label.classes)
        return "r2" if not classes else "auc" if classes == 2 else "accuracy"

    def fused(self, epsilon: float, head: str | None = None) -> Scores:
        """All partners, each with a fresh draw of its noise."""
        return self.score(self.model(epsilon, head))

    def model(self, epsilon: float, head: str | None = None) -> Model:
        """The model behind `fused`."""
        return build_model(self.task, self.drawn(epsilon), head)

    def drawn(self, epsilon: float) -> list[Contribution]:
        """The summary of every partner with fresh noise."""
        return self._held({name: noisy_summary(self.task, one, epsilon) for name, one in self._measured.items()})

    def pooled(self) -> Scores:
        """All rows in one place, without privacy, by the same method."""
        return self.score(self._built(self._exact))

    def alone(self, name: str) -> Scores:
        """One partner's own rows, without privacy, by the same method."""
        return self.score(self._built({name: self._exact[name]}))

    def score(self, model: Model) -> Scores:
        """Scores on the test rows."""
        x, label = self._rows
        outputs = forward(model.layers, x)
        if self.task.label.classes:
            return class_scores(softmax(outputs), label)
        middle, half = label_scale(self.task)
        return number_scores(middle + half * np.clip(outputs[:, 0], -1.0, 1.0), middle + half * label)

    def _built(self, summaries: Mapping[str, Summary]) -> Model:
        return build_model(self.task, self._held(summaries))

    def _held(self, summaries: Mapping[str, Summary]) -> list[Contribution]:
        ids = [(hashlib.sha256(name.encode()).digest(), one) for name, one in summaries.items()]
        return [Contribution(key, key, one) for key, one in ids]

    @cached_property
    def _measured(self) -> dict[str, Measured]:
        return {name: measure(self.task, release_batches(files, self.task)) for name, files in self.train.items()}

    @cached_property
    def _exact(self) -> dict[str, Summary]:
        return {name: exact_summary(self.task, release_batches(files, self.task)) for name, files in self.train.items()}

    @cached_property
    def _rows(self) -> tuple[NDArray[np.float64], NDArray[Any]]:
        encoder = encoder_for(self.task)
        batches = list(read_batches(self.test, self.task))
        return np.concatenate([encoder.encode(one) for one in batches]), np.concatenate([one.label for one in batches])


def spread(scores: Iterable[Scores], name: str) -> tuple[float, float]:
    """Mean and standard deviation of one score over draws."""
    values = [one[name] for one in scores]
    return fmean(values), stdev(values) if len(values) > 1 else 0.0
