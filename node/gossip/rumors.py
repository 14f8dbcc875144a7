"""Rumors: announcing what is new to a few links at a time, for a few rounds.

The push half of Demers et al. (1987), "rumor mongering" with a counter: at once to `fanout` links, drawn from those
that are not known to have the record, and to as many in each of the next rounds. A link that was told and stays silent
may have the record, or may have missed the announcement: it is told again when all others were. That spreads in about
log N rounds and misses some nodes; finding those is the business of anti-entropy (`reconcile`).
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from node.config import GossipSettings


@dataclass(slots=True)
class _Rumor:
    """News: the links that have it, and those that were told and say nothing."""

    record_id: bytes
    rounds_left: int
    knowing: set[int]
    told: set[int] = field(default_factory=set)


class Rumors:
    """The records that are news, and which links have heard of each.

    A round is as long for one as for the next, so those that wait are due in the order in which they began to.
    """

    def __init__(self, settings: GossipSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._rumors: dict[bytes, _Rumor] = {}
        self._fresh: list[_Rumor] = []
        self._waiting: deque[tuple[float, _Rumor]] = deque()

    def start(self, record_id: bytes, knowing: Iterable[int]) -> None:
        """A record is news, except to these links."""
        rumor = self._rumors[record_id] = _Rumor(record_id, self._settings.rumor_rounds, set(knowing))
        self._fresh.append(rumor)

    def heard(self, link: int, record_id: bytes) -> None:
        """The peer on this link has the record."""
        if record_id in self._rumors:
            self._rumors[record_id].knowing.add(link)

    def due(self, links: Sequence[int], now: float) -> dict[int, list[bytes]]:
        """What to announce on which of these links now; counts as told."""
        tell: dict[int, list[bytes]] = {}
        for rumor in self._take_due(now):
            chosen = self._choose([link for link in links if link not in rumor.knowing], rumor.told)
            for link in chosen:
                tell.setdefault(link, []).append(rumor.record_id)
            rumor.told.update(chosen)
            rumor.rounds_left -= 1
            if rumor.rounds_left == 0 or not chosen:
                del self._rumors[rumor.record_id]
            else:
                self._waiting.append((now + self._settings.rumor_round_s, rumor))
        return tell

    def _take_due(self, now: float) -> list[_Rumor]:
        due, self._fresh = self._fresh, []
        while self._waiting and self._waiting[0][0] <= now:
            due.append(self._waiting.popleft()[1])
        return [rumor for rumor in due if self._rumors.get(rumor.record_id) is rumor]

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
        return self._waiting[0][0] if self._waiting else math.inf
