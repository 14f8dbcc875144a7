"""What an example found: one set of figures as a table, a JSON file and a picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from examples.trial import Scores
from node import show

NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "log_loss": "log loss",
    "r2": "R²",
    "rmse": "RMSE",
}


@dataclass(frozen=True)
class Report:
    """The figures of one run, as scores on the test rows; `measure` names the one to look at first."""

    name: str
    measure: str
    epsilon: float
    delta: float
    unit: str
    alone: dict[str, Scores]
    """Each partner's own model, without privacy: what it could do without the others."""
    fused: tuple[Scores, ...]
    """One model for every draw of the noise."""
    pooled: Scores
    """The same method on everybody's rows, without privacy."""
    pooled_raw: Scores
    """A textbook model on everybody's raw columns, without privacy."""
    model: str | None
    bytes_moved: int | None
    seconds: float

    @property
    def scores(self) -> list[str]:
        """The scores that the table shows, the main one first."""
        present = [name for name in NAMES if name in self.pooled]
        return sorted(present, key=lambda name: name != self.measure)

    def rows(self) -> list[tuple[str, dict[str, tuple[float, float] | None]]]:
        """(model, mean and standard deviation of each score) in the order of the table."""
        single = list(self.alone.values())
        return [
            (f"one partner alone, mean of {len(single)}", {name: _mean(single, name) for name in self.scores}),
            (f"fused, epsilon {self.epsilon:g} each", {name: _mean(self.fused, name) for name in self.scores}),
            ("pooled, same method, no privacy", {name: _mean([self.pooled], name) for name in self.scores}),
            ("pooled raw columns, no privacy", {name: _mean([self.pooled_raw], name) for name in self.scores}),
        ]


def _mean(scores: list[Scores] | tuple[Scores, ...], name: str) -> tuple[float, float] | None:
    values = [one[name] for one in scores if one[name] is not None]
    return (fmean(values), stdev(values) if len(values) > 1 else 0.0) if values else None


def write_report(report: Report, out: Path) -> None:
    """Write `results.json` and `results.png` into `out` and print the table."""
    (out / "results.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    show.line()
    show.line(
        f"{report.name}: scores on {report.pooled['n']} test rows, mean ± standard deviation (over partners where one "
        f"is alone, over {len(report.fused)} draws of the noise where they are fused)"
    )
    rows = [[who, *(_shown(scores[name]) for name in report.scores)] for who, scores in report.rows()]
    show.table(["model", *(NAMES[name] for name in report.scores)], rows, empty="")
    if report.bytes_moved is not None:
        show.line(f"The nodes sent {show.size(report.bytes_moved)} in all; the model is {report.model}.")
    drawn = _draw(report, out / "results.png")
    show.line(f"Figures: {out / 'results.json'}" + (f", picture: {out / 'results.png'}" if drawn else ""))
    show.line(
        f"Privacy: epsilon {report.epsilon:g}, delta {report.delta:g}, unit {report.unit}. {report.seconds:.0f} s."
    )


def _shown(value: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    mean, deviation = value
    digits = 3 if abs(mean) < 100 else 0
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation else "")


def _draw(report: Report, path: Path) -> bool:
    """A bar a row of the table; False where there is no matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    colors = ("#9aa5b1", "#0b7a75", "#3d5a80", "#3d5a80")
    rows = [(who, scores[report.measure] or (0.0, 0.0)) for who, scores in report.rows()]
    figure, axes = plt.subplots(figsize=(8, 2.9), layout="constrained")
    for place, ((_, (mean, deviation)), color) in enumerate(zip(rows, colors, strict=True)):
        axes.barh(place, mean, height=0.65, color=color, xerr=deviation or None, error_kw={"capsize": 3})
        axes.text(mean + deviation, place, f" {mean:.3f}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [who for who, _ in rows])
    axes.invert_yaxis()
    top = max(mean + deviation for _, (mean, deviation) in rows)
    axes.set_xlim(min(0.0, *(mean - deviation for _, (mean, deviation) in rows)), 1.12 * top)
    axes.set_xlabel(f"{NAMES[report.measure]} on {report.pooled['n']} test rows, ± sd over partners or noise draws")
    axes.set_title(f"{report.name}: alone, fused in private, pooled without privacy", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True
