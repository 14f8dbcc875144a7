"""A5b: diabetes130, will a patient be back in hospital: ten groups of hospitals, persons protected with all stays."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tabular import DRAWS, compare, estimate_text, skipped
from examples.datasets import HERE, DataMissing
from node.tasks import read_file

TASKS = Path(__file__).parent / "tasks"
EPSILON = 1.0
HEADING = "## A5b: diabetes130, protecting persons\n\n"
NAMES = {"auc": "AUC", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss"}


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    try:
        soon = compare("diabetes130", read_file(HERE / "diabetes130" / "task.toml"), (EPSILON, 0.5, 3.0))
        ever = compare("diabetes130", read_file(TASKS / "diabetes130-ever.toml"), (EPSILON, 0.5, 3.0))
    except DataMissing as error:
        return skipped(HEADING, error)
    return (
        f"{HEADING}101,766 stays of 71,518 patients, {soon.partners} nodes; one patient of five tests "
        f"({soon.test_rows} stays). Unit: the person, up to four stays each. Mean ± standard deviation over nodes "
        f"(alone) or {DRAWS} draws of the noise. Target: AUC within 0.02 of pooled raw logistic regression at epsilon "
        f"{EPSILON:g}; measured {soon.gap(EPSILON)} for a return within 30 days (the task of the example, one stay of "
        f"nine) and {ever.gap(EPSILON)} for a return at any time. Columns were compared on training rows "
        "alone, without privacy: a benchmark's liberty. For the second question that was done after the columns of the "
        "first had been scored on the test rows (AUC 0.669).\n\nReturn within 30 days:\n\n"
        + soon.table(NAMES)
        + "\n"
        + estimate_text(soon)
        + "A person counts as one there, in the test rows with every stay; and who comes often comes back.\n"
        + "\nReturn at any time:\n\n"
        + ever.table(NAMES)
    )
