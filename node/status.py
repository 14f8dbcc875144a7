"""The state of a node in words: its peers and links, what it holds, and why something is stuck.

Everything is read from the store and the ledger, with or without a running daemon. The shapes are what `--json`
prints; other programs rely on them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from fusion.errors import FusionError
from node import disk, heads, roster_status, shared
from node.budget import statement
from node.epochs import ENDED
from node.errors import NotReadable
from node.gossip.events import Disk
from node.gossip.links import NO_ADDRESS
from node.home import Home
from node.local_tables import LinkReport, Peer
from node.records import Held, HeldState, Kind
from node.show import ago
from node.store import RETIRED
from node.succession import Standing

if TYPE_CHECKING:
    from node.plausible import Checks

OLD_LEDGER: Final = "this node's privacy ledger is an old copy: nothing is released"


def status(home: Home) -> dict[str, Any]:
    """An object with `node`, `peers`, `tasks`, `budget`, `notices`."""
    served = home.is_served()
    return {
        "node": {
            "name": home.settings.name,
            "key": home.me.text,
            "serving": served,
            "listen": home.store.listening() if served else home.settings.listen,
            "records": len(home.store.held()),
        },
        "peers": peers(home, served),
        "tasks": tasks(home),
        "budget": [] if ledger_problem(home) else statement(home),
        "notices": notices(home),
    }


def tasks(home: Home) -> list[dict[str, Any]]:
    """Each accepted task, with how many summaries can be fused, which are stuck and why, and the models shared."""
    return [
        {
            "id": task.task_id.hex(),
            "name": task.name,
            **_summaries(home, task.task_id),
            "models": shared.listing(home, task.task_id),
        }
        for task in home.store.tasks()
    ]


def notices(home: Home) -> list[dict[str, str]]:
    """What the operator must hear of: `{origin, reason}`. First what nodes did, then what is to be decided
    about the roster, then what this machine lacks."""
    told = conduct(home)
    told += [{"origin": home.settings.name, "reason": one} for one in roster_status.notices(home)]
    if disk.is_low(home.path):
        told.append({"origin": home.settings.name, "reason": disk.WORDS[Disk.LOW]})
    if reason := ledger_problem(home):
        told.append({"origin": home.settings.name, "reason": reason})
    elif heads.is_behind(home):
        told.append({"origin": home.settings.name, "reason": f"{OLD_LEDGER}; see `tidings budget accept-rollback`"})
    return told


def ledger_problem(home: Home) -> str:
    """Why the privacy ledger cannot be read, in words; empty if it can, or if there is none."""
    try:
        if home.has_ledger:
            home.ledger()
    except FusionError as error:
        return str(error)
    return ""


def conduct(home: Home) -> list[dict[str, str]]:
    """What is to be said of nodes, `{origin, reason}`: first what peers (or copies of this node) have signed that does
    not fit together, then what the running daemon has met."""
    told = [{"origin": home.peers.name_of(one.origin), "reason": one.reason} for one in heads.findings(home)]
    told += _about_identities(home)
    told += [
        {"origin": home.peers.name_of(one.about), "reason": f"{one.reason}; {ago(one.since, time.time())}"}
        for one in (home.store.notices() if home.is_served() else ())
    ]
    return told


def _about_identities(home: Home) -> list[dict[str, str]]:
    """Identities that ended and what is odd about it: `{origin, reason}`."""
    standing, told = home.store.standing(), []
    own = standing.endings.get(home.me)
    if own is not None:
        told.append((home.settings.name, ENDED.format(word=own.word)))
    for former in standing.former.values():
        name = former.name or home.settings.name
        if former.ending.is_revoked and former.heir is not None:
            told.append((name, "its old key was revoked after a theft; a new one stands in its place"))
        elif former.ending.is_disputed:
            told.append((name, f"its key was {former.ending.word}, and several keys claim its place: none is trusted"))
        elif former.heir is None:
            told.append((name, f"its key was {former.ending.word}; what it signs from now on is not used"))
    several = [peer.name for peer in standing.peers if len(home.store.recovery_hashes(peer.key)) > 1]
    told += [(name, "it has published another recovery key; the first one counts. Was it robbed?") for name in several]
    return [{"origin": name, "reason": reason} for name, reason in told]


def peers(home: Home, served: bool) -> list[dict[str, Any]]:
    """Each peer with its `state` and a `reason` in words, `since` when it is or is not linked (seconds since 1970, None
    if nobody looks), and in how many seconds it is dialed next, if a dial waits."""
    now = time.time()
    reports = {report.peer: report for report in home.store.links()} if served else {}
    standing, listed = home.store.standing(), []
    for peer in [*standing.peers, *_ended(home, standing)]:
        report = reports.get(peer.key)
        state, reason = _peer_state(home, peer, report, served)
        listed.append(
            {
                "name": peer.name,
                "key": peer.key.text,
                "address": next(iter(peer.addresses), None),
                "addresses": list(peer.addresses),
                "query_only": peer.query_only,
                "via": peer.via,
                "replaces": peer.replaces.text if peer.replaces else None,
                "recovery_key": home.store.first_recovery_hash(peer.key) is not None,
                "state": state,
                "reason": reason,
                "since": report.since if report else None,
                "retry_in_s": max(0, round(report.retry_at - now)) if report and report.retry_at else None,
                "bytes_sent": report.bytes_sent if report else 0,
                "bytes_received": report.bytes_received if report else 0,
            }
        )
    return listed


def records(home: Home, task_id: bytes | None) -> list[dict[str, Any]]:
    """A list of `{id, kind, task, origin, bytes, state, reason}`."""
    names = {task.task_id: task.name for task in home.store.tasks()}
    why = _Reasons(home)
    return [
        {
            "id": held.record.id.hex(),
            "kind": held.record.header.kind.label,
            "task": names.get(held.record.header.task_id, held.record.header.task_id.hex()),
            "origin": home.peers.name_of(held.record.header.origin),
            "bytes": len(held.record.header_bytes) + held.record.header.body_bytes,
            "state": held.state.value,
            "reason": why.of(held),
        }
        for held in home.store.held(task_id=task_id)
    ]


def _ended(home: Home, standing: Standing) -> list[Peer]:
    """The peers that were added, whose identity ended, and in whose place nobody stands."""
    return [
        peer
        for peer in home.store.added_peers()
        if (former := standing.former.get(peer.key)) is not None and former.heir is None
    ]


def _peer_state(home: Home, peer: Peer, report: LinkReport | None, served: bool) -> tuple[str, str]:
    ending = home.store.standing().endings.get(peer.key)
    if ending is not None:
        return ending.word, (
            "records name several successors, so none is trusted: ask it, and add the right key"
            if ending.is_disputed
            else "it is no member any more; add its new key when you have it from itself"
        )
    if not served:
        return "offline", "this node is not running; start it with `tidings serve`"
    if peer.query_only:
        return "query-only", "may ask for models; takes no part in gossip"
    card = "" if home.epochs.key_card(peer.key) else f"; waiting for the key card of {peer.name}"
    if report is None:
        return (
            "waiting",
            f"{'not dialed so far; its records come through others' if peer.addresses else NO_ADDRESS}{card}",
        )
    return report.state, f"{report.reason}{card}".removeprefix("; ")


def _summaries(home: Home, task_id: bytes) -> dict[str, Any]:
    summaries = home.store.held(kind=Kind.SUMMARY, task_id=task_id)
    is_unusable = home.store.why_unusable
    live = [one for one in summaries if one.state is not HeldState.BURIED or is_unusable(one.record.header)]
    why = _Reasons(home)
    stuck = [(held, reason) for held in live if (reason := why.of(held))]
    return {
        "summaries": len(live) - len(stuck),
        "stuck": [
            {"origin": home.peers.name_of(held.record.header.origin), "reason": reason}
            for held, reason in stuck
            if reason != RETIRED
        ],
    }


class _Reasons:
    """Why records cannot be used here."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._is_served = home.is_served()
        self._unsourced = home.store.unsourced() if self._is_served else set()
        self._checks: dict[bytes, Checks | None] = {}

    def of(self, held: Held) -> str:
        """In words; empty if this one can."""
        if why := self._home.store.why_unusable(held.record.header):
            return why
        if held.state is HeldState.COMPLETE and not held.record.header.body_bytes:
            return ""
        try:
            if held.record.header.kind is Kind.MODEL:
                shared.open_shared(self._home, held)
                return ""
            body = self._home.epochs.open(held)
        except NotReadable as reason:
            return f"{reason}{self._outlook(held)}"
        return self._quarantined(held, body) if held.record.header.kind is Kind.SUMMARY else ""

    def _quarantined(self, held: Held, body: bytes) -> str:
        """Why no model takes a summary that can be read; empty if one can, or if its task is not accepted here."""
        from node.plausible import Checks

        task_id = held.record.header.task_id
        if task_id not in self._checks:
            accepted = (task for task in self._home.store.tasks() if task.task_id == task_id)
            self._checks[task_id] = next((Checks(task.canonical) for task in accepted), None)
        checks = self._checks[task_id]
        return checks.problem(body) if checks else ""

    def _outlook(self, held: Held) -> str:
        """What becomes of a body that is still arriving."""
        if held.state is not HeldState.FETCHING:
            return ""
        if not self._is_served:
            return "; this node is not running"
        return "; nobody linked has the rest" if held.record.id in self._unsourced else " so far"
