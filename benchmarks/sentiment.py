"""A4: sentences of reviews at three sites, over draws of the noise and several splits, beside what needs no partner.

Needs the extra [text], and the data set where `examples.datasets` looks for it. Lens, kind of summary and everything
else that can be set was chosen by cross-validation within the training rows of the public split (split 0). The other
splits say how much the choice of test rows matters; most of their test rows were training rows of split 0.

Every sentence is encoded once, and the sums of a site are taken from its rows of that table: the same integers as a
release would sum, which is checked for one site.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from examples.datasets import DATASETS, SITES, DataMissing, sentences_of, training_sentences
from examples.pooled import logistic
from fusion.dataset import Batch, read_batches
from fusion.encoders import encoder_for
from fusion.encoders.text import Lens, TextRows
from fusion.errors import BackboneError
from fusion.fuse import Contribution
from fusion.heads import forward
from fusion.model import build_model
from fusion.release import measure, noisy_summary
from fusion.summaries import Measured
from fusion.summaries.mean_embedding import CLASS_SUMS, class_weights
from fusion.summaries.moments import quantize
from fusion.task import TEXT_WIDTH, Task, TextEncoder
from node.tasks import read_file

TASK_FILE = Path(__file__).parent.parent / "examples" / "sentiment" / "task.toml"
HEADING = "## A4: sentences of reviews, three sites\n\n"
DRAWS, SPLITS = 10, 10
EPSILONS = (0.5, 1.0, 3.0)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    try:
        study = Study.of(read_file(TASK_FILE), DATASETS["sentiment"].found(None))
    except (DataMissing, BackboneError) as error:
        return f"{HEADING}Skipped: {error}.\n"
    study.check_sums()
    lines = [
        *(_fused_line(study, epsilon) for epsilon in EPSILONS),
        _line("pooled raw rows, logistic regression on sentence vectors", [study.pooled(s) for s in range(SPLITS)]),
        *(_line(f"{site} alone, the same", [study.alone(site, s) for s in range(SPLITS)]) for site in SITES),
        _line("public sentences alone, no row of any site", [study.public(s) for s in range(SPLITS)]),
    ]
    return HEADING + (
        f"Accuracy on the test rows of all sites (999, beside 2,001 training rows), delta 1e-5, noise at each site: "
        f"mean ± standard deviation over {DRAWS} draws of the noise on the public split, and over {SPLITS} splits "
        f"({DRAWS} draws each). Targets: 0.88 at epsilon 1, 0.895 at epsilon 3.\n\n"
        "| model | public split | all splits |\n| --- | --- | --- |\n" + "\n".join(lines) + "\n"
    )


@dataclass(frozen=True)
class Study:
    """All sentences, encoded; a split of them is a mask."""

    task: Task
    x: Floats  # (n, d)
    vectors: Floats  # (n, 384) as the sentence model gives them
    label: Ints
    site: Ints
    texts: tuple[str, ...]

    @classmethod
    def of(cls, task: Task, path: Path) -> Study:
        rows = [(number, row) for number, site in enumerate(SITES) for row in sentences_of(path, site)]
        texts = np.array([row["text"].strip() for _site, row in rows] + [None], dtype=object)[:-1]
        label = np.array([int(row["label"]) for _site, row in rows])
        batch = Batch({}, {}, label, len(rows), texts={"text": texts})
        encoder = encoder_for(task)
        assert isinstance(encoder, TextRows)
        v = encoder.vectors(batch)
        scale = np.sqrt(1.0 - encoder.bias**2)
        x = np.zeros((len(v), encoder.dimension))
        x[:, -1] = encoder.bias
        x[:, :TEXT_WIDTH] = [encoder.lens.through(one) * scale for one in v]
        return cls(task, x, v.astype(np.float64), label, np.array([site for site, _row in rows]), tuple(texts))

    @cached_property
    def training(self) -> list[NDArray[np.bool_]]:
        """(n,) per split: which rows train."""
        masks = []
        for split in range(SPLITS):
            mask = np.zeros(len(self.label), dtype=np.bool_)
            for number, site in enumerate(SITES):
                own = np.flatnonzero(self.site == number)
                mask[own[sorted(training_sentences(site, len(own), split))]] = True
            masks.append(mask)
        return masks

    def sums(self, split: int) -> list[Measured]:
        """What each site would release before noise."""
        measured = []
        for number in range(len(SITES)):
            chosen = self.training[split] & (self.site == number)
            rows = Batch({}, {}, self.label[chosen], int(chosen.sum()))
            q = quantize(self.x[chosen], np.ones(len(rows), dtype=np.int64))
            sums = np.rint(q.T @ class_weights(self.task, rows)).astype(np.int64)
            measured.append(Measured({CLASS_SUMS: sums.reshape(-1)}, len(rows)))
        return measured

    def check_sums(self) -> None:
        """The sums of the first site are those that a release measures from its file."""
        chosen = np.flatnonzero(self.training[0] & (self.site == 0))
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "site.csv"
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("text", "label"), *((self.texts[i], self.label[i]) for i in chosen)])
            found = measure(self.task, read_batches([path], self.task))
        np.testing.assert_array_equal(found.blocks[CLASS_SUMS], self.sums(0)[0].blocks[CLASS_SUMS])

    def fused(self, split: int, epsilon: float) -> float:
        """All sites, each with a fresh draw of its noise."""
        contributions = [
            Contribution(bytes([number]) * 32, bytes([number]) * 32, noisy_summary(self.task, one, epsilon))
            for number, one in enumerate(self.sums(split))
        ]
        layers = build_model(self.task, contributions).layers
        test = ~self.training[split]
        return float((forward(layers, self.x[test]).argmax(axis=1) == self.label[test]).mean())

    def pooled(self, split: int) -> float:
        """All training rows in one place, without privacy."""
        return self._raw(split, self.training[split])

    def alone(self, site: str, split: int) -> float:
        """One site's training rows, without privacy, on the test rows of all."""
        return self._raw(split, self.training[split] & (self.site == SITES.index(site)))

    def public(self, split: int) -> float:
        """The sign along the public direction of opinions, from the public mean."""
        lens = Lens.of(TextEncoder(lens="opinion"))
        axis = lens.steps[-1][0][0]
        test = ~self.training[split]
        return float(((self.x[test][:, :TEXT_WIDTH] @ axis > 0.0) == self.label[test]).mean())

    def _raw(self, split: int, training: NDArray[np.bool_]) -> float:
        v = np.column_stack([self.vectors, np.ones(len(self.vectors))])
        weights = logistic(v[training], self.label[training])
        test = ~self.training[split]
        return float(((v[test] @ weights > 0.0) == self.label[test]).mean())


def _fused_line(study: Study, epsilon: float) -> str:
    scores = [[study.fused(split, epsilon) for _ in range(DRAWS)] for split in range(SPLITS)]
    everywhere = [fmean(one) for one in scores]
    own = f"{fmean(scores[0]):.4f} ± {stdev(scores[0]):.4f}"
    return f"| fused, epsilon {epsilon:g} at each site | {own} | {fmean(everywhere):.4f} ± {stdev(everywhere):.4f} |"


def _line(name: str, scores: Sequence[float]) -> str:
    return f"| {name} | {scores[0]:.4f} | {fmean(scores):.4f} ± {stdev(scores):.4f} |"
