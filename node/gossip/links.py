"""Links: which members to dial, which links are up, and who is kept out.

Both sides say Hello first; of two links with one peer, both sides keep the same one. Anything invalid that comes over a
link is a strike; too many close the link and keep the peer out for a while. Slow is not invalid.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from crypto.keys import PublicKey
from node.config import PROTOCOL_VERSION, GossipSettings
from node.frames import Frame, Hello
from node.gossip.dialing import Dialer
from node.gossip.events import (
    Action,
    Alarm,
    Close,
    Dial,
    DialFailed,
    LinkState,
    LinkUp,
    Offence,
    PeersChanged,
    Report,
    Send,
    Struck,
)
from node.gossip.fetch import Fetcher
from node.show import duration

NO_ADDRESS: Final = "no address here: it must dial this node"

MAX_DOUBLINGS: Final = 16
STOPPED: Final = "its node was stopped"

CLOCK_TOLERANCE_S: Final = 60
"""From what difference on a peer's clock is remarked on. Smaller ones are a slow line as often as a wrong clock."""


@dataclass(slots=True)
class PeerLink:
    """A link as the core knows it. What it has done so far decides how it is compared and redialed."""

    number: int
    peer: PublicKey
    dialed_by_us: bool
    up_at: float
    clock_unix_ms: int = 0
    is_ready: bool = False
    ready_at: float = math.inf
    has_compared: bool = False
    has_worked: bool = False
    is_equal: bool = False
    is_up: bool = True
    sync_at: float = -math.inf
    store_id: bytes = b""
    compared: tuple[bytes, bytes] | None = None
    fruitless: int = 0
    unheard: Counter[bytes] = field(default_factory=Counter)

    def worked(self) -> None:
        """A record or a chunk went over it."""
        self.has_worked, self.is_equal = True, False


class Links:
    """The members of this node and the links with them. Actions go to `out`."""

    def __init__(
        self,
        settings: GossipSettings,
        rng: random.Random,
        me: PublicKey,
        store_id: bytes,
        fetcher: Fetcher,
        out: list[Action],
    ) -> None:
        self._settings = settings
        self._me = me
        self._store_id = store_id
        self._fetcher = fetcher
        self._out = out
        self._rng = rng
        self._dialer = Dialer(settings, rng, me)
        self._members: Mapping[PublicKey, tuple[str, ...]] = {}
        self._links: dict[int, PeerLink] = {}
        self._unready: dict[int, PeerLink] = {}
        """Those on which no Hello came yet, the oldest first."""
        self._strikes: dict[PublicKey, tuple[int, float]] = {}
        self._kept_out: dict[PublicKey, float] = {}
        self._offences: dict[PublicKey, tuple[int, float]] = {}
        """How often each peer was kept out, less one for every `penalty_cap_s` since, and when the last time was."""
        self._stores_seen: dict[PublicKey, bytes] = {}

    # ---------------------------------------------------------------------------------------------------------- members

    def set_members(self, event: PeersChanged, now: float) -> tuple[bool, set[bytes]]:
        """These are the members now; returns whether some are new, and the raw keys of those that are gone.

        The mapping is kept, not copied, and may hold this node itself: what thousands of simulated nodes share costs
        once. Nobody may change it afterwards.
        """
        members = event.members
        before, self._members = self._members, members
        self._dialer.set_members(members, event.dialable, now)
        for link in list(self._links.values()):
            if not self._is_member(link.peer):
                self.close(link, "it was removed here", now)
        is_larger = any(peer not in before for peer in members)
        return is_larger, {peer.raw for peer in before if peer not in members and peer != self._me}

    def _is_member(self, peer: PublicKey) -> bool:
        return peer in self._members and peer != self._me

    # ------------------------------------------------------------------------------------------------------------ links

    def get(self, number: int) -> PeerLink | None:
        """The link with this number, if it is up."""
        return self._links.get(number)

    def ready(self) -> list[PeerLink]:
        """The links past their Hello."""
        return [link for link in self._links.values() if link.is_ready]

    def up(self, event: LinkUp, now: float) -> PeerLink | None:
        """A stream with a peer can carry frames: greet it, or send it away."""
        if event.dialed_by_us:
            self._dialer.answered(event.peer)
        if not self._is_member(event.peer):
            self._out.append(Close(event.link, "it is not a member here"))
            return None
        if self._is_kept_out(event.peer, now):
            self._out.append(Close(event.link, "it sent too much that was invalid"))
            return None
        self._limit_unready(event.peer, now)
        link = self._links[event.link] = PeerLink(event.link, event.peer, event.dialed_by_us, now, event.clock_unix_ms)
        self._unready[link.number] = link
        self.send(link, Hello(PROTOCOL_VERSION, self._store_id, event.clock_unix_ms))
        return link

    def down(self, number: int, reason: str, now: float) -> None:
        """A link is gone."""
        link = self._links.get(number)
        if link is not None:
            self._lose(link, reason, now)

    def dial_failed(self, event: DialFailed, now: float) -> None:
        """A dial came to nothing."""
        wait_s = self._dialer.failed(event.peer, now)
        if self._is_member(event.peer) and event.peer not in self._linked():
            state = LinkState.REFUSED if event.is_refusal else LinkState.UNREACHABLE
            # In a large coalition others may be drawn first: there is no time to name.
            retry_at = None if self._dialer.chooses else now + wait_s
            self._out.append(Report(event.peer, state, event.reason, retry_at))

    def dial(self, now: float) -> None:
        """Try the members that are due; before one more is tried, let go of one that is too many."""
        if not self._dialer.is_awake(now):
            return
        dialed = [link for link in self._links.values() if link.dialed_by_us]
        if len(dialed) > self._settings.max_dialed and now >= self._dialer.explore_at:
            spare = self._least_useful(dialed)
            dialed.remove(spare)
            self.close(spare, "another member is linked in its place", now)
        for peer, address in self._dialer.due(self._linked(), len(dialed), now):
            self._out += [Dial(peer, address), Report(peer, LinkState.CONNECTING, "")]

    def _least_useful(self, dialed: Sequence[PeerLink]) -> PeerLink:
        """Any but the newest; of those, if it can be, one that nothing is asked of and that was equal the last time:
        what a link that is closed was carrying is sent again by another."""
        older = sorted(dialed, key=lambda link: link.up_at)[:-1]
        idle = [link for link in older if link.is_equal and not self._fetcher.owes(link.number)]
        return self._rng.choice(idle or older)

    def _limit_unready(self, peer: PublicKey, now: float) -> None:
        unready = [link for link in self._unready.values() if link.peer == peer]
        if len(unready) >= self._settings.max_unready_links:
            self.close(unready[0], "newer links were opened and none said hello", now)

    def send(self, link: PeerLink, frame: Frame) -> None:
        """Queue a frame on a link."""
        self._out.append(Send(link.number, frame))

    def hello(self, link: PeerLink, hello: Hello, now: float) -> None:
        """The peer greets: the link can be used, unless it is one too many."""
        if link.is_ready:
            self.strike(link.number, "a second Hello on one link", now)
            return
        if hello.version != PROTOCOL_VERSION:
            reason = f"it speaks version {hello.version}, this node version {PROTOCOL_VERSION}"
            self.close(link, reason, now)
            return
        others = [other for other in self.ready() if other.peer == link.peer]
        self._check_store(link.peer, hello.store_id)
        link.is_ready, link.ready_at, link.store_id = True, now, hello.store_id
        self._unready.pop(link.number)
        self._fetcher.link_up(link.number)
        if others:  # never more than one, since this is done whenever there are two
            self.close(self._spare_of(others[0], link, now), "another link with it is up", now)
        self._out.append(Report(link.peer, LinkState.LINKED, _clock_words(link, hello, now)))

    def close(self, link: PeerLink, reason: str, now: float) -> None:
        """End a link."""
        self._out.append(Close(link.number, reason))
        self._lose(link, reason, now)

    def expire_silent(self, now: float) -> None:
        """Close the links on which no Hello came in time."""
        for link in list(self._unready.values()):
            if now >= self._hello_due(link):
                self.close(link, "it did not say hello", now)

    def deadline(self) -> float:
        """When a dial is due, or a Hello overdue."""
        silent = next(map(self._hello_due, self._unready.values()), math.inf)
        return min(self._dialer.deadline(), silent)

    def _hello_due(self, link: PeerLink) -> float:
        return link.up_at + self._settings.hello_timeout_s

    def _spare_of(self, older: PeerLink, newer: PeerLink, now: float) -> PeerLink:
        """The link that both sides of a double link give up.

        Two that came up together are a simultaneous dial: the one dialed by the smaller key stays. Otherwise the
        older one goes: nobody dials a peer that it is linked with, so the other side has lost it.
        """
        is_fresh = now - older.ready_at < self._settings.duplicate_window_s
        if is_fresh and older.dialed_by_us != newer.dialed_by_us:
            return max(older, newer, key=lambda link: self._me if link.dialed_by_us else link.peer)
        return older

    def _check_store(self, peer: PublicKey, store_id: bytes) -> None:
        before = self._stores_seen.setdefault(peer, store_id)
        if before != store_id:
            self._stores_seen[peer] = store_id
            reason = "it came back with another store; two nodes run with its key, or its home was made anew"
            self._out.append(Alarm(peer, reason))

    def _lose(self, link: PeerLink, reason: str, now: float) -> None:
        del self._links[link.number]
        self._unready.pop(link.number, None)
        link.is_up = False
        self._fetcher.link_down(link.number)
        self._dialer.look_again()
        if link.peer in self._linked() or not self._is_member(link.peer):
            return
        is_good = link.has_worked or now - link.ready_at >= self._settings.stable_link_s
        wait_s = self._dialer.lost(link.peer, now, was_good=is_good)
        self._report_absent(link.peer, reason, now, wait_s)

    def _report_absent(self, peer: PublicKey, reason: str, now: float, wait_s: float) -> None:
        """A member has no link any more; say what is being done about it."""
        if self._is_kept_out(peer, now):
            retry_at = self._kept_out[peer] if self._dialer.has_address(peer) else None
            self._out.append(Report(peer, LinkState.REFUSED, reason, retry_at))
        elif self._dialer.chooses and self._links:
            self._out.append(Report(peer, LinkState.WAITING, f"{reason}; it is reached through others"))
        elif self._dialer.has_address(peer):
            self._out.append(
                Report(peer, LinkState.UNREACHABLE, reason, None if self._dialer.chooses else now + wait_s)
            )
        else:
            self._out.append(Report(peer, LinkState.WAITING, f"{reason}; {NO_ADDRESS}"))

    def _linked(self) -> set[PublicKey]:
        return {link.peer for link in self._links.values()}

    # ----------------------------------------------------------------------------------------------------- bad behavior

    def strike(self, number: int, reason: str, now: float, offence: Offence = Offence.FRAME) -> None:
        """Something invalid came over this link: forgiven a few times."""
        link = self._links.get(number)
        if link is None:
            return
        self._out.append(Struck(link.peer, offence, reason))
        strikes, since = self._strikes.get(link.peer, (0, now))
        if now - since > self._settings.penalty_s:
            strikes, since = 0, now
        self._strikes[link.peer] = (strikes + 1, since)
        if strikes >= self._settings.max_strikes:
            self._kept_out[link.peer] = now + self._penalty_s(link.peer, now)
            self.close(link, f"it sent too much that was invalid; lastly: {reason}", now)
            self._dialer.postpone(link.peer, self._kept_out[link.peer])

    def _penalty_s(self, peer: PublicKey, now: float) -> float:
        """For how long to keep a peer out: twice as long as the last time, unless that is long ago."""
        offences, last_at = self._offences.get(peer, (0, now))
        offences = max(0, offences - int((now - last_at) / self._settings.penalty_cap_s))
        self._offences[peer] = offences + 1, now
        return min(self._settings.penalty_cap_s, self._settings.penalty_s * float(1 << min(offences, MAX_DOUBLINGS)))

    def kept_out_s(self, peer: PublicKey, now: float) -> float:
        """For how many seconds more a peer is kept out; 0 or less if it is not."""
        return self._kept_out.get(peer, -math.inf) - now

    def _is_kept_out(self, peer: PublicKey, now: float) -> bool:
        return self.kept_out_s(peer, now) > 0


def _clock_words(link: PeerLink, hello: Hello, now: float) -> str:
    """A remark on the peer's clock if it differs from ours by more than CLOCK_TOLERANCE_S; empty if not, or if either
    does not say. Whose is wrong nobody can tell, and nothing depends on it."""
    if not hello.clock_unix_ms or not link.clock_unix_ms:
        return ""
    ahead_s = (hello.clock_unix_ms - link.clock_unix_ms) / 1000 - (now - link.up_at)
    return clock_words(ahead_s)


def clock_words(ahead_s: float) -> str:
    """What to say of a clock that is so many seconds ahead of ours; nothing if that may be a slow line."""
    if abs(ahead_s) <= CLOCK_TOLERANCE_S:
        return ""
    return f"clock {duration(abs(ahead_s))} {'ahead' if ahead_s > 0 else 'behind'} (harmless)"
