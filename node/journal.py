"""The journal of a running node: everything that it tells its operator, as log lines (`logs`) and as counts
(`metrics`).

Here are all events that a node logs, with their fields; docs/operations.md lists them. The daemon says what happened,
and nothing here decides anything. Counts only grow while a node runs. They name kinds of things, never nodes, tasks or
datasets: whoever may read a metrics port learns how much there is to do, not with whom or about what.

What repeats is told once: a peer that is dialed in vain every minute is one line until the reason is another one.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Final

from crypto.keys import PublicKey
from node.errors import AskLater, NodeError
from node.frames import Frame, Query, frame_name
from node.gossip.events import Disk, LinkState, Struck
from node.local_tables import LinkReport
from node.logs import tell
from node.records import Kind, Record

ROUTINE: Final = {Kind.KEY_CARD, Kind.KEY_GRANT, Kind.HEAD}
"""Kinds of which every member sends many: told at debug level."""

OUTCOMES: Final = ("answered", "refused", "gave_up")
"""How queries end; the last: the peer, or this node, ended it before."""

SHORT_ID: Final = 12
"""Hex digits of a record's id in what is said to people; the field has all of them."""


@dataclass
class Counts:
    """What happened since the node started."""

    frames_received: Counter[str] = field(default_factory=Counter)
    frames_sent: Counter[str] = field(default_factory=Counter)
    """On links that are gone; those that are up count their own."""
    links_up: int = 0
    links_down: int = 0
    dials_failed: int = 0
    offences: Counter[str] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)
    alarms: int = 0
    queries: Counter[str] = field(default_factory=Counter)
    queries_running: int = 0
    query_seconds: float = 0.0
    query_bytes: int = 0
    store_errors: int = 0


class Journal:
    """Tells and counts for the node `me`. `name_of` gives what people here call a key."""

    def __init__(self, me: PublicKey, name_of: Callable[[PublicKey], str]) -> None:
        self.me = me
        self._name_of = name_of
        self.counts = Counts()

    # ------------------------------------------------------------------------------------------------- the node itself

    def started(self, name: str, address: str | None) -> None:
        """Peers can come and go."""
        where = f"listens on {address}" if address else "dials out only: it has no address to listen on"
        tell(INFO, "started", f"{name} is running and {where}. Stop it with Ctrl-C.", node=name, address=address)

    def metrics(self, address: str) -> None:
        """Metrics can be read."""
        tell(INFO, "metrics", f"Metrics are at http://{address}/metrics.", address=address)

    def stopping(self, reason: str) -> None:
        """A signal came."""
        tell(INFO, "stopping", f"Stopping ({reason}).", reason=reason)

    def stopped(self, took_s: float) -> None:
        """Everything is closed."""
        tell(INFO, "stopped", "Stopped.", seconds=round(took_s, 3))

    def disk(self, path: str, state: Disk, words: str) -> None:
        """The disk has less room than before, or room again."""
        event = "disk_recovered" if state is Disk.ROOM else "disk_low"
        tell(INFO if state is Disk.ROOM else WARNING, event, f"{path}: {words}.", state=state.value)

    def store_failed(self, error: Exception, *, away_s: float | None = None) -> None:
        """The store refused something; the node leaves the network for `away_s`, if at all."""
        self.counts.store_errors += 1
        again = "" if away_s is None else f" Starting again in {away_s:g} s."
        tell(ERROR if again else WARNING, "store_failed", f"{error}{again}", reason=str(error), away_seconds=away_s)

    def port_lost(self) -> None:
        """Another program has this node's port."""
        tell(ERROR, "port_lost", "Another program took this node's port; it is tried again and again.")

    def grants_locked(self, error: Exception) -> None:
        """The keystore changed under this node, so that it can grant nothing."""
        tell(ERROR, "keystore_locked", f"Nobody is granted a key: {error}", reason=str(error))

    def evidence_locked(self, error: Exception) -> None:
        """The keystore changed under this node, so that it can sign no evidence."""
        tell(ERROR, "keystore_locked", f"Nobody is told of an equivocation: {error}", reason=str(error))

    def epoch_begun(self, number: int, granted: int) -> None:
        """What this node publishes is sealed under a new key, granted to so many members so far."""
        tell(
            INFO,
            "epoch_begun",
            f"Epoch {number} has begun; granted to {granted} so far.",
            epoch=number,
            granted=granted,
        )

    # ----------------------------------------------------------------------------------------------------------- links

    def link(self, before: LinkReport | None, now: LinkReport) -> None:
        """How things stand with a peer changed, or was said again."""
        name, linked = self._name_of(now.peer), LinkState.LINKED
        was = before.state if before else None
        who = {"peer": name, "key": now.peer.text}
        if now.state == linked:
            if was != linked:
                self.counts.links_up += 1
                tell(INFO, "link_up", f"{name} is linked", **who)
            if now.reason:
                tell(INFO, "clock_remark", f"{name}: {now.reason}", **who, reason=now.reason)
        elif was == linked:
            self.counts.links_down += 1
            text = f"{name} is not linked any more: {now.reason}"
            tell(INFO, "link_down", text, **who, state=now.state, reason=now.reason)
        elif before is None or (was, before.reason) != (now.state, now.reason):
            self._no_link(now, name, who)

    def _no_link(self, now: LinkReport, name: str, who: dict[str, str]) -> None:
        refused = now.state == LinkState.REFUSED
        level = DEBUG if now.state == LinkState.CONNECTING else WARNING if refused else INFO
        text = f"{name} is {now.state}" + (f": {now.reason}" if now.reason else "")
        tell(level, "refused" if refused else "no_link", text, **who, state=now.state, reason=now.reason)

    def dial_failed(self) -> None:
        """A dial came to nothing; `link` tells why, once."""
        self.counts.dials_failed += 1

    def received(self, frame: Frame) -> None:
        """A well-formed frame came."""
        self.counts.frames_received[frame_name(frame)] += 1

    def struck(self, struck: Struck) -> None:
        """A peer sent something invalid, which was refused."""
        self.counts.offences[struck.offence.value] += 1
        name = self._name_of(struck.peer)
        event = "record_refused" if struck.offence == "record" else "invalid"
        text = f"{name} sent an invalid {struck.offence.value}: {struck.reason}"
        tell(
            WARNING, event, text,
            peer=name, key=struck.peer.text, offence=struck.offence.value, reason=struck.reason,
        )  # fmt: skip

    # --------------------------------------------------------------------------------------------------------- records

    def settled(self, record: Record) -> None:
        """A record is on disk with all of its body."""
        kind = record.header.kind
        self.counts.records[kind.label] += 1
        told = self._of(record) | {"bytes": record.header.body_bytes}
        level = DEBUG if kind in ROUTINE else INFO
        tell(level, "record_settled", f"{told['origin']}: {kind.label} {_short(record)} is here", **told)

    def stalled(self, record: Record) -> None:
        """Nobody who is linked has what is missing of a body."""
        told = self._of(record)
        text = f"{told['origin']}: {told['kind']} {_short(record)} is here in part, and nobody linked has the rest"
        tell(INFO, "fetch_stalled", text, **told)

    def alarm(self, origin: PublicKey, reason: str) -> None:
        """Something about a node that its operator and this one must hear of."""
        self.counts.alarms += 1
        name = self._name_of(origin)
        tell(WARNING, "alarm", f"{name}: {reason}", origin=name, key=origin.text, reason=reason)

    def _of(self, record: Record) -> dict[str, object]:
        name = self._name_of(record.header.origin)
        return {"record": record.id.hex(), "kind": record.header.kind.label, "origin": name}

    # --------------------------------------------------------------------------------------------------------- queries

    async def query(
        self, peer: PublicKey, query: Query, parts: AsyncGenerator[bytes | str, None]
    ) -> AsyncGenerator[bytes | str, None]:
        """Pass on what answers a query, and tell how it went. That a key asks too often is told at debug level: it
        could fill a log with that."""
        name, began, size = self._name_of(peer), time.monotonic(), 0
        who = {"peer": name, "key": peer.text, "task": query.task_id.hex()}
        has_begun = False
        self.counts.queries_running += 1
        answered, refused, outcome = OUTCOMES
        try:
            async with contextlib.aclosing(parts) as answer:
                async for part in answer:
                    if not has_begun:
                        has_begun = True
                        tell(INFO, "query_begun", f"{name} asks for a model", **who)
                    size += len(part) if isinstance(part, bytes) else 0
                    yield part
            outcome = answered
            text = f"{name} got a model"
            tell(INFO, "query_answered", text, **who, bytes=size, seconds=round(time.monotonic() - began, 3))
        except NodeError as refusal:
            outcome = refused
            level = DEBUG if isinstance(refusal, AskLater) and not has_begun else INFO
            tell(level, "query_refused", f"{name} asked for a model in vain: {refusal}", **who, reason=str(refusal))
            raise
        finally:
            self.counts.queries_running -= 1
            self.counts.queries[outcome] += 1
            self.counts.query_seconds += time.monotonic() - began
            self.counts.query_bytes += size


def _short(record: Record) -> str:
    return record.id.hex()[:SHORT_ID]
