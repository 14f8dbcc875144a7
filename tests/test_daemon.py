"""Daemons over real sockets and TLS, several in one event loop: links, and trust that comes and goes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import daemons
import pytest
from certificates import forge
from cryptography import x509
from daemons import MakeHome, eventually, in_an_event_loop, running

from crypto.keys import Identity
from crypto.sealing import new_epoch_key
from crypto.tls import LeafCredentials, make_leaf, server_name
from node import daemon as daemon_module
from node.author import EpochKey
from node.bundle_export import export_bundle
from node.bundle_import import import_bundle
from node.client import Dialer
from node.config import PROTOCOL_VERSION
from node.daemon import Daemon
from node.errors import NotReadable, PeerUnreachable, QueryRefused, StoreFull
from node.frames import Frame, Hello, Query, Records, SignedRecord, Want
from node.gossip.events import LinkUp
from node.heads import Finding
from node.home import Home
from node.link import Link
from node.membership import add_peer, remove_peer
from node.publish import publish
from node.records import HeldState, Kind, Record
from node.simulation.store import author_record
from node.tasks import add


@in_an_event_loop
async def test_a_record_reaches_a_node_two_links_away_that_only_dials_out(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    async with AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(running(make_home(name))) for name in "ab"]
        c = await stack.enter_async_context(running(make_home("c"), listens=False))
        for one, other in ((a, b), (b, a), (b, c), (a, c), (c, a)):
            one.knows(other)
        a.knows(b, dials=True)
        c.knows(b, dials=True)
        task, _ = add(a.home, str(task_file))
        record = publish(a.home, task, [rows_file], epsilon=1.0, dataset="default", cap_epsilon=None).record
        await eventually(lambda: is_readable(c.home, record.id))
        assert not c.is_linked_with(a)


def is_readable(home: Home, record_id: bytes) -> bool:
    held = home.store.get(record_id)
    try:
        return held is not None and bool(home.epochs.open(held))
    except NotReadable:
        return False


@in_an_event_loop
async def test_a_removed_peer_loses_its_live_connection_and_stays_out(make_home: MakeHome) -> None:
    async with running(make_home("a")) as a, running(make_home("b")) as b:
        a.knows(b)
        b.knows(a, dials=True)
        await eventually(lambda: a.is_linked_with(b) and b.is_linked_with(a))
        remove_peer(a.home, "b")
        await eventually(lambda: not b.is_linked_with(a))
        await eventually(lambda: "probably not added" in b.state_of(a)[1])
        later = a.home.author.sealed(Kind.SUMMARY, bytes(32), b"later", a.home.epochs.live())
        await asyncio.sleep(1.0)
        assert not b.is_linked_with(a)
        assert not b.holds(later.id)


@in_an_event_loop
async def test_a_peer_that_is_added_later_connects_without_a_restart(make_home: MakeHome) -> None:
    async with running(make_home("a")) as a, running(make_home("b")) as b:
        b.knows(a, dials=True)
        await eventually(lambda: "probably not added" in b.state_of(a)[1])
        a.knows(b)
        await eventually(lambda: b.is_linked_with(a))


@in_an_event_loop
async def test_a_node_whose_key_was_not_added_cannot_connect(make_home: MakeHome) -> None:
    async with running(make_home("a")) as a, running(make_home("b")) as b:
        b.knows(a, dials=True)
        await eventually(lambda: b.state_of(a)[0] == "refused" or "probably not added" in b.state_of(a)[1])
        assert [held.record.header.origin for held in b.home.store.held()] == [b.home.me] * len(b.home.store.held())
        assert b.home.epochs.key_card(a.home.me) is None


class Nobody:
    """A hub that counts what happens to it."""

    def __init__(self) -> None:
        self.ups = 0

    def may_exchange(self, peer: object) -> bool:
        return True

    def link_up(self, link: Link) -> None:
        self.ups += 1

    def frame_in(self, link: Link, frame: Frame) -> None: ...

    async def room(self) -> None: ...

    def bad_frame(self, link: Link, reason: str) -> None: ...

    def load_chunks(self, record_id: bytes, indexes: Sequence[int]) -> list[bytes | None]:
        raise AssertionError("nothing was asked for")

    def link_down(self, link: Link, reason: str) -> None: ...


def names_of(*identities: Identity) -> list[x509.GeneralName]:
    return [x509.DNSName(server_name(identity.public_key)) for identity in identities]


@pytest.mark.parametrize("disguise", ["as another", "as both", "as itself"])
@in_an_event_loop
async def test_a_trusted_peer_that_presents_itself_as_another_is_refused(make_home: MakeHome, disguise: str) -> None:
    b, c = Identity.generate(), Identity.generate()
    leaves: dict[str, LeafCredentials] = {
        "as another": forge(c, names_of(b)),
        "as both": forge(c, names_of(c, b)),
        "as itself": make_leaf(c),
    }
    async with running(make_home("a")) as a:
        for name, identity in (("b", b), ("c", c)):
            add_peer(a.home, identity.public_key.text, name, None, query_only=False)
        await a.admits_its_peers()
        assert a.address is not None
        hub = Nobody()
        exchange = Dialer(leaves[disguise]).exchange(a.home.me, a.address, hub)
        if disguise == "as itself":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    await exchange
            assert hub.ups == 1
        else:
            with pytest.raises(PeerUnreachable):
                await exchange
            assert hub.ups == 0


@in_an_event_loop
async def test_a_query_only_peer_may_ask_but_not_gossip(make_home: MakeHome) -> None:
    async with running(make_home("a")) as a:
        asker = make_home("asker")
        add_peer(a.home, asker.me.text, "asker", None, query_only=True)
        await a.admits_its_peers()
        assert a.address is not None
        dialer = Dialer.for_identity(asker.keystore.identity)
        with pytest.raises(PeerUnreachable, match="may ask for models but not gossip"):
            await dialer.exchange(a.home.me, a.address, Nobody())
        with pytest.raises(QueryRefused, match="not accepted here"):
            await dialer.ask(a.home.me, a.address, Query(bytes(32), "", (), (), "onnx"), lambda _: None)


@in_an_event_loop
async def test_a_key_that_is_not_the_servers_is_told_as_such(make_home: MakeHome) -> None:
    async with running(make_home("a")) as a:
        assert a.address is not None
        dialer = Dialer.for_identity(Identity.generate())
        with pytest.raises(PeerUnreachable, match="another key answers"):
            await dialer.exchange(Identity.generate().public_key, a.address, Nobody())


@in_an_event_loop
async def test_what_a_courier_brings_to_a_running_node_gossips_on(make_home: MakeHome, tmp_path: Path) -> None:
    """Also what it only completes: the half of a record that came over a link before."""
    site = make_home("site")
    new, half = [site.author.sealed(Kind.SUMMARY, bytes(32), os.urandom(60_000), site.epochs.live()) for _ in "12"]
    async with running(make_home("a")) as a, running(make_home("b")) as b:
        for one, other in ((a.home, site), (b.home, site)):
            add_peer(one, other.me.text, "site", None, query_only=False)
        a.home.store.add_record(half)
        a.home.store.add_chunk(half.id, 2, site.store.chunk(half.id, 2) or b"")
        a.knows(b)
        b.knows(a, dials=True)
        await eventually(lambda: a.is_linked_with(b))
        await eventually(lambda: half.id in a.daemon._core.fetching())
        export_bundle(site, tmp_path / "news.bundle")
        await asyncio.to_thread(import_in_a_view_of_its_own, a.home.path, tmp_path / "news.bundle")
        for record in (new, half):
            await eventually(lambda record=record: is_whole(b.home, record.id))
        assert a.daemon._core.fetching() == {}


def import_in_a_view_of_its_own(home: Path, bundle: Path) -> None:
    assert import_bundle(Home.open(home), bundle).is_complete


def is_whole(home: Home, record_id: bytes) -> bool:
    held = home.store.get(record_id)
    return held is not None and held.state is HeldState.COMPLETE


@in_an_event_loop
async def test_a_request_that_is_served_costs_nothing_whether_the_record_has_a_body_or_not(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a node that is new in a large coalition would wait for each grant and card."""
    told: list[tuple[Frame, bool]] = []
    take = Daemon.frame_in

    def noted(daemon: Daemon, link: Link, frame: Frame) -> bool:
        told.append((frame, take(daemon, link, frame)))
        return told[-1][1]

    monkeypatch.setattr(Daemon, "frame_in", noted)
    async with running(make_home("a")) as a, running(make_home("b")) as b:
        a.knows(b)
        b.knows(a, dials=True)
        card = a.home.author.key_card()
        body = a.home.author.sealed(Kind.MODEL, bytes(32), b"small", a.home.epochs.live())
        await eventually(lambda: b.holds(card.id) and b.holds(body.id))
    wants = [was_useful for frame, was_useful in told if isinstance(frame, Want)]
    assert wants
    assert all(wants)


@in_an_event_loop
async def test_no_link_that_comes_up_while_a_node_starts_again_is_lost(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "RETRY_FULL_S", 0.2)
    monkeypatch.setattr(daemons, "SOON", replace(daemons.SOON, dial_base_s=0.01, dial_cap_s=0.02))
    async with running(make_home("a")) as a, running(make_home("b"), listens=False) as b:
        a.knows(b)
        b.knows(a, dials=True)
        for sequence in range(1, 4):
            await eventually(lambda: b.is_linked_with(a))
            a.daemon._leave_network(StoreFull("The disk has no room."))
            record = b.home.author.sealed(Kind.SUMMARY, bytes(32), bytes(sequence), EpochKey(1, new_epoch_key()))
            a.daemon._disk._full_until = 0.0
            await eventually(lambda: is_whole(a.home, record.id))  # noqa: B023 - waited for in this round


@in_an_event_loop
async def test_looking_through_all_heads_holds_up_nothing_else(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member may have signed thousands, which takes seconds to read, and may sign one more every few seconds."""

    def findings(home: Home) -> list[Finding]:
        time.sleep(1.0)
        return [Finding(home.me, "it deceives")]

    monkeypatch.setattr("node.heads.findings", findings)
    async with running(make_home("a")) as a:
        loop, longest_s = asyncio.get_running_loop(), 0.0
        a.daemon._has_findings = True
        began_s = loop.time()
        while not a.daemon.journal.counts.alarms and loop.time() < began_s + 15:
            before_s = loop.time()
            await asyncio.sleep(0.01)
            longest_s = max(longest_s, loop.time() - before_s)
        assert a.daemon.journal.counts.alarms == 1
    assert longest_s < 0.8


@in_an_event_loop
async def test_one_record_that_is_kept_does_not_pay_for_many_that_are_not(make_home: MakeHome) -> None:
    me, stranger = Identity.generate(), Identity.generate()
    async with running(make_home("a")) as a:
        add_peer(a.home, me.public_key.text, "me", None, query_only=False)
        await eventually(lambda: me.public_key in a.daemon._peers)
        a.daemon._handle(LinkUp(10_000, me.public_key, dialed_by_us=False))
        link = SimpleNamespace(number=10_000)

        def is_useful(*records: Record) -> bool:
            frame = Records(tuple(SignedRecord(one.header_bytes, one.signature) for one in records))
            return a.daemon.frame_in(link, frame)  # type: ignore[arg-type]

        a.daemon.frame_in(link, Hello(PROTOCOL_VERSION, bytes(8)))  # type: ignore[arg-type]
        foreign = [author_record(stranger, number, supersedes=bytes(32)) for number in range(1, 4)]
        assert is_useful(author_record(me, 1, supersedes=bytes(32)))
        assert is_useful(author_record(me, 2, supersedes=bytes(32)), *foreign[:1])
        assert not is_useful(author_record(me, 3, supersedes=bytes(32)), *foreign[:2])
        assert not is_useful(*foreign)
