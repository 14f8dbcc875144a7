"""The core itself: takes events, hands them to the parts, and returns what these want done, in order."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

from crypto.keys import PublicKey
from node.config import GossipSettings
from node.frames import (
    Announce,
    Bye,
    Chunk,
    Digest,
    Frame,
    Hello,
    Ids,
    Missing,
    Origins,
    Records,
    Spans,
    Vector,
    Want,
    WantChunks,
)
from node.gossip.compare import Comparison
from node.gossip.events import (
    Action,
    BadFrame,
    DialFailed,
    DiskChanged,
    Event,
    FrameIn,
    LinkDown,
    LinkUp,
    PeersChanged,
    RecordAdded,
    Tick,
)
from node.gossip.fetch import Fetcher
from node.gossip.holdings import Holdings
from node.gossip.intake import Intake
from node.gossip.links import STOPPED, Links, PeerLink
from node.gossip.quotas import Quotas
from node.gossip.rumors import Rumors
from node.gossip.supply import Supply
from node.records import Held


class Gossip:
    """One node's part in the protocol."""

    def __init__(
        self,
        settings: GossipSettings,
        rng: random.Random,
        me: PublicKey,
        store_id: bytes,
        held: Iterable[Held],
        clock_unix_s: float = 0.0,
        now: float = 0.0,
    ) -> None:
        """`held` is in the store at the start. `clock_unix_s` is what this node's clock shows, for how long ago that
        came, and `now` the time of the first event or earlier."""
        self._out: list[Action] = []
        self._me = me
        self._holdings = Holdings(settings)
        self._holdings.trust(frozenset((me.raw,)))
        self._rumors = Rumors(settings, rng)
        self._fetcher = Fetcher(settings)
        self._links = Links(settings, rng, me, store_id, self._fetcher, self._out)
        self._comparison = Comparison(settings, rng, self._holdings, self._out)
        self._supply = Supply(self._holdings, self._links, self._out)
        self._quotas = Quotas(me.raw, settings.quotas)
        self._intake = Intake(
            settings, me, self._holdings, self._fetcher, self._rumors, self._links, self._quotas, self._out
        )
        for known in held:
            self._intake.learn(known, now, clock_unix_s - known.received_at)
        self._quotas.cap_today()

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at time `now` (monotonic seconds) and return what to do, in order."""
        match event:
            case PeersChanged():
                self._peers_changed(event, now)
            case LinkUp():
                self._link_up(event, now)
            case LinkDown(link=number, reason=reason):
                self._links.down(number, reason, now)
            case DialFailed():
                self._links.dial_failed(event, now)
            case FrameIn():
                self._frame_in(event, now)
            case BadFrame(link=number, reason=reason):
                self._links.strike(number, reason, now)
            case RecordAdded(held=held):
                self._intake.added(held, now)
            case DiskChanged(disk=disk):
                self._fetcher.spare(disk)
            case Tick():
                self._tick(now)
        self._follow_up(now)
        actions = self._out.copy()
        self._out.clear()
        return actions

    def next_deadline(self) -> float | None:
        """When a Tick is wanted, None if only an event can change anything."""
        soonest = min(
            self._rumors.deadline(),
            self._fetcher.deadline(),
            self._links.deadline(),
            self._comparison.deadline(),
            self._quotas.deadline(),
        )
        return None if soonest == math.inf else soonest

    def kept_out_s(self, peer: PublicKey, now: float) -> float:
        """For how many seconds more this peer gets no link, because of what it sent."""
        return self._links.kept_out_s(peer, now)

    def over_quota(self) -> dict[bytes, int]:
        """The origins (raw keys) of which records are known to wait until there is room, and how many."""
        return self._quotas.waiting()

    def unsourced(self) -> set[bytes]:
        """The ids of records whose header is here and whose body no link has the rest of."""
        return self._fetcher.unsourced()

    def fetching(self) -> dict[bytes, int]:
        """The records that lack some of their body, with how many chunks the core knows to be here: what else comes to
        have more of them tells it by RecordAdded."""
        return self._fetcher.fetching()

    # ----------------------------------------------------------------------------------------------------------- events

    def _peers_changed(self, event: PeersChanged, now: float) -> None:
        is_larger, gone = self._links.set_members(event, now)
        is_wider = self._holdings.trust(
            event.origins if self._me.raw in event.origins else event.origins | {self._me.raw}
        )
        self._quotas.set_members(len(event.members))
        self._fetcher.distrust({origin for origin in gone if not self._holdings.trusts(origin)})
        if is_larger or is_wider:
            for link in self._links.ready():
                self._comparison.begin_anew(link)

    def _link_up(self, event: LinkUp, now: float) -> None:
        link = self._links.up(event, now)
        if link is not None:
            self._comparison.begin(link, now)

    def _frame_in(self, event: FrameIn, now: float) -> None:
        link = self._links.get(event.link)
        if link is None:
            return
        if isinstance(event.frame, Hello):
            self._links.hello(link, event.frame, now)
        elif isinstance(event.frame, Bye):
            self._links.close(link, STOPPED, now)
        elif link.is_ready:
            self._ready_frame(link, event.frame, now)
        # Before its Hello a link says nothing that counts; `hello_timeout_s` ends one that never comes.

    def _ready_frame(self, link: PeerLink, frame: Frame, now: float) -> None:
        match frame:
            case Digest() as theirs:
                self._comparison.digest(link, theirs, now)
            case Origins() as theirs:
                self._comparison.origins(link, theirs, now)
            case Spans() as theirs:
                self._comparison.spans(link, theirs, now)
            case Vector() as theirs:
                self._comparison.vectors(link, theirs, now)
            case Ids() as theirs:
                self._comparison.ids(link, theirs, now)
            case Announce(adverts):
                self._intake.heard(link, adverts, now)
            case Want() as want:
                for wanted in want.ids:
                    self._rumors.heard(link.number, wanted)
                self._supply.want(link, want)
            case Records(records):
                self._intake.records(link, records, now)
            case WantChunks() as want_chunks:
                self._supply.want_chunks(link, want_chunks, now)
            case Chunk() as chunk:
                self._intake.chunk(link, chunk, now)
            case Missing(absent):
                self._fetcher.drop_source(link.number, absent)

    def _tick(self, now: float) -> None:
        self._links.expire_silent(now)
        self._comparison.begin_due(now)
        self._fetcher.expire(now)

    def _follow_up(self, now: float) -> None:
        """What any event may have made possible: dial, compare again, announce, ask."""
        self._links.dial(now)
        if self._quotas.reopened(now):
            for lacking in self._links.ready():
                self._comparison.begin_anew(lacking)
        for number in self._fetcher.take_drained():
            link = self._links.get(number)
            if link is not None:
                self._comparison.begin(link, now)
        if self._rumors.deadline() <= now:
            ready = [link.number for link in self._links.ready()]
            for number, ids in self._rumors.due(ready, now).items():
                self._comparison.announce(number, ids)
        self._out += self._fetcher.pump(now)
