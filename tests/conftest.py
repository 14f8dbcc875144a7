"""Fixtures that several test files share: homes of nodes, and small data for a small task."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from node.home import Home

settings.register_profile("tidings", deadline=None)
settings.load_profile("tidings")

# Some tests fork. gRPC would tidy up in the child, and abort it where one of its other threads is busy.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Tests that import the runtime themselves are no reason to report to its maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

TASK_TOML = """
name = "triage"
kind = "classification"
summary = "moments"

[label]
column = "outcome"
classes = [ { name = "home", values = ["0"] }, { name = "ward", values = ["1"] } ]

[privacy]
max_epsilon = 2.0
delta = 1e-6

[[columns]]
name = "age"
type = "number"
lower = 0
upper = 100

[[columns]]
name = "arrival"
type = "category"
values = ["walk", "ambulance"]

[encoder]
kind = "tabular"
"""


def _rows(count: int) -> str:
    lines = ["age,arrival,outcome"]
    for number in range(count):
        age = number % 100
        arrival = "ambulance" if number % 3 == 0 else "walk"
        lines.append(f"{age},{arrival},{int(age + 30 * (arrival == 'ambulance') > 70)}")
    return "\n".join(lines) + "\n"


ROWS_CSV = _rows(200)


@pytest.fixture
def make_home(tmp_path: Path) -> Callable[..., Home]:
    """Makes initialized homes: `make_home("alpha")`."""

    def make(name: str, listen: str | None = None) -> Home:
        return Home.init(tmp_path / name, name, listen)

    return make


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """A small task of two columns."""
    path = tmp_path / "triage.toml"
    path.write_text(TASK_TOML, encoding="utf-8")
    return path


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """200 rows for that task: the old who come by ambulance stay."""
    path = tmp_path / "rows.csv"
    path.write_text(ROWS_CSV, encoding="utf-8")
    return path


@pytest.fixture
def heart_example() -> Path:
    """The heart example of this repository."""
    return Path(__file__).parent.parent / "examples" / "heart"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The list of deliberate bugs and of the checks that caught each, as `test_mutations.py` recorded them."""
    reports = [report for report in terminalreporter.getreports("passed") if report.when == "call"]
    caught = [value for report in reports for name, value in report.user_properties if name == "mutant"]
    if not caught:
        return
    terminalreporter.section(f"{len(caught)} deliberate bugs, each caught")
    width = max(len(name) for name, _ in caught)
    for name, caught_by in caught:
        terminalreporter.write_line(f"{name:{width}}  {', '.join(caught_by)}")
