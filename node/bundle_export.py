"""Export of a bundle: what this node would serve to a linked peer, written into a file for a courier.

    choose    settled records of trusted origins (that arrived since a moment)
    order     as gossip sends: withdrawals, records without a body, small bodies, large ones; tombstones last, so that
              what took a record back is always read before it
    write     each record as it stands when its turn comes, into a draft that takes the file's place when it is whole

Key grants for others are in it, whoever it is for: the reader relays them to those whom they are for, as over a link.
Memory holds the ids of what was chosen and one frame. A running daemon goes on; a record that is taken back meanwhile
is left out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from node import wire
from node.bundle_file import BundleWriter, Recipient, is_bundle
from node.errors import BundleError, UsageError
from node.files import written_whole
from node.gossip.fetch import priority
from node.home import Home
from node.local_tables import Peer
from node.records import Held, HeldState, KeyCard, slot_of
from node.show import moment, size

_DURATION: Final = re.compile(r"(?P<number>\d{1,9}(?:\.\d{1,9})?)\s*(?P<unit>s|min|h|d|w)")
_SECONDS: Final = {"s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_LAST: Final = 4


@dataclass(frozen=True)
class Exported:
    """What `export_bundle` wrote."""

    path: Path
    file_bytes: int
    records: int
    left_out: int
    sealed_for: Peer | None
    since: float | None

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "file": str(self.path),
            "bytes": self.file_bytes,
            "records": self.records,
            "left_out": self.left_out,
            "sealed_for": self.sealed_for.key.text if self.sealed_for else None,
            "since": moment(self.since) if self.since is not None else None,
        }

    def describe(self) -> str:
        """For people."""
        sealed = f", sealed for {self.sealed_for.name}" if self.sealed_for else ""
        count = f"{self.records:,} {'record' if self.records == 1 else 'records'}"
        lines = [f"Exported {count} to {self.path}, {size(self.file_bytes)}{sealed}."]
        if self.left_out:
            lines.append(f"{self.left_out} that were taken back meanwhile are not in it.")
        if self.sealed_for:
            lines.append("Whoever finds it sees its size, rounded up to 64 KiB, and nothing else.")
        else:
            lines.append("Whoever finds it can read who takes part, in which tasks, when and how much; what is in the")
            lines.append("summaries stays sealed. `--for PEER` hides all of it from everybody but that peer.")
        return "\n".join(lines)


def export_bundle(
    home: Home,
    path: Path,
    recipient: Peer | None = None,
    since: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write what is settled here (and arrived at or after `since`, in seconds since 1970) into a bundle, whole or not
    at all; BundleError says why it cannot be. `progress` takes the bytes written so far."""
    _check_target(path)
    sealed_to = _recipient(home, recipient) if recipient else None
    home.epochs.grant_missing()  # a grant that is due travels along
    chosen = _choose(home, since)
    if not chosen:
        raise BundleError(
            f"Nothing that arrived here since {moment(since or 0)} UTC is to be sent: no file was written."
        )
    with written_whole(path, "wb", private=True) as file:
        writer = BundleWriter(file, home.keystore.identity, sealed_to, time.time_ns() // 1_000_000, len(chosen))
        written = 0
        for record_id, is_tombstone in chosen:
            written += _write(home, writer, record_id, is_tombstone)
            progress(file.tell())
        writer.finish()
        file_bytes = file.tell()
    return Exported(path, file_bytes, written, len(chosen) - written, recipient, since)


def parse_since(text: str, now: float, option: str = "--since") -> float:
    """Seconds since 1970, from a duration before now (`7d`, `12h`) or a moment in ISO 8601, UTC unless it says
    otherwise; UsageError for anything else."""
    match = _DURATION.fullmatch(text.strip())
    try:
        if match:
            at = datetime.fromtimestamp(max(0.0, now - float(match["number"]) * _SECONDS[match["unit"]]), UTC)
        else:
            at = datetime.fromisoformat(text.strip())
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return at.timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{option} {text!r} is no time; write for example 7d, 12h, 30min, 2026-11-20 or 2026-11-20T14:30 (UTC)."
        ) from None


def _check_target(path: Path) -> None:
    """Where to write: a new file, or in the place of another bundle, as a stick is used again and again."""
    if not path.parent.is_dir():
        raise BundleError(f"There is no directory {path.parent}: is the stick mounted?")
    if path.exists() and not (path.is_file() and is_bundle(path)):
        raise BundleError(f"{path} exists and is no bundle: choose another name.")


def _recipient(home: Home, peer: Peer) -> Recipient:
    if peer.query_only:
        raise BundleError(f"{peer.name} may ask this node for models and takes no part in gossip: no bundle is for it.")
    card = home.epochs.key_card(peer.key)
    payload = wire.read_payload(card.header) if card else None
    if not isinstance(payload, KeyCard):
        raise BundleError(
            f"The key card of {peer.name} is not here yet, so nothing can be sealed for it: import a bundle that it "
            "made without --for, or export this one without."
        )
    return Recipient(peer.key, payload.encryption_public)


def _choose(home: Home, since: float | None) -> list[tuple[bytes, bool]]:
    """Ids in the order in which they are written, each with whether it is a tombstone."""
    trusted = home.trusted
    ranked: dict[bytes, tuple[int, int]] = {}
    buriers: list[bytes] = []

    def choose(held: Held) -> None:
        header = held.record.header
        is_wanted = header.origin in trusted and not home.store.is_contested(slot_of(header))
        if held.state is not HeldState.FETCHING and is_wanted:
            ranked[held.record.id] = _rank(held)
            if held.buried_by is not None:
                buriers.append(held.buried_by)

    for held in home.store.walk():
        if since is None or held.received_at >= since:
            choose(held)
    while buriers:  # older than `since`, perhaps; a tombstone without it would be taken for a record to fetch
        burier = home.store.get(record_id) if (record_id := buriers.pop()) not in ranked else None
        if burier is not None:
            choose(burier)
    return [(record_id, ranked[record_id][0] == _LAST) for record_id in sorted(ranked, key=ranked.__getitem__)]


def _rank(held: Held) -> tuple[int, int]:
    header = held.record.header
    if held.state is HeldState.BURIED:
        return _LAST, 0
    return priority(header.kind, header.body_bytes), header.body_bytes


def _write(home: Home, writer: BundleWriter, record_id: bytes, is_tombstone: bool) -> bool:
    """Write one record in one state of the store; False if it was taken back since it was chosen."""
    with home.store.snapshot():
        held = home.store.get(record_id)
        if held is None or (held.state is HeldState.BURIED) != is_tombstone:
            return False
        writer.record(held.record)
        for index in range(0 if is_tombstone else len(held.record.header.chunk_hashes)):
            data = home.store.chunk(record_id, index)
            if data is None:
                raise TypeError("the store calls a record complete and lacks a chunk of it")
            writer.chunk(record_id, index, data)
    return True
