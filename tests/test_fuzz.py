"""Fuzzing of every door: a short run in each `make test`, a million inputs each in `make soak`.

With Atheris each door runs in a process of its own (`fuzz_door`), guided by coverage, its memory bounded. Without it
(there is no wheel for every platform and Python) the same mutators run unguided; those tests run in any case.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.door_mutators import plain_change
from tests.doors import ALL, DOORS, Door, Read, outcome
from tests.vector_files import inputs_of

REPOSITORY = Path(__file__).parent.parent
MILLION = 1_000_000
DOORS_BY_NAME = pytest.mark.parametrize("door", ALL, ids=lambda door: door.name)
with_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="needs atheris, which is not made for this platform or Python"
)


def fuzzed(door: Door, runs: int, folder: Path, timeout_s: float) -> dict[str, int | str]:
    """What libFuzzer reports of a run; the test fails with its last words if it found something."""
    arguments = [f"-runs={runs}", "-seed=1", f"-artifact_prefix={folder}/"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_door", door.name, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    found = [path for path in folder.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-"))]
    where = f"replay: python -m tests.fuzz_door {door.name} --replay {found[0]}" if found else ""
    assert done.returncode == 0, f"{done.stderr[-3_000:]}\n{where}"
    figures = {name: int(value) for name, value in re.findall(r"stat::(\w+):\s+(\d+)", done.stderr)}
    edges = re.findall(r"cov: (\d+)", done.stderr)
    return {"door": door.name, "edges": int(edges[-1]), **figures}


@with_atheris
@DOORS_BY_NAME
def test_a_short_run_finds_nothing(door: Door, tmp_path: Path) -> None:
    report = fuzzed(door, door.short_runs, tmp_path, timeout_s=120)
    assert report["number_of_executed_units"] >= door.short_runs
    assert report["edges"] > 0


@with_atheris
@pytest.mark.soak
@DOORS_BY_NAME
def test_a_million_inputs_find_nothing(door: Door) -> None:
    folder = REPOSITORY / "build" / "fuzz" / door.name
    folder.mkdir(parents=True, exist_ok=True)
    report = fuzzed(door, MILLION, folder, timeout_s=3_500)
    assert report["number_of_executed_units"] >= MILLION
    (folder / "report.json").write_text(json.dumps(report) + "\n")


# ---------------------------------------------------------------------------------------------------- without libFuzzer


@functools.cache
def opened(name: str) -> tuple[Read, list[bytes]]:
    """The door, and what its inputs begin with."""
    door = DOORS[name]
    read = door.open(Path(tempfile.mkdtemp(prefix="tidings-fuzz-")))
    return read, [data for _, data in inputs_of(name) if len(data) <= door.max_bytes]


def mutated(door: Door, data: bytes, rng: random.Random) -> bytes:
    """By what knows the format, or by bytes."""
    change = plain_change(rng)
    if door.mutate is not None and rng.random() < 0.7:
        try:
            return door.mutate(data, change, rng)
        except Exception:  # noqa: BLE001 - this input is no such thing: bytes will do
            return change(data)
    return change(data)


@DOORS_BY_NAME
def test_a_mutated_input_is_refused_with_a_declared_error_or_accepted_for_good(door: Door) -> None:
    read, seeds = opened(door.name)

    @settings(max_examples=40, deadline=None)
    @given(st.sampled_from(seeds), st.integers(0, 2**32), st.binary(max_size=64))
    def check(data: bytes, seed: int, more: bytes) -> None:
        rng = random.Random(seed)  # noqa: S311 - not for secrets
        outcome(door, read, mutated(door, data, rng))
        outcome(door, read, more)

    check()


@pytest.mark.parametrize("door", [door for door in ALL if door.mutate], ids=lambda door: door.name)
def test_a_mutator_reaches_behind_the_first_check(door: Door) -> None:
    """Mutated good inputs are accepted, as something else, or refused in several ways: a mutator that always breaks
    what is checked first would find nothing."""
    read, seeds = opened(door.name)
    good = [data for data in seeds if outcome(door, read, data)[0] == "accepted"]
    rng = random.Random(5)  # noqa: S311 - not for secrets
    ways = set()
    for _ in range(150):
        try:
            changed = door.mutate(rng.choice(good), plain_change(rng), rng)  # type: ignore[misc]
        except Exception:  # noqa: BLE001, S112 - as in a run: bytes would do
            continue
        ways.add(re.sub(r"\d+", "", outcome(door, read, changed)[1]))
    assert len(ways) >= 3, ways
