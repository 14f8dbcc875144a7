"""Patience: how long a link may owe an answer before the same is asked again, there or elsewhere.

What is cheap to send twice is asked again soon, what is dear is waited for:

* a header, or a body so small that it rides with its header, after the link's usual time to answer, measured as TCP
  measures its round trip (RFC 6298, equations 2.2 and 2.3), then again at that pace, and after a few tries ever more
  rarely;
* chunks of a large body after `stall_s`, and after four of the link's usual gaps between arrivals, doubled each time.

Both begin again with everything that the link delivers: a thin line that is busy is not a silent one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from node.config import CHUNK_MIN_BYTES, CHUNKS_MAX_BYTES, SMALL_BODY_BYTES, GossipSettings

MAX_DOUBLINGS: Final = 10
MAX_TOGETHER: Final = CHUNKS_MAX_BYTES // CHUNK_MIN_BYTES
THIN_LINE: Final = 8_000.0
"""Bytes per second of the thinnest line that must work (64 kbit/s)."""


@dataclass(slots=True)
class Patience:
    """One link's pace, as seen from here. Times in seconds."""

    progress_at: float = 0.0
    mean_gap_s: float | None = None
    chunk_s: float | None = None
    """How long after whatever came before it a chunk comes: what headers do, many of which fit into one, says nothing
    about it."""
    stalls: int = 0
    stalled_at: float = -math.inf
    round_trip_s: float | None = None
    deviation_s: float = 0.0
    tries: int = 0
    tried_at: float = -math.inf

    def begin(self, now: float) -> None:
        """Something is asked of a link that owed nothing."""
        if self.stalled_at < now:
            # Not when a stalled link is asked again at once: it has owed since the first time.
            self.progress_at, self.stalls = now, 0

    def answered(self, asked_at: float, now: float) -> None:
        """A header came that was last asked for then. If that was a second try it may answer the first, and says
        nothing (Karn's rule): patience stays as long as it has become until a first try is answered."""
        if asked_at <= self.tried_at:
            return
        took_s = now - asked_at
        if self.round_trip_s is None:
            self.round_trip_s, self.deviation_s = took_s, took_s / 2
        else:
            self.deviation_s += (abs(took_s - self.round_trip_s) - self.deviation_s) / 4
            self.round_trip_s += (took_s - self.round_trip_s) / 8
        self.tries = 0

    def arrived(self, now: float, chunks: int, *, was_owing: bool) -> None:
        """The link delivered something: so many chunks in one frame, or none and something else."""
        if was_owing and self.tries == 0:
            count = max(1, chunks)
            gap_s = (now - self.progress_at) / count
            self.mean_gap_s = _follow(self.mean_gap_s, gap_s, count)
            if chunks:
                self.chunk_s = _follow(self.chunk_s, gap_s, count)
        self.progress_at = now
        self.stalls = 0

    def give_up(self, now: float) -> None:
        """It owes and delivers nothing: a stall."""
        self.stalls += 1
        self.stalled_at = now

    def try_again(self, now: float) -> None:
        """What is cheap is asked again."""
        self.tries += 1
        self.tried_at = now

    def stalls_at(self, settings: GossipSettings) -> float:
        """When a link that owes has stalled."""
        usual_s = max(settings.stall_s, 4 * (self.mean_gap_s or 0.0))
        return self.progress_at + usual_s * float(1 << min(self.stalls, MAX_DOUBLINGS))

    def window(self, settings: GossipSettings) -> int:
        """How many chunks may be asked for and not here. Where the window is what limits the pace, it grows until it
        does not, as long as the round trip is shorter than `chunk_window_s`."""
        if self.chunk_s is None:
            return min(settings.chunk_window_min, settings.chunk_window)
        in_time = int(settings.chunk_window_s / max(self.chunk_s, 1e-6))
        return min(max(in_time, settings.chunk_window_min), settings.chunk_window)

    def together(self, settings: GossipSettings) -> int:
        """How many chunks may share a frame: one until it is known how long one takes."""
        if self.chunk_s is None:
            return 1
        return min(max(1, int(settings.frame_s / max(self.chunk_s, 1e-6))), MAX_TOGETHER)

    def tries_at(self, settings: GossipSettings, owed_bytes: int) -> float:
        """When to ask again for what is cheap, so many bytes of it."""
        usual_s = settings.first_try_s
        if self.round_trip_s is not None:
            usual_s = max(settings.least_try_s, self.round_trip_s + 4 * self.deviation_s)
        # On a thin line an answer waits for the chunk that is on its way, and a long one takes long.
        usual_s = max(usual_s, 2 * (self.mean_gap_s or 0.0)) + max(0, owed_bytes - SMALL_BODY_BYTES) / THIN_LINE
        doublings = min(max(0, self.tries - settings.steady_tries), MAX_DOUBLINGS)
        return max(self.progress_at, self.tried_at) + usual_s * float(1 << doublings)

    def held_up_at(self, settings: GossipSettings, asked_at: float) -> float:
        """When to ask elsewhere for what was asked then, because the link delivers other things; twice a full window's
        time at least."""
        if self.progress_at <= asked_at:
            return math.inf
        window_s = (self.chunk_s or 0.0) * self.window(settings)
        return asked_at + max(settings.hostage_s, 2 * window_s)


def _follow(mean_s: float | None, found_s: float, count: int) -> float:
    """An average that forgets: each of `count` new values, all the same, counts an eighth."""
    if mean_s is None:
        return found_s
    return found_s + (mean_s - found_s) * 0.875**count
