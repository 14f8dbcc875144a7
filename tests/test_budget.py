"""`tidings budget`: the statement, the plot, a raise with a typed confirmation, an accepted roll-back."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_ledger_heads import copy_of, hear, own_records

from fusion.errors import BudgetError
from fusion.ledger import Ledger
from node.__main__ import run
from node.home import Home
from node.records import Kind
from node.tasks import add

TASK_ID = bytes(32)
DELTA = 1e-5
MakeHome = Callable[..., Home]


class Desk:
    """A home, and the command line as a person uses it."""

    def __init__(self, home: Home, rows_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.rows_file, self._capsys = home, rows_file, capsys

    def say(self, *words: str, code: int = 0) -> str:
        self._capsys.readouterr()
        assert run(["--home", str(self.home.path), *words], debug=False) == code
        captured = self._capsys.readouterr()
        return captured.out if code == 0 else captured.err

    def json(self, *words: str) -> Any:
        return json.loads(self.say(*words, "--json"))

    def publish(self, epsilon: float, *words: str, code: int = 0) -> str:
        return self.say("publish", "triage", str(self.rows_file), "--epsilon", str(epsilon), *words, code=code)


@pytest.fixture
def desk(make_home: MakeHome, task_file: Path, rows_file: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    home = make_home("alpha")
    add(home, str(task_file))
    return Desk(home, rows_file, capsys)


def test_a_new_node_has_spent_nothing(desk: Desk) -> None:
    assert desk.say("budget") == "Nothing was spent yet.\n"
    assert desk.json("budget") == []


def test_the_statement_says_what_was_spent_on_what_and_what_is_left(desk: Desk) -> None:
    desk.publish(0.5, "--part", "arrival=walk")
    desk.publish(1.0, "--part", "arrival=ambulance")
    (account,) = desk.json("budget", "--dataset", "default")
    assert account["cap_epsilon"] == 2.0
    assert account["spent_epsilon"] == pytest.approx(1.0, rel=1e-6)
    assert [one["part"] for one in account["releases"]] == ["arrival=walk", "arrival=ambulance"]
    assert [one["epsilon"] for one in account["releases"]] == [0.5, 1.0]
    assert [one["spent_epsilon_after"] for one in account["releases"]] == pytest.approx([0.5, 1.0], rel=1e-6)
    assert {one["task_name"] for one in account["releases"]} == {"triage"}
    assert {one["state"] for one in account["releases"]} == {"published"}
    lefts = {one["part"]: one["left_epsilon"] for one in account["parts"]}
    assert lefts["arrival=walk"] > lefts["arrival=ambulance"] == account["left_epsilon"]
    text = desk.say("budget")
    assert "dataset default: epsilon 1.000 of 2 spent" in text
    assert "part arrival=walk: 0.500 spent" in text
    assert desk.json("budget", "--dataset", "none such") == []


def test_parts_of_one_rule_live_side_by_side_and_each_replaces_itself(desk: Desk) -> None:
    for part in ("arrival=walk", "arrival=ambulance", "arrival=walk"):
        desk.publish(0.2, "--part", part)
    (task,) = desk.json("status")["tasks"]
    assert task["summaries"] == 2


def test_live_summaries_that_may_share_rows_are_refused_before_anything_is_charged(desk: Desk) -> None:
    desk.publish(0.2, "--part", "arrival=walk")
    before = desk.home.ledger().head()
    for words in ([], ["--part", "hash(age)=1/2"], ["--part", "outcome=1"]):
        assert "models would count its rows twice" in desk.publish(0.2, *words, code=2)
    assert desk.home.ledger().head() == before
    (record,) = (held.record for held in desk.home.store.held(kind=Kind.SUMMARY))
    desk.say("withdraw", record.id.hex()[:12])
    desk.publish(0.2)
    assert "models would count its rows twice" in desk.publish(0.2, "--part", "arrival=walk", code=2)
    desk.publish(0.2)


def test_a_dry_run_says_what_is_left_for_the_part(desk: Desk) -> None:
    desk.publish(1.5, "--part", "arrival=walk")
    walk = desk.json(
        "publish", "triage", str(desk.rows_file), "--epsilon", "1.5", "--dry-run", "--part", "arrival=walk"
    )
    other = desk.json(
        "publish", "triage", str(desk.rows_file), "--epsilon", "1.5", "--dry-run", "--part", "arrival=ambulance"
    )
    assert (walk["allowed"], other["allowed"]) == (False, True)
    assert other["left_epsilon"] == pytest.approx(2.0, abs=1e-3)
    assert other["rows"]["rows_outside_part"] == walk["rows"]["rows_used"] > 0


# --- raise ----------------------------------------------------------------------------------------------------


def test_a_raise_takes_the_typed_name_of_the_dataset(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.publish(2.0)
    assert "over the budget" in desk.publish(1.0, code=1)
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    assert "is not the name" in desk.say("budget", "raise", "--dataset", "default", "--to", "4", code=2)
    assert desk.json("budget")[0]["cap_epsilon"] == 2.0
    monkeypatch.setattr("sys.stdin", io.StringIO("default\n"))
    assert "is epsilon 4 now" in desk.say("budget", "raise", "--dataset", "default", "--to", "4")
    desk.publish(1.0)
    (account,) = desk.json("budget")
    assert account["cap_epsilon"] == 4.0
    (change,) = account["changes"]
    assert (change["what"], change["cap_epsilon"]) == ("raise", 4.0)


def test_a_script_confirms_a_raise_with_an_option(desk: Desk) -> None:
    desk.publish(1.0)
    assert "not the name" in desk.say(
        "budget", "raise", "--dataset", "default", "--to", "4", "--yes-i-mean", "Default", code=2
    )
    desk.say("budget", "raise", "--dataset", "default", "--to", "4", "--yes-i-mean", "default")
    assert desk.json("budget")[0]["cap_epsilon"] == 4.0
    assert desk.json("status")["notices"] == []


@pytest.mark.parametrize("wanted", ["1", "2", "nan", "-3", "101", "inf"])
def test_a_cap_is_never_lowered_and_never_absurd(desk: Desk, wanted: str) -> None:
    desk.publish(1.0)
    words = ["budget", "raise", "--dataset", "default", "--to", wanted, "--yes-i-mean", "default"]
    assert "never lowered" in desk.say(*words, code=1)
    assert desk.json("budget")[0]["cap_epsilon"] == 2.0


def test_a_raise_of_a_dataset_that_was_never_used_is_refused(desk: Desk) -> None:
    words = ["budget", "raise", "--dataset", "x", "--to", "9", "--yes-i-mean", "x"]
    assert "first publish" in desk.say(*words, code=1)


def test_a_raise_survives_reopening_and_is_in_the_history(tmp_path: Path) -> None:
    times = iter(range(100))
    ledger = Ledger(tmp_path / "ledger.db", clock=lambda: float(next(times)))
    ledger.reserve("d", TASK_ID, 1.0, DELTA, 1.5, default_cap_epsilon=3.0)
    with pytest.raises(BudgetError, match="over the budget"):
        ledger.reserve("d", TASK_ID, 1.4, DELTA, None, default_cap_epsilon=3.0)
    ledger.raise_cap("d", 2.5)
    ledger.reserve("d", TASK_ID, 1.4, DELTA, None, default_cap_epsilon=3.0)
    again = Ledger(tmp_path / "ledger.db")
    assert [(one.what, one.cap_epsilon) for one in again.history("d")] == [
        ("release", 1.5), ("raise", 2.5), ("release", 2.5)
    ]  # fmt: skip
    spent = [one.spent_epsilon for one in again.history("d")]
    assert spent[0] == spent[1] < spent[2] < 2.5


# --- plot, roll-back ------------------------------------------------------------------------------------------


def test_the_plot_is_a_picture(desk: Desk, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    desk.publish(0.5)
    desk.say("budget", "raise", "--dataset", "default", "--to", "3", "--yes-i-mean", "default")
    desk.publish(0.7)
    desk.say("budget", "--plot", str(tmp_path / "spent.png"))
    assert (tmp_path / "spent.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "no known ending" in desk.say("budget", "--plot", str(tmp_path / "spent.exe"), code=2)


def test_a_plot_of_nothing_is_refused(desk: Desk, tmp_path: Path) -> None:
    assert "nothing to plot" in desk.say("budget", "--plot", str(tmp_path / "spent.png"), code=2)


def test_accepting_a_rollback_on_the_command_line(desk: Desk, make_home: MakeHome) -> None:
    assert "no roll-back" in desk.say("budget", "accept-rollback")
    copy = copy_of(desk.home, "copy")
    desk.publish(0.5)
    hear(copy, own_records(desk.home))
    desk.home = copy
    assert "accept-rollback" in desk.publish(0.5, code=1)
    assert "WARNING  alpha: this node's privacy ledger is an old copy" in desk.say("status")
    assert "what was spent counts once it is" in desk.say("budget", "accept-rollback")
    assert "WARNING  alpha: this node's privacy ledger is an old copy" not in desk.say("status")
    desk.publish(0.5)
    (account,) = desk.json("budget")
    assert account["spent_epsilon"] > 0.7
    assert [one["what"] for one in account["changes"]] == ["rollback"]
