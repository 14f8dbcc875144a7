"""Kills a real `tidings publish` at a chosen step.

A helper process imports everything once and then forks a child for each order. The child wraps one real function so
that it sends itself SIGKILL before or after one call of it, and runs the real command line. The product knows nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

#: Every step of a release, in order: function, which call of it, and whether to die before or after.
STEPS: tuple[tuple[str, int, str], ...] = (
    ("fusion.release:plan", 1, "after"),
    ("fusion.dataset:inspect", 1, "before"),
    ("fusion.dataset:inspect", 1, "after"),
    ("fusion.ledger:Ledger.reserve", 1, "before"),
    ("fusion.ledger:Ledger._append", 1, "before"),
    ("fusion.ledger:Ledger._append", 1, "after"),
    ("fusion.ledger:Ledger.reserve", 1, "after"),
    ("fusion.release:measure", 1, "before"),
    ("fusion.release:measure", 1, "after"),
    ("fusion.release:discrete_gaussian", 1, "before"),
    ("fusion.release:discrete_gaussian", 2, "after"),
    ("fusion.summary:Summary.to_bytes", 1, "after"),
    ("fusion.ledger:Ledger.ready", 1, "before"),
    ("fusion.ledger:_digest", 1, "after"),
    ("fusion.ledger:Ledger.ready", 1, "after"),
    ("node.heads:tell", 1, "before"),
    ("node.store:Store.reserve_sequence", 1, "after"),
    ("node.wire:author", 1, "after"),
    ("node.store:Store.add", 1, "before"),
    ("node.store:Store._insert", 1, "after"),
    ("node.store:Store.add", 1, "after"),
    ("node.heads:tell", 1, "after"),
    ("node.epochs:EpochKeys._grant_lacking", 1, "before"),
    ("node.epochs:EpochKeys._grant_lacking", 1, "after"),
    ("node.author:seal", 1, "after"),
    ("node.store:Store.reserve_sequence", 2, "after"),
    ("node.wire:author", 2, "after"),
    ("node.store:Store._insert", 2, "after"),
    ("node.store:Store._known", 2, "before"),
    ("node.store:Store.add", 2, "after"),
    ("fusion.ledger:Ledger.published", 1, "before"),
    ("fusion.ledger:Ledger.published", 1, "after"),
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: by SIGKILL at the step, or by itself with an exit code."""

    killed: bool
    exit_code: int | None


class Killer:
    """The helper process; use as a context."""

    def __enter__(self) -> Killer:
        command = [sys.executable, str(Path(__file__))]
        root = str(Path(__file__).parent.parent)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def run(self, step: tuple[str, int, str] | None, words: list[str]) -> Outcome:
        """Run `tidings WORDS` in a process of its own and kill it at the step (None: let it finish)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"step": step, "words": words}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Outcome(answer["killed"], answer["exit_code"])


def main() -> None:
    """Fork a child for every order on standard input and say how it ended."""
    sys.path.insert(0, os.getcwd())
    for module in ("node.cli", "node.publish", "fusion.release", "fusion.dataset", "fusion.ledger", "opendp.prelude"):
        importlib.import_module(module)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _obey(order)
        _pid, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(
            json.dumps({"killed": killed, "exit_code": None if killed else os.waitstatus_to_exitcode(status)}),
            flush=True,
        )


def _obey(order: dict[str, Any]) -> None:
    from node.__main__ import run

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    if order["step"]:
        _arm(*order["step"])
    os._exit(run(order["words"], debug=False))


def _arm(target: str, call: int, when: str) -> None:
    """From now on the process dies at this call of the target, which otherwise works as it did."""
    module_name, path = target.split(":")
    owner: Any = importlib.import_module(module_name)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real = getattr(owner, name)
    seen = 0

    def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **named)
        if seen == call and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


if __name__ == "__main__":
    main()
