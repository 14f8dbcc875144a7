"""Quotas per origin: what one member may fill, that its withdrawals get through, and that nobody is blamed for it.

The rules alone, then the gossip core in the simulator, then bundles, and `status` of a real daemon.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from daemons import eventually, in_an_event_loop, running
from hypothesis import given
from hypothesis import strategies as st

from crypto.keys import Identity
from crypto.sealing import new_epoch_key
from node.author import EpochKey
from node.bundle_export import export_bundle
from node.bundle_import import import_bundle
from node.config import QUOTA_BODY_BYTES, QUOTA_BODY_BYTES_A_DAY
from node.errors import HomeError
from node.gossip.core import Gossip
from node.gossip.quotas import DAY_S, MAX_WAITING, REOPEN_SHARE, Quotas, Sort, of_store, quota, sort_of, words
from node.home import Home
from node.membership import add_peer
from node.records import Held, HeldState, Kind, Record
from node.simulation.network import line
from node.simulation.simulator import FAST, Swarm, settled_ids
from node.simulation.store import author_record
from node.status import status

MakeHome = Callable[..., Home]
ME, ORIGIN, OTHER = (Identity.from_seed(bytes([number]) * 32) for number in range(3))
TINY = 0.001
"""So many times the usual quotas: 20 records with a body, 10 of them a day; 0.5 MB of bodies a day."""
A_DAY = round(quota(0, Sort.BODY, times=TINY).records_a_day)
IN_ALL = round(quota(0, Sort.BODY, times=TINY).records)


def summary(sequence: int, size: int = 100, by: Identity = ORIGIN) -> Record:
    return author_record(by, sequence, bytes(size))


def fill(quotas: Quotas, count: int, now: float, first: int = 1, size: int = 100) -> list[bool]:
    """What becomes of so many new records, one after the other."""
    admitted = []
    for sequence in range(first, first + count):
        record = summary(sequence, size)
        admitted.append(quotas.admits(ORIGIN.public_key.raw, record.id, Sort.BODY, now))
        if admitted[-1]:
            quotas.add(record, now)
    return admitted


# ------------------------------------------------------------------------------------------------------------ the rules


def test_the_formula_is_generous_and_grows_with_the_members_where_grants_do() -> None:
    assert quota(0, Sort.BODY) == quota(10_000, Sort.BODY)
    small, large = quota(0, Sort.NOTE), quota(10_000, Sort.NOTE)
    assert large.records_a_day - small.records_a_day >= 10_000  # a new epoch a day, granted to everybody
    for size in (quota(0, Sort.BODY).bytes, quota(0, Sort.BODY).bytes_a_day):
        assert size > QUOTA_BODY_BYTES_A_DAY
    assert quota(0, Sort.BODY).bytes > QUOTA_BODY_BYTES
    assert quota(3, Sort.NOTE, times=2).records == 2 * quota(3, Sort.NOTE).records


def test_a_day_is_used_up_and_grows_back_an_hour_at_a_time() -> None:
    quotas = Quotas(ME.public_key.raw, TINY)
    assert fill(quotas, A_DAY + 3, 0.0) == [True] * A_DAY + [False] * 3
    assert quotas.waiting() == {ORIGIN.public_key.raw: 3}
    assert not quotas.reopened(DAY_S * REOPEN_SHARE - 60)
    opens_at = quotas.deadline()
    assert DAY_S * REOPEN_SHARE <= opens_at <= DAY_S * REOPEN_SHARE + 60
    assert quotas.reopened(opens_at)
    assert quotas.waiting() == {}
    assert quotas.deadline() == float("inf")
    assert fill(quotas, 3, opens_at, first=100)[0]


def test_what_is_here_in_all_is_bounded_and_a_body_taken_back_makes_room() -> None:
    quotas = Quotas(ME.public_key.raw, TINY)
    size = int(quota(0, Sort.BODY, times=TINY).bytes) // 3
    kept = []
    for day in range(20):
        now = day * DAY_S
        record = summary(day + 1, size)
        if quotas.admits(ORIGIN.public_key.raw, record.id, Sort.BODY, now):
            quotas.add(record, now)
            kept.append(record)
    assert len(kept) in (3, 4)  # the last one may exceed what is left
    assert quotas.deadline() == float("inf")  # no time makes room
    quotas.buried(kept[0])
    quotas.buried(kept[1])
    assert quotas.reopened(20 * DAY_S)


def test_what_is_vital_comes_whatever_else_was_used_up() -> None:
    bodies = {Kind.TASK, Kind.SUMMARY, Kind.MODEL}
    of_their_own = dict.fromkeys(("key-card", "key-grant", "head"), Sort.NOTE)
    of_their_own |= {"withdrawal": Sort.WITHDRAWAL, "revoke": Sort.REVOKE, "succession": Sort.SUCCESSION}
    assert {sort_of(kind, 1) for kind in Kind} == {Sort.BODY}
    assert {kind: sort_of(kind, 0) for kind in Kind if kind not in bodies} == {
        kind: of_their_own.get(kind.label, Sort.VITAL) for kind in Kind if kind not in bodies
    }
    assert sort_of(77, 0) is Sort.VITAL  # a kind of a later version


def test_withdrawals_have_an_account_of_their_own() -> None:
    quotas = Quotas(ME.public_key.raw, TINY)
    fill(quotas, A_DAY + 1, 0.0)
    origin = ORIGIN.public_key.raw
    assert not quotas.admits(origin, bytes(32), Sort.BODY, 0.0)
    light = 0
    for sequence in range(1_000, 2_000):
        withdrawal = author_record(ORIGIN, sequence, supersedes=os.urandom(32))
        if not quotas.admits(origin, withdrawal.id, Sort.WITHDRAWAL, 0.0):
            break
        quotas.add(withdrawal, 0.0)
        light += 1
    assert light == A_DAY
    for sort in (Sort.NOTE, Sort.VITAL):
        assert quotas.admits(origin, bytes(32), sort, 0.0)
    assert quotas.admits(OTHER.public_key.raw, bytes(32), Sort.BODY, 0.0)


def test_this_nodes_own_records_have_no_quota() -> None:
    quotas = Quotas(ORIGIN.public_key.raw, TINY)
    assert all(fill(quotas, 5 * IN_ALL, 0.0))


def test_a_body_of_any_size_gets_through_some_day() -> None:
    quotas = Quotas(ME.public_key.raw, TINY)
    assert fill(quotas, 2, 0.0, size=5_000_000) == [True, False]


@given(st.lists(st.tuples(st.floats(0, 2 * DAY_S), st.integers(40, 200_000)), max_size=60))
def test_no_day_brings_more_than_two_days_shares_and_one_record(arrivals: list[tuple[float, int]]) -> None:
    """A bucket that is full at the start of a day lets its content through, and what grows back."""
    quotas, of = Quotas(ME.public_key.raw, TINY), quota(0, Sort.BODY, times=TINY)
    now, kept = 0.0, []
    for sequence, (pause, size) in enumerate(arrivals, 1):
        now += pause
        record = summary(sequence, size)
        if quotas.admits(ORIGIN.public_key.raw, record.id, Sort.BODY, now):
            quotas.add(record, now)
            kept.append((now, size + len(record.header_bytes)))
    for start, _ in kept:
        sizes = [size for at, size in kept if start <= at < start + DAY_S]
        assert len(sizes) <= 2 * of.records_a_day + 1
        assert sum(sizes) <= 2 * of.bytes_a_day + max(sizes)


@pytest.mark.parametrize("jump_s", [0.0, 10 * 365 * DAY_S, -10 * 365 * DAY_S, float(2**62)])
def test_no_clock_shuts_anybody_out(jump_s: float) -> None:
    """A node starts with a day's worth of fresh records and a clock that jumped: a day later there is room."""
    began = 1_000_000_000.0
    held = [Held(summary(number), HeldState.COMPLETE, began) for number in range(1, A_DAY + 1)]
    quotas = of_store(ME.public_key.raw, 3, held, began + jump_s, TINY)
    is_open = quotas.admits(ORIGIN.public_key.raw, bytes(32), Sort.BODY, 0.0)
    assert is_open == (jump_s != 0.0)
    assert quotas.admits(ORIGIN.public_key.raw, bytes(32), Sort.BODY, DAY_S)


def test_restarts_do_not_bring_a_new_day() -> None:
    held = [Held(summary(number), HeldState.COMPLETE, 0.0) for number in range(1, A_DAY + 2)]
    assert not of_store(ME.public_key.raw, 3, held, 60.0, TINY).admits(ORIGIN.public_key.raw, bytes(32), Sort.BODY, 0.0)
    assert of_store(ME.public_key.raw, 3, held, DAY_S / 2, TINY).admits(
        ORIGIN.public_key.raw, bytes(32), Sort.BODY, 0.0
    )


def test_what_waits_is_counted_up_to_a_bound() -> None:
    quotas = Quotas(ME.public_key.raw, TINY)
    fill(quotas, A_DAY + MAX_WAITING + 100, 0.0)
    assert quotas.waiting() == {ORIGIN.public_key.raw: MAX_WAITING}
    assert words(1) == "it is over its quota here: 1 record waits until there is room"
    assert "1,024 or more records wait" in words(MAX_WAITING)


# ------------------------------------------------------------------------------------------------------------ in gossip


def small_swarm(seed: int, n: int = 4) -> Swarm:
    """A line of nodes, so that relays bring what is over a quota; node 0 is at one end."""
    swarm = Swarm(seed, n, line(n), settings=replace(FAST, quotas=TINY))
    swarm.start()
    swarm.run(30)
    return swarm


def test_a_member_that_publishes_without_end_fills_no_more_than_its_quota_and_no_relay_is_blamed() -> None:
    swarm = small_swarm(1)
    for _ in range(4 * A_DAY):
        swarm.nodes[0].publish(bytes(6_000), chunk_bytes=1_024)
        swarm.run(1)
    swarm.run(120)
    for node in swarm.nodes[1:]:
        assert A_DAY <= len(node.store.held()) <= A_DAY + 1  # a little grew back meanwhile
        assert not node.alarms
        assert all(core_of(node)._links.kept_out_s(other.key, swarm.now) <= 0 for other in swarm.nodes)
    assert core_of(swarm.nodes[1]).over_quota()[swarm.nodes[0].key.raw] > 0


def core_of(node: object) -> Gossip:
    return node.core  # type: ignore[attr-defined,no-any-return]


def test_its_withdrawals_get_through_meanwhile_and_others_are_not_held_up() -> None:
    swarm = small_swarm(2)
    published = [swarm.nodes[0].publish(bytes(6_000), chunk_bytes=1_024) for _ in range(3 * A_DAY)]
    swarm.run(120)
    last = swarm.nodes[-1].store
    first_kept = next(record for record in published if last.get(record.id) is not None)
    withdrawal = swarm.nodes[0].publish(supersedes=first_kept.id)
    other = swarm.nodes[2].publish(bytes(6_000), chunk_bytes=1_024)
    swarm.run(60)
    for node in swarm.nodes:
        assert node.store.get(withdrawal.id) is not None
        assert settled_ids(node) >= {withdrawal.id, other.id}
        buried = node.store.get(first_kept.id)
        assert buried is None or buried.state is HeldState.BURIED


def test_what_waits_comes_when_there_is_room_and_costs_little_meanwhile() -> None:
    swarm = small_swarm(3, n=2)
    for _ in range(2 * A_DAY):
        swarm.nodes[0].publish(bytes(6_000), chunk_bytes=1_024)
    swarm.run(300)
    assert len(swarm.nodes[1].store.held()) == A_DAY
    sent_before = sum(node.sent_bytes for node in swarm.nodes)
    swarm.run(3_000)  # less than the hour in which something grows back
    idle_bytes = sum(node.sent_bytes for node in swarm.nodes) - sent_before
    assert idle_bytes / (3_000 / 7.5) < 2_000  # a round of anti-entropy, and a comparison now and then
    swarm.run(DAY_S)
    assert len(swarm.nodes[1].store.held()) == 2 * A_DAY
    assert core_of(swarm.nodes[1]).over_quota() == {}
    assert settled_ids(swarm.nodes[0]) == settled_ids(swarm.nodes[1])


def test_a_restart_in_the_middle_leaves_the_quota_as_it_is() -> None:
    swarm = small_swarm(4, n=2)
    for _ in range(2 * A_DAY):
        swarm.nodes[0].publish(bytes(6_000), chunk_bytes=1_024)
    swarm.run(60)
    swarm.nodes[1].stop()
    swarm.nodes[1].start()
    swarm.run(120)
    assert len(swarm.nodes[1].store.held()) == A_DAY


# ------------------------------------------------------------------------------------------- bundles, and what is said


def with_quotas(home: Home, times: float) -> Home:
    """The home with the multiple in its node.json."""
    path = home.path / "node.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quotas": times}))
    return Home.open(home.path)


def publishing(make_home: MakeHome, reader: Home, count: int) -> Home:
    """A member of `reader` with so many summaries."""
    writer = make_home("writer")
    add_peer(reader, writer.me.text, "writer", None, query_only=False)
    for _ in range(count):
        writer.author.sealed(Kind.SUMMARY, os.urandom(32), os.urandom(5_000), EpochKey(1, new_epoch_key()))
    return writer


def test_a_bundle_brings_no_more_than_a_quota_and_says_so(make_home: MakeHome, tmp_path: Path) -> None:
    reader = make_home("reader")
    writer = publishing(make_home, reader, A_DAY + 5)
    export_bundle(writer, tmp_path / "news.bundle")
    reader = with_quotas(reader, TINY)
    imported = import_bundle(reader, tmp_path / "news.bundle")
    assert len(reader.store.held(kind=Kind.SUMMARY)) == A_DAY
    assert imported.over_quota == 5
    assert not imported.is_complete
    assert any("5 records of origins over their quotas" in line for line in imported.warnings())
    again = import_bundle(with_quotas(reader, 1.0), tmp_path / "news.bundle")
    assert again.is_complete
    assert len(reader.store.held(kind=Kind.SUMMARY)) == A_DAY + 5


@pytest.mark.parametrize("nonsense", [0, -1, "many", None, float("inf")])
def test_a_multiple_that_makes_no_sense_is_refused(make_home: MakeHome, nonsense: object) -> None:
    home = make_home("a")
    with pytest.raises(HomeError, match=r"node\.json cannot be used: quotas"):
        with_quotas(home, nonsense)  # type: ignore[arg-type]


@in_an_event_loop
async def test_status_says_whose_records_wait(make_home: MakeHome) -> None:
    reader = with_quotas(make_home("reader"), TINY)
    writer = publishing(make_home, reader, A_DAY + 5)
    add_peer(writer, reader.me.text, "reader", None, query_only=False)
    async with running(reader) as a, running(writer) as b:
        b.knows(a, dials=True)
        await eventually(
            lambda: any("over its quota here: 5 records wait" in one["reason"] for one in status(a.home)["notices"])
        )
        assert a.is_linked_with(b)
        assert len(a.home.store.held(kind=Kind.SUMMARY)) == A_DAY
