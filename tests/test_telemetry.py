"""Nothing that this program runs reports to its maker: what a node says, it says to its peers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from fusion.model import build_model, card, write_onnx
from tests.partners import WARD, noisy, ward_rows

REPOSITORY = Path(__file__).parent.parent
QUIET = ("ORT_", "CI", "GITHUB_", "TF_BUILD", "XDG_")
"""Variables, by how they begin, that make a runtime quiet or let it write elsewhere."""


def test_running_a_model_leaves_no_identifier_and_no_session_of_telemetry_behind(tmp_path: Path) -> None:
    model = build_model(WARD, [noisy(WARD, ward_rows(400, 0), 5.0, "0")])
    path, place = tmp_path / "model.onnx", tmp_path / "place"
    path.write_bytes(write_onnx(model, card(model, [], "node", "now")))
    place.mkdir()
    code = "import sys; from fusion import onnx_runtime; onnx_runtime.load().InferenceSession(sys.argv[1])"
    variables = {name: value for name, value in os.environ.items() if not name.startswith(QUIET)}
    variables |= {"HOME": str(place), "TMPDIR": str(place)}
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=variables, cwd=REPOSITORY)
    assert not [str(left.relative_to(place)) for left in place.rglob("*")]


def test_only_one_module_imports_the_runtime() -> None:
    importing = re.compile(r"^\s*(import|from) onnxruntime\b", re.MULTILINE)
    folders = ("crypto", "fusion", "node", "examples")
    modules = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    modules += (REPOSITORY / "benchmarks").glob("*.py")
    found = [str(path.relative_to(REPOSITORY)) for path in modules if importing.search(path.read_text("utf-8"))]
    assert found == ["fusion/onnx_runtime.py"]
