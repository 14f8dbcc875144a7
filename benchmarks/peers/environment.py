"""An environment for the peers that need other versions than ours: made on first use, in benchmarks/.peers."""

from __future__ import annotations

import json
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent / ".peers"

Job = dict[str, Any]
Table = dict[str, np.ndarray]


def accuracies(table: Table, jobs: Sequence[Job], epsilon: float, draws: int, scratch: Path) -> list[list[float]]:
    """What `linear_models.py` finds for each job on rows `train`, `train_label`, `test`, `test_label`."""
    path = scratch / "table.npz"
    np.savez(path, **table)
    script = HERE / "linear_models.py"
    command = [str(_python()), str(script), str(path), str(epsilon), str(draws), json.dumps(list(jobs))]
    found: list[list[float]] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def _python() -> Path:
    """The interpreter of the environment, which is made if it is not there yet."""
    python, done = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "installed"
    if not done.exists():
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "install", "-r", str(HERE / "requirements.txt")], check=True)
        done.touch()
    return python
