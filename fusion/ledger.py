"""The privacy budget of a node: append-only, hash-chained, safe from crashes, never overspent.

Spend, then compute, never refund:

    reserve    RESERVED   the cost is committed to disk before a single row is summed
    ready      READY      the noisy bytes are kept; from here on the same bytes go out, free of charge
    published  PUBLISHED  the record that carries them is known; the bytes are dropped here

A crash between `reserve` and `ready` burns the budget: the noise may already have been seen, nobody can know.

Every dataset has a lifetime cap, bound at its first use to a privacy unit, an adjacency and an accountant
(`fusion.accountants`: how costs add up). Costs are whole numbers, rounded up, and "what was spent and the new cost stay
under the cap" is the whole filter: it holds for releases that are chosen after seeing earlier ones. Releases about
disjoint parts of a dataset cost the largest of them (`fusion.parts`, `fusion.accounts`). A cap is raised by an entry of
its own (RAISED), never lowered.

The chain shows entries that were changed or removed from the middle. That the whole file was replaced by an older copy
shows elsewhere: peers hold signed HEADs with the chain's end (`node.heads`). `foreign` says which of these this ledger
cannot have made, and `accept_rollback` burns what they say was spent (ROLLBACK).

This module holds no keys but the one that hides dataset names, and draws no noise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusion.accountants import (
    GaussianRelease,
    Mechanism,
    SampledGaussianRelease,
    accountant_for,
)
from fusion.accounts import GENESIS, Account, Moment, State, Total, apply
from fusion.errors import BudgetError
from fusion.parts import Part, as_entry
from fusion.summary import ADJACENCY
from fusion.task import MAX_DELTA, MAX_EPSILON, MAX_NAME_CHARS, UNIT_RECORD

MAX_CAP_EPSILON = 100.0
MAX_DATASETS = 100  # all of them are told in every HEAD
TAG_BYTES = 16
LOCK_TIMEOUT_S = 30.0  # how long one process waits for another's transaction

_PERSON = b"tidings-ledger-1"
_TAG_PERSON = b"tidings-data-v1"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS entries (position INTEGER PRIMARY KEY, body TEXT NOT NULL, hash BLOB NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS payloads (release TEXT PRIMARY KEY, payload BLOB NOT NULL) STRICT",
    "CREATE TRIGGER IF NOT EXISTS entries_stay BEFORE UPDATE ON entries"
    " BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    "CREATE TRIGGER IF NOT EXISTS entries_remain BEFORE DELETE ON entries"
    " BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
)


@dataclass(frozen=True)
class Reservation:
    """Budget that is spent, whatever happens next."""

    release_id: str
    position: int  # of its entry in the ledger, from 1; part of the public claim


@dataclass(frozen=True)
class ReadyRelease:
    """Noisy bytes that were paid for and wait to be published."""

    release_id: str
    dataset: str
    task_id: bytes
    payload: bytes


@dataclass(frozen=True)
class Entry:
    """One release as the steward sees it."""

    release_id: str
    dataset: str
    task_id: bytes
    epsilon: float
    delta: float
    state: str  # RESERVED, READY or PUBLISHED
    record_id: bytes | None
    note: str
    position: int
    created_s: float
    part: str | None = None  # as `Part.text`; None for the whole dataset


@dataclass(frozen=True)
class PartStatement:
    """What the records of one part have been charged, releases about the whole dataset included."""

    part: str
    spent_epsilon: float
    left_epsilon: float


@dataclass(frozen=True)
class DatasetStatement:
    """What one dataset has spent, at the delta its cap was chosen with."""

    dataset: str
    cap_epsilon: float
    delta: float
    accountant: str
    spent_epsilon: float  # of the record that was charged most
    left_epsilon: float  # of one more release about the whole dataset; 0 when nothing is left
    entries: tuple[Entry, ...]
    parts: tuple[PartStatement, ...]


@dataclass(frozen=True)
class BudgetMoment:
    """How the budget of a dataset stood right after one release, raise or accepted rollback."""

    created_s: float
    what: str
    release_id: str | None
    spent_epsilon: float
    cap_epsilon: float


@dataclass(frozen=True)
class LedgerTotals:
    """What peers are told of a ledger."""

    position: int
    head: bytes
    datasets: tuple[Total, ...]


@dataclass(frozen=True)
class ForeignHead:
    """The end of a ledger's chain as a signed HEAD states it."""

    record_id: bytes
    position: int
    head: bytes


def _no_secret() -> bytes:
    return bytes(TAG_BYTES)


class Ledger:
    """One ledger file. Every call is its own transaction; several processes may share the file."""

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.time, name_key: Callable[[], bytes] = _no_secret
    ) -> None:
        """Opens or makes the file, readable by its owner alone, and checks its whole chain.

        `name_key` gives a secret that outlives this file: under it, dataset names become the tags that peers see. It
        is asked for at the first use of a dataset only, so that a statement needs no secret.
        """
        self._path = Path(path)
        self._name_key = name_key
        self._clock = clock
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError:
            raise BudgetError(f"the budget ledger {self._path} cannot be opened; check its folder") from None
        with self._transaction() as database:
            for statement in _SCHEMA:
                database.execute(statement)
            self._replay(database)

    def reserve(
        self,
        dataset: str,
        task_id: bytes,
        epsilon: float,
        delta: float,
        cap_epsilon: float | None,
        note: str = "",
        *,
        default_cap_epsilon: float,
        unit: str = UNIT_RECORD,
        adjacency: str = ADJACENCY,
        part: Part | None = None,
    ) -> Reservation:
        """Spend (epsilon, delta) of the dataset's budget; on disk when this returns, BudgetError if too much.

        The first use of a dataset fixes its lifetime cap: `cap_epsilon`, or else `default_cap_epsilon`, at
        `delta`. Later uses may leave it out or repeat it. With `part`, only rows of that part may be read.
        """
        wanted_cap = default_cap_epsilon if cap_epsilon is None else cap_epsilon
        _check_request(dataset, epsilon, delta, wanted_cap)
        mechanism = GaussianRelease(epsilon, delta)
        account = Account(wanted_cap, delta, unit, adjacency, accountant_for(mechanism))
        return self._reserve(dataset, task_id, mechanism, account, cap_epsilon, note, part)

    def reserve_training(
        self,
        dataset: str,
        task_id: bytes,
        mechanism: SampledGaussianRelease,
        delta: float,
        cap_epsilon: float | None,
        note: str = "",
        *,
        default_cap_epsilon: float,
        unit: str = UNIT_RECORD,
        adjacency: str = ADJACENCY,
        part: Part | None = None,
    ) -> Reservation:
        """The same for a model trained with Poisson-sampled Gaussian steps; `delta` and the cap as in `reserve`."""
        mechanism.check()
        wanted_cap = default_cap_epsilon if cap_epsilon is None else cap_epsilon
        _check_request(dataset, MAX_EPSILON, delta, wanted_cap)
        account = Account(wanted_cap, delta, unit, adjacency, accountant_for(mechanism))
        return self._reserve(dataset, task_id, mechanism, account, cap_epsilon, note, part)

    def _reserve(
        self,
        dataset: str,
        task_id: bytes,
        mechanism: Mechanism,
        fresh: Account,
        cap_epsilon: float | None,
        note: str,
        part: Part | None,
    ) -> Reservation:
        with self._transaction() as database:
            state = self._replay(database)
            is_new = dataset not in state.accounts
            account = self._first_use(state, dataset, fresh) if is_new else state.accounts[dataset]
            _check_account(dataset, account, cap_epsilon, fresh.unit, fresh.adjacency)
            cost = account.accountant.cost(mechanism)
            epsilon, delta = _stated(mechanism, account)
            if not account.fits(cost, part):
                raise BudgetError(_over_budget_message(dataset, account, epsilon, part))
            if is_new:
                opening = {"event": "DATASET", "dataset": dataset, "tag": self._tag(dataset), **fresh.terms()}
                self._append(database, state, opening)
            spending: dict[str, Any] = {
                "event": "RESERVED",
                "release": secrets.token_hex(16),
                "dataset": dataset,
                "part": as_entry(part),
                "task": task_id.hex(),
                "mechanism": {"kind": account.accountant.name, **asdict(mechanism)},
                "epsilon": epsilon,
                "delta": delta,
                "cost": list(cost),
                "note": note,
            }
            self._append(database, state, spending)
            return Reservation(spending["release"], state.position)

    def _first_use(self, state: State, dataset: str, fresh: Account) -> Account:
        """The account that a new dataset gets, with what was burned under its tag when a rollback was accepted."""
        if len(state.accounts) + len(state.nameless) >= MAX_DATASETS:
            raise BudgetError(f"a node keeps the budgets of at most {MAX_DATASETS} datasets; use one that is there")
        burned = state.nameless.get(self._tag(dataset))
        if burned is None:
            return fresh
        if len(burned.charged) != fresh.accountant.entries:
            raise BudgetError(f'dataset "{dataset}" was charged by another accountant before the ledger was restored; '
                              "only releases of that kind can still draw on it")  # fmt: skip
        fresh.cap_epsilon = min(fresh.cap_epsilon, burned.cap_epsilon)
        return Account(**{**vars(fresh), "whole": burned.charged, "charged": burned.charged})

    def raise_cap(self, dataset: str, cap_epsilon: float) -> None:
        """Lift the lifetime cap of a dataset, for ever and on record; BudgetError unless it is a raise."""
        with self._transaction() as database:
            state = self._replay(database)
            account = state.accounts.get(dataset)
            if account is None:
                raise BudgetError(f'nothing was released of dataset "{dataset}" yet; its first publish sets its budget')
            if not account.cap_epsilon < cap_epsilon <= MAX_CAP_EPSILON:
                raise BudgetError(
                    f'the budget of dataset "{dataset}" is epsilon {account.cap_epsilon:g}: '
                    f"it can be raised, up to {MAX_CAP_EPSILON:g}, and never lowered"
                )
            self._append(database, state, {"event": "RAISED", "dataset": dataset, "cap_epsilon": cap_epsilon})

    def ready(self, release_id: str, payload: bytes) -> None:
        """Keep the noisy bytes of a reserved release; they are the only bytes that may be sent for it."""
        with self._transaction() as database:
            state = self._replay(database)
            self._expect(state, release_id, "RESERVED")
            database.execute("INSERT INTO payloads (release, payload) VALUES (?, ?)", (release_id, payload))
            self._append(database, state, {"event": "READY", "release": release_id, "payload": _digest(payload)})

    def published(self, release_id: str, record_id: bytes) -> None:
        """Note the record that carries a ready release, and drop its bytes, which the record has. Saying the same again
        changes nothing."""
        with self._transaction() as database:
            state = self._replay(database)
            release = state.releases.get(release_id, {})
            if release.get("state") == "PUBLISHED" and release["record"] == record_id.hex():
                return
            self._expect(state, release_id, "READY")
            self._append(database, state, {"event": "PUBLISHED", "release": release_id, "record": record_id.hex()})
            waiting = [name for name, one in state.releases.items() if one["state"] == "READY"]
            marks = ", ".join("?" * len(waiting))
            database.execute(f"DELETE FROM payloads WHERE release NOT IN ({marks})", waiting)  # noqa: S608 - marks

    def unpublished(self) -> list[ReadyRelease]:
        """READY releases whose record is not known, oldest first: to be published again, free of charge."""
        with self._transaction() as database:
            state = self._replay(database)
            return [
                ReadyRelease(
                    release_id=release_id,
                    dataset=release["dataset"],
                    task_id=bytes.fromhex(release["task"]),
                    payload=self._payload(database, release_id, release["payload"]),
                )
                for release_id, release in state.releases.items()
                if release["state"] == "READY"
            ]

    def statement(self, dataset: str | None = None) -> list[DatasetStatement]:
        """What each dataset (or the one named) has spent and has left."""
        with self._transaction() as database:
            state = self._replay(database)
        names = [name for name in state.accounts if dataset in (None, name)]
        return [_statement(name, state) for name in names]

    def history(self, dataset: str) -> list[BudgetMoment]:
        """How the budget of a dataset stood after each entry that changed it, oldest first."""
        with self._transaction() as database:
            account = self._replay(database).accounts.get(dataset)
        return [_moment(account, moment) for moment in account.history] if account else []

    def left_epsilon(self, dataset: str, part: Part | None) -> float | None:
        """The largest epsilon of one more release about the part (or the whole dataset); None before its first use."""
        with self._transaction() as database:
            account = self._replay(database).accounts.get(dataset)
        return None if account is None else account.left_epsilon(part)

    def head(self) -> bytes:
        """32 bytes: the hash of the last entry; zeros for a new ledger."""
        return self.totals().head

    def totals(self) -> LedgerTotals:
        """How far this ledger has come: what a HEAD tells."""
        with self._transaction() as database:
            state = self._replay(database)
        return LedgerTotals(state.position, state.head, state.totals())

    # --- two copies of one ledger -----------------------------------------------------------------------------

    def foreign(self, heads: Iterable[ForeignHead]) -> list[bytes]:
        """The ids of those HEADs that state another chain than this one's beginning, and were not accepted yet."""
        with self._transaction() as database:
            state = self._replay(database)
        return [head.record_id for head in heads if head.record_id not in state.accepted and not _contains(state, head)]

    def accepted(self) -> set[bytes]:
        """The ids of the HEADs of other copies that were accepted."""
        with self._transaction() as database:
            return self._replay(database).accepted

    def accept_rollback(self, heads: Sequence[bytes], burned: Sequence[Total]) -> None:
        """Charge to whole datasets what another copy of this ledger spent, and remember which HEADs said so."""
        with self._transaction() as database:
            state = self._replay(database)
            for total in burned:
                dataset = state.tags.get(total.tag.hex())
                known = state.accounts[dataset].charged if dataset is not None else total.charged
                if len(known) != len(total.charged):
                    raise BudgetError(
                        f'another copy of this ledger added up dataset "{dataset}" in another way; '
                        "restore the newest ledger, this one cannot be mended"
                    )
            content = [
                {
                    "tag": total.tag.hex(),
                    "cap_epsilon": total.cap_epsilon,
                    "delta": total.delta,
                    "costs": list(total.charged),
                }
                for total in burned
            ]
            event = {"event": "ROLLBACK", "heads": [head.hex() for head in heads], "burned": content}
            self._append(database, state, event)

    def dataset_of(self, tag: bytes) -> str | None:
        """The dataset that a tag stands for, if it was used here."""
        with self._transaction() as database:
            return self._replay(database).tags.get(tag.hex())

    def _tag(self, dataset: str) -> str:
        name = dataset.encode("utf-8")
        return hashlib.blake2b(name, digest_size=TAG_BYTES, key=self._name_key(), person=_TAG_PERSON).hexdigest()

    # --- the chain ------------------------------------------------------------------------------------------

    def _replay(self, database: sqlite3.Connection) -> State:
        """The state after all entries; BudgetError where the chain does not hold."""
        state = State()
        for position, body, stored_hash in database.execute(
            "SELECT position, body, hash FROM entries ORDER BY position"
        ):
            state.chain.append(_chained(state.head, body))
            if position != state.position or stored_hash != state.head:
                raise BudgetError(
                    f"the budget ledger {self._path} was changed at entry {state.position}; "
                    "nothing is released until the original is restored"
                )
            apply(state, json.loads(body))
        return state

    def _append(self, database: sqlite3.Connection, state: State, event: dict[str, Any]) -> None:
        event = event | {"position": state.position + 1, "created_s": self._clock()}
        body = json.dumps(event, sort_keys=True, separators=(",", ":"), allow_nan=False)
        state.chain.append(_chained(state.head, body))
        database.execute(
            "INSERT INTO entries (position, body, hash) VALUES (?, ?, ?)", (state.position, body, state.head)
        )
        apply(state, event)

    def _expect(self, state: State, release_id: str, wanted: str) -> None:
        found = state.releases.get(release_id, {}).get("state", "unknown")
        if found != wanted:
            raise BudgetError(f"release {release_id[:8]} is {found} and not {wanted}; make a new release")

    def _payload(self, database: sqlite3.Connection, release_id: str, digest: str) -> bytes:
        row = database.execute("SELECT payload FROM payloads WHERE release = ?", (release_id,)).fetchone()
        if row is None or _digest(row[0]) != digest:
            raise BudgetError(f"the bytes of release {release_id[:8]} in the budget ledger are damaged; make a new one")
        return bytes(row[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One immediate transaction on a connection of its own: committed and synced, or rolled back."""
        database = sqlite3.connect(self._path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
        try:
            # EXTRA is FULL plus a sync of the folder: a commit that returned survives a loss of power, with the
            # plain rollback journal too (a switch to WAL would not wait for other processes).
            database.execute("PRAGMA synchronous = EXTRA")
            database.execute("PRAGMA secure_delete = ON")  # what was dropped is overwritten
            database.execute("BEGIN IMMEDIATE")
            yield database
            database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise BudgetError(f"the budget ledger {self._path} cannot be used ({error}); try again") from None
        except sqlite3.Error:
            raise BudgetError(
                f"the budget ledger {self._path} is damaged; nothing is released until it is restored"
            ) from None
        finally:
            database.close()  # without COMMIT this rolls back


def _chained(head: bytes, body: str) -> bytes:
    return hashlib.blake2b(head + body.encode("utf-8"), digest_size=32, person=_PERSON).digest()


def _digest(payload: bytes) -> str:
    return hashlib.blake2b(payload, digest_size=32).hexdigest()


def _contains(state: State, head: ForeignHead) -> bool:
    """Whether this ledger's chain had that end once."""
    if head.position == 0:
        return head.head == GENESIS
    return head.position <= state.position and state.chain[head.position - 1] == head.head


# --- checks and figures -------------------------------------------------------------------------------------


def _check_request(dataset: str, epsilon: float, delta: float, cap_epsilon: float) -> None:
    if not dataset or len(dataset) > MAX_NAME_CHARS or not dataset.isprintable():
        raise BudgetError(f"a dataset is named with 1 to {MAX_NAME_CHARS} printable characters; choose another name")
    if not 0 < epsilon <= MAX_EPSILON:
        raise BudgetError(f"epsilon must be over 0 and at most {MAX_EPSILON:g}; choose another")
    if not 0 < delta <= MAX_DELTA:
        raise BudgetError(f"delta must be over 0 and at most {MAX_DELTA:g}; choose another")
    if not 0 < cap_epsilon <= MAX_CAP_EPSILON:
        raise BudgetError(f"the budget of a dataset must be over 0 and at most {MAX_CAP_EPSILON:g}; choose another")


def _check_account(dataset: str, account: Account, cap_epsilon: float | None, unit: str, adjacency: str) -> None:
    if (unit, adjacency) != (account.unit, account.adjacency):
        raise BudgetError(
            f'the budget of dataset "{dataset}" counts {account.unit}s ({account.adjacency}); '
            "a release in another unit needs a dataset of its own"
        )
    if cap_epsilon is not None and cap_epsilon != account.cap_epsilon:
        raise BudgetError(
            f'dataset "{dataset}" has a lifetime budget of epsilon {account.cap_epsilon:g}, '
            "chosen at its first use; leave the budget out, or `tidings budget raise` it"
        )


def _stated(mechanism: Mechanism, account: Account) -> tuple[float, float]:
    """The (epsilon, delta) of one release alone."""
    if isinstance(mechanism, GaussianRelease):
        return mechanism.epsilon, mechanism.delta
    return account.spent_epsilon(account.accountant.cost(mechanism)), account.delta


def _over_budget_message(dataset: str, account: Account, epsilon: float, part: Part | None) -> str:
    left = account.left_epsilon(part)
    advice = f"at most {left:g} is left" if left > 0 else "nothing is left"
    where = f" for the part {part.text}" if part else ""
    return (
        f'epsilon {epsilon:g} is over the budget of dataset "{dataset}" '
        f"(epsilon {account.cap_epsilon:g} in all, {advice}{where}); no data was read"
    )


def _statement(dataset: str, state: State) -> DatasetStatement:
    account = state.accounts[dataset]
    releases = [release for release in state.releases.values() if release["dataset"] == dataset]
    parts = {(part.rule, part.value): part for release in releases if (part := _part(release)) is not None}
    return DatasetStatement(
        dataset=dataset,
        cap_epsilon=account.cap_epsilon,
        delta=account.delta,
        accountant=account.accountant.name,
        spent_epsilon=account.spent_epsilon(account.spent()),
        left_epsilon=account.left_epsilon(),
        entries=tuple(map(_entry, releases)),
        parts=tuple(
            PartStatement(part.text, account.spent_epsilon(account.spent(part)), account.left_epsilon(part))
            for part in parts.values()
        ),
    )


def _moment(account: Account, moment: Moment) -> BudgetMoment:
    spent = account.spent_epsilon(moment.spent)
    return BudgetMoment(moment.created_s, moment.what, moment.release_id, spent, moment.cap_epsilon)


def _part(release: dict[str, Any]) -> Part | None:
    return Part(**release["part"]) if release["part"] else None


def _entry(release: dict[str, Any]) -> Entry:
    return Entry(
        release_id=release["release"],
        dataset=release["dataset"],
        task_id=bytes.fromhex(release["task"]),
        epsilon=release["epsilon"],
        delta=release["delta"],
        state=release["state"],
        record_id=None if release["record"] is None else bytes.fromhex(release["record"]),
        note=release["note"],
        position=release["position"],
        created_s=release["created_s"],
        part=part.text if (part := _part(release)) else None,
    )
