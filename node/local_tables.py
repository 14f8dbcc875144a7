"""Local tables: what this node's operator decided (peers, tasks) and what its daemon tells `status` (links, notices).

Nothing here comes from a peer or goes to one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from crypto.keys import PublicKey
from node.errors import StoreError
from node.roster_tables import RosterTables

OPERATOR: Final = "operator"


@dataclass(frozen=True, slots=True)
class Peer:
    """A node whose key is trusted, with the addresses it is tried at, the preferred one first. A query-only peer may
    ask for models and takes no part in gossip. `via` says whose word made it a peer: the operator's, or what else
    changes members (`membership.change_members`). `replaces` is the key that was added, if another stands in its place
    by now (`succession`)."""

    key: PublicKey
    name: str
    addresses: tuple[str, ...]
    query_only: bool
    added_at: float
    via: str = OPERATOR
    replaces: PublicKey | None = None


@dataclass(frozen=True, slots=True)
class Denied:
    """A key that the operator removed."""

    key: PublicKey
    since: float
    reason: str


@dataclass(frozen=True, slots=True)
class AcceptedTask:
    """A learning task that this node takes part in."""

    task_id: bytes
    name: str
    canonical: bytes
    accepted_at: float


@dataclass(frozen=True, slots=True)
class LinkReport:
    """What the daemon last said about a peer, for `status`. Times are seconds since 1970; `retry_at` is when the peer
    is dialed next, None if no dial waits."""

    peer: PublicKey
    state: str
    reason: str
    since: float
    last_seen: float | None
    bytes_sent: int
    bytes_received: int
    retry_at: float | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something about a node, this one or another, that the operator of this one must hear of while it lasts."""

    about: PublicKey
    topic: str
    reason: str
    since: float


class LocalTables(RosterTables):
    """Peers, accepted tasks, and the reports of a running daemon."""

    def add_peer(self, peer: Peer) -> None:
        """Add a peer, or change what is known of one; StoreError if another peer has its name."""
        with self.batch():
            if self._rows("SELECT 1 FROM peers WHERE name = ? AND key <> ?", peer.name, peer.key.raw):
                raise StoreError(f"There is already another peer named {peer.name}: choose another --name.")
            self._rows(
                "INSERT INTO peers (key, name, query_only, added_at, via) VALUES (?, ?, ?, ?, ?) ON CONFLICT (key)"
                " DO UPDATE SET name = excluded.name, query_only = excluded.query_only, via = excluded.via",
                peer.key.raw,
                peer.name,
                int(peer.query_only),
                peer.added_at,
                peer.via,
            )
            self._rows("DELETE FROM peer_addresses WHERE peer = ?", peer.key.raw)
            self._db.executemany(
                "INSERT INTO peer_addresses VALUES (?, ?, ?)",
                ((peer.key.raw, place, address) for place, address in enumerate(peer.addresses)),
            )

    def remove_peer(self, key: PublicKey) -> bool:
        """Forget a peer; its records stay. False if it was none."""
        with self.batch():
            self._rows("DELETE FROM links WHERE peer = ?", key.raw)
            self._rows("DELETE FROM notices WHERE about = ?", key.raw)
            return bool(self._rows("DELETE FROM peers WHERE key = ? RETURNING 1", key.raw))

    def added_peers(self) -> list[Peer]:
        """The peers as they were added, in that order. Whom to trust today says `Store.peers`."""
        addresses: dict[bytes, list[str]] = {}
        with self.snapshot():
            for key, address in self._rows("SELECT peer, address FROM peer_addresses ORDER BY peer, place"):
                addresses.setdefault(key, []).append(address)
            rows = self._rows("SELECT key, name, query_only, added_at, via FROM peers ORDER BY added_at, key")
        return [
            Peer(self._key(key), name, tuple(addresses.get(key, ())), bool(only), at, via)
            for key, name, only, at, via in rows
        ]

    def deny(self, key: PublicKey, reason: str) -> None:
        """Only the operator makes this key a peer again (`allow`)."""
        self._rows("INSERT OR REPLACE INTO denied_peers VALUES (?, ?, ?)", key.raw, time.time(), reason)

    def allow(self, key: PublicKey) -> None:
        """Take a key off the list of those that are denied. No matter if it was not on it."""
        self._rows("DELETE FROM denied_peers WHERE public_key = ?", key.raw)

    def denied(self) -> list[Denied]:
        """The keys that only the operator may make peers again, in the order they were denied."""
        rows = self._rows("SELECT public_key, since, reason FROM denied_peers ORDER BY since, public_key")
        return [Denied(self._key(key), since, reason) for key, since, reason in rows]

    def set_recovery_hash(self, identity: PublicKey, recovery_hash: bytes) -> None:
        """From now on this node's key cards publish this hash, while this is its identity."""
        self._rows("INSERT OR REPLACE INTO recovery VALUES (?, ?)", identity.raw, recovery_hash)

    def own_recovery_hash(self, identity: PublicKey) -> bytes | None:
        """The hash that was set for this identity of this node."""
        rows = self._rows("SELECT hash FROM recovery WHERE public_key = ?", identity.raw)
        return rows[0][0] if rows else None

    def accept_task(self, task_id: bytes, name: str, canonical: bytes) -> None:
        """Take part in a task. Again is no change; StoreError if another task has its name."""
        with self.batch():
            if self._rows("SELECT 1 FROM tasks WHERE name = ? AND task_id <> ?", name, task_id):
                raise StoreError(f"There is already another task named {name}: give this one another name.")
            self._rows("INSERT OR IGNORE INTO tasks VALUES (?, ?, ?, ?)", task_id, name, canonical, time.time())

    def tasks(self) -> list[AcceptedTask]:
        """The accepted tasks, in the order they were accepted."""
        rows = self._rows("SELECT task_id, name, canonical, accepted_at FROM tasks ORDER BY accepted_at, task_id")
        return [AcceptedTask(*row) for row in rows]

    def set_links(self, reports: Iterable[LinkReport]) -> None:
        """Write down what the daemon knows of some peers' links, for `status`."""
        with self.batch():
            self._db.executemany(
                "INSERT OR REPLACE INTO links VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (r.peer.raw, r.state, r.reason, r.since, r.last_seen, r.bytes_sent, r.bytes_received, r.retry_at)
                    for r in reports
                ),
            )

    def clear_reports(self) -> None:
        """Forget links, notices and what nobody has the rest of: a daemon starts or ends."""
        with self.batch():
            for table in ("links", "notices", "unsourced", "listening"):
                self._rows(f"DELETE FROM {table}")  # noqa: S608 - constants

    def links(self) -> list[LinkReport]:
        """What the daemon last wrote down, by peer."""
        rows = self._rows("SELECT * FROM links ORDER BY peer")
        return [LinkReport(self._key(row[0]), *row[1:]) for row in rows]

    def set_notice(self, about: PublicKey, topic: str, reason: str) -> None:
        """Tell the operator something about a node until `drop_notice`, or the daemon ends. One that stands on the
        topic gets the new words and keeps its age."""
        self._rows(
            "INSERT INTO notices VALUES (?, ?, ?, ?) ON CONFLICT (about, topic) DO UPDATE SET reason = excluded.reason",
            about.raw,
            topic,
            reason,
            time.time(),
        )

    def drop_notice(self, about: PublicKey, topic: str) -> None:
        """What a notice told is over. No matter if there was none."""
        self._rows("DELETE FROM notices WHERE about = ? AND topic = ?", about.raw, topic)

    def notices(self) -> list[Notice]:
        """The notices that stand, the oldest first."""
        rows = self._rows("SELECT about, topic, reason, since FROM notices ORDER BY since, about, topic")
        return [Notice(self._key(about), *row) for about, *row in rows]

    def set_listening(self, address: str) -> None:
        """The daemon can be reached here; what it was told to listen on may have left the port open."""
        with self.batch():
            self._rows("DELETE FROM listening")
            self._rows("INSERT INTO listening VALUES (?)", address)

    def listening(self) -> str | None:
        """Where the running daemon can be reached, None if it only dials out."""
        rows = self._rows("SELECT address FROM listening")
        return rows[0][0] if rows else None

    def set_unsourced(self, record_ids: Iterable[bytes]) -> None:
        """These are the records, all of them, that are here in part and that no link has the rest of."""
        with self.batch():
            self._rows("DELETE FROM unsourced")
            self._db.executemany("INSERT INTO unsourced VALUES (?)", ((record_id,) for record_id in record_ids))

    def unsourced(self) -> set[bytes]:
        """What the daemon last said of these."""
        return {record_id for (record_id,) in self._rows("SELECT record FROM unsourced")}
