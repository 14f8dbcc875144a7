"""A5b: diabetes130, will a patient be back in hospital: ten groups of hospitals, persons protected with all stays."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tabular import DRAWS, compare, estimate_text, skipped
from examples.datasets import HERE, DataMissing
from fusion.task import Task
from node.tasks import read_file

EPSILON = 1.0
HEADING = "## A5b: diabetes130, protecting persons\n\n"
NAMES = {"auc": "AUC", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss"}
SOON = 'values = ["NO", ">30"]', 'values = ["<30"]'
EVER = 'values = ["NO"]', 'values = ["<30", ">30"]'


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    source = HERE / "diabetes130" / "task.toml"
    try:
        soon = compare("diabetes130", read_file(source), (EPSILON, 0.5, 3.0))
        ever = compare("diabetes130", _ever(source), (EPSILON, 0.5, 3.0))
    except DataMissing as error:
        return skipped(HEADING, error)
    return (
        f"{HEADING}101,766 stays of 71,518 patients, {soon.partners} nodes; one patient of five tests "
        f"({soon.test_rows} stays). Unit: the person, up to four stays each. Mean ± standard deviation over nodes "
        f"(alone) or {DRAWS} draws of the noise. Target: AUC within 0.02 of pooled raw logistic regression at epsilon "
        f"{EPSILON:g}; measured {soon.gap(EPSILON)} for a return within 30 days (the task of the example, one stay of "
        f"nine) and {ever.gap(EPSILON)} for a return at any time. Columns were compared on two of the ten nodes, "
        "without privacy and before the test rows were read: a benchmark's liberty.\n\nReturn within 30 days:\n\n"
        + soon.table(NAMES)
        + "\n"
        + estimate_text(soon)
        + "\nReturn at any time:\n\n"
        + ever.table(NAMES)
    )


def _ever(source: Path) -> Task:
    """The same task with the other question."""
    text = source.read_text(encoding="utf-8")
    for soon, ever in zip(SOON, EVER, strict=True):
        assert soon in text
        text = text.replace(soon, ever)
    return Task.from_toml(text, str(source))
