"""The walk-through of the README, run in three shells just as it stands there."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
BLOCK = re.compile(r"```sh\n# terminal (\d)\n(.*?)```", re.DOTALL)
END = "--- end of block"


class Terminal:
    """A shell that stays open between blocks, as a person's does."""

    def __init__(self) -> None:
        self.shell = subprocess.Popen(
            ["bash"], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def type(self, block: str) -> str:
        """Run the lines one by one; the test fails at the first that does."""
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        for line in block.strip().splitlines():
            self.shell.stdin.write(f"{line} || echo LINE FAILED: {line!r}\n" if not line.endswith("&") else f"{line}\n")
        self.shell.stdin.write(f"echo '{END}'\n")
        self.shell.stdin.flush()
        printed = []
        for line in self.shell.stdout:
            if line.strip() == END:
                break
            printed.append(line)
        return "".join(printed)

    def close(self) -> None:
        assert self.shell.stdin is not None
        self.shell.stdin.write("kill %1; wait; exit\n")
        self.shell.stdin.flush()
        self.shell.wait(15)
        self.shell.stdin.close()
        assert self.shell.stdout is not None
        self.shell.stdout.close()


@pytest.fixture
def terminals() -> Iterator[dict[str, Terminal]]:
    opened = {number: Terminal() for number in "123"}
    yield opened
    for terminal in opened.values():
        terminal.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.timeout(240)
def test_every_command_of_the_walk_through_works(terminals: dict[str, Terminal], tmp_path: Path) -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    program = shutil.which("tidings", path=str(Path(sys.executable).parent))
    assert program is not None, "install the project first: `make test` does"
    replaced = {"/tmp/walk": str(tmp_path), "$PWD/.venv/bin": str(Path(program).parent)}  # noqa: S108 - as the README says
    replaced |= {f"127.0.0.1:{port}": f"127.0.0.1:{free_port()}" for port in ("7411", "7412")}
    printed = ""
    for number, block in BLOCK.findall(text):
        for theirs, ours in replaced.items():
            block = block.replace(theirs, ours)
        printed += (seen := terminals[number].type(block))
        assert "LINE FAILED" not in seen, seen
        assert "Error:" not in seen, seen
    assert "Confirmed: fused again from its 3 summaries, it is the very same" in printed
    assert "3 summaries ready to fuse" in printed
    accuracy = re.search(r"^accuracy\s+(0\.\d+)", printed, re.MULTILINE)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.5
