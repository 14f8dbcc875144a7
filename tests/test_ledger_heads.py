"""HEADs: what peers are told of a ledger, and how a ledger that was restored or copied is found out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from daemons import Node, eventually, in_an_event_loop, running
from disks import rolled_back
from second_routes import cost_of

from fusion.errors import BudgetError
from fusion.parts import Part
from fusion.task import Task
from node import budget, heads
from node.home import Home
from node.publish import Published, preview, publish, strays, withdraw
from node.records import Kind, Record
from node.status import notices, status
from node.tasks import add, find

DELTA = 1e-6
MakeHome = Callable[..., Home]


@pytest.fixture
def home(make_home: MakeHome, task_file: Path) -> Home:
    made = make_home("alpha")
    add(made, str(task_file))
    return made


def triage(home: Home) -> Task:
    return find(home, "triage")


def release(home: Home, rows_file: Path, epsilon: float = 0.5, **named: object) -> Published:
    settings = {"dataset": "default", "cap_epsilon": None} | named
    return publish(home, triage(home), [rows_file], epsilon=epsilon, **settings)  # type: ignore[arg-type]  # a test's shorthand


def copy_of(home: Home, name: str) -> Home:
    """The home as it was, on a disk that is rolled back to this moment."""
    target = home.path.parent / name
    shutil.copytree(home.path, target)
    return Home.open(rolled_back(target))


def hear(home: Home, records: Iterable[Record]) -> None:
    """What gossip does with valid records that arrive: keep them, or keep the proof that they clash."""
    for record in records:
        if home.store.get(record.id):
            continue
        where = record.header.incarnation, record.header.sequence
        mine = [held.record.header for held in home.store.held(origin=record.header.origin)]
        if where in [(header.incarnation, header.sequence) for header in mine]:
            home.store.add_conflict(record)
        else:
            home.store.add_record(record)


def own_records(home: Home) -> list[Record]:
    return [held.record for held in home.store.held(origin=home.me)]


def charged(home: Home) -> dict[bytes, tuple[int, ...]]:
    return {total.tag: total.charged for total in home.ledger().totals().datasets}


def reasons(home: Home) -> list[str]:
    return [notice["reason"] for notice in notices(home)]


# --- what is told ---------------------------------------------------------------------------------------------


def test_a_publish_tells_what_was_spent_before_the_summary_can_leave(home: Home, rows_file: Path) -> None:
    made = release(home, rows_file)
    (held,) = home.store.held(kind=Kind.HEAD)
    assert held.record.header.sequence < made.record.header.sequence
    (told,) = heads.own_heads(home).values()
    (total,) = told.head.datasets
    assert total.charged == (cost_of(0.5, DELTA),)
    assert (total.cap_epsilon, total.delta) == (2.0, DELTA)
    assert told.head.ledger_position == 3  # the dataset, the reservation, the bytes
    assert held.record.header.supersedes == b""


def test_heads_follow_one_another_and_state_the_records_before_them(home: Home, rows_file: Path) -> None:
    release(home, rows_file)
    release(home, rows_file)
    budget.raise_cap(home, "default", 5.0)
    first, second, third = (held.record for held in home.store.held(kind=Kind.HEAD))
    assert [record.header.supersedes for record in (first, second, third)] == [b"", first.id, second.id]
    told = heads.own_heads(home)[third.id]
    assert told.head.datasets[0].cap_epsilon == 5.0
    before = [record for record in own_records(home) if record.header.sequence <= told.head.highest_sequence]
    assert third.header.sequence == told.head.highest_sequence + 1
    assert len(before) == len(own_records(home)) - 1
    assert notices(home) == []


def test_no_name_of_a_dataset_or_part_is_in_a_head(home: Home, rows_file: Path) -> None:
    release(home, rows_file, dataset="psychiatry", part=Part.parse("arrival=walk"))
    (held,) = home.store.held(kind=Kind.HEAD)
    for word in (b"psychiatry", b"arrival", b"walk", b"triage"):
        assert word not in held.record.header_bytes


def test_two_nodes_use_different_tags_for_one_name(make_home: MakeHome, task_file: Path, rows_file: Path) -> None:
    tags = set()
    for name in ("alpha", "beta"):
        home = make_home(name)
        add(home, str(task_file))
        release(home, rows_file)
        tags |= charged(home).keys()
    assert len(tags) == 2


def test_charges_of_parts_are_told_added_up(home: Home, rows_file: Path) -> None:
    release(home, rows_file, part=Part.parse("arrival=walk"))
    release(home, rows_file, part=Part.parse("arrival=ambulance"))
    (total,) = charged(home).values()
    assert total == (2 * cost_of(0.5, DELTA),)
    assert home.ledger().statement()[0].spent_epsilon == pytest.approx(0.5, rel=1e-6)


# --- restored from an old copy --------------------------------------------------------------------------------


def test_a_restored_node_that_hears_its_own_head_releases_nothing(home: Home, rows_file: Path) -> None:
    restored = copy_of(home, "restored")
    release(home, rows_file)
    before = charged(restored)
    hear(restored, own_records(home))
    for action in (
        lambda: release(restored, rows_file),
        lambda: budget.raise_cap(restored, "default", 9.0),
    ):
        with pytest.raises(BudgetError, match=r"restored from an old copy or runs twice.*accept-rollback"):
            action()
    assert charged(restored) == before
    assert any("ledger is an old copy" in reason for reason in reasons(restored))


def test_accepting_a_rollback_burns_exactly_what_was_forgotten(home: Home, rows_file: Path) -> None:
    release(home, rows_file)
    restored = copy_of(home, "restored")
    for epsilon in (0.5, 0.25):
        release(home, rows_file, epsilon)
    hear(restored, own_records(home))
    (account,) = budget.accept_rollback(restored)
    assert account["dataset"] == "default"
    assert charged(restored) == charged(home)
    assert account["left_epsilon"] == home.ledger().statement()[0].left_epsilon
    assert budget.accept_rollback(restored) == []
    release(restored, rows_file, 0.25)
    assert reasons(restored) == ["its privacy ledger was restored from an old copy; what was spent since has been "
                                 "charged again"]  # fmt: skip


def test_records_made_after_a_rollback_never_share_a_sequence_with_those_before(home: Home, rows_file: Path) -> None:
    restored = copy_of(home, "restored")
    release(home, rows_file)
    hear(restored, own_records(home))
    budget.accept_rollback(restored)
    release(restored, rows_file)
    fresh = {record.id for record in own_records(restored)} - {record.id for record in own_records(home)}
    assert len(fresh) == 4  # the HEAD of the acceptance, the HEAD of the release, a new epoch, the release
    assert not {h.header.incarnation for h in own_records(home)} & {
        record.header.incarnation for record in own_records(restored) if record.id in fresh
    }


def test_a_rollback_with_parts_burns_the_sum_as_nobody_knows_the_parts(home: Home, rows_file: Path) -> None:
    release(home, rows_file, part=Part.parse("arrival=walk"))
    restored = copy_of(home, "restored")
    release(home, rows_file, part=Part.parse("arrival=ambulance"))
    hear(restored, own_records(home))
    budget.accept_rollback(restored)
    truth, known = home.ledger().statement()[0], restored.ledger().statement()[0]
    assert known.spent_epsilon > truth.spent_epsilon
    assert charged(restored) == charged(home)


def test_a_ledger_that_is_lost_altogether_is_rebuilt_from_what_peers_hold(home: Home, rows_file: Path) -> None:
    release(home, rows_file)
    release(home, rows_file, dataset="other", cap_epsilon=1.0)
    truth = home.ledger().statement()
    os.unlink(home.path / "ledger.db")
    with pytest.raises(BudgetError, match="accept-rollback"):
        release(home, rows_file)
    assert [account["dataset"] for account in budget.accept_rollback(home)] == [None, None]
    with pytest.raises(BudgetError, match="has a lifetime budget of epsilon 1"):
        release(home, rows_file, 0.1, dataset="other", cap_epsilon=50.0)
    with pytest.raises(BudgetError, match="over the budget"):
        release(home, rows_file, 0.9, dataset="other")
    release(home, rows_file, 0.1)
    release(home, rows_file, 0.1, dataset="other")
    for before, now in zip(truth, home.ledger().statement(), strict=True):
        assert (now.dataset, now.cap_epsilon) == (before.dataset, before.cap_epsilon)
        assert now.spent_epsilon > before.spent_epsilon


def test_a_dry_run_says_that_a_publish_would_be_refused_and_why(home: Home, rows_file: Path) -> None:
    release(home, rows_file)
    restored = copy_of(home, "restored")
    release(home, rows_file)
    seen = preview(restored, triage(restored), [rows_file], 0.25, "default", None)
    assert seen.describe().count("It would be allowed.") == 1
    hear(restored, own_records(home))
    for is_lost in (False, True):
        if is_lost:
            os.unlink(restored.path / "ledger.db")
        seen = preview(restored, triage(restored), [rows_file], 0.25, "default", None)
        assert seen.to_json()["allowed"] is False
        assert "It would be refused: peers hold a record signed by this node that its privacy" in seen.describe()
    assert not (restored.path / "ledger.db").exists()
    part = preview(home, triage(home), [rows_file], 0.25, "default", None, part=Part.parse("arrival=walk"))
    assert "It would be refused: Record " in part.describe()


def test_summaries_that_an_old_ledger_does_not_know_are_named_until_they_are_withdrawn(
    home: Home, rows_file: Path
) -> None:
    release(home, rows_file)
    restored = copy_of(home, "restored")
    stray = release(home, rows_file, 0.25).record
    hear(restored, own_records(home))
    budget.accept_rollback(restored)
    assert [one.id for one in strays(restored, restored.ledger())] == [stray.id]
    assert f"`tidings withdraw {stray.id.hex()[:12]}`" in release(restored, rows_file, 0.1).describe()
    withdraw(restored, stray.id.hex())
    assert strays(restored, restored.ledger()) == []
    assert release(restored, rows_file, 0.1).advice is None


def test_a_damaged_ledger_is_one_line_of_the_status_and_a_lost_one_is_not_made_anew(
    home: Home, rows_file: Path
) -> None:
    release(home, rows_file)
    ledger = home.path / "ledger.db"
    whole = ledger.read_bytes()
    ledger.write_bytes(bytes(len(whole)))
    state = status(home)
    assert (state["budget"], len(state["tasks"])) == ([], 1)
    assert [one for one in reasons(home) if "ledger" in one] == [
        f"the budget ledger {ledger} is damaged; nothing is released until it is restored"
    ]
    ledger.unlink()
    assert any("ledger is an old copy" in reason for reason in reasons(home))
    assert not ledger.exists()


def test_a_head_that_arrives_after_the_one_that_follows_it_was_accepted_is_settled(home: Home, rows_file: Path) -> None:
    restored = copy_of(home, "restored")
    release(home, rows_file)
    release(home, rows_file)
    early, late = (held.record for held in home.store.held(kind=Kind.HEAD))
    hear(restored, [late])
    budget.accept_rollback(restored)
    assert charged(restored) == charged(home)
    hear(restored, [early])
    release(restored, rows_file, 0.1)


# --- two copies in use ----------------------------------------------------------------------------------------


def both_release(home: Home, rows_file: Path) -> tuple[Home, Home]:
    release(home, rows_file)
    other = copy_of(home, "copy")
    release(home, rows_file)
    release(other, rows_file, 0.25)
    return home, other


def test_a_peer_sees_that_two_copies_of_a_home_have_released(home: Home, rows_file: Path, make_home: MakeHome) -> None:
    one, other = both_release(home, rows_file)
    peer = make_home("peer")
    hear(peer, own_records(one))
    assert reasons(peer) == []
    hear(peer, own_records(other))
    assert any("two copies of its home are in use" in reason for reason in reasons(peer))


def test_a_peer_sees_it_too_when_the_copies_number_their_records_apart(
    home: Home, rows_file: Path, make_home: MakeHome
) -> None:
    release(home, rows_file)
    other = copy_of(home, "copy")
    other.store.renew_incarnation()
    release(home, rows_file)
    release(other, rows_file)
    for first, second in ((home, other), (other, home)):  # whichever is heard first
        peer = make_home(f"peer of {first.path.name}")
        hear(peer, own_records(first))
        assert reasons(peer) == []
        hear(peer, own_records(second))
        assert reasons(peer) == ["its privacy ledger is in use in two copies, and its budget counts one of them only"]


def test_each_of_two_copies_that_hears_of_the_other_stops_and_can_accept(
    home: Home, rows_file: Path, make_home: MakeHome
) -> None:
    one, other = both_release(home, rows_file)
    hear(one, own_records(other))
    with pytest.raises(BudgetError, match="accept-rollback"):
        release(one, rows_file)
    budget.accept_rollback(one)
    (total,) = charged(one).values()
    assert total == (2 * cost_of(0.5, DELTA) + cost_of(0.25, DELTA),)
    release(one, rows_file, 0.1)

    hear(other, own_records(one))
    with pytest.raises(BudgetError, match="accept-rollback"):
        release(other, rows_file)
    budget.accept_rollback(other)
    (total_of_other,) = charged(other).values()
    assert total_of_other >= (total[0] + cost_of(0.1, DELTA),)


def test_peers_of_a_copied_node_are_content_once_it_has_accepted(
    home: Home, rows_file: Path, make_home: MakeHome
) -> None:
    release(home, rows_file)
    restored = copy_of(home, "restored")
    restored.store.renew_incarnation()
    release(home, rows_file)
    release(restored, rows_file, 0.25)  # it has not met anybody yet
    peer = make_home("peer")
    hear(peer, [*own_records(home), *own_records(restored)])
    assert any("in use in two copies" in reason for reason in reasons(peer))
    hear(restored, own_records(home))
    budget.accept_rollback(restored)
    hear(peer, own_records(restored))
    assert [reason.partition(";")[0] for reason in reasons(peer)] == [
        "its privacy ledger was restored from an old copy"
    ]


def test_a_head_that_forgets_spending_is_told(home: Home, rows_file: Path, make_home: MakeHome) -> None:
    """As somebody would who edits the code of the own node."""
    release(home, rows_file)
    (told,) = heads.own_heads(home).values()
    less = told.head.datasets[0].charged[0] - 1
    forged = type(told.head)(
        9, bytes(32), 2, bytes(32), (type(told.head.datasets[0])(told.head.datasets[0].tag, 2.0, DELTA, (less,)),)
    )
    home.author.head(forged, told.record.id)
    peer = make_home("peer")
    hear(peer, own_records(home))
    (reason,) = reasons(peer)
    assert "has forgotten spending" in reason


# --- over real links ------------------------------------------------------------------------------------------


@in_an_event_loop
async def test_peers_tell_a_restored_node_and_it_refuses_until_the_rollback_is_accepted(
    home: Home, make_home: MakeHome, rows_file: Path
) -> None:
    peer = make_home("peer")
    async with AsyncExitStack() as stack:
        b = await stack.enter_async_context(running(peer))
        async with running(home) as a:
            a.knows(b, dials=True)
            b.knows(a)
            await eventually(lambda: a.is_linked_with(b))
            await eventually(lambda: b.home.me in {member for member, _ in a.home.epochs.granted()})
            backup = copy_of(home, "backup")
            made = release(home, rows_file)
            await eventually(lambda: b.holds(made.record.id))
        backup.store.close()
        restored = Home.open(home.path.parent / "backup")
        async with running(restored) as again:
            again.knows(b, dials=True)
            await eventually(lambda: again.holds(made.record.id) and heads.is_behind(restored))
            assert restored.store.number_apart(restored.me) != made.record.header.incarnation
            with pytest.raises(BudgetError, match="accept-rollback"):
                release(restored, rows_file)
            budget.accept_rollback(restored)
            assert charged(restored) == charged(home)
            second = release(restored, rows_file)
            await eventually(lambda: b.holds(second.record.id))
            assert "charged again" in " ".join(reasons(peer))


@in_an_event_loop
async def test_a_peer_of_two_running_copies_says_so_in_its_status(
    home: Home, make_home: MakeHome, rows_file: Path
) -> None:
    peer = make_home("peer")
    other = copy_of(home, "copy")
    release(home, rows_file)
    release(other, rows_file)
    async with AsyncExitStack() as stack:
        b: Node = await stack.enter_async_context(running(peer))
        for copy in (home, other):
            a = await stack.enter_async_context(running(copy))
            b.knows(a)
            a.knows(b, dials=True)
            await eventually(lambda a=a: a.is_linked_with(b))  # type: ignore[misc]  # a bound loop variable
        await eventually(lambda: bool(status(peer)["notices"]))
        (notice,) = status(peer)["notices"]
        assert notice["origin"] == "alpha"
        assert "two copies" in notice["reason"]
