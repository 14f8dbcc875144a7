"""Fashion-MNIST at ten nodes that hold one class each: `python -m examples.fashion_mnist`.

No node has ever seen another class than its own. Each publishes one summary with its own noise; one of them fuses all
ten into a model, which is then scored on the 10,000 test pictures. Real nodes, a process each on this machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.datasets import HERE, SHARED, DataMissing, Partners
from examples.gossip import gossip
from fusion.dataset import read_batches
from fusion.scoring import evaluate
from fusion.summary import plan
from fusion.task import Task
from node import show
from node.errors import NodeError
from node.tasks import read_file

SOURCE = HERE / "fashion-mnist"
FOLDER = "fashion_mnist"
PICTURES = ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")
LABELS = ("train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
WHERE = "github.com/zalandoresearch/fashion-mnist, or from Debian's package dataset-fashion-mnist"
EPSILON = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 and one sentence where the data are missing or a node fails."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.fashion_mnist", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, help="folder of the four original files (default: $TIDINGS_DATA)")
    parser.add_argument("--task", type=Path, default=SOURCE / "task.toml", help="another task on the same pictures")
    parser.add_argument("--epsilon", type=float, default=EPSILON, help="what each node spends (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("fashion-mnist-out"), help="folder for the model")
    asked = parser.parse_args(arguments)
    try:
        run(asked.data, asked.task, asked.epsilon, asked.out)
    except (DataMissing, NodeError, ValueError, OSError) as error:
        show.note(f"Error: {error}")
        return 1
    return 0


def run(data: Path | None, task_file: Path, epsilon: float, out: Path) -> None:
    """The whole example; leaves `model.onnx` in `out`."""
    started = time.monotonic()

    def tell(text: str) -> None:
        show.note(f"[{time.monotonic() - started:5.1f} s] {text}")

    task, folder = read_file(task_file), found(data)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tidings-example-") as scratch:
        partners = one_class_each(task, folder, Path(scratch) / "data")
        tell(f"dealt the pictures out to {len(partners.train)} nodes, one class each")
        told = gossip(task_file, task.name, partners.train, epsilon, Path(scratch) / "homes", out / "model.onnx", tell)
    scores = evaluate(told.model.read_bytes(), list(partners.test))
    planned = plan(task, epsilon)
    show.line(
        f"epsilon {epsilon:g}, delta {planned.delta:g} at each node: accuracy {scores['accuracy']:.2%} on "
        f"{scores['n']:,} test pictures; about {planned.estimated_bytes / 1e3:.0f} kB a node, "
        f"{told.bytes_moved / 1e6:.1f} MB sent by all nodes together; the model is {told.model}"
    )


def found(data: Path | None) -> Path:
    """The folder of the original files; DataMissing where they are not."""
    for folder in [data, data / FOLDER] if data else [SHARED / FOLDER]:
        if all((folder / name).is_file() for name in (*PICTURES, *LABELS)):
            return folder
    raise DataMissing(
        f"the files of Fashion-MNIST are not in {data or SHARED / FOLDER}; get them from {WHERE}, and "
        "name their folder with --data"
    )


def one_class_each(task: Task, folder: Path, out: Path) -> Partners:
    """`<class>.npz` for each class, with its training pictures, in `out`; the test pictures stay where they are."""
    out.mkdir(parents=True, exist_ok=True)
    (column,) = task.columns
    pictures, labels = _rows(task, folder / PICTURES[0])
    train = {}
    for index, name in enumerate(task.class_names):
        path = out / f"{name.replace(' ', '-')}.npz"
        own = labels == index
        values = np.full(int(own.sum()), task.label.classes[index].values[0])
        np.savez(path, allow_pickle=False, **{column.name: pictures[own], task.label.column: values})
        train[path.stem] = (path,)
    return Partners(train, (folder / PICTURES[1],))


def _rows(task: Task, pictures: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All pictures of one of the original files, and their class indices."""
    (column,) = task.columns
    batches = list(read_batches([pictures], task))
    labels = [np.asarray(batch.label, dtype=np.int64) for batch in batches]
    return np.concatenate([batch.images[column.name] for batch in batches]), np.concatenate(labels)


if __name__ == "__main__":
    sys.exit(main())
