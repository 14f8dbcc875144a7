"""The real command line in processes of its own, for tests: one command, or a node that serves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

WAIT_S = 40.0


def tidings(
    home: Path, *words: str, code: int = 0, typed: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that ends with this exit code; `typed` is its standard input, and `variables` go into its
    environment."""
    command = [sys.executable, "-m", "node", "--home", str(home), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, input=typed, env=os.environ | variables)
    assert done.returncode == code, done.stderr
    return done


@contextmanager
def serving(home: Path, *words: str, **variables: str) -> Iterator[str]:
    """Run the node; gives its address."""
    command = [sys.executable, "-m", "node", "--home", str(home), *words, "serve"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, env=os.environ | variables
    ) as process:
        assert process.stderr is not None
        try:
            said = ""
            while "listens on" not in said:  # warnings come before it
                line = process.stderr.readline()
                assert line, said
                said += line
            yield said.split("listens on ")[1].split(". ")[0]
        finally:
            process.terminate()
            process.wait(15)


def after(preparation: str, words: Sequence[str]) -> list[str]:
    """A command whose process runs this line of Python first. `preexec_fn` would run it in a copy of the test's own
    process, whose other threads are gone and may have held anything."""
    return [sys.executable, "-c", f"import os, sys; {preparation}; os.execv(sys.argv[1], sys.argv[1:])", *words]


def eventually(condition: Callable[[], object], limit_s: float = WAIT_S) -> None:
    """Return once this holds; fails where it takes too long."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
