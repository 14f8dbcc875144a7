"""A5: WISDM, which activity a phone in a pocket feels: one node per user, ten users whom nobody trained on."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tabular import DRAWS, compare, estimate_text, skipped
from examples.datasets import HERE, DataMissing
from node.tasks import read_file

EPSILON = 4.0
HEADING = "## A5: WISDM, one node per user\n\n"
NAMES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auc": "AUC", "log_loss": "log loss"}


QUICK_DRAWS = 3


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    return _section((EPSILON, 1.0, 8.0), DRAWS)


def quick(_out: Path) -> str:
    """One epsilon, few draws."""
    return _section((EPSILON,), QUICK_DRAWS)


def _section(epsilons: tuple[float, ...], draws: int) -> str:
    try:
        compared = compare("wisdm", read_file(HERE / "wisdm" / "task.toml"), epsilons, draws=draws)
    except DataMissing as error:
        return skipped(HEADING, error)
    return (
        f"{HEADING}Six activities; {compared.partners} users are a node each with 60 to 273 windows of ten seconds, "
        f"users 27 to 36 ({compared.test_rows} windows) test. Unit: the window. Mean ± standard deviation over users "
        f"(alone) or {draws} draws of the noise. Target: within 0.02 of pooled raw ridge regression at epsilon "
        f"{EPSILON:g}; measured {compared.gap(EPSILON)}. Columns and bounds come from the documentation of the data, "
        "the number of bins by cross-validation over the training users.\n\n"
        + compared.table(NAMES)
        + "\n"
        + estimate_text(compared)
    )
