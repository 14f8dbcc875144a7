"""Fetching: which record to ask of which link, chunk by chunk, and whom to ask next when a link goes quiet.

Announce ids, pull bodies (docs/adr/0004): a record is asked of one link at a time, however many announced
it. First its header, then the chunks of its body that are not here yet; a chunk is kept the moment it
arrives, so a fetch resumes where it was, from any link that announces the record. Each link has one window
of headers and one of chunks in flight; what is asked first is what ranks first: withdrawals and what ends an
identity, then records without a body, then small bodies, then large ones.

Four ways a link loses a fetch: it goes down or says Missing; it owes something small and is silent for longer than it
usually takes to answer (`patience`); it owes chunks and delivers nothing at all (`stall_s`); it delivers others but
nothing of this one (`hostage_s`). The first that is left in the record's sources is asked then; a silent link that is
the only source is asked again. A link is ordered: chunks that a later one overtook are lost, and asked for again.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from crypto.sealing import HASH_BYTES
from node.config import CHUNK_BYTES, MAX_WANT, MAX_WANT_CHUNKS, SMALL_BODY_BYTES, GossipSettings
from node.frames import Advert, Want, WantChunks
from node.gossip.events import Action, Disk, Send
from node.gossip.patience import Patience
from node.records import Kind, Record

HEADER_BYTES: Final = 400
"""About the size of a signed header, without the hashes of its chunks."""

Rank = tuple[int, int, int]


def priority(kind: int, body_bytes: int) -> int:
    """What is sent and asked for first: 0 withdrawals, evidence and what ends an identity, 1 no body, 2 a small one,
    3 a large one."""
    if kind in (Kind.WITHDRAWAL, Kind.EVIDENCE, Kind.REVOKE, Kind.SUCCESSION):
        return 0
    if body_bytes == 0:
        return 1
    return 2 if body_bytes <= SMALL_BODY_BYTES else 3


@dataclass(slots=True)
class _Fetch:
    """A record that is wanted. Once its header is here, every chunk that is missing is either unasked or in flight;
    dicts keep their order."""

    rank: Rank
    origin: bytes
    sources: dict[int, None] = field(default_factory=dict)
    record: Record | None = None
    unasked: dict[int, None] = field(default_factory=dict)
    in_flight: dict[int, None] = field(default_factory=dict)
    asked: int | None = None

    @property
    def missing(self) -> set[int]:
        """The chunks that are not here."""
        return self.unasked.keys() | self.in_flight.keys()

    @property
    def light_bytes(self) -> int | None:
        """About how long the answer is if it is cheap to ask for twice: a header, with a small body or without one."""
        body_bytes = self.rank[1]
        header_bytes = 0 if self.record else HEADER_BYTES + body_bytes // CHUNK_BYTES * HASH_BYTES
        if body_bytes <= SMALL_BODY_BYTES:
            return header_bytes + body_bytes
        return None if self.record else header_bytes


@dataclass(slots=True)
class _Source:
    """What is asked of one link. `asked` maps records to when they last made progress, the oldest first; `light` those
    of them that are cheap to ask for twice, to about how many bytes they are."""

    patience: Patience = field(default_factory=Patience)
    candidates: int = 0
    overflowed: bool = False
    headers: list[tuple[Rank, bytes]] = field(default_factory=list)
    bodies: list[tuple[Rank, bytes]] = field(default_factory=list)
    asked: dict[bytes, float] = field(default_factory=dict)
    light: dict[bytes, int] = field(default_factory=dict)
    light_bytes: int = 0
    headers_in_flight: int = 0
    chunks_in_flight: int = 0


class Fetcher:
    """Every record that is wanted, and every link that can give some."""

    def __init__(self, settings: GossipSettings) -> None:
        self._settings = settings
        self._fetches: dict[bytes, _Fetch] = {}
        self._links: dict[int, _Source] = {}
        self._ready: dict[int, None] = {}
        self._drained: dict[int, None] = {}
        self._owing: dict[int, None] = {}
        """The links that something is asked of: few, where there are many links."""
        self._order = 0
        self._disk = Disk.ROOM

    # --------------------------------------------------------------------------------------------------- what is wanted

    def offered(self, link: int, advert: Advert) -> None:
        """A link has a record that is not settled here."""
        source = self._links[link]
        fetch = self._fetches.get(advert.id)
        if fetch is not None and link in fetch.sources:
            return
        if source.candidates >= self._settings.max_unknown_adverts:
            source.overflowed = True
            return
        if fetch is None:
            fetch = self._new(advert.id, advert.origin, advert.kind, advert.body_bytes)
        fetch.sources[link] = None
        source.candidates += 1
        self._queue(advert.id, link)

    def resume(self, record: Record, missing: Iterable[int]) -> None:
        """The header of a record is here, some chunks are not: ask for these from any link that offers the record."""
        header = record.header
        fetch = self._fetches.get(record.id)
        if fetch is None:
            fetch = self._new(record.id, header.origin.raw, header.kind, header.body_bytes)
        self._release(record.id, fetch)
        # What was announced may have been wrong about the size; the header is right.
        fetch.rank = (priority(header.kind, header.body_bytes), header.body_bytes, fetch.rank[2])
        fetch.record = record
        fetch.unasked = dict.fromkeys(missing)
        self._queue_everywhere(record.id, fetch)

    def progress(self, link: int, record_id: bytes, now: float, chunks: int = 0) -> None:
        """Something of this record came over this link, wanted or not: its header, or so many chunks."""
        source = self._links[link]
        fetch = self._fetches.get(record_id)
        if fetch is not None and fetch.record is None and record_id in source.asked:
            source.patience.answered(source.asked[record_id], now)
        source.patience.arrived(now, chunks, was_owing=bool(source.asked))
        if source.asked.pop(record_id, None) is not None:
            source.asked[record_id] = now

    def chunk_arrived(self, link: int | None, record_id: bytes, index: int) -> bool:
        """A good chunk came over this link, or by another way, and was kept; returns whether it was the last one."""
        fetch = self._fetches[record_id]
        if index in fetch.in_flight and fetch.asked is not None:
            if fetch.asked == link:
                self._ask_for_overtaken(record_id, fetch, index)
            del fetch.in_flight[index]
            self._land(fetch.asked, 1)
        else:
            del fetch.unasked[index]  # it was asked of a link that has been given up since
        if not fetch.unasked and not fetch.in_flight:
            self.forget(record_id)
            return True
        return False

    def found(self, record_id: bytes, missing: Iterable[int]) -> bool:
        """Chunks of this record came by another way than a link; only `missing` are still wanted. Returns whether that
        made the record whole."""
        fetch = self._fetches.get(record_id)
        is_whole = False
        for index in sorted(fetch.missing - set(missing)) if fetch is not None else ():
            is_whole = self.chunk_arrived(None, record_id, index)
        return is_whole

    def fetching(self) -> dict[bytes, int]:
        """The records of which the header is here and some of the body is not, with how many chunks are here."""
        return {
            record_id: len(fetch.record.header.chunk_hashes) - len(fetch.missing)
            for record_id, fetch in self._fetches.items()
            if fetch.record is not None
        }

    def wanted_chunk(self, record_id: bytes, index: int) -> Record | None:
        """The record, if this chunk of it is still missing here."""
        fetch = self._fetches.get(record_id)
        if fetch is None or (index not in fetch.in_flight and index not in fetch.unasked):
            return None
        return fetch.record

    def sources(self, record_id: bytes) -> list[int]:
        """The links that have this record."""
        fetch = self._fetches.get(record_id)
        return list(fetch.sources) if fetch is not None else []

    def unsourced(self) -> set[bytes]:
        """The records whose header is here and whose missing chunks nobody can be asked for."""
        return {known for known, fetch in self._fetches.items() if fetch.record is not None and not fetch.sources}

    def owes(self, link: int) -> bool:
        """Whether something is asked of this link."""
        return link in self._owing

    def forget(self, record_id: bytes) -> None:
        """The record is settled, or refused for good."""
        fetch = self._fetches.pop(record_id, None)
        if fetch is not None:
            self._release(record_id, fetch)
            for link in fetch.sources:
                self._uncount(link)

    def drop_source(self, link: int, record_id: bytes) -> None:
        """This link does not have the record, or not a good one."""
        fetch = self._fetches.get(record_id)
        if fetch is None or link not in fetch.sources:
            return
        del fetch.sources[link]
        self._uncount(link)
        if fetch.asked == link:
            self._release(record_id, fetch)
            self._queue_everywhere(record_id, fetch)
        if not fetch.sources and fetch.record is None:
            self.forget(record_id)

    def give_up_headers(self, origin: bytes, of_priority: int) -> None:
        """Ask for no more new records of this origin and priority, bodies of all sizes being one; those that are here
        in part go on."""
        for record_id, fetch in list(self._fetches.items()):
            if fetch.origin == origin and fetch.record is None and min(fetch.rank[0], 2) == min(of_priority, 2):
                self.forget(record_id)

    def distrust(self, origins: set[bytes]) -> None:
        """Ask for nothing of these origins; what is here of a body stays for a change of mind."""
        for record_id, fetch in list(self._fetches.items()):
            if fetch.origin in origins:
                for link in list(fetch.sources):
                    self.drop_source(link, record_id)

    # ------------------------------------------------------------------------------------------------------------- disk

    @property
    def takes_bodies(self) -> bool:
        """Whether there is room for chunks."""
        return self._disk is Disk.ROOM

    def takes_header(self, kind: int) -> bool:
        """Whether there is room for a header of this kind; withdrawals and evidence are tried on the fullest disk."""
        return self._disk is not Disk.FULL or priority(kind, 0) == 0

    def spare(self, disk: Disk) -> None:
        """Ask for no more than the disk has room for. What was asked for and will not be kept is owed no longer; what
        has room again is asked for."""
        self._disk = disk
        for record_id, fetch in self._fetches.items():
            is_kept = self.takes_bodies if fetch.record else self._has_room(fetch.rank)
            if fetch.asked is not None and not is_kept:
                self._release(record_id, fetch)
                self._queue_everywhere(record_id, fetch)
        self._ready.update(dict.fromkeys(self._links))

    def _has_room(self, rank: Rank) -> bool:
        return self._disk is not Disk.FULL or rank[0] == 0

    # ------------------------------------------------------------------------------------------------------------ links

    def link_up(self, link: int) -> None:
        """A link can be asked."""
        self._links[link] = _Source()

    def link_down(self, link: int) -> None:
        """A link can be asked no more; what it owed is asked elsewhere."""
        if link in self._links:
            for record_id in [known for known, fetch in self._fetches.items() if link in fetch.sources]:
                self.drop_source(link, record_id)
            del self._links[link]
            self._ready.pop(link, None)
            self._drained.pop(link, None)

    def expire(self, now: float) -> None:
        """Take back what was asked of links that deliver nothing, or nothing of that record."""
        for link in list(self._owing):
            source = self._links[link]
            patience, late = source.patience, dict.fromkeys(self._held_up(source, now))
            if source.light and now >= patience.tries_at(self._settings, source.light_bytes):
                patience.try_again(now)
                for record_id in list(source.light):
                    late.pop(record_id, None)
                    self._ask_again(link, record_id)
            if len(source.asked) > len(source.light) and now >= patience.stalls_at(self._settings):
                patience.give_up(now)
                late.update(dict.fromkeys(known for known in source.asked if known not in source.light))
            for record_id in late:
                self._ask_elsewhere(link, record_id)

    def deadline(self) -> float:
        """When `expire` has something to do."""
        soonest = math.inf
        for link in self._owing:
            source = self._links[link]
            soonest = min(soonest, source.patience.held_up_at(self._settings, next(iter(source.asked.values()))))
            if source.light:
                soonest = min(soonest, source.patience.tries_at(self._settings, source.light_bytes))
            if len(source.asked) > len(source.light):
                soonest = min(soonest, source.patience.stalls_at(self._settings))
        return soonest

    def _held_up(self, source: _Source, now: float) -> list[bytes]:
        """What was asked of this link long ago while it delivers other things."""
        held_up_at = source.patience.held_up_at
        return [known for known, asked_at in source.asked.items() if now >= held_up_at(self._settings, asked_at)]

    def take_drained(self) -> list[int]:
        """The links whose announcements overflowed and are worked off by now: they know more."""
        drained = list(self._drained)
        self._drained.clear()
        return drained

    # ----------------------------------------------------------------------------------------------------------- asking

    def pump(self, now: float) -> list[Action]:
        """Ask for as much as the windows allow."""
        actions: list[Action] = []
        for link in list(self._ready):
            actions += self._ask_headers(link, now)
            actions += self._ask_chunks(link, now)
        self._ready.clear()
        return actions

    def _ask_headers(self, link: int, now: float) -> list[Action]:
        source = self._links[link]
        ids: list[bytes] = []
        while source.headers and source.headers_in_flight < self._settings.want_window:
            if not self._has_room(source.headers[0][0]):
                break
            _, record_id = heapq.heappop(source.headers)
            fetch = self._fetches.get(record_id)
            if fetch and fetch.record is None and fetch.asked is None and link in fetch.sources:
                self._ask(record_id, fetch, link, now)
                source.headers_in_flight += 1
                ids.append(record_id)
        return [Send(link, Want(tuple(ids[start : start + MAX_WANT]))) for start in range(0, len(ids), MAX_WANT)]

    def _ask_chunks(self, link: int, now: float) -> list[Action]:
        """Fill the window once half of it is free: asking for each chunk as one arrives would send as many frames up
        the link as come down."""
        source = self._links[link]
        actions: list[Action] = []
        window = source.patience.window(self._settings)
        room = window - source.chunks_in_flight
        if room < window / 2 or not self.takes_bodies:
            return actions
        while source.bodies and room > 0:
            record_id = source.bodies[0][1]
            fetch = self._fetches.get(record_id)
            if fetch is None or not self._may_ask(fetch, link):
                heapq.heappop(source.bodies)
                continue
            if fetch.asked is None:
                self._ask(record_id, fetch, link, now)
            indexes = self._fly(fetch, link, min(room, MAX_WANT_CHUNKS))
            room -= len(indexes)
            actions.append(Send(link, WantChunks(record_id, indexes, source.patience.together(self._settings))))
        return actions

    def _may_ask(self, fetch: _Fetch, link: int) -> bool:
        """Whether this link may be asked for some chunks of the record now."""
        return bool(fetch.unasked) and fetch.asked in (None, link) and link in fetch.sources

    def _ask_for_overtaken(self, record_id: bytes, fetch: _Fetch, index: int) -> None:
        """A link is ordered: what was asked of it before this chunk and is not here was lost, if it was ever sent."""
        lost = list(itertools.takewhile(lambda other: other != index, fetch.in_flight))
        if lost and fetch.asked is not None:
            for other in lost:
                del fetch.in_flight[other]
            fetch.unasked = dict.fromkeys(sorted((*lost, *fetch.unasked)))
            heapq.heappush(self._links[fetch.asked].bodies, (fetch.rank, record_id))
            self._land(fetch.asked, len(lost))

    def _ask_again(self, link: int, record_id: bytes) -> None:
        """Ask for something light again: of the next source, of this one when all others had their turn."""
        fetch = self._fetches[record_id]
        self._release(record_id, fetch)
        self._ready.pop(link, None)
        del fetch.sources[link]
        fetch.sources[link] = None
        self._queue_everywhere(record_id, fetch)

    def _ask_elsewhere(self, link: int, record_id: bytes) -> None:
        fetch = self._fetches[record_id]
        if len(fetch.sources) > 1:
            self.drop_source(link, record_id)
        else:
            self._release(record_id, fetch)
            self._queue_everywhere(record_id, fetch)

    # ------------------------------------------------------------------------------------------------------ bookkeeping

    def _new(self, record_id: bytes, origin: bytes, kind: int, body_bytes: int) -> _Fetch:
        self._order += 1
        fetch = _Fetch((priority(kind, body_bytes), body_bytes, self._order), origin)
        self._fetches[record_id] = fetch
        return fetch

    def _queue(self, record_id: bytes, link: int) -> None:
        fetch, source = self._fetches[record_id], self._links[link]
        if fetch.asked is None:
            queue = source.headers if fetch.record is None else source.bodies
            heapq.heappush(queue, (fetch.rank, record_id))
            self._ready[link] = None

    def _queue_everywhere(self, record_id: bytes, fetch: _Fetch) -> None:
        for link in fetch.sources:
            self._queue(record_id, link)

    def _ask(self, record_id: bytes, fetch: _Fetch, link: int, now: float) -> None:
        source = self._links[link]
        if not source.asked:
            source.patience.begin(now)
        fetch.asked = link
        source.asked[record_id] = now
        self._owing[link] = None
        size = fetch.light_bytes
        if size is not None:
            source.light[record_id] = size
            source.light_bytes += size

    def _fly(self, fetch: _Fetch, link: int, most: int) -> tuple[int, ...]:
        """Count the first unasked chunks, so many at most, as asked of this link; returns them."""
        indexes = tuple(itertools.islice(fetch.unasked, most))
        for index in indexes:
            del fetch.unasked[index]
            fetch.in_flight[index] = None
        self._links[link].chunks_in_flight += len(indexes)
        return indexes

    def _land(self, link: int, chunks: int) -> None:
        self._links[link].chunks_in_flight -= chunks
        self._ready[link] = None

    def _release(self, record_id: bytes, fetch: _Fetch) -> None:
        """Nothing of this record is asked of anyone any more."""
        if fetch.asked is None:
            return
        source = self._links[fetch.asked]
        del source.asked[record_id]
        if not source.asked:
            del self._owing[fetch.asked]
        source.light_bytes -= source.light.pop(record_id, 0)
        if fetch.record is None:
            source.headers_in_flight -= 1
        self._land(fetch.asked, len(fetch.in_flight))
        if fetch.in_flight:
            fetch.unasked = dict.fromkeys(sorted((*fetch.in_flight, *fetch.unasked)))
            fetch.in_flight.clear()
        fetch.asked = None

    def _uncount(self, link: int) -> None:
        source = self._links[link]
        source.candidates -= 1
        if source.overflowed and source.candidates == 0:
            source.overflowed = False
            self._drained[link] = None
