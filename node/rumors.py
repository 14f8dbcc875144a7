"""Rumors: announcing what is new to a few links at a time, for a few rounds.

The push half of Demers et al. (1987), "rumor mongering" with a counter: at once to `fanout` links, drawn from those
that are not known to have the record, and to as many in each of the next rounds. A link that was told and stays silent
may have the record, or may have missed the announcement: it is told again when all others were. That spreads in about
log N rounds and misses some nodes; finding those is the business of anti-entropy (`reconcile`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from node.config import GossipSettings


@dataclass(slots=True)
class _Rumor:
    """News: the links that have it, those that were told and say nothing, when the next round is due."""

    rounds_left: int
    knowing: set[int]
    next_at: float = -math.inf
    told: set[int] = field(default_factory=set)


class Rumors:
    """The records that are news, and which links have heard of each."""

    def __init__(self, settings: GossipSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._fresh: dict[bytes, _Rumor] = {}
        self._rumors: dict[bytes, _Rumor] = {}
        """Those that were told once, by when they are due: a round takes the same time for all, so one that was told
        goes to the end, and what is due is found without a look at the others."""

    def start(self, record_id: bytes, knowing: Iterable[int]) -> None:
        """A record is news, except to these links."""
        self._rumors.pop(record_id, None)
        self._fresh[record_id] = _Rumor(self._settings.rumor_rounds, set(knowing))

    def heard(self, link: int, record_id: bytes) -> None:
        """The peer on this link has the record."""
        rumor = self._fresh.get(record_id) or self._rumors.get(record_id)
        if rumor is not None:
            rumor.knowing.add(link)

    def due(self, links: Sequence[int], now: float) -> dict[int, list[bytes]]:
        """What to announce on which of these links now; counts as told."""
        tell: dict[int, list[bytes]] = {}
        for record_id, rumor in self._take_due(now).items():
            chosen = self._choose([link for link in links if link not in rumor.knowing], rumor.told)
            for link in chosen:
                tell.setdefault(link, []).append(record_id)
            rumor.told.update(chosen)
            rumor.rounds_left -= 1
            rumor.next_at = now + self._settings.rumor_round_s
            if rumor.rounds_left > 0 and chosen:
                self._rumors[record_id] = rumor
        return tell

    def _take_due(self, now: float) -> dict[bytes, _Rumor]:
        due = dict(takewhile(lambda entry: entry[1].next_at <= now, self._rumors.items()))
        for record_id in due:
            del self._rumors[record_id]
        due |= self._fresh
        self._fresh = {}
        return due

    def _choose(self, links: Sequence[int], told: Container[int]) -> list[int]:
        """The links to tell in this round: those that were not told before, then those that were and stayed silent."""
        fresh = [link for link in links if link not in told]
        silent = [link for link in links if link in told]
        chosen = self._rng.sample(fresh, min(self._settings.fanout, len(fresh)))
        return chosen + self._rng.sample(silent, min(self._settings.fanout - len(chosen), len(silent)))

    def deadline(self) -> float:
        """When the next round is due."""
        if self._fresh:
            return -math.inf
        return next((rumor.next_at for rumor in self._rumors.values()), math.inf)
