"""The budget ledger: spent before computing, never overspent, never refunded, and honest about damage."""

import math
import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from second_routes import cost_of

from fusion.accountants import COST_UNITS
from fusion.accounting import compose, epsilon_of, mu_of
from fusion.errors import BudgetError
from fusion.ledger import Ledger, Reservation

TASK_ID = bytes(range(32))
DELTA = 1e-5


def reserve(ledger: Ledger, epsilon: float, *, dataset: str = "default", cap: float | None = None) -> Reservation:
    return ledger.reserve(dataset, TASK_ID, epsilon, DELTA, cap, "heart", default_cap_epsilon=3.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def test_a_release_goes_from_reserved_to_ready_to_published(path: Path) -> None:
    ledger = Ledger(path, clock=lambda: 1234.5)
    reserved = reserve(ledger, 1.0)
    assert reserved.position == 2  # after the entry that opens the dataset
    assert ledger.unpublished() == []
    ledger.ready(reserved.release_id, b"noisy bytes")
    (ready,) = ledger.unpublished()
    assert (ready.release_id, ready.dataset, ready.task_id) == (reserved.release_id, "default", TASK_ID)
    assert ready.payload == b"noisy bytes"
    ledger.published(reserved.release_id, b"\x07" * 32)
    assert ledger.unpublished() == []
    (statement,) = ledger.statement()
    (entry,) = statement.entries
    assert (entry.state, entry.record_id, entry.note) == ("PUBLISHED", b"\x07" * 32, "heart")
    assert (entry.epsilon, entry.delta, entry.position, entry.created_s) == (1.0, DELTA, 2, 1234.5)


def test_everything_is_there_after_opening_the_file_again(path: Path) -> None:
    first = Ledger(path)
    reserved = reserve(first, 1.0)
    first.ready(reserved.release_id, b"noisy bytes")
    again = Ledger(path)
    assert again.head() == first.head() != bytes(32)
    assert again.statement() == first.statement()
    assert again.unpublished() == first.unpublished()


def test_the_whole_budget_can_be_spent_once_and_no_more(path: Path) -> None:
    ledger = Ledger(path)
    reserve(ledger, 3.0)
    assert ledger.statement()[0].left_epsilon == 0
    with pytest.raises(BudgetError, match=r'over the budget of dataset "default" .*nothing is left.*no data was read'):
        reserve(ledger, 0.01)


def test_releases_compose_as_gaussians_and_the_rest_can_be_spent(path: Path) -> None:
    ledger = Ledger(path)
    for _ in range(4):
        reserve(ledger, 0.5)
    (statement,) = ledger.statement()
    wanted = epsilon_of(compose([mu_of(0.5, DELTA)] * 4), DELTA)
    assert statement.spent_epsilon == pytest.approx(wanted, rel=1e-6)
    assert statement.spent_epsilon < 4 * 0.5  # composing is cheaper than adding up
    left = statement.left_epsilon
    with pytest.raises(BudgetError, match=f"at most {left:g} is left"):
        reserve(ledger, left + 0.01)
    reserve(ledger, left)
    assert ledger.statement()[0].spent_epsilon <= 3.0 + 1e-6


@settings(max_examples=20)
@given(wishes=st.lists(st.floats(0.05, 4), max_size=8), cap=st.floats(0.1, 5))
def test_no_sequence_of_wishes_spends_more_than_the_cap(
    wishes: list[float], cap: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("home") / "ledger.db")
    granted = []
    for epsilon in wishes:
        try:
            reserve(ledger, epsilon, cap=cap)
            granted.append(epsilon)
        except BudgetError:
            spent = sum(cost_of(one, DELTA) for one in granted)
            assert spent + cost_of(epsilon, DELTA) > cost_of(cap, DELTA)
    total_mu = compose(mu_of(epsilon, DELTA) for epsilon in granted)
    assert total_mu**2 <= mu_of(cap, DELTA) ** 2 + 1 / COST_UNITS
    assert [entry.epsilon for one in ledger.statement() for entry in one.entries] == granted


def test_the_cap_is_chosen_at_first_use_and_stays(path: Path) -> None:
    ledger = Ledger(path)
    reserve(ledger, 0.5, cap=1.0)
    reserve(ledger, 0.1)
    reserve(ledger, 0.1, cap=1.0)
    with pytest.raises(BudgetError, match="has a lifetime budget of epsilon 1, chosen at its first use"):
        reserve(ledger, 0.1, cap=5.0)
    assert ledger.statement()[0].cap_epsilon == 1.0


def test_datasets_have_budgets_of_their_own(path: Path) -> None:
    ledger = Ledger(path)
    reserve(ledger, 3.0, dataset="a")
    reserve(ledger, 3.0, dataset="b")
    assert [one.dataset for one in ledger.statement()] == ["a", "b"]
    assert [one.dataset for one in ledger.statement("b")] == ["b"]
    assert ledger.statement("c") == []


def test_a_dataset_stays_bound_to_its_unit_and_adjacency(path: Path) -> None:
    ledger = Ledger(path)
    reserve(ledger, 0.1)
    for other in ({"unit": "person"}, {"adjacency": "replace-one"}):
        with pytest.raises(BudgetError, match="a release in another unit needs a dataset of its own"):
            ledger.reserve("default", TASK_ID, 0.1, DELTA, None, default_cap_epsilon=3.0, **other)


def test_a_refused_first_use_leaves_no_trace(path: Path) -> None:
    ledger = Ledger(path)
    with pytest.raises(BudgetError, match="over the budget"):
        reserve(ledger, 2.0, cap=1.0)
    assert ledger.statement() == []
    assert ledger.head() == bytes(32)
    reserve(ledger, 2.0, cap=2.0)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, -math.inf, 20.1, 1e308])
def test_an_impossible_epsilon_is_refused(path: Path, epsilon: float) -> None:
    ledger = Ledger(path)
    with pytest.raises(BudgetError, match="epsilon must be over 0 and at most 20"):
        reserve(ledger, epsilon)
    with pytest.raises(BudgetError, match="must be over 0 and at most"):
        ledger.reserve("default", TASK_ID, 1.0, epsilon / 1e4, None, default_cap_epsilon=3.0)
    assert ledger.head() == bytes(32)


@pytest.mark.parametrize("cap", [0.0, -1.0, math.nan, math.inf, 100.5])
def test_an_impossible_cap_is_refused(path: Path, cap: float) -> None:
    with pytest.raises(BudgetError, match="the budget of a dataset must be over 0 and at most 100"):
        reserve(Ledger(path), 0.1, cap=cap)


@pytest.mark.parametrize("dataset", ["", "n" * 201, "a\nb", "\x1b[31m"])
def test_an_unprintable_dataset_name_is_refused(path: Path, dataset: str) -> None:
    with pytest.raises(BudgetError, match="a dataset is named with 1 to 200 printable characters"):
        reserve(Ledger(path), 0.1, dataset=dataset)


def test_steps_out_of_order_are_refused(path: Path) -> None:
    ledger = Ledger(path)
    with pytest.raises(BudgetError, match="is unknown and not RESERVED"):
        ledger.ready("f" * 32, b"x")
    reserved = reserve(ledger, 0.1)
    with pytest.raises(BudgetError, match="is RESERVED and not READY"):
        ledger.published(reserved.release_id, b"\x01" * 32)
    ledger.ready(reserved.release_id, b"x")
    with pytest.raises(BudgetError, match="is READY and not RESERVED"):
        ledger.ready(reserved.release_id, b"other noise for the same release")
    ledger.published(reserved.release_id, b"\x01" * 32)
    head = ledger.head()
    ledger.published(reserved.release_id, b"\x01" * 32)  # said again: nothing changes
    assert ledger.head() == head
    with pytest.raises(BudgetError, match="is PUBLISHED and not READY"):
        ledger.published(reserved.release_id, b"\x02" * 32)


# --- damage -------------------------------------------------------------------------------------------------


def tamper(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DROP TRIGGER entries_stay")
        database.execute("DROP TRIGGER entries_remain")
        for statement in statements:
            database.execute(statement)
    database.close()


def filled(path: Path) -> Ledger:
    ledger = Ledger(path)
    ledger.ready(reserve(ledger, 1.0).release_id, b"noisy bytes")
    reserve(ledger, 0.5)
    return ledger


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = replace(body, '\"epsilon\":1.0', '\"epsilon\":0.1') WHERE position = 2",
        "UPDATE entries SET body = replace(body, '\"cap_epsilon\":3.0', '\"cap_epsilon\":9.0') WHERE position = 1",
        "DELETE FROM entries WHERE position = 2",
        "UPDATE entries SET position = 9 WHERE position = 2",
        "UPDATE entries SET position = 9 WHERE position = 4",
        "UPDATE entries SET hash = zeroblob(32) WHERE position = 4",
    ],
)
def test_a_changed_or_removed_entry_stops_every_release(path: Path, statement: str) -> None:
    ledger = filled(path)
    tamper(path, statement)
    for use in (lambda: reserve(ledger, 0.1), ledger.statement, ledger.unpublished, lambda: Ledger(path)):
        with pytest.raises(BudgetError, match=r"was changed at entry \d; nothing is released until the original is"):
            use()


def test_changed_noisy_bytes_are_never_handed_out(path: Path) -> None:
    ledger = filled(path)
    tamper(path, "UPDATE payloads SET payload = x'00'")
    with pytest.raises(BudgetError, match="in the budget ledger are damaged"):
        ledger.unpublished()


def test_entries_cannot_be_changed_by_accident(path: Path) -> None:
    filled(path)
    database = sqlite3.connect(path)
    for statement in ("DELETE FROM entries", "UPDATE entries SET position = 9"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute(statement)
    database.close()


def test_a_file_that_is_no_ledger_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database at all, but long enough to be taken for one" * 40)
    with pytest.raises(BudgetError, match="is damaged; nothing is released until it is restored"):
        Ledger(path)


def test_a_ledger_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="cannot be opened; check its folder"):
        Ledger(tmp_path / "absent" / "ledger.db")


def test_the_file_is_for_its_owner_alone(path: Path) -> None:
    filled(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# --- crashes and races ----------------------------------------------------------------------------------------

CRASH = """
import os, signal, sys
from pathlib import Path
from fusion.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
reserved = ledger.reserve("default", bytes(32), 1.0, 1e-5, None, default_cap_epsilon=3.0)
if sys.argv[2] == "after ready":
    ledger.ready(reserved.release_id, b"noisy bytes")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("moment", "state"), [("after reserve", "RESERVED"), ("after ready", "READY")])
def test_a_killed_process_never_gets_its_budget_back(path: Path, moment: str, state: str) -> None:
    done = subprocess.run([sys.executable, "-c", CRASH, str(path), moment], check=False)
    assert done.returncode == -signal.SIGKILL
    ledger = Ledger(path)
    (statement,) = ledger.statement()
    assert [entry.state for entry in statement.entries] == [state]
    assert statement.spent_epsilon == pytest.approx(1.0, rel=1e-6)
    assert [ready.payload for ready in ledger.unpublished()] == ([b"noisy bytes"] if state == "READY" else [])


def test_a_process_killed_inside_a_transaction_leaves_the_ledger_as_it_was(path: Path) -> None:
    ledger = filled(path)
    before = ledger.head(), ledger.statement()
    code = (
        "import os, signal, sys; from pathlib import Path; from fusion import ledger as l\n"
        "ledger = l.Ledger(Path(sys.argv[1]))\n"
        "l.apply = lambda state, event: os.kill(os.getpid(), signal.SIGKILL)\n"
        "l.Ledger._replay = lambda self, database: l.State(chain=[bytes(32)] * 4)\n"
        "ledger.reserve('other', bytes(32), 1.0, 1e-5, None, default_cap_epsilon=3.0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (Ledger(path).head(), ledger.statement()) == before


def race(path: str, barrier: object, results: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]  # multiprocessing's types differ by start method
    try:
        reserve(Ledger(Path(path)), 2.5)
        results.put("granted")  # type: ignore[attr-defined]
    except BudgetError as error:
        results.put(str(error))  # type: ignore[attr-defined]


@pytest.mark.parametrize("existing", [True, False], ids=["old ledger", "new ledger"])
def test_of_processes_that_race_for_the_last_budget_exactly_one_wins(path: Path, existing: bool) -> None:
    if existing:
        reserve(Ledger(path), 1.0)
    racers = 4
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(racers), context.Queue()
    processes = [context.Process(target=race, args=(str(path), barrier, results)) for _ in range(racers)]
    for process in processes:
        process.start()
    outcomes = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert outcomes.count("granted") == 1
    assert sum("over the budget" in outcome for outcome in outcomes) == racers - 1
    assert len(Ledger(path).statement()[0].entries) == 1 + existing
    assert os.path.getsize(path) > 0
