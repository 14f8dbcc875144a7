"""Every way to get it wrong: one clear line, exit code 1 or 2, and a home that is as it was."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from crypto.keys import Identity
from node.__main__ import run
from node.home import Home
from node.membership import add_peer
from node.tasks import add

STRANGER = Identity.from_seed(bytes(range(32))).public_key.text


@dataclass(frozen=True)
class Bench:
    """One home with an accepted task, and a folder with good and bad files."""

    home: Path
    folder: Path

    def file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    def state(self) -> dict[str, Any]:
        """What must not change: records, peers, tasks, budget."""
        home = Home.open(self.home)
        ledger = home.path / "ledger.db"
        return {
            "records": [(held.record.id, held.state) for held in home.store.held()],
            "peers": home.store.peers(),
            "tasks": home.store.tasks(),
            "ledger": home.ledger().head() if ledger.exists() else bytes(32),
        }


@pytest.fixture
def bench(make_home: Callable[..., Home], task_file: Path, rows_file: Path, tmp_path: Path) -> Bench:
    home = make_home("alpha")
    add(home, str(task_file))
    home.store.close()
    return Bench(home.path, tmp_path)


def complaint(capsys: pytest.CaptureFixture[str], bench: Bench, *words: str) -> tuple[int, str]:
    """Run a command that must fail; its exit code and its one line on stderr."""
    capsys.readouterr()
    code = run(["--home", str(bench.home), *words], debug=False)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in lines[0]
    return code, lines[0]


GOOD_ROWS = "age,arrival,outcome\n30,walk,0\n80,ambulance,1\n"


def publishing(data: str, epsilon: str = "1") -> list[str]:
    return ["publish", "triage", data, "--epsilon", epsilon]


def asking(bench: Bench, output: str) -> list[str]:
    return ["query", "triage", "-o", str(bench.folder / output)]


WRONG: dict[str, tuple[int, str, Callable[[Bench], list[str]]]] = {
    "a mistyped key": (2, "mistyped", lambda b: ["peer", "add", STRANGER[:-1] + "x"]),
    "a key that is no key": (2, "key", lambda b: ["peer", "add", "hello"]),
    "an address without a port": (2, "HOST:PORT", lambda b: ["peer", "add", STRANGER, "--address", "10.0.0.1"]),
    "an unknown peer": (2, "no peer named", lambda b: ["peer", "remove", "nobody"]),
    "an unknown task": (2, "no accepted task", lambda b: ["publish", "flu", "x.csv", "--epsilon", "1"]),
    "a task file that is not there": (2, "neither a task file", lambda b: ["task", "add", "nowhere.toml"]),
    "a broken task file": (1, "line 1", lambda b: ["task", "add", b.file("bad.toml", "name = \n")]),
    "a data file that is not there": (1, "check the path", lambda b: publishing("nowhere.csv")),
    "a missing column": (
        1,
        '"arrival"',
        lambda b: publishing(b.file("d.csv", "age,outcome\n3,0\n")),
    ),
    "an empty file": (1, "empty", lambda b: publishing(b.file("d.csv", ""))),
    "a file with a header alone": (
        1,
        "row",
        lambda b: publishing(b.file("d.csv", "age,arrival,outcome\n")),
    ),
    "a broken CSV row": (
        1,
        "row 4 has 2 fields where 3 are expected",
        lambda b: publishing(b.file("d.csv", GOOD_ROWS + "1,walk\n")),
    ),
    "labels that the task does not know": (
        1,
        "label",
        lambda b: publishing(b.file("d.csv", "age,arrival,outcome\n3,walk,7\n")),
    ),
    "an epsilon above the task's maximum": (
        1,
        "at most 2",
        lambda b: publishing(b.file("d.csv", GOOD_ROWS), "2.5"),
    ),
    "an epsilon that is NaN": (1, "Epsilon must be over 0", lambda b: publishing(b.file("d.csv", GOOD_ROWS), "nan")),
    "an epsilon of zero": (1, "Epsilon must be over 0", lambda b: publishing(b.file("d.csv", GOOD_ROWS), "0")),
    "a budget that is exhausted": (
        1,
        "no data was read",
        lambda b: ["publish", "triage", b.file("d.csv", GOOD_ROWS), "--epsilon", "1", "--budget", "0.5"],
    ),
    "a query with no summaries": (1, "No summary", lambda b: asking(b, "m.onnx")),
    "a query for an unknown format": (2, "ending", lambda b: asking(b, "m.pkl")),
    "a query for an unknown head": (
        2,
        "no head",
        lambda b: [*asking(b, "m.onnx"), "--head", "deep"],
    ),
    "a query to nobody": (2, "no peer named", lambda b: [*asking(b, "m.onnx"), "--node", "x"]),
    "a model file that is none": (1, "model", lambda b: ["verify", b.file("m.onnx", "no model")]),
    "a prediction without a model": (1, "nowhere.onnx", lambda b: ["predict", "nowhere.onnx", "d.csv"]),
    "a record that is not ours": (2, "not the id", lambda b: ["withdraw", "0123456789"]),
    "a rate that is none": (2, "not a rate", lambda b: ["serve", "--bandwidth", "fast"]),
    "a rate for each peer that is none": (2, "--peer-bandwidth", lambda b: ["serve", "--peer-bandwidth", "slow"]),
    "a bundle that is none": (1, "is not a bundle", lambda b: ["bundle", "import", b.file("x.bundle", "no bundle")]),
    "a bundle that is not there": (1, "not a file", lambda b: ["bundle", "import", "nowhere.bundle"]),
    "a bundle on a stick that is not there": (1, "mounted", lambda b: ["bundle", "export", str(b.folder / "no" / "x")]),
    "a bundle over another file": (1, "is no bundle", lambda b: ["bundle", "export", b.file("notes.txt", "notes")]),
    "a bundle for nobody": (2, "no peer named", lambda b: ["bundle", "export", str(b.folder / "x"), "--for", "y"]),
    "a bundle since no time": (2, "is no time", lambda b: ["bundle", "export", str(b.folder / "x"), "--since", "ever"]),
    "an unknown command": (2, "No such command", lambda b: ["frobnicate"]),
    "an unknown option": (2, "No such option", lambda b: ["status", "--frobnicate"]),
    "a missing argument": (2, "Missing", lambda b: ["publish"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_it_is_told_in_one_line_and_changes_nothing(
    name: str, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    code, phrase, words = WRONG[name]
    before = bench.state()
    seen_code, line = complaint(capsys, bench, *words(bench))
    assert seen_code == code, line
    assert phrase in line
    assert bench.state() == before


def test_a_home_that_was_never_made_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path / "nowhere", tmp_path)
    for words in (["id"], ["status"], ["serve"], ["records"], ["publish", "t", "d.csv", "--epsilon", "1"]):
        code, line = complaint(capsys, bench, *words)
        assert code == 1
        assert "init" in line
    assert not bench.home.exists()


def test_a_second_init_leaves_the_first_node_as_it_was(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    key = Home.open(bench.home).me
    before = bench.state()
    code, line = complaint(capsys, bench, "init")
    assert code == 1
    assert "not empty" in line
    assert bench.state() == before
    assert Home.open(bench.home).me == key


def test_a_corrupt_store_is_told_and_not_repaired_in_silence(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    store = bench.home / "node.db"
    damaged = b"\0" * 4096 + store.read_bytes()[4096:]
    store.write_bytes(damaged)
    for words in (["status"], ["serve"], ["records"]):
        code, line = complaint(capsys, bench, *words)
        assert code == 1
        assert "damaged" in line
    assert store.read_bytes() == damaged


def test_a_keystore_that_others_can_read_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    (bench.home / "keystore.json").chmod(0o644)
    code, line = complaint(capsys, bench, "id")
    assert code == 1
    assert "chmod 600" in line


@contextmanager
def listening() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_port_in_use_is_told(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    before = bench.state()
    with listening() as port:
        code, line = complaint(capsys, bench, "serve", "--listen", f"127.0.0.1:{port}")
    assert code == 2
    assert "in use" in line
    assert bench.state() == before


def test_two_daemons_on_one_home_are_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "node", "--home", str(bench.home), "serve"], stderr=subprocess.PIPE, text=True
    ) as first:
        assert first.stderr is not None
        assert "is running" in first.stderr.readline()
        try:
            code, line = complaint(capsys, bench, "serve")
        finally:
            first.terminate()
            first.wait(10)
    assert code == 1
    assert "already serving" in line
    assert first.returncode == 0


def test_asking_a_peer_that_cannot_be_reached_says_why(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with listening() as port:
        pass
    add_peer(Home.open(bench.home), STRANGER, "beta", f"127.0.0.1:{port}", query_only=False)
    code, line = complaint(capsys, bench, "query", "triage", "--node", "beta", "-o", str(bench.folder / "m.onnx"))
    assert code == 1
    assert "Cannot ask beta" in line
    assert "nothing listens" in line
    assert not (bench.folder / "m.onnx").exists()


def test_asking_a_peer_that_does_not_know_us_says_so(
    bench: Bench, make_home: Callable[..., Home], capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_home("other", "127.0.0.1:0")
    with subprocess.Popen(
        [sys.executable, "-m", "node", "--home", str(other.path), "serve"], stderr=subprocess.PIPE, text=True
    ) as served:
        assert served.stderr is not None
        address = re.search(r"127\.0\.0\.1:\d+", served.stderr.readline())
        assert address is not None
        try:
            add_peer(Home.open(bench.home), other.me.text, "other", address[0], query_only=False)
            words = ["query", "triage", "--node", "other", "-o", str(bench.folder / "m.onnx")]
            code, line = complaint(capsys, bench, *words)
        finally:
            served.terminate()
            served.wait(10)
    assert code == 1
    assert "probably not added this node's key" in line


def test_a_traceback_shows_only_when_asked_for(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    run(["--home", str(bench.home), "--debug", "task", "show", "flu"], debug=True)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("typed", [["--name", "east"], ["--name=east"]])
def test_an_error_that_begins_with_a_name_spells_it_as_it_was_typed(
    typed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Home.init(tmp_path / "home", "east", None).store.close()
    assert run(["--home", str(tmp_path / "home"), "peer", "add", STRANGER, *typed], debug=False) == 2
    assert capsys.readouterr().err == "Error: east is this node's own name; choose another --name for the peer.\n"
    assert run(["--home", str(tmp_path / "home"), "task", "add"], debug=False) == 2
    assert capsys.readouterr().err.startswith("Error: Missing argument")
