"""A2: Adult, at one site beside diffprivlib at the same epsilon, and over 50 nodes with noise at each.

The data set is not part of the repository: it is looked for in `adult/` under $TIDINGS_DATA, or else under
`../shared/data` beside the repository. diffprivlib needs an older scikit-learn and gets an environment of its own,
benchmarks/.peers (see benchmarks/peers/environment.py). It is given the same columns and the same public bounds.

Everything that can be set was set within adult.data before adult.test was read: bounds, bins and columns of the tasks
by four-fold cross-validation, diffprivlib's C (0.001 to 10) on a quarter of the rows held out.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import environment
from fusion.dataset import Batch, read_batches
from fusion.encoders import encoder_for
from fusion.fuse import Contribution
from fusion.release import Summary, exact_summary, measure, noisy_summary
from fusion.task import Column, NumberColumn, Task
from node.demo import accuracy
from node.tasks import read_file

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TIDINGS_DATA", HERE.parent.parent / "shared" / "data")) / "adult"
HEADING = "## A2: Adult, beside diffprivlib and over 50 nodes\n\n"
NODES = 50
EPSILON = 1.0
NODE_EPSILONS = {1.0: 0.845, 0.5: 0.84}
"""What each node spends, and the accuracy that is the target there."""
DRAWS = 20
PEER_DRAWS = 10

OURS = "ours"
OURS_RAW = "ours, no privacy"
HELD_OUT_C = {"adult": (0.1, 0.3), "adult-all-columns": (0.01, 0.1)}
"""By task: diffprivlib's C that did best on rows held out of adult.data, for one-hot rows and for rows as we encode."""

Floats = NDArray[np.float64]
Scores = dict[str, list[float]]


@dataclass(frozen=True)
class Data:
    """The rows as files: training rows of each node, test rows; and a folder to write in."""

    nodes: tuple[Path, ...]
    test: Path
    scratch: Path


def run(out: Path) -> str:
    """The section of RESULTS.md; the picture goes into `out`."""
    if not all((DATA / name).is_file() for name in ("adult.data", "adult.test")):
        return HEADING + "Skipped: adult.data and adult.test were not found; put them into `$TIDINGS_DATA/adult`.\n"
    few, all_columns = (read_file(HERE / "tasks" / f"{name}.toml") for name in ("adult", "adult-all-columns"))
    with tempfile.TemporaryDirectory() as scratch:
        data = _split(Path(scratch))
        sites = [_one_site(task, data) for task in (few, all_columns)]
        fused = {epsilon: _fused(few, data, epsilon) for epsilon in NODE_EPSILONS}
        fused_all = _fused(all_columns, data, EPSILON)
    picture = _draw(sites[0], fused, out / "adult.png")
    return HEADING + _one_site_text(sites, few, all_columns) + _fused_text(fused, fused_all) + picture


# --- data -------------------------------------------------------------------------------------------------------


def node_of(index: int) -> int:
    """The public rule that deals out the rows: the row's number in the file, hashed."""
    digest = hashlib.sha256(f"tidings-adult/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % NODES


def _split(scratch: Path) -> Data:
    rows: list[list[str]] = [[] for _ in range(NODES)]
    for index, row in enumerate(rows_of("adult.data")):
        rows[node_of(index)].append(row)
    nodes = [_written(scratch / f"node-{number}.csv", own) for number, own in enumerate(rows)]
    return Data(tuple(nodes), _written(scratch / "test.csv", rows_of("adult.test")), scratch)


def rows_of(name: str) -> list[str]:
    """Without blank lines, and without the remark that opens adult.test."""
    lines = (DATA / name).read_text(encoding="ascii").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("|")]


def _written(path: Path, rows: Sequence[str]) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="ascii")
    return path


# --- ours -------------------------------------------------------------------------------------------------------


def _one_site(task: Task, data: Data) -> Scores:
    """All training rows in one place: ours, and the peers on the same columns."""
    measured = measure(task, read_batches(data.nodes, task))
    ours = [_accuracy(task, [noisy_summary(task, measured, EPSILON)], data) for _ in range(DRAWS)]
    raw = _accuracy(task, [exact_summary(task, read_batches(data.nodes, task))], data)
    return {OURS: ours, OURS_RAW: [raw], **_peers(task, data)}


def _fused(task: Task, data: Data, epsilon: float) -> list[float]:
    """NODES sites, each with noise of its own."""
    measured = [measure(task, read_batches([node], task)) for node in data.nodes]
    return [_accuracy(task, [noisy_summary(task, sums, epsilon) for sums in measured], data) for _ in range(DRAWS)]


def _accuracy(task: Task, summaries: Sequence[Summary], data: Data) -> float:
    ids = [number.to_bytes(32, "big") for number in range(len(summaries))]
    return accuracy(task, [Contribution(*one) for one in zip(ids, ids, summaries, strict=True)], [data.test])


# --- peers ------------------------------------------------------------------------------------------------------


def _peers(task: Task, data: Data) -> Scores:
    one_hot_c, encoded_c = HELD_OUT_C[task.name]
    norm = math.sqrt(len(task.columns))  # every number is within [0, 1], every category a single 1
    logistic = {"model": "logistic", "data_norm": norm, "intercept": True}
    one_hot = {
        "diffprivlib, logistic regression, C = 1 (default)": logistic | {"C": 1.0},
        "diffprivlib, logistic regression, C from held-out rows": logistic | {"C": one_hot_c},
        "diffprivlib, naive Bayes": {"model": "naive bayes"},
        "diffprivlib, naive Bayes on the five numbers": {"model": "naive bayes", "columns": 5},  # they come first
        "scikit-learn, logistic regression, no privacy": {"model": "no privacy"},
    }
    # Our rows have norm 1 with a constant in them, which diffprivlib's own intercept leaves out of data_norm.
    encoded = {
        "diffprivlib, logistic regression, C likewise, our encoding": {
            "model": "logistic",
            "data_norm": 1.0,
            "intercept": False,
            "C": encoded_c,
        }
    }
    found = _run_peers(task, data, one_hot, one_hot) | _run_peers(task, data, _encoded, encoded)
    return {name: found[name] for name in sorted(found)}


def _run_peers(
    task: Task, data: Data, encode: Callable[[Task, Batch], Floats], jobs: dict[str, dict[str, Any]]
) -> Scores:
    train, test = list(read_batches(data.nodes, task)), list(read_batches([data.test], task))
    table = {
        "train": np.concatenate([encode(task, batch) for batch in train]),
        "train_label": np.concatenate([batch.label for batch in train if batch.label is not None]),
        "test": np.concatenate([encode(task, batch) for batch in test]),
        "test_label": np.concatenate([batch.label for batch in test if batch.label is not None]),
    }
    found = environment.accuracies(table, list(jobs.values()), EPSILON, PEER_DRAWS, data.scratch)
    return dict(zip(jobs, found, strict=True))


def one_hot(task: Task, batch: Batch) -> Floats:
    """(n, k): numbers scaled to [0, 1] by their public bounds, categories as one 1 among zeros."""
    return np.column_stack([_one_hot_column(column, batch) for column in task.columns])


def _one_hot_column(column: Column, batch: Batch) -> Floats:
    if isinstance(column, NumberColumn):
        values = np.clip(np.nan_to_num(batch.numbers[column.name], nan=column.lower), column.lower, column.upper)
        return (values - column.lower)[:, None] / (column.upper - column.lower)
    return np.equal.outer(batch.categories[column.name], np.arange(len(column.values))).astype(np.float64)


def _encoded(task: Task, batch: Batch) -> Floats:
    """(n, d): the rows that our summaries are made of."""
    return encoder_for(task).encode(batch)


# --- report -----------------------------------------------------------------------------------------------------


def _shown(scores: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(scores):.2f}" if len(scores) > 1 else ""
    return f"{100 * fmean(scores):.2f}{spread}"


def _one_site_text(sites: Sequence[Scores], few: Task, all_columns: Task) -> str:
    names = sorted(sites[0], key=lambda name: name.endswith("no privacy"))  # those last
    rows = [f"| {name} | {' | '.join(_shown(site[name]) for site in sites)} |" for name in names]
    return (
        "Accuracy in percent on adult.test (16,281 rows), trained on adult.data (32,561 rows); mean ± standard "
        f"deviation over {DRAWS} draws of the noise ({PEER_DRAWS} for diffprivlib). Everything was set within "
        "adult.data before adult.test was read, without privacy: columns, bounds and bins by cross-validation, "
        "diffprivlib's C on rows held out. Peers: diffprivlib 0.6.6 and scikit-learn 1.7.2 with the same columns, "
        "bounds and categories. The guarantees differ: diffprivlib's is pure epsilon, which is stronger than ours with "
        f"delta {few.privacy.delta:g}; but its intercept is left out of the norm that its noise is made for, except in "
        "the line on our encoding, where the row brings its constant along.\n\n"
        f"All rows at one site, epsilon {EPSILON:g}:\n\n"
        f"| model | {len(few.columns)} columns | all {len(all_columns.columns)} columns |\n"
        "| --- | --- | --- |\n" + "\n".join(rows) + "\n\n"
    )


def _fused_text(fused: dict[float, list[float]], fused_all: list[float]) -> str:
    rows = [
        f"| {epsilon:g} | {_shown(scores)} | {100 * NODE_EPSILONS[epsilon]:.1f} |" for epsilon, scores in fused.items()
    ]
    return (
        f"{NODES} nodes of about 650 rows each, dealt out by a hash of the row's number; noise at every node, head and "
        "lambda chosen by the software from the noisy summaries alone:\n\n"
        "| epsilon at each node | accuracy, fused | target |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n\n"
        f"With all columns, where noise falls on ten times as many entries, {NODES} nodes reach {_shown(fused_all)} at "
        f"epsilon {EPSILON:g}. Read, not run here: FedKT 80.2 at epsilon 4.73.\n"
    )


def _draw(site: Scores, fused: dict[float, list[float]], path: Path) -> str:
    """A bar for each model on few columns; the line of Markdown that shows it, empty where there is no matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return ""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    bars = [
        (f"ours, one site, epsilon {EPSILON:g}", site[OURS], "#0b7a75"),
        *((f"ours, {NODES} nodes, epsilon {epsilon:g} each", scores, "#0b7a75") for epsilon, scores in fused.items()),
        *((name, scores, "#9aa5b1") for name, scores in site.items() if name.startswith("diffprivlib")),
        *((name, scores, "#3d5a80") for name, scores in site.items() if name.endswith("no privacy")),
    ]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(bars) + 1.3), layout="constrained")
    for place, (_, scores, color) in enumerate(bars):
        mean = 100 * fmean(scores)
        spread = 100 * stdev(scores) if len(scores) > 1 else 0.0
        axes.barh(place, mean, height=0.65, color=color, xerr=spread or None, error_kw={"capsize": 3})
        axes.text(mean + spread + 0.3, place, f"{mean:.1f}", va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(70, 88)
    axes.set_xlabel("accuracy in percent on adult.test, ± sd over noise draws (axis from 70)", fontsize=9)
    axes.set_title("Adult, seven columns: ours, diffprivlib at epsilon 1, and no privacy", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return f"\n![Accuracy on Adult](plots/{path.name})\n"
