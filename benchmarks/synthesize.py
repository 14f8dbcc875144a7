"""Synthetic rows: train on synthetic, test on real (TSTR), beside training on the real rows and the fused model itself.

The learner is the same for all, our own head without noise, so that what differs is the rows alone. Synthetic rows are
drawn from summaries with noise at each partner, once for each draw of the noise, as many as there are real ones. How
alike rows look is the total variation distance between the distributions of a column in real test rows and in synthetic
ones (numbers in ten even bins over their bounds, "missing" a value of its own), averaged over columns: 0 is the same, 1
is disjoint. What real training rows score there is what sampling alone leaves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from benchmarks import adult
from benchmarks.heart import SOURCE as HEART
from benchmarks.progress import Progress
from examples.datasets import DATASETS, DataMissing
from fusion.dataset import Batch, read_batches
from fusion.fuse import Contribution
from fusion.model import build_model, card, evaluate, write_safetensors
from fusion.release import exact_summary, measure, noisy_summary
from fusion.summary import Summary
from fusion.synthesize import sampler_of
from fusion.task import CategoryColumn, Task
from node.demo import split_rows
from node.tasks import read_file

HEADING = "## Synthetic rows: train on synthetic, test on real\n\n"
EXAMPLES = HEART.parent
EPSILON = 1.0
DRAWS = 10
BINS = 10

Floats = NDArray[np.float64]
Scores = dict[str, list[float]]


@dataclass(frozen=True)
class Data:
    """A task, the training rows of each partner, and test rows."""

    name: str
    task: Task
    train: tuple[tuple[Path, ...], ...]  # the files of each partner
    test: tuple[Path, ...]


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    progress = Progress("synthesize")
    sections = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, load in LOADERS.items():
            try:
                data = load(Path(scratch) / name)
            except (DataMissing, FileNotFoundError) as missing:
                sections.append(f"\n{name}: skipped, {missing}.\n")
                continue
            sections.append(_section(data))
            progress(name)
    return (
        f"{HEADING}The same learner (our head, without noise) on real training rows and on as many synthetic ones; the "
        f"fused model beside them. Epsilon {EPSILON:g} at each partner, delta 1e-5, mean ± standard deviation over "
        f"{DRAWS} draws of the noise, each with synthetic rows of its own. TV: total variation distance of the columns "
        "from those of the test rows.\n" + "".join(sections)
    )


# --- data -------------------------------------------------------------------------------------------------------


def _heart(scratch: Path) -> Data:
    splits = split_rows(HEART, scratch).values()
    task = read_file(HEART / "task.toml")
    return Data("heart, 4 hospitals", task, tuple((one.train,) for one in splits), tuple(one.test for one in splits))


def _adult(scratch: Path) -> Data:
    scratch.mkdir()
    data = adult._split(scratch)
    task = read_file(Path(__file__).parent / "tasks" / "adult.toml")
    return Data("adult, 50 nodes", task, tuple((node,) for node in data.nodes), (data.test,))


def _example(name: str, scratch: Path) -> Data:
    partners = DATASETS[name].split(None, scratch)
    task = read_file(EXAMPLES / name / "task.toml")
    return Data(f"{name}, {len(partners.train)} partners", task, tuple(partners.train.values()), partners.test)


LOADERS = {
    "heart": _heart,
    "adult": _adult,
    "taiwan-credit": lambda scratch: _example("taiwan-credit", scratch),
    "california-housing": lambda scratch: _example("california-housing", scratch),
}


# --- scores -----------------------------------------------------------------------------------------------------


def _section(data: Data) -> str:
    task = data.task
    real = list(read_batches([path for paths in data.train for path in paths], task))
    test = list(read_batches(data.test, task))
    rows = sum(map(len, real))
    measured = [measure(task, read_batches(paths, task)) for paths in data.train]
    exact = [exact_summary(task, read_batches(paths, task)) for paths in data.train]
    table: dict[str, Scores] = {"real training rows": {}, "synthetic, sums without noise": {}}
    fused_name, noisy_name = (f"{what}, epsilon {EPSILON:g}" for what in ("fused model", "synthetic"))
    table |= {fused_name: {}, noisy_name: {}}
    _add(table["real training rows"], _scores(data, exact) | {"TV": _distance(task, real, test)})
    _add(table["synthetic, sums without noise"], _synthetic(data, exact, rows, 0, test))
    for draw in range(DRAWS):
        noisy = [noisy_summary(task, sums, EPSILON) for sums in measured]
        _add(table[fused_name], _scores(data, noisy))
        _add(table[noisy_name], _synthetic(data, noisy, rows, draw, test))
    columns = list(table["real training rows"])
    lines = [f"\n| {data.name} | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(_cell(scores.get(one)) for one in columns)} |" for name, scores in table.items()]
    return "\n".join(lines) + "\n"


def _synthetic(data: Data, summaries: Sequence[Summary], rows: int, seed: int, test: list[Batch]) -> dict[str, float]:
    made = list(sampler_of(data.task, _contributions(summaries), seed).batches(rows))
    return _scores(data, [exact_summary(data.task, made)]) | {"TV": _distance(data.task, made, test)}


def _scores(data: Data, summaries: Sequence[Summary]) -> dict[str, float]:
    model = build_model(data.task, _contributions(summaries))
    scores = evaluate(write_safetensors(model, card(model, [], "benchmark", "now")), data.test)
    wanted = ("accuracy", "balanced_accuracy", "auc") if data.task.label.classes else ("r2",)
    return {name.replace("_", " "): float(scores[name]) for name in wanted}


def _contributions(summaries: Sequence[Summary]) -> list[Contribution]:
    ids = [number.to_bytes(32, "big") for number in range(len(summaries))]
    return [Contribution(*one) for one in zip(ids, ids, summaries, strict=True)]


def _distance(task: Task, ours: Iterable[Batch], theirs: Iterable[Batch]) -> float:
    """Mean total variation distance over the columns."""
    a, b = (_shares(task, list(batches)) for batches in (ours, theirs))
    return fmean(float(np.abs(a[name] - b[name]).sum()) / 2 for name in a)


def _shares(task: Task, batches: list[Batch]) -> dict[str, Floats]:
    """Column -> the share of each value or bin, missing last."""
    shares = {}
    for column in task.columns:
        if isinstance(column, CategoryColumn):
            kinds = len(column.values)
            found = np.concatenate([batch.categories[column.name] for batch in batches])
        else:
            kinds = BINS
            raw = np.concatenate([batch.numbers[column.name] for batch in batches])
            place = (np.nan_to_num(raw) - column.lower) / (column.upper - column.lower)
            found = np.where(np.isnan(raw), -1, np.clip(place * BINS, 0, BINS - 1).astype(np.int64))
        counts = np.bincount(np.where(found < 0, kinds, found), minlength=kinds + 1)
        shares[column.name] = counts / counts.sum()
    return shares


def _add(into: Scores, scores: dict[str, float]) -> None:
    for name, value in scores.items():
        into.setdefault(name, []).append(value)


def _cell(values: list[float] | None) -> str:
    if not values:
        return "–"
    return f"{fmean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"
