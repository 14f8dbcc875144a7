"""What the demo found: one set of figures as a table, a JSON file and a picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from node import show


@dataclass(frozen=True)
class Report:
    """The figures of one run. Accuracies are fractions of the pooled test rows of all hospitals."""

    epsilon: float
    delta: float
    test_rows: int
    alone: dict[str, float]
    """Each hospital's own model, without privacy: what it could do without the others."""
    fused: float
    fused_auc: float
    pooled: float
    """The same kind of model on everybody's raw training rows, without privacy."""
    draws: tuple[float, ...]
    bytes_moved: int
    models: dict[str, str]
    digest: str
    seconds: float = 0.0

    def finished(self, seconds: float) -> Report:
        """With the time that the whole run took."""
        return replace(self, seconds=round(seconds, 1))

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        content = asdict(self)
        if self.draws:
            content["draws"] = {
                "count": len(self.draws),
                "mean": fmean(self.draws),
                "standard_deviation": stdev(self.draws) if len(self.draws) > 1 else 0.0,
                "accuracies": list(self.draws),
            }
        return content

    def bars(self) -> list[tuple[str, float, str]]:
        """(name, accuracy, kind) in the order of the table."""
        return [
            *((f"{hospital} alone", accuracy, "alone") for hospital, accuracy in self.alone.items()),
            (f"fused, epsilon {self.epsilon:g}", self.fused, "fused"),
            ("pooled raw rows", self.pooled, "pooled"),
        ]


def write_report(report: Report, out: Path, *, as_json: bool) -> None:
    """Write `results.json` and `results.png` into `out`; print the table, or the JSON alone."""
    text = json.dumps(report.to_json(), indent=2)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    drawn = _draw(report, out / "results.png")
    if as_json:
        show.line(text)
        return
    _print_table(report)
    files = [*report.models.values(), str(out / "results.json"), *([str(out / "results.png")] if drawn else [])]
    show.line(f"Files: {', '.join(files)}")
    if not drawn:
        show.line("No picture was drawn: install matplotlib (the extra `plot`) for one.")


def _print_table(report: Report) -> None:
    privacy = {
        "alone": "none (stays at home)",
        "fused": f"epsilon {report.epsilon:g}, delta {report.delta:g}, each hospital",
        "pooled": "none (all raw rows in one place)",
    }
    rows = [
        [name, f"{accuracy:.3f}", privacy[kind], show.size(report.bytes_moved) if kind == "fused" else "-"]
        for name, accuracy, kind in report.bars()
    ]
    show.line()
    show.line(f"Accuracy on the {report.test_rows} pooled test rows of the four hospitals")
    show.table(["model", "accuracy", "privacy", "moved"], rows, empty="")
    if report.draws:
        spread = stdev(report.draws) if len(report.draws) > 1 else 0.0
        show.line(
            f"Over {len(report.draws)} further draws of the noise the fused model scores {fmean(report.draws):.3f} "
            f"on average (standard deviation {spread:.3f})."
        )
    show.line(f"Model digest {report.digest[:16]}…, AUC {report.fused_auc:.3f}. {report.seconds:.0f} s in all.")


def _draw(report: Report, path: Path) -> bool:
    """A bar a row of the table; False where there is no matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    colors = {"alone": "#9aa5b1", "fused": "#0b7a75", "pooled": "#3d5a80"}
    bars = report.bars()[::-1]
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(bars) + 1.4), layout="constrained")
    drawn = axes.barh([name for name, _, _ in bars], [value for _, value, _ in bars], height=0.65)
    for bar, (_, value, kind) in zip(drawn, bars, strict=True):
        bar.set_color(colors[kind])
        axes.text(value - 0.008, bar.get_y() + bar.get_height() / 2, f"{value:.3f}", va="center", ha="right", color="w")
    if len(report.draws) > 1:
        place = next(bar for bar, (_, _, kind) in zip(drawn, bars, strict=True) if kind == "fused")
        middle = place.get_y() + place.get_height() / 2
        axes.errorbar(
            fmean(report.draws), middle + 0.42, xerr=stdev(report.draws), color="#0b7a75", capsize=3, marker="o", ms=4
        )
        axes.annotate(
            f"mean ± sd of {len(report.draws)} noise draws",
            (fmean(report.draws) + stdev(report.draws), middle + 0.42),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xlim(0.0, 1.0)
    axes.set_xlabel(f"accuracy on the {report.test_rows} pooled test rows")
    axes.set_title("Heart disease, four hospitals: alone, fused in private, pooled without privacy", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True
