"""Rumors: announcing what is new to a few links at a time, for a few rounds.

The push half of Demers et al. (1987), "rumor mongering" with a counter and no feedback: at once to `fanout` links,
drawn from those that do not have the record already, and to as many others in each of the next rounds. It spreads in
about log N rounds and misses some nodes; finding those is the business of anti-entropy (`reconcile`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from node.config import GossipSettings


@dataclass(slots=True)
class _Rumor:
    rounds_left: int
    told: set[int]
    next_at: float


class Rumors:
    """The records that are news, and which links have heard of each."""

    def __init__(self, settings: GossipSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._rumors: dict[bytes, _Rumor] = {}

    def start(self, record_id: bytes, knowing: Iterable[int]) -> None:
        """A record is news, except to these links."""
        self._rumors[record_id] = _Rumor(self._settings.rumor_rounds, set(knowing), -math.inf)

    def heard(self, link: int, record_id: bytes) -> None:
        """The peer on this link has the record."""
        if record_id in self._rumors:
            self._rumors[record_id].told.add(link)

    def due(self, links: Sequence[int], now: float) -> dict[int, list[bytes]]:
        """What to announce on which of these links now; counts as told."""
        tell: dict[int, list[bytes]] = {}
        for record_id, rumor in list(self._rumors.items()):
            if rumor.next_at > now:
                continue
            untold = [link for link in links if link not in rumor.told]
            chosen = self._rng.sample(untold, min(self._settings.fanout, len(untold)))
            for link in chosen:
                tell.setdefault(link, []).append(record_id)
            rumor.told.update(chosen)
            rumor.rounds_left -= 1
            rumor.next_at = now + self._settings.rumor_round_s
            if rumor.rounds_left == 0 or len(chosen) == len(untold):
                del self._rumors[record_id]
        return tell

    def deadline(self) -> float:
        """When the next round is due."""
        return min((rumor.next_at for rumor in self._rumors.values()), default=math.inf)
