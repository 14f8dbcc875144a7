"""The main job as people run it: real processes, real sockets, the real command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import eventually

from node.demo import HOSPITALS, split_rows


class Machine:
    """One partner's machine: a home, and perhaps a running node."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self.address: str | None = None
        self.process: subprocess.Popen[str] | None = None
        self.key = self.tidings("init", "--name", name).strip()

    def tidings(self, *words: str, code: int = 0) -> str:
        return self._run(words, code).stdout

    def complaint(self, *words: str) -> str:
        """The last line on stderr of a command that fails."""
        return self._run(words, 1).stderr.splitlines()[-1]

    def _run(self, words: Sequence[str], code: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "node", "--home", str(self.path), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        return done

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.tidings(*words, "--json", code=code))

    def serve(self, *words: str) -> None:
        command = [sys.executable, "-m", "node", "--home", str(self.path), "serve", *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        ready = self.process.stderr.readline()
        assert "is running and" in ready, ready
        found = re.search(r"listens on (\S+:\d+)", ready)
        self.address = found[1] if found else None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stderr is not None
            self.process.stderr.close()
            self.process = None

    def summaries(self, task: str) -> int:
        """How many summaries this node can use."""
        state = self.json("status")
        return next((one["summaries"] for one in state["tasks"] if one["name"] == task), 0)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[[str], Machine]]:
    made: list[Machine] = []

    def make(name: str) -> Machine:
        made.append(Machine(tmp_path / name, name))
        return made[-1]

    yield make
    for machine in made:
        machine.kill()


@pytest.mark.timeout(240)
def test_three_partners_one_killed_in_the_middle_fuse_the_same_model_on_every_node(
    machines: Callable[[str], Machine], heart_example: Path, tmp_path: Path
) -> None:
    splits = split_rows(heart_example, tmp_path / "data")
    a, b, c = (machines(name) for name in HOSPITALS[:3])
    for machine in (a, b, c):
        machine.serve("--listen", "127.0.0.1:0")
        machine.tidings("task", "add", str(heart_example / "task.toml"))
    for one in (a, b, c):
        for other in (a, b, c):
            chained = {(b, a), (c, b)}
            if one is not other:
                address = ["--address", str(other.address)] if (one, other) in chained else []
                one.tidings("peer", "add", other.key, "--name", other.name, *address)
    for machine in (a, b):
        machine.tidings("publish", "heart-disease", str(splits[machine.name].train), "--epsilon", "1")
    eventually(lambda: a.summaries("heart-disease") == 2 and c.summaries("heart-disease") == 2)

    b.kill()  # the cable between a and c is pulled
    c.tidings("publish", "heart-disease", str(splits[c.name].train), "--epsilon", "1")
    eventually(lambda: a.json("status")["peers"][0]["state"] != "linked")
    assert a.summaries("heart-disease") == 2
    b.serve("--listen", str(b.address))
    eventually(lambda: a.summaries("heart-disease") == 3)

    cards = {
        machine.name: machine.json("query", "heart-disease", "-o", str(tmp_path / f"{machine.name}.onnx"))
        for machine in (a, b, c)
    }
    digests = {card["attestation"]["digest"] for card in cards.values()}
    assert len(digests) == 1
    assert {card["attestation"]["node"] for card in cards.values()} == {a.key, b.key, c.key}

    from_b = c.json("query", "heart-disease", "--node", "hungarian", "-o", str(tmp_path / "asked.safetensors"))
    assert from_b["attestation"]["digest"] in digests
    assert from_b["attestation"]["node"] == b.key
    assert a.json("verify", str(tmp_path / "asked.safetensors"))["confirmed"] is True

    part = a.json("query", "heart-disease", "--without", "hungarian", "-o", str(tmp_path / "part.onnx"))
    assert {one["origin"] for one in part["left_out"]} == {b.key}
    same = a.json("query", "heart-disease", "--only", "cleveland,switzerland", "-o", str(tmp_path / "same.onnx"))
    assert same["attestation"]["digest"] == part["attestation"]["digest"]

    tests = [str(split.test) for split in splits.values()]
    scores = a.json("evaluate", str(tmp_path / "cleveland.onnx"), *tests)
    assert scores["n"] == sum(split.test_rows for split in splits.values())
    assert scores["accuracy"] > 0.65
    a.tidings("predict", str(tmp_path / "cleveland.onnx"), tests[0], "-o", str(tmp_path / "out.csv"))
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert len(lines) == 1 + splits["cleveland"].test_rows
    assert lines[0] == "prediction,healthy,disease"


@pytest.mark.timeout(240)
def test_a_shared_model_passes_a_relay_without_the_task_and_serves_when_its_maker_is_gone(
    machines: Callable[[str], Machine], task_file: Path, rows_file: Path, tmp_path: Path
) -> None:
    maker, relay, device = (machines(name) for name in ("maker", "relay", "device"))
    for machine in (maker, relay, device):
        machine.serve("--listen", "127.0.0.1:0")
    for machine in (maker, relay, device):
        for other in (maker, relay, device):
            if machine is not other:
                dialed = ["--address", str(relay.address)] if other is relay else []
                machine.tidings("peer", "add", other.key, "--name", other.name, *dialed)
    maker.tidings("task", "add", str(task_file))
    maker.tidings("publish", "triage", str(rows_file), "--epsilon", "1")
    shared = maker.json("share", "triage")

    def usable_at(machine: Machine) -> bool:
        listed = machine.json("records")
        return any(one["id"] == shared["record"] and one["reason"] == "" for one in listed)

    eventually(lambda: any(one["state"] == "proposed" for one in device.json("task", "list")))
    device.tidings("task", "add", "triage")
    eventually(lambda: usable_at(device))
    assert not usable_at(relay)  # which carries it, and has not accepted the task
    maker.kill()

    card = device.json("query", "triage", "--node", "maker", "-o", str(tmp_path / "model.onnx"))
    assert card["attestation"]["node"] == maker.key
    assert card["attestation"]["digest"] == shared["digest"]
    assert device.json("verify", str(tmp_path / "model.onnx"))["confirmed"] is True
    assert device.json("verify", shared["record"])["digest"] == shared["digest"]
    device.tidings("predict", str(tmp_path / "model.onnx"), str(rows_file), "-o", str(tmp_path / "out.csv"))
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 201


@pytest.mark.timeout(240)
def test_a_model_without_a_withdrawn_summary_is_the_one_that_never_saw_it(
    machines: Callable[[str], Machine], task_file: Path, rows_file: Path, tmp_path: Path
) -> None:
    early, late = machines("early"), machines("late")
    for machine in (early, late):
        machine.serve("--listen", "127.0.0.1:0")
        machine.tidings("task", "add", str(task_file))
    early.tidings("peer", "add", late.key, "--name", "late", "--address", str(late.address))
    late.tidings("peer", "add", early.key, "--name", "early")

    def digest(name: str) -> str:
        card = early.json("query", "triage", "-o", str(tmp_path / name))
        return str(card["attestation"]["digest"])

    early.tidings("publish", "triage", str(rows_file), "--epsilon", "1", "--part", "arrival=walk")
    before = digest("before.onnx")
    # A new part of the same data, and another partner: both join what is there.
    second = early.json("publish", "triage", str(rows_file), "--epsilon", "1", "--part", "arrival=ambulance")
    published = late.json("publish", "triage", str(rows_file), "--epsilon", "1")
    eventually(lambda: early.summaries("triage") == 3)
    joined = digest("joined.onnx")
    assert joined != before
    late.tidings("withdraw", published["record"])
    early.tidings("withdraw", second["record"])
    eventually(lambda: early.summaries("triage") == 1)
    assert digest("after.onnx") == before
    assert early.json("verify", str(tmp_path / "joined.onnx"), code=1)["confirmed"] is False


@pytest.mark.timeout(240)
def test_the_demo_tells_the_truth_and_leaves_nothing_running(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "node", "demo", "--out", str(tmp_path / "out"), "--draws", "3", "--json"]
    scratch = tmp_path / "scratch"  # other demos on this machine have homes elsewhere
    scratch.mkdir()
    environment = os.environ | {"TMPDIR": str(scratch)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures == json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(figures["alone"]) == set(HOSPITALS)
    assert figures["draws"]["mean"] > 0.75
    assert figures["pooled"] > 0.78
    assert 5_000 < figures["bytes_moved"] < 500_000
    assert (tmp_path / "out" / "results.png").stat().st_size > 10_000
    for ending in ("onnx", "safetensors"):
        assert (tmp_path / "out" / f"heart.{ending}").exists()
    listed = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in listed.splitlines() if str(scratch) in line]
    assert not list(scratch.iterdir())
