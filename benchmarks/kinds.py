"""The kinds of summary beside each other: accuracy, area under the curve or R^2, and bytes, on four tables.

Training rows are dealt out to the nodes at random by a public seed, so that the kinds differ and nothing else does.
All choices in the kinds (heads, constants, bins) were made on a quarter of the training rows held out, before any
test row was read. Data sets that are not part of the repository are looked for as `examples.datasets` does; those
missing are skipped.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from benchmarks import adult
from examples.datasets import DATASETS, DataMissing
from fusion.dataset import Batch, read_batches
from fusion.fuse import Contribution
from fusion.heads import forward
from fusion.model import build_model
from fusion.release import Measured, exact_summary, measure, noisy_summary
from fusion.scoring import class_scores, number_scores, softmax
from fusion.summary import plan
from fusion.task import Task
from node.demo import split_rows

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
DRAWS = 10
MAX_DRAWN = 100_000  # noisy numbers of all nodes in one draw; beyond, a cell stays empty
SETTINGS = ((4, 0.3), (4, 1.0), (4, 3.0), (50, 1.0))
"""Nodes, and epsilon at each."""


@dataclass(frozen=True)
class Variant:
    """A kind of summary as a task would ask for it: its name, lines for the task's end, and a head or the default."""

    summary: str
    options: str = ""
    head: str | None = None
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.summary}{self.note}"


VARIANTS = (
    Variant("moments"),
    Variant("class-moments"),
    Variant("class-moments", head="qda", note=", head qda"),
    Variant("histograms"),
    Variant("histograms", "[histograms]\nbins = 6\npairs = true\n", note=", pairs, 6 bins"),
    Variant("mean-embedding"),
    Variant("mean-embedding", "[encoder.lift]\nfeatures = 256\ngamma = 1.0\n", note=", lift to 256"),
)


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    sections = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, source in SOURCES.items():
            try:
                text, train, test = source(Path(scratch) / name)
            except DataMissing as error:
                sections.append(f"### {name}\n\nSkipped: {error}.\n")
                continue
            sections.append(_section(name, text, train, test))
    return (
        "## Kinds of summary\n\n"
        f"Test rows; mean ± standard deviation over {DRAWS} draws of the noise at every node, delta 1e-5. Training "
        "rows are dealt out at random. Accuracy and, after the stroke, area under the curve; R^2 for a number; all "
        "times 100; a dash where drawing the noise of so many numbers at so many nodes takes too long. The last "
        "columns are without noise, and the estimated size of one summary. What to choose when: "
        "docs/summary-kinds.md.\n\n" + "\n".join(sections)
    )


def _section(name: str, text: str, train: Sequence[Path], test: Sequence[Path]) -> str:
    """One table: kinds down, settings across."""
    header = " | ".join(f"{nodes} nodes, eps {epsilon:g}" for nodes, epsilon in SETTINGS)
    lines = [f"### {name}", "", f"| kind | {header} | no noise | KB |", "| --- " * (len(SETTINGS) + 3) + "|"]
    for variant in VARIANTS:
        content = re.sub(r'(?m)^summary = "moments"$', f'summary = "{variant.summary}"', text)
        if 'kind = "regression"' in content and variant.summary == "class-moments":
            continue
        task = Task.from_toml(f"{content}\n{variant.options}", name)
        own, scored = _together(read_batches(train, task)), _together(read_batches(test, task))
        cells = [_noisy(task, own, scored, variant, nodes, epsilon) for nodes, epsilon in SETTINGS]
        exact = [Contribution(bytes(32), bytes(32), exact_summary(task, [own]))]
        cells.append(" / ".join(f"{100 * one:.1f}" for one in _scores(task, exact, scored, variant)))
        lines.append(f"| {variant.name} | {' | '.join(cells)} | {plan(task, 1.0).estimated_bytes / 1e3:.1f} |")
    return "\n".join(lines) + "\n"


def _noisy(task: Task, train: Batch, test: Batch, variant: Variant, nodes: int, epsilon: float) -> str:
    if nodes * plan(task, epsilon).entries > MAX_DRAWN:
        return "–"
    measured = [measure(task, [part]) for part in _dealt(train, nodes)]
    drawn = [_scores(task, _drawn(task, measured, epsilon), test, variant) for _ in range(DRAWS)]
    return " / ".join(f"{100 * fmean(one):.1f} ± {100 * stdev(one):.1f}" for one in zip(*drawn, strict=True))


def _drawn(task: Task, measured: Sequence[Measured], epsilon: float) -> list[Contribution]:
    ids = [number.to_bytes(32, "big") for number in range(len(measured))]
    return [Contribution(one, one, noisy_summary(task, sums, epsilon)) for one, sums in zip(ids, measured, strict=True)]


def _scores(task: Task, held: list[Contribution], test: Batch, variant: Variant) -> tuple[float, ...]:
    """(accuracy, area under the curve), or (R^2,)."""
    model = build_model(task, held, variant.head)
    outputs = forward(model.layers, model.encoder.encode(test))
    truth = np.asarray(test.label)
    if not task.label.classes:
        return (number_scores(np.clip(outputs[:, 0], -1.0, 1.0), truth)["r2"],)
    found = class_scores(softmax(outputs), truth)
    return found["accuracy"], found["auc"]


# --- rows -------------------------------------------------------------------------------------------------------

Source = tuple[str, Sequence[Path], Sequence[Path]]  # the task, files to train on, files to test on


def _heart(scratch: Path) -> Source:
    splits = split_rows(EXAMPLES / "heart", scratch).values()
    text = (EXAMPLES / "heart" / "task.toml").read_text(encoding="utf-8")
    return text, [one.train for one in splits], [one.test for one in splits]


def _adult(scratch: Path) -> Source:
    if not (adult.DATA / "adult.data").is_file():
        raise DataMissing("adult.data is not there; put it and adult.test into `$TIDINGS_DATA/adult`")
    scratch.mkdir()
    data = adult._split(scratch)
    return (HERE / "tasks" / "adult.toml").read_text(encoding="utf-8"), data.nodes, [data.test]


def _example(name: str, scratch: Path) -> Source:
    partners = DATASETS[name].split(None, scratch)
    text = (EXAMPLES / name / "task.toml").read_text(encoding="utf-8")
    return text, [file for files in partners.train.values() for file in files], partners.test


SOURCES: dict[str, Callable[[Path], Source]] = {
    "heart": _heart,
    "adult": _adult,
    "taiwan-credit": lambda scratch: _example("taiwan-credit", scratch),
    "california-housing": lambda scratch: _example("california-housing", scratch),
}


def _together(batches: Iterable[Batch]) -> Batch:
    parts = list(batches)
    numbers = {name: np.concatenate([one.numbers[name] for one in parts]) for name in parts[0].numbers}
    categories = {name: np.concatenate([one.categories[name] for one in parts]) for name in parts[0].categories}
    label = np.concatenate([np.asarray(one.label) for one in parts])
    return Batch(numbers, categories, label, len(label))


def _dealt(rows: Batch, nodes: int) -> list[Batch]:
    """The rows of each node, by a fixed seed."""
    owner = np.random.default_rng(0).integers(0, nodes, len(rows))
    return [_only(rows, owner == node) for node in range(nodes)]


def _only(rows: Batch, chosen: np.ndarray) -> Batch:
    numbers = {name: values[chosen] for name, values in rows.numbers.items()}
    categories = {name: values[chosen] for name, values in rows.categories.items()}
    return Batch(numbers, categories, np.asarray(rows.label)[chosen], int(chosen.sum()))
