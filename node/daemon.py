"""The daemon: one process that runs a node. It wires store, gossip core and transport, and decides nothing itself.

Everything happens on one event loop. What arrives becomes an event, the core answers with actions, and the actions are
carried out in order, those that tell a peer what is held here once it is on disk (`commit`). Nothing on the loop takes
long: gossip is written in a thread of its own; fusing and training run in a process of their own (`answers`), so gossip
never stalls and an idle node never holds torch in memory.

The command line works on the same store at the same time. A cheap counter tells when it changed something; then
peers and records are read again, which is how `peer add` or `publish` reaches a running node within a second.
"""

from __future__ import annotations

import asyncio
import functools
import random
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from crypto.errors import KeystoreError
from crypto.keys import PublicKey
from node import evidence, heads, notify
from node.answers import Answers
from node.arrivals import Arrivals
from node.bandwidth import Bandwidth
from node.client import Dialer
from node.commit import GroupCommit
from node.config import GossipSettings, QuerySettings
from node.disk import WORDS, DiskWatch
from node.errors import NodeError, PeerRefused, PeerUnreachable, StoreError, StoreFull
from node.frames import Bye, Frame, Missing, Query, Records
from node.gossip import quotas
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
    PeersChanged,
    RecordAdded,
    Report,
    Send,
    SendChunk,
    SendRecords,
    Struck,
    Tick,
    Unheard,
)
from node.home import Home
from node.journal import Journal
from node.link import CLOSE_GRACE_S, Link
from node.local_tables import LinkReport, Peer
from node.metrics import Gauges, LoopDelay, MetricsPort, exposition
from node.paced import Lookup, Paced
from node.records import Kind, Record, Slot
from node.reports import follow
from node.roster_watch import RosterWatch
from node.server import Doors, NodeServer
from node.show import duration
from node.store import Store, Tally
from node.succession import ABOUT_KEYS
from node.tolls import Tolls
from node.wire import read_evidence

POLL_S = 0.5
"""How soon a change by the command line is noticed. A poll reads one counter, without a disk access."""
REPORT_S = 1.0
"""How often link states are written down for `status`, if they changed."""
CLOCK_S = 0.02
"""How soon after an event the core's next deadline is looked up. Its timers count in seconds."""
RETRY_STORE_S = 10.0
"""How long the node stays off the network after its store refused a write."""
RETRY_FULL_S = 0.5
"""The same where the disk is full: then it returns at once, taking less."""
STOP_GRACE_S = 2.0


QUOTA: Final = "quota"
"""The topic of notices about records that wait for room in their origin's quota."""

_USEFUL: Final = (KeepChunk, SendRecords, SendChunk)


class Daemon:
    """Runs the node of one home until `stop` is called."""

    def __init__(
        self,
        home: Home,
        settings: GossipSettings,
        bandwidth: Bandwidth | None = None,
        queries: QuerySettings | None = None,
        metrics: tuple[str, int] | None = None,
    ) -> None:
        self._home = home
        self._settings = settings
        self._bandwidth = bandwidth
        self.journal = Journal(home.me, self._name_of)
        self.arrivals = Arrivals(self.journal, home.store)
        self._answers = Answers(home, queries)
        self._tolls = Tolls()
        self._metrics = metrics
        self._loop_delay = LoopDelay()
        self._started_at = time.time()
        doors = Doors(self._admitted, self._answer, lambda: self.is_serving, self._refusal)
        self._server = NodeServer(home.keystore.identity, self, doors, bandwidth, self._tolls)
        self._dialer = Dialer.for_identity(home.keystore.identity)
        self._former_dialers = [Dialer.for_identity(former) for former in home.keystore.former]
        self._links: dict[int, Link] = {}
        self._dials: dict[PublicKey, asyncio.Task[None]] = {}
        self._unanswered: dict[PublicKey, asyncio.Task[None]] = {}
        self._peers: dict[PublicKey, Peer] = {}
        self._former: dict[PublicKey, str] = {}
        self._trusted = frozenset({home.me})
        self._reports: dict[PublicKey, LinkReport] = {}
        self._traffic: dict[PublicKey, tuple[int, int]] = {}
        self._disk = DiskWatch(home.path)
        self._roster = RosterWatch(home)
        self._lacks_grants = False
        self._position = 0
        self._core = self._new_core()
        self._is_open = True
        self._has_findings = False
        self._findings: set[heads.Finding] = set()
        self._finding = Lookup()
        self._is_away = False
        self._tick: asyncio.TimerHandle | None = None
        self._unheard: set[Slot] = set()
        self._keys_changed = Paced(functools.partial(self._or_leave, self._read_peers))
        self._granting = Paced(functools.partial(self._or_leave, self._grant))
        self._witnessing = Paced(self._witness)
        self._clock: asyncio.TimerHandle | None = None
        self._stopping = asyncio.Event()

    # ------------------------------------------------------------------------------------------------- running

    async def run(self, listen: str | None, on_ready: asyncio.Future[str | None]) -> None:
        """Serve until stopped. `on_ready` gets the address once peers can come and go (None: dials out only)."""
        self._if_there_is_room(self._home.store.clear_reports)
        self._commit = GroupCommit(self._home.path, self._perform, self._leave_network)
        address = None
        self._look_at_disk()
        self._read_peers()
        if listen is not None:
            port = await self._server.start(listen)
            address = f"{listen.rpartition(':')[0]}:{port}"
            self._if_there_is_room(functools.partial(self._home.store.set_listening, address))
        try:
            async with self._measured():
                on_ready.set_result(address)
                await asyncio.gather(self._watch_store(), self._write_reports())
        finally:
            await self._close()

    def stop(self) -> None:
        """End `run` soon."""
        self._stopping.set()

    @property
    def is_serving(self) -> bool:
        """Whether this node does its work: not while it stops, nor while its store refuses writes."""
        return not (self._stopping.is_set() or self._is_away or self._disk.state is Disk.FULL)

    async def _close(self) -> None:
        """End links and calls, each with a word to the other side, then let go of the store."""
        self._stopping.set()
        for timer in (self._tick, self._clock):
            if timer is not None:
                timer.cancel()
        for work in (self._keys_changed, self._granting, self._witnessing):
            work.end()
        for link in self._links.values():
            link.send(Bye())
            link.close("this node stopped")
        linked = [dial for peer, dial in self._dials.items() if peer not in self._unanswered and not dial.done()]
        for dial in self._unanswered.values():
            dial.cancel()
        await asyncio.gather(_ended(linked, CLOSE_GRACE_S), self._server.stop(STOP_GRACE_S))
        self._answers.close()
        await self._commit.close()
        self._if_there_is_room(self._home.store.clear_reports)

    async def _pause(self, seconds: float) -> bool:
        """Wait; False once the daemon is to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return True
        return False

    async def _watch_store(self) -> None:
        """Notice what other processes changed: peers added and removed, records authored or imported."""
        counter = -1
        while True:
            try:
                self._look_at_disk()
                latest = await self._commit.run(Store.change_counter)
                if latest != counter:
                    self._roster.look_again()
                    self._read_peers()
                    self._read_records()
                    self._answers.changed()
                    if not self._commit.is_busy:
                        # Else again: what was imported into a record that is arriving here too can be told from what
                        # arrived only when that is on disk.
                        counter = latest
                if self._roster.tend(asyncio.get_running_loop().time()):
                    self._read_peers()
                    self._read_records()
                await self._readmit()
                notify.notify(notify.ALIVE)
            except StoreError as error:
                self._leave_network(error)
            if not await self._pause(POLL_S):
                return

    async def _readmit(self) -> None:
        is_open = await self._server.readmit()
        if self._is_open and not is_open:
            self.journal.port_lost()
        self._is_open = is_open

    def _read_peers(self) -> None:
        standing = self._home.store.standing()
        self._former = {key: self._home.peers.name_of(key) for key in standing.former}
        peers, trusted = {peer.key: peer for peer in standing.peers}, self._home.trusted
        if (peers, trusted) != (self._peers, self._trusted):
            self._peers, self._trusted = peers, trusted
            self._tolls.keep_only(set(peers))
            for key in self._reports.keys() - peers.keys():
                del self._reports[key]
            self._handle(self._peers_changed())
            self._grant()
            self._witness_soon()

    def _read_records(self) -> None:
        grown = self._home.store.grown(self._core.fetching())
        added, self._position = self._home.store.held_after(self._position)
        for held in [*grown, *added]:
            self._handle(RecordAdded(held))
        self.arrivals.found([held.record for held in added])
        if any(held.record.header.kind in ABOUT_KEYS for held in added):
            self._read_peers()
            self._grant()

    def _or_leave(self, work: Callable[[], None]) -> None:
        """Work that nobody waits for; without a store that answers there is nothing to do it with."""
        try:
            work()
        except StoreError as error:
            self._leave_network(error)

    def _grant(self) -> None:
        """Hand the live epoch key to members who lack it; the grants spread like any record of ours."""
        try:
            self._lacks_grants = False
            if self._home.epochs.grant_missing():
                self._read_records()
        except StoreFull as error:
            self._lacks_grants = True
            self.journal.store_failed(error)
        except KeystoreError as error:
            self.journal.grants_locked(error)

    async def _write_reports(self) -> None:
        written: list[LinkReport] = []
        unsourced: set[bytes] = set()
        over_quota: dict[bytes, int] = {}
        while await self._pause(REPORT_S):
            current = [self._with_traffic(report) for report in self._reports.values()]
            lacking = self._core.unsourced()
            try:
                self.arrivals.look(self._core.fetching(), lacking)
                if current != written:
                    await self._commit.run(lambda store, current=current: store.set_links(current))  # type: ignore[misc]
                    written = current
                if lacking != unsourced:
                    await self._commit.run(lambda store, lacking=lacking: store.set_unsourced(lacking))  # type: ignore[misc]
                    unsourced = lacking
                over_quota = await self._tell_quotas(over_quota)
                self._tell_findings()
            except StoreFull:
                self._refused()
            except StoreError as error:
                self.journal.store_failed(error)

    async def _tell_quotas(self, told: dict[bytes, int]) -> dict[bytes, int]:
        """Note whose records wait for room in their quotas, if that is not what was told before; returns it."""
        waiting = self._core.over_quota()

        def write(store: Store) -> None:
            for origin in told.keys() - waiting.keys():
                store.drop_notice(PublicKey(origin), QUOTA)
            for origin, count in waiting.items():
                store.set_notice(PublicKey(origin), QUOTA, quotas.words(count))

        if waiting != told:
            await self._commit.run(write)
        return waiting

    # --------------------------------------------------------------------------------------------------------- metrics

    @asynccontextmanager
    async def _measured(self) -> AsyncIterator[None]:
        """With a port for metrics, if one is wanted."""
        if self._metrics is None:
            yield
            return
        port = MetricsPort(self._scrape, lambda: self.is_serving)
        self.metrics_address = await port.start(*self._metrics)
        self.journal.metrics(self.metrics_address)
        watch = asyncio.create_task(self._loop_delay.watch())
        try:
            yield
        finally:
            watch.cancel()
            port.close()

    async def _scrape(self) -> bytes:
        gauges = self._gauges(await self._commit.run(Store.tally))
        sent = sum((link.frames_sent for link in self._links.values()), self.journal.counts.frames_sent)
        return exposition(gauges, replace(self.journal.counts, frames_sent=sent))

    def _gauges(self, tally: Tally) -> Gauges:
        from importlib.metadata import version  # with what it loads, 1 MB that a node without metrics spares

        live = self._links.values()
        members = sum(not peer.query_only for peer in self._peers.values())
        return Gauges(
            version=version("tidings"),
            serving=self.is_serving,
            links=sum(report.state == LinkState.LINKED for report in self._reports.values()),
            members=members,
            records=tally.records,
            body_bytes=tally.body_bytes,
            bytes_sent=sum(sent for sent, _ in self._traffic.values()) + sum(link.bytes_sent for link in live),
            bytes_received=sum(got for _, got in self._traffic.values()) + sum(link.bytes_received for link in live),
            fetches=len(self._core.fetching()),
            stalled=len(self._core.unsourced()),
            lag_s=self.arrivals.lag_s(),
            disk=self._disk.state,
            disk_free_bytes=shutil.disk_usage(self._home.path).free,
            started_at=self._started_at,
            loop_delay_s=self._loop_delay.longest_s,
        )

    def _with_traffic(self, report: LinkReport) -> LinkReport:
        sent, received = self._traffic.get(report.peer, (0, 0))
        live = [link for link in self._links.values() if link.peer == report.peer]
        return replace(
            report,
            bytes_sent=sent + sum(link.bytes_sent for link in live),
            bytes_received=received + sum(link.bytes_received for link in live),
        )

    # ----------------------------------------------------------------------------------------- events and actions

    def _new_core(self) -> Gossip:
        held, self._position = self._home.store.held_after(0)
        rng = random.Random(secrets.randbits(64))  # noqa: S311 - spreads timers, keeps no secret
        # The clock of an event loop is this one, too.
        now = time.monotonic()
        return Gossip(self._settings, rng, self._home.me, self._home.store.store_id, held, time.time(), now)

    def _peers_changed(self) -> PeersChanged:
        members = [peer for peer in self._peers.values() if not peer.query_only]
        origins = frozenset(origin.raw for origin in self._trusted)
        return PeersChanged({peer.key: peer.addresses for peer in members}, origins)

    def _handle(self, event: Event) -> list[Action]:
        """Tell the core, carry out what it asks for, and set the clock for when it wants to be asked again."""
        if self._is_away:
            return []
        loop = asyncio.get_running_loop()
        actions = self._core.handle(event, loop.time())
        self._commit.carry_out(actions)
        if self._clock is None and not self._stopping.is_set():
            self._clock = loop.call_later(CLOCK_S, self._set_clock)
        return actions

    def _perform(self, action: Action) -> None:
        match action:
            case Send(link=number, frame=frame):
                if number in self._links:
                    self._links[number].send(frame)
            case SendRecords(link=number, records=records):
                if number in self._links:
                    self._links[number].send_records(records)
            case SendChunk(link=number, record_id=record_id, index=index, count=count):
                if number in self._links:
                    self._links[number].send_chunk(record_id, index, count)
            case Keep(record=record):
                self._look_at(record)
                self.arrivals.gossiped(record)
            case Dial(peer=peer, address=address):
                if peer in self._unanswered:
                    self._unanswered[peer].cancel()  # it waits at an address that is not the peer's any more
                self._dials[peer] = self._unanswered[peer] = asyncio.create_task(self._dial(peer, address))
            case Close(link=number, reason=reason):
                if number in self._links:
                    self._links[number].close(reason)
            case Report():
                self._report(action)
            case Struck():
                self.journal.struck(action)
            case Unheard(slot=slot):
                self._witness_soon(slot)
            case Alarm(origin=origin, reason=reason, proof=proof):
                self.journal.alarm(origin, reason)
                if proof is not None:
                    self._look_at(proof)
                    self._witness_soon()

    def _witness_soon(self, *unheard: Slot) -> None:
        """Tell of new proofs of equivocation in a while, at random: others may be about to do the same."""
        self._unheard.update(unheard)
        self._witnessing.soon(random.uniform(0.0, evidence.PATIENCE_S))  # noqa: S311 - spreads nodes, keeps no secret

    def _witness(self) -> None:
        try:
            told = evidence.witness(self._home, self._unheard)
            self._unheard.clear()
            if told:
                self._read_records()
                self._witness_soon()
        except StoreError as error:
            self.journal.store_failed(error)
        except KeystoreError as error:
            self.journal.evidence_locked(error)

    def _look_at(self, record: Record) -> None:
        """A record that ends an identity changes who is trusted. A new key card wants a grant. So do all members, under
        a new epoch, when a record comes that another copy of this home signed: what was granted meanwhile may have gone
        out under numbers that were taken, and is refused. HEADs, evidence and rosters are read when there is time."""
        kind, origin = record.header.kind, record.header.origin
        self._answers.changed()
        if kind is Kind.EVIDENCE:
            origin = read_evidence(record).accused
            self._witness_soon()
        if kind in (*ABOUT_KEYS, Kind.EVIDENCE):
            self._keys_changed.soon()
        if kind is Kind.KEY_CARD or origin == self._home.me:
            self._granting.soon()
        self._has_findings |= kind in (Kind.HEAD, Kind.EVIDENCE)
        if kind is Kind.ROSTER:
            self._roster.look_again()

    def _tell_findings(self) -> None:
        """Log what HEADs and evidence that came since the last time show, once. It reads all of them."""
        if self._has_findings and self._finding.begin(self._find):
            self._has_findings = False

    def _find(self) -> Callable[[], None]:
        """In another thread, and so with a view of its own: look, and give back what is to be done about it."""
        try:
            home = Home.open(self._home.path)
            try:
                return functools.partial(self._found, set(heads.findings(home)))
            finally:
                home.store.close()
        except NodeError as error:
            return functools.partial(self.journal.store_failed, error)

    def _found(self, found: set[heads.Finding]) -> None:
        for one in sorted(found - self._findings, key=lambda one: one.origin):
            self.journal.alarm(one.origin, one.reason)
        self._findings = found

    def _report(self, told: Report) -> None:
        now = time.time()
        wait_s = None if told.retry_at is None else told.retry_at - asyncio.get_running_loop().time()
        retry_at = None if wait_s is None else now + wait_s
        before = self._reports.get(told.peer)
        self._reports[told.peer] = follow(before, told, now, retry_at)
        self.journal.link(before, self._reports[told.peer])

    def _set_clock(self) -> None:
        """Ask the core when it wants to be asked again. Not after every event: most move nothing but a far deadline."""
        self._clock = None
        deadline = self._core.next_deadline()
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        if deadline is not None and not self._stopping.is_set():
            self._tick = asyncio.get_running_loop().call_at(deadline, self._handle, Tick())

    def _leave_network(self, error: StoreError) -> None:
        """The store refused a write, so what the core believes is held may not be. Drop all links and start again from
        what the store really holds: in a while, or soon and taking less if the disk has no room."""
        if self._is_away:
            return
        self._is_away = True
        away_s = RETRY_STORE_S
        if isinstance(error, StoreFull):
            away_s = RETRY_STORE_S if self._disk.state is Disk.FULL else RETRY_FULL_S
            self._disk.refused()
            self._log_disk()
        self.journal.store_failed(error, away_s=away_s)
        self._commit.forget()
        for link in self._links.values():
            link.close(f"this node cannot write: {error}")
            self._report(Report(link.peer, LinkState.WAITING, "this node cannot write; it tries again and again"))
        for dial in self._dials.values():
            dial.cancel()
        self._unanswered.clear()
        asyncio.get_running_loop().call_later(away_s, self._return_to_network)

    def _return_to_network(self) -> None:
        self._is_away = False  # and not a moment before there is another core: it would not know of a link that came up
        try:
            self._core = self._new_core()
        except StoreError as error:
            self._leave_network(error)
            return
        self._handle(DiskChanged(self._disk.state))
        self._handle(self._peers_changed())

    # ------------------------------------------------------------------------------------------------------ disk

    def _look_at_disk(self) -> None:
        """Tell the core, and the operator once, when the disk gets low or has room again."""
        before = self._disk.state
        if self._disk.look() is not before:
            self._tell_disk()
        if self._lacks_grants and self._disk.state is Disk.ROOM:
            self._grant()

    def _refused(self) -> None:
        """The disk refused something that nobody was told of."""
        if self._disk.state is not Disk.FULL:
            self._disk.refused()
            self._tell_disk()

    def _tell_disk(self) -> None:
        self._log_disk()
        self._handle(DiskChanged(self._disk.state))

    def _log_disk(self) -> None:
        self.journal.disk(str(self._home.path), self._disk.state, WORDS[self._disk.state])

    def _if_there_is_room(self, write: Callable[[], None]) -> None:
        """Write something down that a node can do without."""
        try:
            write()
        except StoreFull as error:
            self.journal.store_failed(error)

    async def _dial(self, peer: PublicKey, address: str) -> None:
        try:
            await self._reach(peer, address)
        except PeerUnreachable as error:
            if self._unanswered.get(peer) is asyncio.current_task():
                del self._unanswered[peer]
                self.journal.dial_failed()
                self._handle(DialFailed(peer, str(error), isinstance(error, PeerRefused)))

    async def _reach(self, peer: PublicKey, address: str) -> None:
        """Gossip with a peer. One that does not know this node's key may know one that it had before: then the news
        goes over a link as that one, which the peer ends when it has heard."""
        try:
            await self._dialer.exchange(peer, address, self, self._bandwidth, self._tolls)
        except PeerRefused as refused:
            for dialer in self._former_dialers:
                try:
                    await dialer.exchange(peer, address, self, self._bandwidth, self._tolls)
                except PeerRefused:
                    continue
                except PeerUnreachable:
                    break
                return
            raise refused from None

    # ------------------------------------------------------------------------------------------------ the hub

    def may_exchange(self, peer: PublicKey) -> bool:
        """Whether this peer is a member right now."""
        return peer in self._peers and not self._peers[peer].query_only

    def link_up(self, link: Link) -> None:
        """A link is ready."""
        if self._is_away:
            link.close("this node cannot write now")
        if link.dialed_by_us:
            self._unanswered.pop(link.peer, None)
        self._links[link.number] = link
        self._handle(LinkUp(link.number, link.peer, link.dialed_by_us, time.time_ns() // 1_000_000))

    def frame_in(self, link: Link, frame: Frame) -> bool:
        """A frame arrived; it did good if it made us keep something, or asked for what is here and for nothing else. Of
        records that come together at least half must be kept: each that is not was checked for nothing."""
        self.journal.received(frame)
        actions = self._handle(FrameIn(link.number, frame))
        if isinstance(frame, Records):
            return 2 * len({_kept_id(action) for action in actions} - {None}) >= len(frame.records)
        answers = [action.frame for action in actions if isinstance(action, Send)]
        if any(isinstance(answer, Missing) for answer in answers):
            return False
        is_served = any(isinstance(answer, Records) for answer in answers)  # headers alone
        return is_served or any(isinstance(action, _USEFUL) for action in actions)

    async def room(self) -> None:
        """Wait until the disk has caught up."""
        await self._commit.room()

    def bad_frame(self, link: Link, reason: str) -> None:
        """Something else arrived."""
        self._handle(BadFrame(link.number, reason))

    def load_chunks(self, record_id: bytes, indexes: Sequence[int]) -> list[bytes | None]:
        """What is here of these chunks now."""
        try:
            return self._home.store.chunks(record_id, indexes)
        except StoreError as error:
            self.journal.store_failed(error)
            return [None] * len(indexes)

    def link_down(self, link: Link, reason: str) -> None:
        """A link is gone."""
        self._links.pop(link.number, None)
        sent, received = self._traffic.get(link.peer, (0, 0))
        self._traffic[link.peer] = (sent + link.bytes_sent, received + link.bytes_received)
        self.journal.counts.frames_sent += link.frames_sent
        self._handle(LinkDown(link.number, reason))

    # ------------------------------------------------------------------------------------------------ the server

    def _admitted(self) -> frozenset[PublicKey]:
        """Every peer, query-only ones too."""
        return frozenset(self._peers)

    def _refusal(self, peer: PublicKey) -> str:
        """Why this member gets no link now; empty if it may have one."""
        wait_s = self._core.kept_out_s(peer, asyncio.get_running_loop().time())
        if wait_s <= 0:
            return ""
        return f"You sent too much that was invalid: no links for another {duration(wait_s)}."

    def _answer(self, peer: PublicKey, query: Query) -> AsyncGenerator[bytes | str, None]:
        return self.journal.query(peer, query, self._answers.answer(peer, query))

    def _name_of(self, key: PublicKey) -> str:
        """What people here call a key. Without the store, which may be slow, or fail, while something is told of it."""
        if key == self._home.me:
            return self._home.settings.name
        return self._former.get(key) or (self._peers[key].name if key in self._peers else key.short)


def _kept_id(action: Action) -> bytes | None:
    """The id of the record that this action keeps something of."""
    match action:
        case Keep(record=record):
            return record.id
        case KeepChunk(record_id=record_id):
            return record_id
    return None


async def _ended(tasks: Collection[asyncio.Task[None]], patience_s: float) -> None:
    """Wait for these, and cancel those that take longer."""
    if tasks:
        await asyncio.wait(tasks, timeout=patience_s)
    for task in tasks:
        task.cancel()
