"""Quotas: how much of this node's store one member may fill, in all and a day.

Six accounts per origin: records with a body; withdrawals; cards, grants and HEADs; revocations, which only the recovery
key makes; successions; and what else is vital to others, as evidence is. So each of the latter still gets through when
an origin, or who stole its key, has used up the others, and is bounded too. A body that was taken back counts no more;
its header does, because it stays.

What is over a quota is nobody's offence: whoever brings it is a relay. It is left where it is, neither asked for nor
kept, and compared again when there is room. A day's share grows back evenly over 24 hours of a monotonic clock, so no
clock on any wall shuts anybody out. After a start, what arrived in the day before by this node's own clock is counted
again; where that clock has jumped, less is counted, and never more than a day's share.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from node.config import (
    HEADER_LIMIT_BYTES,
    MAX_LAST_WORDS,
    QUOTA_BODY_BYTES,
    QUOTA_BODY_BYTES_A_DAY,
    QUOTA_HEADER_BYTES,
    QUOTA_RECORDS,
    QUOTA_RECORDS_A_DAY,
    QUOTA_RECORDS_A_DAY_PER_MEMBER,
    QUOTA_RECORDS_PER_MEMBER,
)
from node.records import Held, HeldState, Kind, Record

DAY_S: Final = 86_400.0
REOPEN_SHARE: Final = 1 / 24
"""An origin that used up its day is taken from again when so much of it has grown back: an hour's worth at once, and
not a record every few seconds, each of which would set off a comparison."""

MAX_WAITING: Final = 1_024
"""Ids remembered of what an origin has waiting, in order to say how many."""


class Sort(enum.Enum):
    """What has an account of its own."""

    BODY = "body"
    WITHDRAWAL = "withdrawal"
    NOTE = "note"
    VITAL = "vital"
    REVOKE = "revoke"
    SUCCESSION = "succession"


_NOTES: Final = (Kind.KEY_CARD, Kind.KEY_GRANT, Kind.HEAD)
_LAST_WORDS: Final = {Kind.REVOKE: Sort.REVOKE, Kind.SUCCESSION: Sort.SUCCESSION}


def sort_of(kind: int, body_bytes: int) -> Sort:
    """Where a record counts; a kind that is new here and has no body is vital."""
    if body_bytes:
        return Sort.BODY
    if kind == Kind.WITHDRAWAL:
        return Sort.WITHDRAWAL
    if kind in _LAST_WORDS:
        return _LAST_WORDS[Kind(kind)]
    return Sort.NOTE if kind in _NOTES else Sort.VITAL


@dataclass(frozen=True, slots=True)
class Quota:
    """What one origin may have here of one sort of record."""

    records: float
    bytes: float
    records_a_day: float
    bytes_a_day: float


def quota(members: int, sort: Sort, times: float = 1.0) -> Quota:
    """The quota of each origin in a coalition of so many members (the formula is in `config`)."""
    if sort in _LAST_WORDS.values():  # the same at every node: so many, and nothing of the identity counts
        size = MAX_LAST_WORDS * HEADER_LIMIT_BYTES
        return Quota(MAX_LAST_WORDS, size, MAX_LAST_WORDS, size)
    with_body = sort is Sort.BODY
    records = QUOTA_RECORDS + (0 if with_body else QUOTA_RECORDS_PER_MEMBER * members)
    a_day = QUOTA_RECORDS_A_DAY + (0 if with_body else QUOTA_RECORDS_A_DAY_PER_MEMBER * members)
    in_all = records * QUOTA_HEADER_BYTES + (QUOTA_BODY_BYTES if with_body else 0)
    daily = a_day * QUOTA_HEADER_BYTES + (QUOTA_BODY_BYTES_A_DAY if with_body else 0)
    return Quota(records * times, in_all * times, a_day * times, daily * times)


@dataclass(slots=True)
class _Account:
    """What one origin has here of one sort, and what of it counts for today."""

    records: int = 0
    size: int = 0
    records_today: float = 0.0
    size_today: float = 0.0
    at: float = 0.0
    is_closed: bool = False
    waiting: dict[bytes, None] = field(default_factory=dict)


class Quotas:
    """The accounts of all origins but this node's own."""

    def __init__(self, me: bytes, times: float = 1.0) -> None:
        self._me = me
        self._times = times
        self._quotas = {sort: quota(0, sort, times) for sort in Sort}
        self._accounts: dict[tuple[bytes, Sort], _Account] = {}
        self._lacking: dict[tuple[bytes, Sort], _Account] = {}
        """Those with something waiting: few, where there are many."""

    def set_members(self, count: int) -> None:
        """So many members there are now."""
        self._quotas = {sort: quota(count, sort, self._times) for sort in Sort}

    def admits(self, origin: bytes, record_id: bytes, sort: Sort, now: float) -> bool:
        """Whether a record of this origin may come now; if not, it waits. The last one may exceed what is left: a body
        of any size gets through some day."""
        account = self._accounts.get((origin, sort))
        if origin == self._me or account is None:
            return True
        if not self._is_full(account, sort, now):
            return True
        if len(account.waiting) < MAX_WAITING:
            account.waiting[record_id] = None
        self._lacking[origin, sort] = account
        return False

    def add(self, record: Record, now: float, *, is_buried: bool = False, age_s: float = 0.0) -> bool:
        """A record is here since `age_s` seconds; returns whether nothing more of its sort may come now."""
        header = record.header
        sort = sort_of(header.kind, header.body_bytes)
        if header.origin.raw == self._me:
            return False
        account = self._accounts.setdefault((header.origin.raw, sort), _Account(at=now))
        size = len(record.header_bytes) + (0 if is_buried else header.body_bytes)
        account.records += 1
        account.size += size
        share = max(0.0, 1 - age_s / DAY_S) if age_s >= 0 else 0.0
        self._grow_back(account, sort, now)
        account.records_today += share
        account.size_today += share * size
        account.waiting.pop(record.id, None)
        if not account.waiting:
            self._lacking.pop((header.origin.raw, sort), None)
        return self._is_full(account, sort, now)

    def buried(self, record: Record) -> None:
        """The body of a record that is here was taken back."""
        account = self._accounts.get((record.header.origin.raw, Sort.BODY))
        if account is not None:
            account.size -= record.header.body_bytes

    def cap_today(self) -> None:
        """What was here at the start counts for no more than one day's share."""
        for (_, sort), account in self._accounts.items():
            of = self._quotas[sort]
            account.records_today = min(account.records_today, of.records_a_day)
            account.size_today = min(account.size_today, of.bytes_a_day)

    def reopened(self, now: float) -> bool:
        """Whether there is room again for something that waits; then it is to be compared again, and waits no more."""
        reopened = [key for key, account in self._lacking.items() if not self._is_full(account, key[1], now)]
        for key in reopened:
            self._lacking.pop(key).waiting.clear()
        return bool(reopened)

    def deadline(self) -> float:
        """When `reopened` may have something to tell, as far as time alone decides."""
        return min((self._opens_at(account, key[1]) for key, account in self._lacking.items()), default=math.inf)

    def waiting(self) -> dict[bytes, int]:
        """How many records of each origin are known to wait; MAX_WAITING may be more."""
        counts: dict[bytes, int] = {}
        for (origin, _), account in self._lacking.items():
            counts[origin] = counts.get(origin, 0) + len(account.waiting)
        return counts

    def _is_full(self, account: _Account, sort: Sort, now: float) -> bool:
        of = self._quotas[sort]
        self._grow_back(account, sort, now)
        used = max(account.records_today / of.records_a_day, account.size_today / of.bytes_a_day)
        account.is_closed = used >= 1 or (account.is_closed and used > 1 - REOPEN_SHARE)
        return account.is_closed or account.records >= of.records or account.size >= of.bytes

    def _grow_back(self, account: _Account, sort: Sort, now: float) -> None:
        of, days = self._quotas[sort], (now - account.at) / DAY_S
        account.records_today = max(0.0, account.records_today - days * of.records_a_day)
        account.size_today = max(0.0, account.size_today - days * of.bytes_a_day)
        account.at = now

    def _opens_at(self, account: _Account, sort: Sort) -> float:
        of = self._quotas[sort]
        if account.records >= of.records or account.size >= of.bytes:
            return math.inf  # only a withdrawal, or a larger quota, makes room
        used = max(account.records_today / of.records_a_day, account.size_today / of.bytes_a_day)
        return account.at + max(0.0, used - (1 - REOPEN_SHARE)) * DAY_S + 1.0


def words(count: int) -> str:
    """What `status` says of an origin with so many records waiting."""
    shown = f"{count:,}{' or more' if count >= MAX_WAITING else ''}"
    return f"it is over its quota here: {shown} {'record waits' if count == 1 else 'records wait'} until there is room"


def of_store(me: bytes, members: int, held: Iterable[Held], clock_unix_s: float, times: float) -> Quotas:
    """Quotas as they are with these records here, by a clock that shows so many seconds since 1970."""
    quotas = Quotas(me, times)
    quotas.set_members(members)
    for one in held:
        is_buried = one.state is HeldState.BURIED
        quotas.add(one.record, 0.0, is_buried=is_buried, age_s=clock_unix_s - one.received_at)
    quotas.cap_today()
    return quotas
