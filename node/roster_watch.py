"""What the daemon does about the roster: takes versions as they come, and publishes when it is this node's turn."""

from __future__ import annotations

from logging import ERROR, WARNING

from crypto.errors import KeystoreError
from node.errors import StoreFull
from node.home import Home
from node.logs import tell
from node.membership import Changed
from node.roster_follow import TURN_S, Seen, Wanting, catch_up, publish, roll, wanting


class RosterWatch:
    """Looks after the roster of one home; cheap to ask while nothing has changed."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._has_news = True
        self._wanting: list[Wanting] = []
        self._since: dict[bytes, float] = {}
        self._told: set[bytes] = set()
        self._seen = Seen()
        self._was_disputed = False

    def look_again(self) -> None:
        """Something changed that may matter: a ROSTER record came, or another process wrote to the store."""
        self._has_news = True

    def tend(self, now: float) -> bool:
        """Do what is to be done at time `now` (monotonic seconds); whether members changed or records were made."""
        try:
            has_changed = self._take() if self._has_news else False
            return self._publish(now) or has_changed
        except (StoreFull, KeystoreError) as error:
            tell(WARNING, "roster_waits", f"The roster waits: {error}", reason=str(error))
            return False

    def _take(self) -> bool:
        changed, refused = catch_up(self._home, self._seen)
        for record_id in refused.keys() - self._told:
            self._tell(record_id, refused[record_id])
        self._has_news = False
        held = roll(self._home)
        is_disputed = held is not None and held.standing.is_disputed
        if is_disputed and not self._was_disputed:
            text = "Two versions of the roster both count: changes are frozen; see `tidings roster status`."
            tell(ERROR, "roster_disputed", text)
        self._was_disputed = is_disputed
        if changed is not None and held is not None:
            name, version = held.in_force.roster.name, held.in_force.roster.version
            text = f"Roster {name}, version {version}: {words(changed)}"
            tell(WARNING, "roster_changed", text, roster=name, version=version)
        self._wanting = wanting(self._home)
        return changed is not None

    def _tell(self, record_id: bytes, reason: str) -> None:
        self._told.add(record_id)
        tell(WARNING, "roster_refused", f"A roster was refused: {reason}", record=record_id.hex(), reason=reason)

    def _publish(self, now: float) -> bool:
        """Publish each version whose turn has come, one at a time: the next look counts it."""
        self._since = {one.signed.hash: self._since.get(one.signed.hash, now) for one in self._wanting}
        due = [one for one in self._wanting if now >= self._since[one.signed.hash] + one.turn * TURN_S]
        for one in due:
            publish(self._home, one.signed)
        if due:
            self._has_news = True
        return bool(due)


def words(changed: Changed) -> str:
    """What became of the members, in a line."""
    groups = ((changed.added, "came in"), (changed.removed, "left"), (changed.changed, "changed"))
    parts = [f"{', '.join(sorted(peer.name for peer in group))} {what}" for group, what in groups if group]
    return "; ".join(parts) or "no member came or left"
