"""Fashion-MNIST over ten nodes: what federated averaging and one-shot ensembles reach, with and without privacy.

The lines of the table that ours (benchmarks/fashion_mnist.py) must beat, trained here and not quoted. Training is that
of the literature: the tanh CNN of 26,010 weights, one local epoch a round, SGD with rate 0.1 and batches of 32. Private
nodes clip to norm 0.1, as F. Tramèr and D. Boneh do for this network ("Differentially private learning needs better
features", 2021), sample 128 to 256 rows a step and learn at rate 20: the best of 1, 4, 8, 20 and 40 (and of 128 and 256
rows) for one node of 6,000 rows, on held-out training pictures. No test picture was looked at. One seed: a run takes
long.

The data set is not part of the repository: `fashion_mnist/` under $TIDINGS_DATA, or else under `../shared/data`.
"""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import nn

from benchmarks import federated
from benchmarks.federated import PrivateSgd, Rows, Sgd
from benchmarks.partitions import PARTITIONS
from benchmarks.progress import Progress

DATA = Path(os.environ.get("TIDINGS_DATA", Path(__file__).parent.parent.parent / "shared" / "data")) / "fashion_mnist"
HEADING = "## Fashion-MNIST: peers that train, ten nodes\n\n"
NODES = 10
CLASSES = 10
DELTA = 1e-5
POOLED = "pooled"
EPSILON = 3.0
SEED = 0
LIMIT_S = 4 * 3600.0
"""What has not begun by then is shown as not run."""
SGD = Sgd()
ONE_SHOT = Sgd(epochs=5)
PRIVATE = {"learning_rate": 20.0, "clip_norm": 0.1, "batch": 128}


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `long_private` is where DP-FedAvg also runs for the larger number of rounds."""

    train: int
    test: int
    rounds: tuple[int, int]
    pooled_epochs: int
    partitions: tuple[str, ...]
    long_private: tuple[str, ...]


FULL = Sizes(
    60_000, 10_000, (10, 30), 15, ("Dirichlet 0.1", "one class each", "IID", "Dirichlet 0.01"), ("Dirichlet 0.1",)
)
QUICK = Sizes(1_000, 500, (1, 2), 1, ("Dirichlet 0.1",), ())


@dataclass(frozen=True)
class Line:
    """One method on one partition."""

    partition: str
    method: str
    accuracy: float
    moved: int  # bytes that the nodes send and receive
    took_s: float


Job = Callable[[], Iterator[Line]]


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    return _section(FULL)


def quick(_out: Path) -> str:
    """A few rows and rounds: that it runs, not how good anything is."""
    return _section(QUICK)


def _section(sizes: Sizes) -> str:
    if not (DATA / "train-images-idx3-ubyte.gz").is_file():
        return HEADING + "Skipped: the data set was not found; put it into `$TIDINGS_DATA/fashion_mnist`.\n"
    torch.set_num_threads(1)
    tell = Progress("fashion_peers")
    train, test = _rows("train", sizes.train), _rows("t10k", sizes.test)
    ends = time.monotonic() + LIMIT_S
    lines = []
    for job in _jobs(train, test, sizes):
        if time.monotonic() > ends:
            tell("out of time; what has not begun is left out")
            break
        for line in job():
            tell(f"{line.partition}, {line.method}: {line.accuracy:.3f} in {line.took_s:.0f} CPU s")
            lines.append(line)
    return HEADING + _text(lines, sizes)


def _jobs(train: Rows, test: Rows, sizes: Sizes) -> Iterator[Job]:
    """Each gives its lines when called; the dearest come last."""
    dealt = {}
    for name in sizes.partitions:
        parts = PARTITIONS[name](train.y.numpy(), NODES)
        dealt[name] = nodes = [Rows(train.x[part], train.y[part]) for part in parts]
        yield partial(_fedavg, name, nodes, test, sizes)
        yield partial(_one_shot, name, nodes, test)
        yield partial(_private_one_shot, name, nodes, test)
        yield partial(_dp_fedavg, name, nodes, test, sizes.rounds[0])
    yield partial(_pooled, train, test, sizes)
    for name in sizes.long_private:
        yield partial(_dp_fedavg, name, dealt[name], test, sizes.rounds[-1])


# --- data -------------------------------------------------------------------------------------------------------


def _rows(name: str, count: int) -> Rows:
    images = _idx(DATA / f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[:count]
    return federated.to_rows(images / 255.0, _idx(DATA / f"{name}-labels-idx1-ubyte.gz", 8)[:count])


def _idx(path: Path, header_bytes: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header_bytes)


def _new_model() -> nn.Module:
    """Images in the layout that pooling is fast in."""
    return federated.seeded(federated.tanh_cnn, SEED)().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


# --- methods ----------------------------------------------------------------------------------------------------


def _pooled(train: Rows, test: Rows, sizes: Sizes) -> Iterator[Line]:
    """All rows in one place: the same network."""
    started = time.process_time()
    model = _new_model()
    federated.train(model, train, Sgd(epochs=sizes.pooled_epochs), _generator())
    method = f"{sizes.pooled_epochs} epochs"
    yield Line(POOLED, method, federated.accuracy(model, test), 0, time.process_time() - started)


def _fedavg(partition: str, nodes: Sequence[Rows], test: Rows, sizes: Sizes) -> Iterator[Line]:
    rounds = federated.fedavg(_new_model, nodes, sizes.rounds[-1], SGD, _generator())
    yield from _told(partition, "FedAvg", rounds, test, sizes.rounds, len(nodes))


def _dp_fedavg(partition: str, nodes: Sequence[Rows], test: Rows, count: int) -> Iterator[Line]:
    private = PrivateSgd(EPSILON, DELTA, **PRIVATE)  # type: ignore[arg-type]
    rounds = federated.dp_fedavg(_new_model, nodes, count, private, _generator())
    yield from _told(partition, f"DP-FedAvg, epsilon {EPSILON:g}", rounds, test, (count,), len(nodes))


def _told(
    partition: str, method: str, rounds: Iterator[nn.Module], test: Rows, at: Sequence[int], nodes: int
) -> Iterator[Line]:
    """A line for each round in `at`."""
    started = time.process_time()
    for done, model in enumerate(rounds, start=1):
        if done in at:
            moved = done * federated.round_bytes(model, nodes)
            name = f"{method}, {done} rounds"
            yield Line(partition, name, federated.accuracy(model, test), moved, time.process_time() - started)


def _one_shot(partition: str, nodes: Sequence[Rows], test: Rows) -> Iterator[Line]:
    started = time.process_time()
    models = federated.one_shot(_new_model, nodes, ONE_SHOT, _generator())
    moved, took_s = len(nodes) * federated.model_bytes(models[0]), time.process_time() - started
    alone = fmean(federated.accuracy(model, test) for model in models)
    yield Line(partition, "single node, mean of ten", alone, 0, took_s)
    averaged = federated.accuracy(federated.averaged(models, nodes), test)
    yield Line(partition, "one-shot, averaged weights", averaged, moved, took_s)
    yield Line(partition, "one-shot, ensemble", federated.ensemble_accuracy(models, test), moved, took_s)
    weighted = federated.ensemble_accuracy(models, test, federated.counts(nodes, CLASSES))
    yield Line(partition, "one-shot, ensemble weighted by label counts", weighted, moved, took_s)


def _private_one_shot(partition: str, nodes: Sequence[Rows], test: Rows) -> Iterator[Line]:
    """A part of epsilon buys the histogram, in both lines, so that one set of models serves them."""
    started = time.process_time()
    share = EPSILON * federated.HISTOGRAM_SHARE
    private = PrivateSgd(EPSILON - share, DELTA, **PRIVATE, epochs=ONE_SHOT.epochs)  # type: ignore[arg-type]
    models = federated.private_one_shot(_new_model, nodes, private, _generator())
    moved, took_s = len(nodes) * federated.model_bytes(models[0]), time.process_time() - started
    name = f"one-shot DP, epsilon {EPSILON:g}, ensemble"
    yield Line(partition, name, federated.ensemble_accuracy(models, test), moved, took_s)
    noised = federated.private_counts(nodes, CLASSES, share, _generator())
    weighted = federated.ensemble_accuracy(models, test, noised)
    yield Line(partition, f"{name} weighted by a DP histogram", weighted, moved, took_s)


# --- report -----------------------------------------------------------------------------------------------------


def _text(lines: Sequence[Line], sizes: Sizes) -> str:
    pooled = next((line for line in lines if line.partition == POOLED), None)
    others = [line for line in lines if line.partition != POOLED]
    methods = sorted({line.method for line in others}, key=_rank)
    found = {(line.partition, line.method): line for line in others}
    rows = []
    for method in methods:
        cells = [found.get((partition, method)) for partition in sizes.partitions]
        known = [cell for cell in cells if cell]
        shown = [f"{100 * cell.accuracy:.1f}" if cell else "not run" for cell in cells]
        moved = f"{fmean(cell.moved for cell in known) / 1e6:.1f}" if known[0].moved else "none"
        rows.append(f"| {method} | {' | '.join(shown)} | {moved} | {fmean(cell.took_s for cell in known):.0f} |")
    return (
        f"Accuracy in percent on {sizes.test:,} test rows after training on {sizes.train:,} rows at {NODES} nodes (a "
        "node that a partition leaves without rows takes no part), one seed. Epsilon is that of a node for its whole "
        f"run, delta {DELTA:g}; a private ensemble spends 1/30 of it on the histogram. One-shot nodes train "
        f"{ONE_SHOT.epochs} epochs. Megabytes are float32 weights that nodes send and receive, without framing."
        + (f" Pooled rows, {pooled.method}, no privacy: {100 * pooled.accuracy:.1f}.\n\n" if pooled else "\n\n")
        + f"| method | {' | '.join(sizes.partitions)} | MB | CPU seconds |\n"
        f"| --- |{' --- |' * (len(sizes.partitions) + 2)}\n" + "\n".join(rows) + "\n"
    )


def _rank(method: str) -> tuple[int, str]:
    """Training alone, then one-shot, then rounds; private ones last."""
    families = ("single", "one-shot,", "FedAvg", "one-shot DP", "DP-FedAvg")
    return next(place for place, family in enumerate(families) if method.startswith(family)), method
