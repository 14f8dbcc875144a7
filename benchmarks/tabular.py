"""What the benchmarks of tables share: deal out a public data set, draw noise, and set it beside pooled raw rows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from examples.datasets import DATASETS, DataMissing
from examples.pooled import pooled_raw
from examples.trial import Scores, Trial
from fusion.task import Task

DRAWS = 20

Files = Mapping[str, tuple[Path, ...]]


@dataclass(frozen=True)
class Compared:
    """Scores of the fused model by epsilon (one for each draw), of each partner alone, and of all rows pooled."""

    measure: str
    partners: int
    test_rows: int
    alone: list[Scores]
    fused: dict[float, list[Scores]]
    pooled: Scores
    raw: Scores
    estimates: list[dict[str, float | None]]
    """What each fused model at the first epsilon says on its card about its own quality."""

    def table(self, names: Mapping[str, str]) -> str:
        """A row a model, a column a score; `names` maps scores to headings."""
        lines = [f"| one of {self.partners} partners alone, no privacy | {_cells(self.alone, names)} |"]
        lines += [
            f"| fused, epsilon {epsilon:g} at each | {_cells(scores, names)} |"
            for epsilon, scores in self.fused.items()
        ]
        lines.append(f"| pooled, same method, no privacy | {_cells([self.pooled], names)} |")
        lines.append(f"| pooled raw columns, no privacy | {_cells([self.raw], names)} |")
        return f"| model | {' | '.join(names.values())} |\n| --- |{' --- |' * len(names)}\n" + "\n".join(lines) + "\n"

    def gap(self, epsilon: float) -> str:
        """The mean of the fused model's main score less that of pooled raw rows."""
        return f"{fmean(one[self.measure] for one in self.fused[epsilon]) - self.raw[self.measure]:+.3f}"


def compare(
    name: str,
    task: Task,
    epsilons: tuple[float, ...],
    group: Callable[[Files], Files] | None = None,
    draws: int = DRAWS,
) -> Compared:
    """All figures of one data set; DataMissing where its files are absent. `group` joins partners into larger ones."""
    with dealt(name) as (train, test):
        trial = Trial(task, group(train) if group else train, test)
        pooled = trial.pooled()
        models = [trial.model(epsilons[0]) for _ in range(draws)]
        fused = {epsilons[0]: [trial.score(model) for model in models]}
        fused |= {epsilon: [trial.fused(epsilon) for _ in range(draws)] for epsilon in epsilons[1:]}
        return Compared(
            measure=trial.measure_of_success,
            partners=len(trial.train),
            test_rows=pooled["n"],
            alone=[trial.alone(who) for who in trial.train],
            fused=fused,
            pooled=pooled,
            raw=pooled_raw(trial, DATASETS[name].skip),
            estimates=[model.manifest["quality"] for model in models if model.manifest["quality"]],
        )


@contextmanager
def dealt(name: str) -> Iterator[tuple[Files, tuple[Path, ...]]]:
    """Files of the partners and of test rows, while the block lasts."""
    with tempfile.TemporaryDirectory() as scratch:
        partners = DATASETS[name].split(None, Path(scratch))
        yield partners.train, partners.test


def skipped(heading: str, error: DataMissing) -> str:
    """The section where the data are absent."""
    return f"{heading}Skipped: {error}.\n"


def estimate_text(compared: Compared) -> str:
    """How the accuracy that models claim for themselves compares with what they reach on the test rows."""
    claimed = [one["accuracy"] for one in compared.estimates if one["accuracy"] is not None]
    if not claimed:
        return ""
    deviations = fmean(one["accuracy_std"] or 0.0 for one in compared.estimates if one["accuracy"] is not None)
    reached = fmean(one["accuracy"] for one in next(iter(compared.fused.values())))
    return (
        f"The models' own estimate, from noisy sums of partners left out, is an accuracy of {fmean(claimed):.3f} (± "
        f"{deviations:.3f} by their own account, standard deviation over draws {stdev(claimed):.3f}); on the test rows "
        f"they reach {reached:.3f}.\n"
    )


def _cells(scores: list[Scores], names: Mapping[str, str]) -> str:
    return " | ".join(_cell([one[name] for one in scores if one[name] is not None]) for name in names)


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    digits = 3 if abs(fmean(values)) < 100 else 0
    return f"{fmean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")
