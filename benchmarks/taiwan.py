"""Finance: who will default on a credit card next month, ten banks."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tabular import DRAWS, compare, estimate_text, skipped
from examples.datasets import HERE, DataMissing
from node.tasks import read_file

HEADING = "## Taiwan credit, ten banks\n\n"
NAMES = {"auc": "AUC", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss"}


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    try:
        compared = compare("taiwan-credit", read_file(HERE / "taiwan-credit" / "task.toml"), (1.0, 0.5, 3.0))
    except DataMissing as error:
        return skipped(HEADING, error)
    return (
        f"{HEADING}30,000 customers, {compared.partners} banks by a hash of the customer's number, a fifth tests. "
        f"Unit: the customer. Mean ± standard deviation over banks (alone) or {DRAWS} draws of the noise; AUC "
        f"{compared.gap(1.0)} to pooled raw logistic regression at epsilon 1.\n\n"
        + compared.table(NAMES)
        + "\n"
        + estimate_text(compared)
    )
