"""Gossip: what the core decides, event by event, and what it does with peers that lie, stall or flood."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.keys import Identity
from crypto.sealing import chunk_hashes
from node import wire
from node.config import CHUNK_BYTES, MAX_ADVERTS, PROTOCOL_VERSION, GossipSettings
from node.frames import (
    Advert,
    Announce,
    Bye,
    Chunk,
    Digest,
    Frame,
    Hello,
    Ids,
    Missing,
    Origins,
    OriginVector,
    Records,
    SignedRecord,
    Vector,
    Want,
    WantChunks,
)
from node.gossip.compare import RANGES_PER_ENTRY
from node.gossip.core import Gossip
from node.gossip.events import (
    Action,
    Alarm,
    BadFrame,
    Close,
    Dial,
    DialFailed,
    Disk,
    DiskChanged,
    Event,
    FrameIn,
    Keep,
    KeepChunk,
    LinkDown,
    LinkState,
    LinkUp,
    Offence,
    PeersChanged,
    RecordAdded,
    Report,
    Send,
    SendChunk,
    SendRecords,
    Struck,
    Tick,
)
from node.records import Header, Held, HeldState, Kind, Record
from node.simulation.network import seeded
from node.simulation.store import MemoryStore, author_record
from tests.test_wire import FRAMES

ME, ALICE, BOB, CAROL, EVE = sorted(
    (Identity.from_seed(bytes([number]) * 32) for number in range(5)), key=lambda identity: identity.public_key
)
"""In order of their keys: of two links dialed at once, the one that ME dialed stays."""

PEERS = (ALICE, BOB, CAROL)
LARGE = seeded(1).randbytes(40_000)
SMALL = seeded(2).randbytes(3_000)
KB = 1_024

_F = TypeVar("_F", bound=Frame)
_A = TypeVar("_A", bound=Action)


class Rig:
    """One core with a store in memory, and the test in the place of its peers."""

    def __init__(
        self,
        *,
        settings: GossipSettings | None = None,
        held: Iterable[Held] = (),
        me: Identity = ME,
        store: bytes = b"my-store",
    ) -> None:
        self.settings = settings or GossipSettings(chunk_window=8)
        self.core = Gossip(self.settings, seeded(7), me.public_key, store, held)
        self.store = MemoryStore()
        self.now = 0.0
        self.links = 0
        self.actions: list[Action] = []
        for known in held:
            self.store.add_record(known.record)

    def tell(self, event: Event) -> list[Action]:
        """Hand over an event, keep what is to be kept, return the actions."""
        self.actions = self.core.handle(event, self.now)
        for action in self.actions:
            if isinstance(action, Keep):
                self.store.add_record(action.record)
            elif isinstance(action, KeepChunk):
                self.store.add_chunk(action.record_id, action.index, action.data)
        return self.actions

    def members(self, *identities: Identity, address: str | None = None) -> list[Action]:
        return self.tell(PeersChanged({identity.public_key: (address,) if address else () for identity in identities}))

    def link(self, peer: Identity, *, dialed_by_us: bool = False, hello: bool = True) -> int:
        """Bring a link up, with the peer's Hello."""
        self.links += 1
        self.tell(LinkUp(self.links, peer.public_key, dialed_by_us))
        if hello:
            self.say(self.links, Hello(PROTOCOL_VERSION, peer.public_key.raw[:8]))
        return self.links

    def say(self, link: int, frame: Frame) -> list[Action]:
        return self.tell(FrameIn(link, frame))

    def wait(self, seconds: float) -> list[Action]:
        """Let time pass, with the ticks that the core asks for."""
        end, actions = self.now + seconds, []
        while (deadline := self.core.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            actions += self.tell(Tick())
        self.now = end
        return actions

    def announce(self, link: int, *records: Record) -> list[Action]:
        return self.say(link, Announce(tuple(map(advert_of, records))))

    def deliver(self, link: int, *records: Record, body: bytes = b"") -> list[Action]:
        return self.say(link, Records(tuple(SignedRecord(r.header_bytes, r.signature, body) for r in records)))

    def chunk(self, link: int, record: Record, body: bytes, index: int) -> list[Action]:
        size = record.header.chunk_bytes
        return self.say(link, Chunk(record.id, index, body[index * size : (index + 1) * size]))

    def author(self, record: Record, body: bytes = b"") -> list[Action]:
        return self.tell(RecordAdded(whole(record, body)))

    def root(self) -> bytes:
        return self.core._holdings.index.root()


def whole(record: Record, body: bytes = b"") -> Held:
    """The record as a store that has all of it would tell it."""
    assert len(body) == record.header.body_bytes
    return Held(record, HeldState.COMPLETE, 0.0)


def advert_of(record: Record) -> Advert:
    header = record.header
    return Advert(record.id, header.kind, header.origin.raw, header.body_bytes)


def frames(actions: Iterable[Action], kind: type[_F], link: int | None = None) -> list[_F]:
    """The frames of one kind that are sent, on one link or any."""
    sent = [action for action in actions if isinstance(action, Send) and link in (None, action.link)]
    return [action.frame for action in sent if isinstance(action.frame, kind)]


def of(actions: Iterable[Action], kind: type[_A]) -> list[_A]:
    return [action for action in actions if isinstance(action, kind)]


def linked(*, count: int = 2, **more: object) -> Rig:
    """A core with this many links, numbered from 1, to ALICE, BOB and CAROL in turn; all of them are members."""
    rig = Rig(**more)  # type: ignore[arg-type]
    rig.members(*PEERS)
    for peer in PEERS[:count]:
        rig.link(peer)
    return rig


def summary(sequence: int = 1, body: bytes = LARGE, by: Identity = CAROL) -> Record:
    """A summary in chunks of 1 kB."""
    return author_record(by, sequence, body, chunk_bytes=KB)


def withdrawal(of_record: Record, sequence: int = 50, by: Identity = CAROL) -> Record:
    return author_record(by, sequence, supersedes=of_record.id)


# ------------------------------------------------------------------------------------------------- members and links


def test_a_member_with_an_address_is_dialed_and_one_without_is_waited_for() -> None:
    rig = Rig()
    actions = rig.tell(PeersChanged({ALICE.public_key: ("alice:1",), BOB.public_key: ()}))
    assert of(actions, Dial) == [Dial(ALICE.public_key, "alice:1")]
    states = {report.peer: report.state for report in of(actions, Report)}
    assert states == {ALICE.public_key: LinkState.CONNECTING}


def test_a_silent_peer_is_dialed_for_ever_with_full_jitter_between_0_and_60_s() -> None:
    rig = Rig()
    rig.members(ALICE, address="alice:1")
    waits = []
    for _ in range(200):
        failed_at = rig.now
        report = of(rig.tell(DialFailed(ALICE.public_key, "no answer")), Report)[0]
        assert report.state is LinkState.UNREACHABLE
        assert report.reason == "no answer"
        assert report.retry_at == rig.core.next_deadline()
        while not of(rig.actions, Dial):
            deadline = rig.core.next_deadline()
            assert deadline is not None
            rig.now = deadline
            rig.tell(Tick())
        waits.append(rig.now - failed_at)
    assert all(wait <= min(60.0, 2.0**tries) for tries, wait in enumerate(waits))
    late = waits[20:]
    assert max(late) > 50
    assert min(late) < 6
    assert 26 < sum(late) / len(late) < 34


def test_no_second_dial_starts_before_the_first_is_answered() -> None:
    rig = Rig()
    rig.members(ALICE, address="alice:1")
    assert of(rig.wait(3_600), Dial) == []


def test_a_new_address_is_tried_at_once() -> None:
    rig = Rig()
    rig.members(ALICE, address="alice:1")
    for _ in range(10):
        rig.tell(DialFailed(ALICE.public_key, "no answer"))
    assert of(rig.members(ALICE, address="alice:2"), Dial) == [Dial(ALICE.public_key, "alice:2")]


def test_a_new_address_is_tried_at_once_while_a_dial_waits_at_the_old_one() -> None:
    rig = Rig()
    rig.members(ALICE, address="alice:1")
    assert of(rig.members(ALICE, address="alice:2"), Dial) == [Dial(ALICE.public_key, "alice:2")]


def test_changed_addresses_leave_a_live_link_alone() -> None:
    rig = Rig()
    rig.members(ALICE, address="alice:1")
    rig.link(ALICE, dialed_by_us=True)
    actions = rig.members(ALICE, address="alice:2") + rig.wait(600.0)
    assert of(actions, Dial) == []
    assert of(actions, Close) == []


def test_every_address_is_tried_before_the_next_wait() -> None:
    rig = Rig()
    addresses = ("a:1", "b:2", "c:3")
    rig.tell(PeersChanged({ALICE.public_key: addresses}))
    for _ in range(30):
        for address in addresses[1:]:
            assert of(rig.tell(DialFailed(ALICE.public_key, "no answer")), Dial) == [Dial(ALICE.public_key, address)]
        assert of(rig.tell(DialFailed(ALICE.public_key, "no answer")), Dial) == []
        assert of(rig.wait(60.0), Dial) == [Dial(ALICE.public_key, "a:1")]


def test_addresses_are_tried_in_turn_until_one_answers_and_that_one_is_tried_first_from_then_on() -> None:
    rig = Rig()
    tried = of(rig.tell(PeersChanged({ALICE.public_key: ("a:1", "b:2", "c:3")})), Dial)
    for _ in range(4):
        rig.tell(DialFailed(ALICE.public_key, "no answer"))
        tried += of(rig.actions, Dial) or of(rig.wait(300.0), Dial)
    assert [dial.address for dial in tried] == ["a:1", "b:2", "c:3", "a:1", "b:2"]
    link = rig.link(ALICE, dialed_by_us=True)
    rig.tell(LinkDown(link, "cut"))
    assert [dial.address for dial in of(rig.wait(300.0), Dial)] == ["b:2"]


def test_a_peer_that_hangs_up_at_once_is_not_dialed_every_second() -> None:
    rig = Rig()
    rig.members(ALICE, address="alice:1")
    dials = 1
    while rig.now < 3_600:
        rig.tell(LinkDown(rig.link(ALICE, dialed_by_us=True), "closed by the other side"))
        while not of(rig.actions, Dial):
            rig.now = rig.core.next_deadline() or rig.now
            rig.tell(Tick())
        dials += 1
    assert dials < 180, "a minute's cap: every 30 s on average"


def test_who_refuses_us_is_reported_as_such_and_dialed_again() -> None:
    rig = Rig()
    rig.members(ALICE, address="alice:1")
    report = of(rig.tell(DialFailed(ALICE.public_key, "it has not added this node's key", is_refusal=True)), Report)[0]
    assert (report.state, report.reason) == (LinkState.REFUSED, "it has not added this node's key")
    assert of(rig.wait(60.0), Dial) == [Dial(ALICE.public_key, "alice:1")]


def test_a_dial_that_fails_while_the_peer_is_linked_is_not_reported() -> None:
    rig = Rig()
    rig.members(ALICE, address="alice:1")
    rig.link(ALICE)
    assert of(rig.tell(DialFailed(ALICE.public_key, "no answer")), Report) == []


NOW_MS = 1_795_000_000_000
YEAR_MS = 31_556_952_000


@pytest.mark.parametrize(
    ("theirs", "remark"),
    [
        (0, ""),
        (NOW_MS, ""),
        (NOW_MS + 60_000, ""),
        (NOW_MS - 60_000, ""),
        (NOW_MS + 61_000, "clock 61 s ahead (harmless)"),
        (NOW_MS + 3 * 3_600_000, "clock 3 h ahead (harmless)"),
        (NOW_MS - 2 * 86_400_000, "clock 2 days behind (harmless)"),
        (NOW_MS + 10 * YEAR_MS, "clock 10 years ahead (harmless)"),
        (NOW_MS - 10 * YEAR_MS, "clock 10 years behind (harmless)"),
        (-1, "clock 57 years behind (harmless)"),
        (2**63 - 1, "clock 292,276,968 years ahead (harmless)"),
        (-(2**63), "clock 292,277,082 years behind (harmless)"),
    ],
)
def test_a_clock_is_remarked_on_and_nothing_else_follows(theirs: int, remark: str) -> None:
    def meet(clock: int) -> tuple[list[Report], list[Action]]:
        """What is reported, and all else that is done, in an hour with a peer that shows this clock."""
        rig = Rig()
        rig.members(ALICE)
        actions = rig.tell(LinkUp(1, ALICE.public_key, dialed_by_us=False, clock_unix_ms=NOW_MS))
        actions += rig.say(1, Hello(PROTOCOL_VERSION, b"alices-s", clock)) + rig.announce(1, summary(by=ALICE))
        actions += rig.deliver(1, summary(by=ALICE)) + rig.wait(3_600.0)
        return of(actions, Report), [action for action in actions if not isinstance(action, Report)]

    reports, actions = meet(theirs)
    assert reports == [Report(ALICE.public_key, LinkState.LINKED, remark)]
    assert actions == meet(NOW_MS)[1]
    assert Keep(summary(by=ALICE)) in actions
    assert Send(1, Hello(PROTOCOL_VERSION, b"my-store", NOW_MS)) in actions


def test_a_hello_that_took_an_hour_to_come_does_not_make_a_clock_wrong() -> None:
    rig = Rig(settings=GossipSettings(hello_timeout_s=1e9))
    rig.members(ALICE)
    rig.tell(LinkUp(1, ALICE.public_key, dialed_by_us=False, clock_unix_ms=NOW_MS))
    rig.now += 3_600
    told = of(rig.say(1, Hello(PROTOCOL_VERSION, b"alices-s", NOW_MS + 3_600_000)), Report)
    assert told == [Report(ALICE.public_key, LinkState.LINKED, "")]


def test_a_node_without_a_clock_says_and_remarks_nothing() -> None:
    rig = Rig()
    rig.members(ALICE)
    rig.tell(LinkUp(1, ALICE.public_key, dialed_by_us=False))
    assert Send(1, Hello(PROTOCOL_VERSION, b"my-store")) in rig.actions
    told = of(rig.say(1, Hello(PROTOCOL_VERSION, b"alices-s", NOW_MS)), Report)
    assert told == [Report(ALICE.public_key, LinkState.LINKED, "")]


def test_a_link_from_a_stranger_is_closed() -> None:
    rig = Rig()
    assert of(rig.tell(LinkUp(1, EVE.public_key, dialed_by_us=False)), Close) == [Close(1, "it is not a member here")]
    assert rig.say(1, Hello(PROTOCOL_VERSION, bytes(8))) == []


def test_a_removed_peer_loses_its_live_link_and_is_not_dialed_again() -> None:
    rig = linked()
    actions = rig.members(BOB, address="bob:1")
    assert of(actions, Close) == [Close(1, "it was removed here")]
    assert of(actions + rig.wait(600), Dial) == []
    assert rig.announce(1, summary(by=BOB)) == []


def test_a_peer_of_another_version_is_told_goodbye() -> None:
    rig = Rig()
    rig.members(ALICE)
    link = rig.link(ALICE, hello=False)
    closed = of(rig.say(link, Hello(2, bytes(8))), Close)
    assert closed == [Close(link, "it speaks version 2, this node version 1")]


def test_a_link_without_a_hello_is_closed_and_hears_nothing() -> None:
    rig = Rig()
    rig.members(ALICE)
    link = rig.link(ALICE, hello=False)
    assert rig.announce(link, summary(by=ALICE)) == []
    assert of(rig.wait(15.0), Close) == [Close(link, "it did not say hello")]


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("we_are_smaller", [True, False])
def test_of_two_links_dialed_at_once_the_smaller_keys_stays(ours_first: bool, we_are_smaller: bool) -> None:
    us, them = (ME, ALICE) if we_are_smaller else (ALICE, ME)
    rig = Rig(me=us)
    rig.members(them)
    for dialed_by_us in (ours_first, not ours_first):
        rig.link(them, dialed_by_us=dialed_by_us)
        rig.now += 1.0
    ours = 1 if ours_first else 2
    theirs = 3 - ours
    closed = theirs if we_are_smaller else ours
    assert of(rig.actions, Close) == [Close(closed, "another link with it is up")]
    # No flapping: the link that stays is worth something, and the peer is neither dialed nor reported as gone.
    assert frames(rig.author(summary(by=us), LARGE), Announce, 3 - closed)
    assert rig.tell(LinkDown(closed, "closed")) == []


def test_a_new_link_replaces_one_that_is_old_because_nobody_dials_a_peer_it_is_linked_with() -> None:
    rig = Rig()
    rig.members(ALICE)
    old = rig.link(ALICE, dialed_by_us=True)
    rig.now += 60.0
    rig.link(ALICE)
    assert of(rig.actions, Close) == [Close(old, "another link with it is up")]


def test_a_second_link_dialed_by_the_same_side_replaces_the_first() -> None:
    rig = Rig()
    rig.members(ALICE)
    first = rig.link(ALICE)
    rig.link(ALICE)
    assert of(rig.actions, Close) == [Close(first, "another link with it is up")]


def test_a_link_that_never_said_hello_does_not_push_out_one_that_works() -> None:
    rig = Rig()
    rig.members(ALICE)
    works = rig.link(ALICE)
    half_open = rig.link(ALICE, dialed_by_us=True, hello=False)
    assert of(rig.wait(20.0), Close) == [Close(half_open, "it did not say hello")]
    assert frames(rig.author(summary(by=ME), LARGE), Announce, works)


def test_a_peer_that_comes_back_with_another_store_is_reported() -> None:
    rig = Rig()
    rig.members(ALICE)
    for store in (b"store--1", b"store--1", b"store--2"):
        link = rig.link(ALICE, hello=False)
        alarms = of(rig.say(link, Hello(PROTOCOL_VERSION, store)), Alarm)
        assert bool(alarms) == (store == b"store--2")


# ------------------------------------------------------------------------------------------------------ anti-entropy


def test_a_link_begins_with_hello_and_digest() -> None:
    rig = Rig()
    rig.members(ALICE)
    actions = rig.tell(LinkUp(1, ALICE.public_key, dialed_by_us=False))
    assert [type(action.frame) for action in of(actions, Send)] == [Hello, Digest]


def test_equal_digests_need_no_answer() -> None:
    rig = linked()
    rig.author(summary(), LARGE)
    assert of(rig.say(1, Digest(rig.root())), Send) == []


@pytest.mark.parametrize("dialed_by_us", [True, False])
def test_of_the_two_digests_that_cross_only_the_dialer_answers(dialed_by_us: bool) -> None:
    rig = Rig()
    rig.members(ALICE)
    link = rig.link(ALICE, dialed_by_us=dialed_by_us)
    assert bool(frames(rig.say(link, Digest(bytes(32))), Origins)) == dialed_by_us
    assert frames(rig.say(link, Digest(bytes(32))), Origins), "every later digest is answered"


def test_anti_entropy_begins_anew_within_its_period_on_every_link() -> None:
    rig = linked(count=3)
    for _ in range(5):
        digests = [action.link for action in of(rig.wait(60.0), Send) if isinstance(action.frame, Digest)]
        assert set(digests) == {1, 2, 3}


def test_the_vectors_name_ranges_of_settled_records_only() -> None:
    rig = linked()
    for sequence in (1, 2, 3, 7):
        rig.author(summary(sequence), LARGE)
    rig.announce(1, summary(8))
    rig.deliver(1, summary(8))
    theirs = Origins(((CAROL.public_key.raw, bytes(32)), (EVE.public_key.raw, bytes(32))))
    (vector,) = frames(rig.say(1, theirs), Vector)
    (entry,) = vector.origins
    assert (entry.origin, entry.ranges) == (CAROL.public_key.raw, ((b"incarnat", ((1, 3), (7, 7))),))


def vector_of(*ranges: tuple[int, int], reply: bool = False, by: Identity = CAROL, digest: bytes = bytes(32)) -> Vector:
    entries = ((b"incarnat", ranges),) if ranges else ()
    return Vector((OriginVector(by.public_key.raw, digest, entries),), reply)


def test_a_vector_is_answered_with_what_it_lacks_and_with_ours_if_it_has_more() -> None:
    rig = linked()
    records = {sequence: summary(sequence) for sequence in (1, 2, 3)}
    for record in records.values():
        rig.author(record, LARGE)
    actions = rig.say(1, vector_of((2, 2), (9, 9)))
    (announced,) = frames(actions, Announce)
    assert [advert.id for advert in announced.adverts] == [records[1].id, records[3].id]
    (answer,) = frames(actions, Vector)
    assert answer.reply
    assert answer.origins[0].ranges == ((b"incarnat", ((1, 3),)),)
    # A reply, and a vector that has nothing we lack, is answered with announcements only.
    assert frames(rig.say(1, vector_of((2, 2), (9, 9), reply=True)), Vector) == []
    assert frames(rig.say(1, vector_of((2, 2))), Vector) == []


def test_a_vector_that_claims_every_sequence_costs_one_comparison() -> None:
    rig = linked()
    rig.author(summary(), LARGE)
    actions = rig.say(1, vector_of((1, 2**63 - 1)))
    assert frames(actions, Announce) == []
    assert len(frames(actions, Vector)) == 1


def test_an_origin_with_a_gap_after_each_record_does_not_have_us_list_them_for_ever() -> None:
    gaps = [whole(author_record(CAROL, 2 * number, supersedes=bytes(32))) for number in range(1, 1_001)]
    rig = linked(held=gaps, settings=GossipSettings(compare_burst=200, compare_rate=1))
    question = Origins(((CAROL.public_key.raw, bytes(32)),))
    answers = [frames(rig.say(1, question), Vector) for _ in range(50)]
    assert answers[0]
    assert sum(map(len, answers)) <= 200 / (1_000 / RANGES_PER_ENTRY) + 1


def test_a_digest_that_changes_every_time_is_not_answered_for_ever() -> None:
    rig = linked(held=[whole(author_record(CAROL, 1, supersedes=bytes(32)))], settings=GossipSettings(compare_burst=20))
    answers = [frames(rig.say(1, Digest(number.to_bytes(32, "big"))), Origins) for number in range(100)]
    assert 1 <= sum(map(len, answers)) <= 20


def test_equal_ranges_with_different_digests_fall_back_to_ids() -> None:
    rig = linked()
    rig.author(summary(1), LARGE)
    (ids,) = frames(rig.say(1, vector_of((1, 1))), Ids)
    assert ids == Ids(CAROL.public_key.raw, (summary(1).id,), reply=False)
    theirs = Ids(CAROL.public_key.raw, (bytes(32),), reply=False)
    actions = rig.say(1, theirs)
    assert frames(actions, Announce) == [Announce((advert_of(summary(1)),))]
    assert frames(actions, Ids) == [replace(ids, reply=True)]
    assert frames(rig.say(1, replace(theirs, reply=True)), Ids) == []


def test_what_a_peer_lacks_is_announced_withdrawals_first_and_large_bodies_last() -> None:
    rig = linked()
    large, small = summary(1), summary(2, SMALL)
    last = withdrawal(small, 9)
    for record, body in ((large, LARGE), (small, SMALL), (last, b"")):
        rig.author(record, body)
    (announced,) = frames(rig.say(1, vector_of()), Announce)
    assert [advert.id for advert in announced.adverts] == [last.id, small.id, large.id]


# ----------------------------------------------------------------------------------------------------------- rumors


def test_a_new_record_is_announced_to_three_links_at_once_and_to_three_others_in_each_next_round() -> None:
    identities = [Identity.from_seed(bytes([100 + n]) * 32) for n in range(12)]
    rig = Rig()
    rig.members(*identities)
    for identity in identities:
        rig.link(identity)
    rounds = [{action.link for action in of(rig.author(summary(by=ME), LARGE), Send)}]
    for _ in range(5):
        sent = [action for action in of(rig.wait(1.0), Send) if isinstance(action.frame, Announce)]
        rounds.append({action.link for action in sent})
    assert [len(links) for links in rounds] == [3, 3, 3, 0, 0, 0]
    assert len(set.union(*rounds)) == 9


def test_a_record_that_came_over_a_link_is_not_announced_back_on_it() -> None:
    rig = linked(count=3)
    record = withdrawal(summary())
    rig.announce(1, record)
    rig.announce(2, record)
    rig.deliver(1, record)
    announced = [action.link for action in of(rig.actions, Send) if isinstance(action.frame, Announce)]
    assert announced == [3], "the links that announced it have it"


# --------------------------------------------------------------------------------------------------------- fetching


def test_an_announced_record_is_asked_of_one_link_however_many_announce_it() -> None:
    rig = linked()
    assert frames(rig.announce(1, summary()), Want, 1) == [Want((summary().id,))]
    assert frames(rig.announce(2, summary()), Want) == []
    assert frames(rig.announce(1, summary()), Want) == []


def test_a_small_body_comes_with_its_header() -> None:
    rig = linked()
    record = summary(body=SMALL)
    rig.announce(1, record)
    actions = rig.deliver(1, record, body=SMALL)
    assert frames(actions, WantChunks) == []
    assert b"".join(kept.data for kept in of(actions, KeepChunk)) == SMALL
    assert frames(actions, Announce, 2) == [Announce((advert_of(record),))]
    assert rig.store.held()[0].state is HeldState.COMPLETE
    assert of(rig.deliver(2, record, body=SMALL), KeepChunk) == [], "once is enough"


def test_a_small_body_that_comes_with_a_header_that_is_here_is_taken() -> None:
    rig = linked()
    record = summary(body=SMALL)
    rig.announce(1, record)
    assert frames(rig.deliver(1, record), WantChunks) == [WantChunks(record.id, (0, 1, 2))]
    rig.chunk(1, record, SMALL, 1)
    kept = of(rig.deliver(2, record, body=SMALL), KeepChunk)
    assert [one.index for one in kept] == [0, 2]
    assert rig.store.held()[0].state is HeldState.COMPLETE


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(SMALL[:-1], id="a byte short"),
        pytest.param(SMALL + b"\0", id="a byte long"),
        pytest.param(bytes(len(SMALL)), id="another body"),
    ],
)
def test_a_body_that_is_not_the_headers_is_a_strike_and_the_header_is_kept(body: bytes) -> None:
    rig = linked(settings=GossipSettings(max_strikes=0))
    record = summary(body=SMALL)
    rig.announce(1, record)
    rig.announce(2, record)
    actions = rig.deliver(1, record, body=body)
    assert of(actions, KeepChunk) == []
    assert of(actions, Keep) == [Keep(record)]
    assert [close.link for close in of(actions, Close)] == [1]
    assert frames(actions, WantChunks, 2) == [WantChunks(record.id, (0, 1, 2))]


def test_a_body_behind_a_header_that_has_none_is_a_strike() -> None:
    rig = linked(settings=GossipSettings(max_strikes=0))
    assert len(of(rig.deliver(1, withdrawal(summary()), body=SMALL), Close)) == 1


def test_a_large_body_is_asked_for_within_a_window() -> None:
    rig = linked()
    record = summary()
    rig.announce(1, record)
    (asked,) = frames(rig.deliver(1, record), WantChunks)
    assert asked == WantChunks(record.id, tuple(range(8)))
    for index in range(3):
        assert frames(rig.chunk(1, record, LARGE, index), WantChunks) == []
    (asked,) = frames(rig.chunk(1, record, LARGE, 3), WantChunks)
    assert asked.indexes == (8, 9, 10, 11), "asked for in one frame once half of the window is free"


@pytest.mark.parametrize(("gap_s", "together"), [(0.1, 1), (0.05, 1), (0.03, 1), (0.02, 2), (0.001, 50), (0.0, 128)])
def test_chunks_in_a_row_may_share_a_frame_that_arrives_within_50_ms(gap_s: float, together: int) -> None:
    rig = linked()
    record = summary()
    rig.announce(1, record)
    rig.deliver(1, record)
    assert frames(rig.actions, WantChunks) == [WantChunks(record.id, tuple(range(8)), 1)], "its pace is not known"
    asked: list[WantChunks] = []
    for index in range(30):
        rig.wait(gap_s)
        asked += frames(rig.chunk(1, record, LARGE, index), WantChunks, 1)
    assert asked[-1].together == together


def test_a_burst_of_headers_says_nothing_about_how_long_a_chunk_takes() -> None:
    rig = linked(settings=GossipSettings())
    burst = [withdrawal(summary(), sequence) for sequence in range(100, 200)]
    rig.announce(1, *burst)
    for record in burst:
        rig.deliver(1, record)
    large = summary(2)
    rig.announce(1, large)
    (asked,) = frames(rig.deliver(1, large), WantChunks)
    assert asked == WantChunks(large.id, tuple(range(8)), 1)


def test_a_frame_of_several_chunks_is_kept_up_to_the_first_that_is_wrong() -> None:
    rig = linked()
    record = summary()
    rig.announce(1, record)
    rig.announce(2, record)
    rig.deliver(1, record)
    kept = of(rig.say(1, Chunk(record.id, 0, LARGE[: 3 * KB])), KeepChunk)
    assert [(one.index, one.data) for one in kept] == [(n, LARGE[n * KB : (n + 1) * KB]) for n in range(3)]
    actions = rig.say(1, Chunk(record.id, 3, LARGE[3 * KB : 4 * KB] + bytes(2 * KB)))
    assert [one.index for one in of(actions, KeepChunk)] == [3]
    assert frames(actions, WantChunks, 2)[0].indexes[:2] == (4, 5)
    rig.deliver(2, record)
    for want in [*frames(actions, WantChunks, 2), WantChunks(record.id, tuple(range(12, 40)))]:
        rig.say(2, Chunk(record.id, want.indexes[0], LARGE[want.indexes[0] * KB : (want.indexes[-1] + 1) * KB]))
    assert rig.store.held()[0].state is HeldState.COMPLETE


def finish(rig: Rig, link: int, record: Record, body: bytes) -> None:
    """Answer for chunks that are asked of this link until nothing more is asked."""
    asked = [index for want in frames(rig.actions, WantChunks, link) for index in want.indexes]
    while asked:
        rig.chunk(link, record, body, asked.pop(0))
        asked += [index for want in frames(rig.actions, WantChunks, link) for index in want.indexes]


def test_a_body_that_is_whole_is_announced_and_asked_for_no_more() -> None:
    rig = linked()
    record = summary()
    rig.announce(1, record)
    rig.deliver(1, record)
    finish(rig, 1, record, LARGE)
    assert rig.store.held()[0].state is HeldState.COMPLETE
    assert frames(rig.actions, Announce, 2) == [Announce((advert_of(record),))]
    assert rig.announce(2, record) == []
    assert rig.say(1, Digest(rig.root())) == []


Elsewhere = Callable[[Rig, Record], list[Action]]


@pytest.mark.parametrize(
    "happens",
    [
        pytest.param(lambda rig, _: rig.tell(LinkDown(1, "cut")), id="the link goes down"),
        pytest.param(lambda rig, record: rig.say(1, Missing(record.id)), id="it says Missing"),
        pytest.param(lambda rig, _: rig.wait(rig.settings.stall_s), id="it delivers nothing"),
        pytest.param(lambda rig, _: rig.wait(0) + rig.members(BOB, CAROL), id="it is removed"),
    ],
)
def test_a_fetch_goes_on_where_it_was_on_another_link_when(happens: Elsewhere) -> None:
    rig = linked()
    record = summary()
    rig.announce(1, record)
    rig.announce(2, record)
    rig.deliver(1, record)
    for index in (0, 3, 4):
        rig.chunk(1, record, LARGE, index)
    actions = happens(rig, record)
    assert frames(actions, WantChunks, 2) == [WantChunks(record.id, (1, 2, 5, 6, 7, 8, 9, 10))]
    assert frames(actions, WantChunks, 1) == []


def test_a_header_that_does_not_come_is_asked_of_each_link_in_turn() -> None:
    rig = linked()
    rig.announce(1, summary())
    rig.announce(2, summary())
    turns = [action.link for action in of(rig.wait(4 * rig.settings.first_try_s), Send)]
    assert turns == [2, 1, 2, 1]


def test_a_header_is_asked_for_again_once_its_link_is_later_than_usual() -> None:
    """It answers in 1 s. Until that is known it is asked too often."""
    rig = linked()
    for sequence in range(100, 120):
        rig.announce(1, withdrawal(summary(), sequence))
        rig.wait(1.0)
        rig.deliver(1, withdrawal(summary(), sequence))
    rig.announce(1, summary())
    assert frames(rig.wait(1.0), Want) == []
    assert frames(rig.wait(1.5), Want, 1) == [Want((summary().id,))]


def test_a_small_body_that_does_not_come_with_its_header_is_asked_for_until_it_comes() -> None:
    rig = linked()
    record = summary(body=SMALL)
    rig.announce(1, record)
    rig.announce(2, record)
    assert frames(rig.deliver(1, record), WantChunks, 1) == [WantChunks(record.id, (0, 1, 2))]
    rig.chunk(1, record, SMALL, 0)
    assert frames(rig.wait(1.0), WantChunks, 2)[0] == WantChunks(record.id, (1, 2))


def test_chunks_that_a_later_one_overtook_are_asked_for_again() -> None:
    rig = linked()
    record = summary()
    rig.announce(1, record)
    rig.deliver(1, record)
    rig.chunk(1, record, LARGE, 0)
    asked = [index for want in frames(rig.chunk(1, record, LARGE, 7), WantChunks, 1) for index in want.indexes]
    assert asked[:6] == [1, 2, 3, 4, 5, 6]
    finish(rig, 1, record, LARGE)
    assert rig.store.held()[0].state is HeldState.COMPLETE


def test_a_peer_that_delivers_others_but_not_this_one_does_not_keep_it_hostage() -> None:
    rig = linked(settings=GossipSettings(hostage_s=5.0, chunk_window=8))
    wanted, others = summary(1), [withdrawal(summary(), sequence) for sequence in range(100, 150)]
    rig.announce(1, wanted)
    rig.announce(2, wanted)
    asked: list[Want] = []
    for record in others:
        if not asked:
            rig.announce(1, record)
            rig.deliver(1, record)
            asked = frames(rig.wait(0.15), Want, 2)
    assert asked == [Want((wanted.id,))]
    assert rig.settings.hostage_s <= rig.now <= rig.settings.hostage_s + 0.2


def test_a_silent_link_that_is_the_only_source_is_asked_again_and_then_more_rarely() -> None:
    rig = linked(settings=GossipSettings(first_try_s=1.0))
    rig.announce(1, summary())
    times = [second for second in range(1, 1_000) if frames(rig.wait(1.0), Want, 1)]
    assert times == [1, 2, 3, 4, 5, 7, 11, 19, 35, 67, 131, 259, 515]


def test_a_stalled_link_that_is_the_only_source_is_asked_for_chunks_again_and_then_more_rarely() -> None:
    rig = linked()
    rig.announce(1, summary())
    rig.deliver(1, summary())
    times = [second for second in range(1, 1_000) if frames(rig.wait(1.0), WantChunks, 1)]
    assert times == [20, 40, 80, 160, 320, 640]


def test_a_slow_link_is_left_in_peace_once_its_pace_is_known() -> None:
    """One chunk in 60 s: slower than `stall_s` allows, but steady. After the first few it is not asked twice."""
    rig = linked()
    record = summary()
    rig.announce(1, record)
    rig.deliver(1, record)
    asked_twice = 0
    for index in range(30):
        waited = rig.wait(60.0)
        if index > 2:
            asked_twice += len(frames(waited, WantChunks, 1))
        rig.chunk(1, record, LARGE, index)
    assert asked_twice == 0


def test_a_fetch_resumes_after_a_restart_with_the_missing_chunks_only() -> None:
    record = summary()
    missing = (1, 5, 39)
    rig = linked(held=[Held(record, HeldState.FETCHING, 0.0, missing)])
    assert frames(rig.announce(1, record), WantChunks) == [WantChunks(record.id, missing)]
    assert frames(rig.actions, Want) == []


def test_chunks_that_a_courier_brought_are_not_asked_for_any_more() -> None:
    record = summary()
    rig = linked(held=[Held(record, HeldState.FETCHING, 0.0, tuple(range(40)))])
    assert rig.core.fetching() == {record.id: 0}
    rig.tell(RecordAdded(Held(record, HeldState.FETCHING, 0.0, (3, 4))))
    assert rig.core.fetching() == {record.id: 38}
    assert frames(rig.announce(1, record), WantChunks) == [WantChunks(record.id, (3, 4))]


def test_a_fetch_whose_chunks_in_flight_come_by_courier_goes_on_with_the_others() -> None:
    record = summary()
    rig = linked()
    rig.announce(1, record)
    rig.deliver(1, record)  # a window of 8 is asked for
    asked = rig.tell(RecordAdded(Held(record, HeldState.FETCHING, 0.0, tuple(range(6, 40)))))
    assert frames(asked, WantChunks) == [WantChunks(record.id, tuple(range(8, 14)))]
    assert of(rig.chunk(1, record, LARGE, 0), KeepChunk) == []
    for index in range(6, 40):
        assert of(rig.chunk(1, record, LARGE, index), KeepChunk)
    assert rig.core.fetching() == {}


def test_a_record_that_a_courier_completed_is_announced_and_asked_for_no_more() -> None:
    record = summary()
    rig = linked(held=[Held(record, HeldState.FETCHING, 0.0, tuple(range(40)))])
    announced = rig.tell(RecordAdded(whole(record, LARGE)))
    assert {advert.id for frame in frames(announced, Announce) for advert in frame.adverts} == {record.id}
    assert rig.core.fetching() == {}
    assert frames(rig.announce(1, record), WantChunks) == []


def test_headers_and_small_bodies_come_before_large_bodies() -> None:
    rig = linked()
    large, small = summary(1), summary(2, seeded(3).randbytes(5_000))
    rig.announce(1, large)
    rig.deliver(1, large)
    rig.announce(1, small)
    rig.deliver(1, small)
    asked: list[tuple[bytes, int]] = []
    for index in range(8):
        wants = frames(rig.chunk(1, large, LARGE, index), WantChunks)
        asked += [(want.id, chunk) for want in wants for chunk in want.indexes]
    assert asked == [*((small.id, index) for index in range(5)), *((large.id, index) for index in (8, 9, 10))]


def test_a_window_of_headers_is_asked_for_and_the_rest_as_they_come() -> None:
    rig = linked(settings=GossipSettings(want_window=4))
    records = [withdrawal(summary(), sequence) for sequence in range(100, 110)]
    assert len(frames(rig.announce(1, *records), Want)[0].ids) == 4
    assert len(frames(rig.deliver(1, records[0]), Want)[0].ids) == 1


# ---------------------------------------------------------------------------------------------------------- serving


def test_a_wanted_record_is_served_with_its_small_body() -> None:
    rig = linked()
    small, large = summary(1, SMALL), summary(2)
    rig.author(small, SMALL)
    rig.author(large, LARGE)
    actions = rig.say(1, Want((large.id, small.id, bytes(32))))
    assert frames(actions, Missing) == [Missing(bytes(32))]
    (records,) = frames(actions, Records)
    assert records == Records((SignedRecord(large.header_bytes, large.signature),))
    assert of(actions, SendRecords) == [SendRecords(1, (small,))]
    assert of(actions, SendChunk) == []


def test_many_small_bodies_are_served_in_frames_of_about_a_chunk() -> None:
    rig = linked()
    records = [summary(sequence, SMALL) for sequence in range(1, 31)]
    for record in records:
        rig.author(record, SMALL)
    served = of(rig.say(1, Want(tuple(record.id for record in records))), SendRecords)
    assert [record for one in served for record in one.records] == records
    for one in served:
        signed = (SignedRecord(record.header_bytes, record.signature, SMALL) for record in one.records)
        assert len(wire.encode(Records(tuple(signed)))) <= CHUNK_BYTES
    assert len(served) <= 8


def test_chunks_are_served_as_asked_and_a_number_out_of_range_is_a_strike() -> None:
    rig = linked()
    rig.author(summary(), LARGE)
    actions = rig.say(1, WantChunks(summary().id, (3, 1)))
    assert actions == [SendChunk(1, summary().id, 3), SendChunk(1, summary().id, 1)]
    runs = [
        (one.index, one.count) for one in of(rig.say(1, WantChunks(summary().id, (*range(5), 9, 10, 3), 3)), SendChunk)
    ]
    assert runs == [(0, 3), (3, 2), (9, 2), (3, 1)]
    (alone,) = of(rig.say(1, WantChunks(summary().id, (1,), 2**32 - 1)), SendChunk)
    assert alone == SendChunk(1, summary().id, 1)
    for _ in range(4):
        actions = rig.say(1, WantChunks(summary().id, (40,)))
    assert len(of(actions, Close)) == 1


def test_a_record_that_is_still_being_fetched_is_not_served() -> None:
    rig = linked()
    rig.announce(1, summary())
    rig.deliver(1, summary())
    assert frames(rig.say(2, Want((summary().id,))), Missing) == [Missing(summary().id)]


def test_many_headers_are_served_in_frames_that_keep_the_limit() -> None:
    rig = linked()
    body = seeded(4).randbytes(1_000_000)
    records = [author_record(CAROL, sequence, body, chunk_bytes=KB) for sequence in range(1, 31)]
    for record in records:
        rig.author(record, body)
    actions = rig.say(1, Want(tuple(record.id for record in records)))
    served = frames(actions, Records)
    assert sum(len(frame.records) for frame in served) == 30
    assert len(served) > 3
    for frame in served:
        wire.decode(wire.encode(frame))


# ------------------------------------------------------------------------------------------ withdrawals, supersession


def test_a_withdrawn_record_is_served_as_a_header_after_its_withdrawal() -> None:
    rig = linked()
    record, last = summary(body=SMALL), withdrawal(summary(body=SMALL))
    rig.author(record, SMALL)
    rig.author(last)
    actions = rig.say(1, Want((record.id,)))
    (records,) = frames(actions, Records)
    assert [signed.header_bytes for signed in records.records] == [last.header_bytes, record.header_bytes]
    assert of(actions, SendRecords) == []


def test_who_asks_for_chunks_of_a_withdrawn_record_hears_of_the_withdrawal_and_then_missing() -> None:
    rig = linked()
    record, last = summary(), withdrawal(summary())
    rig.author(record, LARGE)
    rig.author(last)
    sent = [action.frame for action in of(rig.say(1, WantChunks(record.id, (0,))), Send)]
    assert sent == [Records((SignedRecord(last.header_bytes, last.signature),)), Missing(record.id)]


def test_a_withdrawal_ends_the_fetch_of_what_it_takes_back() -> None:
    rig = linked()
    record = summary()
    rig.announce(1, record)
    rig.announce(2, record)
    rig.deliver(1, record)
    rig.announce(1, withdrawal(record))
    actions = rig.deliver(1, withdrawal(record))
    actions += rig.chunk(1, record, LARGE, 0) + rig.announce(2, record) + rig.wait(500.0)
    assert frames(actions, WantChunks) == []
    assert of(actions, KeepChunk) == []


Arrival = tuple[str, int]
RECORD = summary(1, LARGE[: 4 * KB])
REPLACEMENT = author_record(CAROL, 2, LARGE[: 2 * KB], supersedes=RECORD.id, chunk_bytes=KB)
LAST = withdrawal(REPLACEMENT, 3)
FOREIGN = author_record(BOB, 4, supersedes=REPLACEMENT.id)
ALL = (RECORD, REPLACEMENT, LAST, FOREIGN)


@given(st.permutations(range(4)), st.lists(st.integers(0, 3), max_size=6), st.data())
def test_any_order_of_arrival_with_duplicates_settles_the_same(
    order: list[int], again: list[int], data: st.DataObject
) -> None:
    """A record, what replaces it, what takes that back, and a stranger's attempt: same digest, same graves."""
    rig = linked()
    for number in [*order, *again]:
        link = data.draw(st.integers(1, 2))
        rig.announce(link, ALL[number])
        rig.deliver(link, ALL[number])
        finish(rig, link, ALL[number], LARGE)
        for index in range(len(ALL[number].header.chunk_hashes)):
            rig.chunk(link, ALL[number], LARGE, index)
    assert rig.root() == expected_root()
    states = {held.record.id: held.state for held in rig.store.held()}
    buried, complete = HeldState.BURIED, HeldState.COMPLETE
    assert states == dict(zip((r.id for r in ALL), (buried, buried, complete, complete), strict=True))
    assert Gossip(rig.settings, seeded(1), ME.public_key, bytes(8), rig.store.held())._holdings.get(RECORD.id)


def expected_root() -> bytes:
    rig = linked(held=[Held(record, HeldState.COMPLETE, 0.0) for record in ALL])
    return rig.root()


# ----------------------------------------------------------------------------------------------------------- trust


def test_records_of_strangers_are_neither_asked_for_nor_kept() -> None:
    rig = linked()
    record = summary(by=EVE)
    assert rig.announce(1, record) == []
    assert of(rig.deliver(1, record), Keep) == []
    assert rig.store.held() == []


def test_a_peer_that_is_added_later_is_compared_at_once() -> None:
    rig = linked()
    actions = rig.members(*PEERS, EVE)
    assert {action.link for action in of(actions, Send) if isinstance(action.frame, Origins)} == {1, 2}
    assert frames(rig.announce(1, summary(by=EVE)), Want) == [Want((summary(by=EVE).id,))]


def test_records_of_a_removed_peer_are_no_longer_compared_announced_served_or_asked_for() -> None:
    rig = linked()
    empty = rig.root()
    held, wanted = summary(1), summary(2)
    rig.author(held, LARGE)
    rig.announce(1, wanted)
    rig.deliver(1, wanted)
    rig.members(ALICE, BOB)
    assert rig.root() == empty
    assert frames(rig.say(1, Want((held.id,))), Missing) == [Missing(held.id)]
    assert frames(rig.say(1, vector_of()), Announce) == []
    assert rig.announce(1, summary(3)) == []
    assert of(rig.chunk(1, wanted, LARGE, 0), KeepChunk) == []
    # Added again: what is held counts again, and what was half here goes on.
    rig.members(*PEERS)
    assert rig.root() != empty
    assert frames(rig.announce(1, wanted), WantChunks) == [WantChunks(wanted.id, tuple(range(8)))]


def test_a_record_of_ours_that_we_do_not_hold_is_kept_and_reported_once() -> None:
    rig = linked()
    first, second = withdrawal(summary(), 1, by=ME), withdrawal(summary(), 2, by=ME)
    actions = rig.deliver(1, first, second)
    assert of(actions, Keep) == [Keep(first), Keep(second)]
    assert [alarm.origin for alarm in of(actions, Alarm)] == [ME.public_key]


# ------------------------------------------------------------------------------------------------------ bad behavior


def test_a_chunk_with_any_bit_flipped_is_not_kept_and_asked_elsewhere() -> None:
    record = summary()
    for position in range(0, KB * 8, 97):
        rig = linked()
        rig.announce(1, record)
        rig.announce(2, record)
        rig.deliver(1, record)
        damaged = bytearray(LARGE[:KB])
        damaged[position // 8] ^= 1 << position % 8
        actions = rig.say(1, Chunk(record.id, 0, bytes(damaged)))
        assert of(actions, KeepChunk) == []
        assert frames(actions, WantChunks, 2) == [WantChunks(record.id, tuple(range(8)))]


def test_a_chunk_whose_hash_the_origin_listed_but_not_its_size_is_not_kept() -> None:
    """The store refuses it: a node that passed it on to the store would take it for a disk that fails."""
    record = by_hand(CAROL, body_bytes=50, hashes=chunk_hashes(LARGE, 65_536), chunk_bytes=KB)
    rig = linked()
    rig.announce(1, record)
    rig.deliver(1, record)
    assert of(rig.say(1, Chunk(record.id, 0, LARGE)), KeepChunk) == []


def by_hand(identity: Identity, *, body_bytes: int, hashes: tuple[bytes, ...], chunk_bytes: int) -> Record:
    header = Header(Kind.SUMMARY, identity.public_key, b"incarnat", 1, 0, epoch=1, task_id=bytes(32))
    header = replace(header, body_bytes=body_bytes, chunk_bytes=chunk_bytes, chunk_hashes=hashes)
    return wire.author(identity, replace(header, key_commitment=bytes(32)))


def test_a_chunk_in_the_wrong_place_is_not_kept() -> None:
    rig = linked()
    record = summary()
    rig.announce(1, record)
    rig.deliver(1, record)
    assert of(rig.say(1, Chunk(record.id, 1, LARGE[:KB])), KeepChunk) == []


def test_chunks_that_nobody_asked_for_are_ignored() -> None:
    rig = linked()
    assert rig.chunk(1, summary(), LARGE, 0) == []


def test_a_peer_that_says_good_bye_was_stopped_and_is_dialed_again() -> None:
    rig = Rig()
    rig.members(ALICE, address="alice:1")
    link = rig.link(ALICE, dialed_by_us=True)
    actions = rig.say(link, Bye())
    assert of(actions, Close) == [Close(link, "its node was stopped")]
    (report,) = of(actions, Report)
    assert (report.state, report.reason) == (LinkState.UNREACHABLE, "its node was stopped")
    assert report.retry_at is not None


def test_good_bye_before_hello_ends_the_link_too() -> None:
    rig = Rig()
    rig.members(ALICE)
    rig.tell(LinkUp(5, ALICE.public_key, dialed_by_us=False))
    assert of(rig.say(5, Bye()), Close) == [Close(5, "its node was stopped")]


def test_a_forged_record_is_a_strike_and_is_not_kept() -> None:
    rig = linked()
    forged = replace(summary(), signature=bytes(64))
    (struck,) = rig.deliver(1, forged)
    assert isinstance(struck, Struck)
    assert (struck.peer, struck.offence) == (ALICE.public_key, Offence.RECORD)
    assert rig.store.held() == []


def test_too_much_that_is_invalid_closes_the_link_and_keeps_the_peer_out_for_a_while() -> None:
    rig = linked()
    for _ in range(3):
        struck = Struck(ALICE.public_key, Offence.FRAME, "these bytes are not a frame")
        assert rig.tell(BadFrame(1, struck.reason)) == [struck]
    actions = rig.tell(BadFrame(1, "these bytes are not a frame"))
    reason = "it sent too much that was invalid; lastly: these bytes are not a frame"
    assert of(actions, Close) == [Close(1, reason)]
    assert of(actions, Report) == [Report(ALICE.public_key, LinkState.REFUSED, reason)]
    assert of(rig.tell(LinkUp(7, ALICE.public_key, dialed_by_us=False)), Close) != []
    rig.now += rig.settings.penalty_s
    assert of(rig.tell(LinkUp(8, ALICE.public_key, dialed_by_us=False)), Close) == []


def test_a_kept_out_peer_is_not_dialed_before_its_time() -> None:
    rig = Rig()
    rig.members(ALICE, address="alice:1")
    link = rig.link(ALICE, dialed_by_us=True)
    for _ in range(4):
        rig.tell(BadFrame(link, "garbage"))
    assert of(rig.actions, Report)[0].retry_at == rig.now + rig.settings.penalty_s
    assert of(rig.wait(59.0), Dial) == []
    assert of(rig.wait(120.0), Dial) == [Dial(ALICE.public_key, "alice:1")]


def test_a_few_mistakes_far_apart_are_forgiven() -> None:
    rig = linked()
    for _ in range(20):
        assert of(rig.tell(BadFrame(1, "garbage")), Close) == []
        rig.now += rig.settings.penalty_s


def test_the_second_record_for_one_sequence_is_refused_with_a_clear_report_and_not_fetched_again() -> None:
    rig = linked()
    first, second = summary(1, LARGE), summary(1, LARGE[::-1])
    rig.author(first, LARGE)
    rig.announce(1, second)
    actions = rig.deliver(1, second)
    assert of(actions, Keep) == []
    (alarm,) = of(actions, Alarm)
    assert alarm.origin == CAROL.public_key
    assert "two records with sequence 1" in alarm.reason
    assert rig.announce(2, second) == []
    assert of(rig.deliver(2, second), Alarm) == []
    assert frames(rig.say(1, Want((first.id,))), Records)


def test_what_a_link_announces_is_remembered_up_to_a_limit_and_the_rest_found_again() -> None:
    limit = 20
    rig = linked(settings=GossipSettings(max_unknown_adverts=limit, want_window=5))
    records = [withdrawal(summary(), sequence) for sequence in range(100, 130)]
    rig.announce(1, *records)
    digests = []
    for record in records[:limit]:
        digests += frames(rig.deliver(1, record), Digest, 1)
    assert len(rig.store.held()) == limit
    assert len(digests) == 1, "worked off: compare again at once"


def test_a_flood_of_announcements_costs_bounded_memory() -> None:
    rig = linked(settings=GossipSettings(max_unknown_adverts=1_000))
    for batch in range(50):
        ids = [(batch * MAX_ADVERTS + n).to_bytes(32, "big") for n in range(MAX_ADVERTS)]
        rig.say(1, Announce(tuple(Advert(i, Kind.SUMMARY, CAROL.public_key.raw, 9) for i in ids)))
    assert len(rig.core._fetcher._fetches) == 1_000
    rig.tell(LinkDown(1, "cut"))
    assert len(rig.core._fetcher._fetches) == 0


def test_what_is_never_accepted_is_not_asked_for() -> None:
    rig = linked()
    for kind in (0, 77):
        assert rig.say(1, Announce((Advert(bytes(32), kind, CAROL.public_key.raw, 0),))) == []


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 3), st.one_of(FRAMES, st.integers(0, 11))), max_size=40))
def test_no_frames_in_any_order_make_the_core_raise(script: list[tuple[int, Frame | int]]) -> None:
    """Arbitrary frames between meaningful ones, as a hostile member might send them."""
    rig = linked(count=3)
    record, last = summary(1, LARGE[: 12 * KB]), withdrawal(summary(1, LARGE[: 12 * KB]))
    for link, frame in script:
        if not isinstance(frame, int):
            rig.say(link, frame)
        elif frame == 0:
            rig.announce(link, record, last)
        elif frame == 1:
            rig.deliver(link, record)
        elif frame == 2:
            rig.deliver(link, last)
        elif frame == 3:
            rig.say(link, Missing(record.id))
        elif frame == 4:
            rig.wait(30.0)
        elif frame == 5:
            rig.say(link, WantChunks(record.id, (0, 11)))
        else:
            rig.chunk(link, record, LARGE, frame)
    rig.wait(60.0)
    assert_consistent(rig)


def assert_consistent(rig: Rig) -> None:
    """What the core believes is what its store says, and its books balance."""
    for held in rig.store.held():
        entry = rig.core._holdings.get(held.record.id)
        assert entry is not None
        assert entry.is_settled == (held.state is not HeldState.FETCHING)
    fresh = Rig(held=rig.store.held())
    fresh.members(*PEERS)
    assert fresh.root() == rig.root()
    fetcher = rig.core._fetcher
    for number, source in fetcher._links.items():
        asked = {known for known, fetch in fetcher._fetches.items() if fetch.asked == number}
        flights = [fetcher._fetches[known] for known in asked]
        assert asked == set(source.asked)
        assert fetcher.owes(number) == bool(asked)
        assert source.headers_in_flight == sum(fetch.record is None for fetch in flights)
        assert source.chunks_in_flight == sum(len(fetch.in_flight) for fetch in flights)
        assert source.candidates == sum(number in fetch.sources for fetch in fetcher._fetches.values())


TRANSCRIPT = """
import hashlib
from node.simulation.network import Conditions, ring
from node.simulation.simulator import Swarm
from node import wire

digest = hashlib.sha256()
swarm = Swarm(5, 6, ring(6), conditions=Conditions(mean_link_life_s=8.0))
count = swarm.count
swarm.count = lambda node, frame, size: (digest.update(wire.encode(frame)), count(node, frame, size))
swarm.start()
for _ in range(6):
    swarm.run(2.0)
    swarm.nodes[swarm.rng.randrange(6)].publish(swarm.rng.randbytes(5_000), chunk_bytes=1_024)
swarm.run(30.0)
print(digest.hexdigest())
"""


def test_the_same_seed_gives_the_same_run_whatever_the_hash_seed() -> None:
    root = Path(__file__).parent.parent
    runs = [
        subprocess.run(
            [sys.executable, "-c", TRANSCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(runs[0]) == 65
    assert runs[0] == runs[1]


# ---------------------------------------------------------------------------------------------------- the disk is low


def test_on_a_low_disk_no_body_is_taken_and_headers_and_withdrawals_are() -> None:
    rig = linked()
    before, record, small = summary(1), summary(2), summary(3, SMALL)
    rig.announce(1, before)
    rig.deliver(1, before)
    rig.chunk(1, before, LARGE, 0)
    rig.tell(DiskChanged(Disk.LOW))
    assert rig.chunk(1, before, LARGE, 1) == [], "what is on the line is dropped"
    rig.announce(1, record, small)
    assert frames(rig.deliver(1, record), WantChunks) == []
    assert of(rig.deliver(1, small, body=SMALL), KeepChunk) == [], "nor what rides along unasked"
    taken_back = withdrawal(record)
    rig.announce(1, taken_back)
    assert of(rig.deliver(1, taken_back), Keep) == [Keep(taken_back)]
    waited = rig.wait(3_000.0)
    assert frames(waited, WantChunks) == []
    assert of(waited, Close) == [], "a link is not blamed for what nobody asks of it"
    states = {held.record.id: held.state for held in rig.store.held()}
    assert states[record.id] is HeldState.BURIED

    asked = frames(rig.tell(DiskChanged(Disk.ROOM)), WantChunks)
    assert [want.id for want in asked] == [small.id, before.id]
    assert set(asked[1].indexes) <= set(range(1, 40)), "what was kept before is kept"
    for index in range(3):
        rig.chunk(1, small, SMALL, index)
    assert {held.record.id: held.state for held in rig.store.held()}[small.id] is HeldState.COMPLETE


def test_on_a_full_disk_only_withdrawals_are_asked_for_and_kept() -> None:
    rig = linked()
    rig.tell(DiskChanged(Disk.FULL))
    record = summary(1)
    taken_back = withdrawal(record)
    assert frames(rig.announce(1, record, taken_back), Want) == [Want((taken_back.id,))]
    assert of(rig.deliver(1, record), Keep) == []
    assert of(rig.deliver(1, taken_back), Keep) == [Keep(taken_back)]
    assert frames(rig.tell(DiskChanged(Disk.LOW)), Want) == [Want((record.id,))]


def test_a_header_that_was_asked_for_when_the_disk_filled_up_is_asked_for_again_later() -> None:
    rig = linked()
    record = summary(1)
    assert frames(rig.announce(1, record), Want) == [Want((record.id,))]
    rig.tell(DiskChanged(Disk.FULL))
    assert rig.deliver(1, record) == []
    assert frames(rig.wait(3_000.0), Want) == []
    assert frames(rig.tell(DiskChanged(Disk.ROOM)), Want) == [Want((record.id,))]
    assert of(rig.deliver(1, record), Keep) == [Keep(record)]


def test_a_node_on_a_low_disk_serves_what_it_has() -> None:
    rig = linked()
    record = summary(1)
    rig.author(record, LARGE)
    rig.tell(DiskChanged(Disk.FULL))
    assert len(frames(rig.say(1, Want((record.id,))), Records)) == 1
    assert of(rig.say(1, WantChunks(record.id, (0, 1))), SendChunk) == [
        SendChunk(1, record.id, 0),
        SendChunk(1, record.id, 1),
    ]
