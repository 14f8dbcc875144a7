"""The house itself: where packages come from, what loads when, who imports whom."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
HEAVY = {"torch", "opacus", "pyarrow", "onnx", "onnxruntime", "scipy", "opendp", "matplotlib"}


@pytest.mark.parametrize("package", ["crypto", "fusion", "node"])
def test_each_package_resolves_inside_this_repository(package: str) -> None:
    module = __import__(package)
    assert module.__file__ is not None
    assert Path(module.__file__).parent == REPOSITORY / package


@pytest.mark.parametrize(
    "code",
    [
        "import node.cli",
        "import node.serve, node.daemon, node.server, node.client",
        "import node.status, node.tasks, node.membership",
        "import fusion.task, fusion.errors, node.home",
        "import fusion.summaries.moments, fusion.summaries.class_moments, fusion.summaries.histograms",
        "import fusion.summaries.mean_embedding, fusion.encoders.lift, fusion.encoders.leaves",
    ],
)
def test_a_relay_never_loads_torch_or_tables(code: str) -> None:
    script = f"import sys; {code}; print(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_the_help_of_every_command_is_one_screen_and_names_what_it_does() -> None:
    done = subprocess.run([sys.executable, "-m", "node", "--help"], capture_output=True, text=True, check=True)
    private = ("init", "id", "peer", "task", "publish", "serve", "status", "records", "withdraw", "budget", "keys")
    for command in (
        *private,
        "query",
        "share",
        "verify",
        "predict",
        "evaluate",
        "contributions",
        "synthesize",
        "bundle",
    ):
        assert f"\n  {command} " in done.stdout
    assert len(done.stdout.splitlines()) < 40
    assert "..." not in done.stdout.partition("Commands:")[2], "a sentence was cut"
