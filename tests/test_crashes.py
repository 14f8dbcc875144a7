"""`kill -9` at every step of a release, and races for the last of the budget: real processes, the real command line."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crashing import STEPS, Killer
from second_routes import cost_of

from node.home import Home
from node.records import HeldState, Kind
from node.tasks import add

EPSILON = 0.25
DELTA = 1e-6
RESERVED = ("fusion.ledger:Ledger.reserve", 1, "after")
READY = STEPS.index(("fusion.ledger:Ledger.ready", 1, "after"))
PUBLISHED = STEPS.index(("fusion.ledger:Ledger.published", 1, "after"))
NAMES = [f"{target.partition(':')[2]} {call} {when}" for target, call, when in STEPS]


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as running:
        yield running


@pytest.fixture
def home(make_home: Callable[..., Home], task_file: Path) -> Home:
    made = make_home("alpha")
    add(made, str(task_file))
    made.store.close()
    return Home.open(made.path)


def words(home: Home, rows_file: Path) -> list[str]:
    return ["--home", str(home.path), "publish", "triage", str(rows_file), "--epsilon", str(EPSILON)]


def payloads(home: Home) -> dict[str, bytes]:
    """The noisy bytes of every release that came so far, as the ledger keeps them."""
    return {ready.release_id: ready.payload for ready in home.ledger().unpublished()}


def check_whole(path: Path) -> Home:
    """Store and ledger open clean, and what left was paid for and is told in a HEAD that came before it."""
    home = Home.open(path)
    ledger = home.ledger()
    entries = [entry for account in ledger.statement() for entry in account.entries]
    charged = sum(sum(total.charged) for total in ledger.totals().datasets)
    assert charged == len(entries) * cost_of(EPSILON, DELTA)
    summaries = home.store.held(kind=Kind.SUMMARY)
    heads = [held.record.header.sequence for held in home.store.held(kind=Kind.HEAD)]
    assert len(summaries) <= sum(entry.state in ("READY", "PUBLISHED") for entry in entries)
    for held in summaries:
        assert min(heads) < held.record.header.sequence
    assert sum(held.state is HeldState.COMPLETE for held in summaries) <= 1
    return home


def kill_and_resume(killer: Killer, home: Home, rows_file: Path, step: tuple[str, int, str]) -> None:
    spent_before = sum(sum(total.charged) for total in home.ledger().totals().datasets)
    assert killer.run(step, words(home, rows_file)).killed, step
    check_whole(home.path)
    waiting = payloads(home)
    spent_after = sum(sum(total.charged) for total in home.ledger().totals().datasets)
    is_reserved = STEPS.index(step) >= STEPS.index(RESERVED)  # from there on the rows may have been read
    assert spent_after - spent_before == is_reserved * cost_of(EPSILON, DELTA)
    assert bool(waiting) == (READY <= STEPS.index(step) < PUBLISHED)

    again = killer.run(None, words(home, rows_file))
    assert again.exit_code == 0
    resumed = check_whole(home.path)
    assert resumed.ledger().unpublished() == []
    sent = {entry.release_id: entry.record_id for account in resumed.ledger().statement() for entry in account.entries}
    for release_id, payload in waiting.items():  # the very bytes, never noised again
        record_id = sent[release_id]
        assert record_id is not None
        held = resumed.store.get(record_id)
        assert held is not None
        assert resumed.store.record_of_note(release_id) == record_id
        if held.state is HeldState.COMPLETE:
            assert resumed.epochs.open(held) == payload


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_a_release_killed_at_any_step_is_paid_for_once_and_resumed_with_the_same_bytes(
    step: tuple[str, int, str], killer: Killer, home: Home, rows_file: Path
) -> None:
    kill_and_resume(killer, home, rows_file, step)


def test_bytes_that_were_ready_go_out_as_they_are_after_the_kill(killer: Killer, home: Home, rows_file: Path) -> None:
    assert killer.run(("fusion.ledger:Ledger.ready", 1, "after"), words(home, rows_file)).killed
    ((release_id, payload),) = payloads(home).items()
    # The resumed publish is killed too, right after it sent the old bytes: so these are still the live record.
    assert killer.run(("fusion.ledger:Ledger.published", 1, "after"), words(home, rows_file)).killed
    resumed = Home.open(home.path)
    (held,) = resumed.store.held(kind=Kind.SUMMARY)
    assert resumed.store.record_of_note(release_id) == held.record.id
    assert resumed.epochs.open(held) == payload


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_hundreds_of_kills_in_a_row_on_one_home_never_lose_a_charge(
    killer: Killer, home: Home, rows_file: Path, tmp_path: Path
) -> None:
    rng = random.Random(7)  # noqa: S311 - chooses steps
    fresh = tmp_path / "fresh"
    shutil.copytree(home.path, fresh)
    for kill in range(240):
        if kill % 12 == 0:  # the cap of the dataset holds some 60 releases: start from a new home
            shutil.rmtree(home.path)
            shutil.copytree(fresh, home.path)
            home = Home.open(home.path)
        kill_and_resume(killer, home, rows_file, rng.choice(STEPS))


def test_of_two_commands_that_race_for_the_last_of_the_budget_exactly_one_publishes(
    home: Home, rows_file: Path
) -> None:
    command = [sys.executable, "-m", "node", "--home", str(home.path), "publish", "triage", str(rows_file)]
    racers = [
        subprocess.Popen([*command, "--epsilon", "1.5"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    complaints = [racer.communicate(timeout=120)[1] for racer in racers]
    assert sorted(racer.returncode for racer in racers) == [0, 1]
    (complaint,) = (text for text in complaints if "Error" in text)
    assert "over the budget" in complaint
    (account,) = home.ledger().statement()
    assert len(account.entries) == 1
    assert len(home.store.held(kind=Kind.SUMMARY)) == 1
