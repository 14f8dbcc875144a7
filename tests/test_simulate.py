"""`tidings simulate`: what it shows, that a seed shows the same again, and what it refuses."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from node.__main__ import run
from node.errors import UsageError
from node.simulation.simulate import Plan, command, parse_bytes, parse_churn, simulate

SMALL = ("--nodes", "12", "--records", "3", "--body-size", "20kB")


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    """What the command prints as JSON."""
    assert run(["simulate", *words, "--json"], debug=True) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_it_needs_no_home_and_shows_times_bytes_and_the_command_for_the_same_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["--home", str(tmp_path / "none"), "simulate", *SMALL], debug=True) == 0
    text = capsys.readouterr().out
    for words in ("50 % of the nodes", "99 % of the nodes", "bytes sent per node", "body bytes sent / needed", "idle"):
        assert words in text
    assert "tidings simulate --nodes 12 --degree 4 --records 3 --body-size 20000 --seed 1" in text
    assert not (tmp_path / "none").exists()


def test_the_command_that_is_printed_shows_the_same_again(capsys: pytest.CaptureFixture[str]) -> None:
    foul = ("--loss", "0.1", "--latency", "80", "--bandwidth", "2Mbit/s", "--cut-every", "40", "--churn", "5,1")
    first = shown(capsys, *SMALL, *foul, "--partition", "1", "--seed", "7")
    again = shown(capsys, *str(first["command"]).split()[2:])
    assert {**first, "wall_s": 0} == {**again, "wall_s": 0}
    assert {**shown(capsys, *SMALL, *foul, "--partition", "1", "--seed", "8"), "wall_s": 0} != {**first, "wall_s": 0}


def test_in_fair_weather_each_body_is_sent_once_to_each_node_and_all_have_it_within_seconds() -> None:
    outcome = simulate(Plan(nodes=32, records=2, body_bytes=50_000), lambda at_s, share: None)
    assert outcome.is_complete
    assert outcome.redundancy == 1.0
    assert 0.0 < outcome.complete_at[0] <= outcome.complete_at[-1] < math.log2(32)
    assert sum(outcome.sent_bytes) > 31 * 2 * 50_000
    assert outcome.idle_bytes_per_link_hour is not None
    assert 0.0 < outcome.idle_bytes_per_link_hour < 60 * 100


def test_a_partition_holds_half_of_the_nodes_back_until_it_heals() -> None:
    outcome = simulate(Plan(nodes=10, records=1, body_bytes=1_000, partition_s=600.0), lambda at_s, share: None)
    assert outcome.complete_at[4] < 10.0
    assert 600.0 <= outcome.complete_at[5] <= outcome.complete_at[-1] < 1_000.0


def test_progress_tells_the_simulated_time_and_the_share_of_copies_in_place() -> None:
    told: list[tuple[float, float]] = []
    simulate(Plan(nodes=8, body_bytes=50_000, bandwidth=8_000.0), lambda at_s, share: told.append((at_s, share)))
    assert told == sorted(told)
    assert 0.0 < told[-1][1] < 1.0


def test_when_time_runs_out_it_says_who_has_everything_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", *SMALL, "--partition", "600", "--hours", "0.1"]
    assert run(words, debug=False) == 1
    text = capsys.readouterr().out
    assert "After 6.0 min only 0 of 12 nodes have everything" in text
    assert "--partition 600.0 --hours 0.1 --seed 1" in text


def test_it_draws_the_curve(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run(["simulate", *SMALL, "--plot", str(tmp_path / "plan.png")], debug=True) == 0
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_plot_is_refused_before_anything_is_computed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["simulate", "--nodes", "8192", "--records", "1", "--plot", str(tmp_path / "a.png")], debug=False) == 2
    assert "needs matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--nodes 1", "--nodes is from 2 to 8,192, not 1."),
        ("--nodes 100000", "--nodes is from 2 to 8,192, not 100,000."),
        ("--degree 0", "--degree is at least 1"),
        ("--records 0", "--records is at least 1, not 0."),
        ("--body-size 17MB", "--body-size is from 40 bytes to 16 MiB, not 17,000,000 bytes."),
        ("--body-size big", "--body-size 'big' is not a size"),
        ("--loss 30", "30 % is 0.3."),
        ("--loss nan", "--loss is the share of frames that vanish"),
        ("--latency -1", "--latency is from 0 to 60,000 ms"),
        ("--bandwidth slow", "--bandwidth 'slow' is not a rate"),
        ("--cut-every 0", "--cut-every is at least 1 second"),
        ("--partition -5", "--partition is a number of minutes"),
        ("--partition inf", "--partition is a number of minutes"),
        ("--churn 60", "--churn '60' is not two numbers of minutes"),
        ("--churn 0,1", "--churn is how long a node runs and rests"),
        ("--hours 0", "--hours is from 0.01 to 10,000"),
        ("--nodes 4096", "4,096 records of 7 chunks at 4,096 nodes are more than this machine should hold"),
        ("--plot curve.txt", "has no known ending"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", *words.split()], debug=False) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_sizes_and_times_are_read_as_people_write_them() -> None:
    assert [parse_bytes(text) for text in ("2000", "300kB", "1.5MB", "5 MB")] == [2_000, 300_000, 1_500_000, 5_000_000]
    assert parse_churn("60,10") == (3_600.0, 600.0)
    with pytest.raises(UsageError):
        parse_churn("60,")


def test_the_command_names_what_is_unusual_and_nothing_else() -> None:
    assert command(Plan()) == "tidings simulate --nodes 16 --degree 4 --records 16 --body-size 100000 --seed 1"
