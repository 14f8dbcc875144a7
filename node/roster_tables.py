"""Tables of the roster: which one this node follows, its versions, and what this node signed as an administrator.

A version is written down once it passed every check (`roster.RosterTree.place`), and before anything is done about it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from node.database import Database
from node.roster import Place


@dataclass(frozen=True, slots=True)
class Followed:
    """The roster that the operator chose to follow: its coalition, the first version taken, and the version chosen in a
    dispute, empty if none was."""

    coalition: bytes
    root: bytes
    chosen: bytes
    since: float


class RosterTables(Database):
    """What `node.db` keeps about rosters."""

    def followed_roster(self) -> Followed | None:
        """The roster that this node follows, if it follows one."""
        rows = self._rows("SELECT coalition, root, chosen, since FROM followed_roster")
        return Followed(*rows[0]) if rows else None

    def follow_roster(self, coalition: bytes, root: bytes) -> None:
        """Follow this one, whose first version here is `root`. No other is followed yet."""
        self._rows("INSERT INTO followed_roster VALUES (1, ?, ?, x'', ?)", coalition, root, time.time())

    def choose_roster(self, version_hash: bytes) -> None:
        """In a dispute, go on with this version."""
        self._rows("UPDATE followed_roster SET chosen = ?", version_hash)

    def unfollow_roster(self) -> None:
        """Follow none, and forget its versions."""
        with self.batch():
            for table in ("followed_roster", "rosters"):
                self._rows(f"DELETE FROM {table}")  # noqa: S608 - constants

    def add_roster(self, place: Place, signed: bytes) -> None:
        """Keep a version that belongs. Again is no change."""
        row = (place.hash, place.previous, place.version, signed)
        self._rows("INSERT OR IGNORE INTO rosters VALUES (?, ?, ?, ?)", *row)

    def rosters(self) -> list[Place]:
        """The versions that are held, by number."""
        return [Place(*row) for row in self._rows("SELECT hash, previous, version FROM rosters ORDER BY version, hash")]

    def roster(self, version_hash: bytes) -> bytes:
        """One of them, as it was kept."""
        rows = self._rows("SELECT signed FROM rosters WHERE hash = ?", version_hash)
        if not rows:
            raise self._damaged()
        return bytes(rows[0][0])

    def note_signed_roster(self, coalition: bytes, version: int, version_hash: bytes) -> None:
        """This node signs this version: on disk before it does."""
        self._rows("INSERT OR IGNORE INTO signed_rosters VALUES (?, ?, ?)", coalition, version, version_hash)

    def signed_rosters(self, coalition: bytes, version: int) -> set[bytes]:
        """The hashes of what this node signed as this version of this coalition."""
        query = "SELECT hash FROM signed_rosters WHERE coalition = ? AND version = ?"
        return {version_hash for (version_hash,) in self._rows(query, coalition, version)}
