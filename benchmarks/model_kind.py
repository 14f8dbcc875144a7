"""A8: Fashion-MNIST over ten nodes with summary kind `model`: one head from ten that were trained apart.

Rows go through the image encoder, the exact sums, private training and the noise of a release; bytes and ledger are
left out. Settings were chosen on training rows 50,000 to 59,999, fitted without them, before any test row was looked
at: the learning rate, steps, clip norm and share for class means, and how points are sampled and weighed
(`fusion.distillation`). The noise of a draw takes most of the time: 17 microseconds for each of ten nodes' weights, in
every step.

The data set is not part of the repository: `fashion_mnist/` under $TIDINGS_DATA, or else under `../shared/data`.
"""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from benchmarks.partitions import PARTITIONS
from benchmarks.progress import Progress
from fusion.dataset import Batch
from fusion.errors import TaskError
from fusion.fuse import Contribution
from fusion.heads import forward
from fusion.model import build_model
from fusion.release import measure, noisy_summary
from fusion.summaries import Measured
from fusion.summary import plan
from fusion.task import Task

DATA = Path(os.environ.get("TIDINGS_DATA", Path(__file__).parent.parent.parent / "shared" / "data")) / "fashion_mnist"
HEADING = "## A8: Fashion-MNIST, ten nodes, summary kind `model`\n\n"
TASK = """
name = "fashion"
kind = "classification"
summary = "model"
[label]
column = "label"
classes = [{classes}]
[privacy]
max_epsilon = 8
delta = 1e-5
[[columns]]
name = "image"
type = "image"
height = 28
width = 28
[encoder]
kind = "image"
features = 400
[model]
learning_rate = 20
steps = {steps}
expected_rows = 6000
"""
NODES, CLASSES, SIDE = 10, 10, 28
EPSILON = 3.0
TARGETS = {"IID": 0.784, "Dirichlet 0.1": 0.744, "one class each": None}
HEADS = ("distilled", "averaged")

Ints = NDArray[np.int64]


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    return _section(60_000, 10_000, 10, 40)


def quick(_out: Path) -> str:
    """A few rows, draws and steps: that it runs, not how good anything is."""
    return _section(1_000, 200, 2, 2)


def _section(train_rows: int, test_rows: int, draws: int, steps: int) -> str:
    if not (DATA / "train-images-idx3-ubyte.gz").is_file():
        return HEADING + "Skipped: the data set was not found; put it into `$TIDINGS_DATA/fashion_mnist`.\n"
    classes = ", ".join(f'{{ name = "{label}", values = ["{label}"] }}' for label in range(CLASSES))
    try:
        task = Task.from_toml(TASK.format(classes=classes, steps=steps), "fashion.toml")
    except TaskError as error:
        return HEADING + f"Skipped: {error}.\n"
    tell = Progress("model_kind")
    train, test = _rows("train", train_rows), _rows("t10k", test_rows)
    lines = []
    for name, target in TARGETS.items():
        started = time.process_time()
        nodes = [measure(task, [_chosen(train, part)]) for part in PARTITIONS[name](np.asarray(train.label), NODES)]
        scores = [_scores(task, nodes, test, f"{name} {draw}") for draw in range(draws)]
        for head in HEADS:
            own = [one[head] for one in scores]
            wanted = f"{target:.3f}" if target is not None and head == HEADS[0] else "–"
            lines.append(f"| {name} | {head} | {fmean(own):.3f} ± {stdev(own):.3f} | {wanted} |")
        tell(f"{name}: {lines[-2]} in {time.process_time() - started:.0f} CPU s")
    return HEADING + _text(task, lines, draws)


def _scores(task: Task, nodes: Sequence[Measured], test: Batch, name: str) -> dict[str, float]:
    """Accuracy of each head after one draw of the noise at every node."""
    ids = [f"{name} {number}".encode().ljust(32)[:32] for number in range(len(nodes))]
    summaries = [
        Contribution(one, one, noisy_summary(task, sums, EPSILON)) for one, sums in zip(ids, nodes, strict=True)
    ]
    scores = {}
    for head in HEADS:
        model = build_model(task, summaries, head)
        logits = forward(model.layers, model.encoder.encode(test))
        scores[head] = float((logits.argmax(axis=1) == test.label).mean())
    return scores


def _text(task: Task, lines: Sequence[str], draws: int) -> str:
    planned = plan(task, EPSILON)
    return (
        f"Test accuracy at epsilon {EPSILON:g}, delta 1e-5 at every node, mean ± standard deviation over {draws} draws "
        f"of the noise; a linear head on {planned.dimension} public features, about "
        f"{planned.estimated_bytes / 1e3:.0f} kB a node. Targets are for the one distilled model; a DP one-shot "
        "ensemble keeps ten.\n\n"
        "| partition | head | accuracy | target |\n| --- | --- | --- | --- |\n" + "\n".join(lines) + "\n"
    )


def _rows(prefix: str, count: int) -> Batch:
    pixels = np.frombuffer(gzip.decompress((DATA / f"{prefix}-images-idx3-ubyte.gz").read_bytes())[16:], dtype=np.uint8)
    label = np.frombuffer(gzip.decompress((DATA / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())[8:], dtype=np.uint8)
    pictures = pixels.reshape(-1, SIDE, SIDE, 1)[:count]
    return Batch({}, {}, label[:count].astype(np.int64), len(pictures), images={"image": pictures})


def _chosen(rows: Batch, part: Ints) -> Batch:
    label = np.asarray(rows.label)[part]
    return Batch({}, {}, label, len(part), images={"image": rows.images["image"][part]})
