"""Run one worked example: `python -m examples.run NAME`, for NAME in heart, taiwan-credit, wisdm, diabetes130,
california-housing, sentiment.

It splits the public data set among partners, lets up to ten of them publish and fuse as real nodes on this machine, and
prints what each model is worth on rows that nobody trained on: a single site, fused in private, pooled without privacy.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from examples.datasets import DATASETS, HERE, DataMissing
from examples.gossip import gossip
from examples.pooled import pooled_raw
from examples.report import Report, write_report
from examples.trial import Trial
from fusion.errors import FusionError
from node import show
from node.errors import NodeError
from node.tasks import read_file

EPSILONS = {
    "heart": 1.0,
    "taiwan-credit": 1.0,
    "wisdm": 4.0,
    "diabetes130": 1.0,
    "california-housing": 3.0,
    "sentiment": 1.0,
}
"""The examples that have a task file, and what each partner spends unless --epsilon says otherwise."""
MOST_NODES = 10  # more partners than this are noised in this process; a process each would be slow here
DRAWS = 10


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 and one sentence where the data are missing or a node fails."""
    parser = argparse.ArgumentParser(prog="python -m examples.run", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("name", choices=list(EPSILONS))
    parser.add_argument("--data", type=Path, help="folder of the original files (default: $TIDINGS_DATA)")
    parser.add_argument("--epsilon", type=float, help="what each partner spends")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of the noise, for the spread")
    parser.add_argument("--out", type=Path, help="folder for model, figures and picture (default: NAME-out)")
    parser.add_argument("--no-nodes", action="store_true", help="noise the sums in this process, start no nodes")
    asked = parser.parse_args(arguments)
    try:
        run(
            asked.name,
            asked.data,
            asked.epsilon or EPSILONS[asked.name],
            max(asked.draws, 1),
            asked.out or Path(f"{asked.name}-out"),
            nodes=not asked.no_nodes,
        )
    except (DataMissing, FusionError, NodeError, ValueError, OSError) as error:
        show.note(f"Error: {error}")
        return 1
    return 0


def run(name: str, data: Path | None, epsilon: float, draws: int, out: Path, *, nodes: bool) -> Report:
    """The whole example; leaves `model.onnx` (where nodes ran), `results.json` and `results.png` in `out`."""
    started = time.monotonic()

    def tell(text: str) -> None:
        show.note(f"[{time.monotonic() - started:5.1f} s] {text}")

    out.mkdir(parents=True, exist_ok=True)
    task_file = HERE / name / "task.toml"
    task = read_file(task_file)
    with tempfile.TemporaryDirectory(prefix="tidings-example-") as scratch:
        partners = DATASETS[name].split(data, Path(scratch) / "data")
        tell(f"dealt the rows out to {len(partners.train)} partners by a public rule")
        told = None
        if nodes and len(partners.train) <= MOST_NODES:
            homes = Path(scratch) / "homes"
            told = gossip(task_file, task.name, partners.train, epsilon, homes, out / "model.onnx", tell)
        trial = Trial(task, partners.train, partners.test)
        fused = tuple(trial.fused(epsilon) for _ in range(draws))
        tell(f"{draws} draws of the noise are scored")
        alone = {who: trial.alone(who) for who in partners.train}
        report = Report(
            name=name,
            measure=trial.measure_of_success,
            epsilon=epsilon,
            delta=task.privacy.delta,
            unit=task.privacy.unit,
            alone=alone,
            fused=fused,
            pooled=trial.pooled(),
            pooled_raw=pooled_raw(trial, DATASETS[name].skip),
            model=None if told is None else str(told.model),
            bytes_moved=None if told is None else told.bytes_moved,
            seconds=round(time.monotonic() - started, 1),
        )
    write_report(report, out)
    return report


if __name__ == "__main__":
    sys.exit(main())
