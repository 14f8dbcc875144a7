"""The privacy budget of a node: append-only, hash-chained, safe from crashes, never overspent.

Spend, then compute, never refund:

    reserve    RESERVED   the cost is committed to disk before a single row is summed
    ready      READY      the noisy bytes are kept; from here on the same bytes go out, free of charge
    published  PUBLISHED  the record that carries them is known

A crash between `reserve` and `ready` burns the budget: the noise may already have been seen, nobody can know.

Every dataset has a lifetime cap, chosen at its first use and bound to a privacy unit and adjacency. Costs are
mu^2 in whole units of 2^-40, rounded up: Gaussian releases add up exactly in mu^2, also when each is chosen
after seeing the earlier ones (Smith & Thakurta 2022), so "the sum stays under the cap" is the whole filter. A
cap is turned into the same units by the same function: the first release may spend all of it.

The chain shows entries that were changed or removed from the middle. It cannot show that the whole file was
replaced by an older copy. This module holds no keys and draws no noise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusion.accounting import epsilon_of, mu_of
from fusion.errors import BudgetError
from fusion.summary import ADJACENCY
from fusion.task import MAX_DELTA, MAX_EPSILON, MAX_NAME_CHARS, UNIT_RECORD

COST_UNITS = 2**40  # one unit of mu^2
MAX_CAP_EPSILON = 100.0
LOCK_TIMEOUT_S = 30.0  # how long one process waits for another's transaction

_GENESIS = bytes(32)
_PERSON = b"tidings-ledger-1"
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


@dataclass(frozen=True)
class DatasetStatement:
    """What one dataset has spent, at the delta its cap was chosen with."""

    dataset: str
    cap_epsilon: float
    delta: float
    spent_epsilon: float
    left_epsilon: float  # of one more release at that delta, composed exactly; 0 when nothing is left
    entries: tuple[Entry, ...]


@dataclass
class _Dataset:
    cap_epsilon: float
    delta: float
    unit: str
    adjacency: str
    spent: int = 0  # in COST_UNITS

    @property
    def cap(self) -> int:
        return cost_of(self.cap_epsilon, self.delta)

    def terms(self) -> dict[str, Any]:
        """What the first use fixed, as the ledger keeps it."""
        return {
            "cap_epsilon": self.cap_epsilon,
            "delta": self.delta,
            "unit": self.unit,
            "adjacency": self.adjacency,
        }


@dataclass
class _State:
    """The ledger, replayed from its first entry."""

    position: int = 0
    head: bytes = _GENESIS
    datasets: dict[str, _Dataset] = field(default_factory=dict)
    releases: dict[str, dict[str, Any]] = field(default_factory=dict)


def cost_of(epsilon: float, delta: float) -> int:
    """mu^2 of one release in COST_UNITS, rounded up."""
    return math.ceil(mu_of(epsilon, delta) ** 2 * COST_UNITS)


class Ledger:
    """One ledger file. Every call is its own transaction; several processes may share the file."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Opens or makes the file, readable by its owner alone, and checks its whole chain."""
        self._path = Path(path)
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
    ) -> Reservation:
        """Spend (epsilon, delta) of the dataset's budget; on disk when this returns, BudgetError if too much.

        The first use of a dataset fixes its lifetime cap: `cap_epsilon`, or else `default_cap_epsilon`, at
        `delta`. Later uses may leave it out or repeat it.
        """
        wanted_cap = default_cap_epsilon if cap_epsilon is None else cap_epsilon
        _check_request(dataset, epsilon, delta, wanted_cap)
        cost = cost_of(epsilon, delta)
        with self._transaction() as database:
            state = self._replay(database)
            account = state.datasets.get(dataset)
            if account is None:
                account = _Dataset(wanted_cap, delta, unit, adjacency)
            _check_account(dataset, account, cap_epsilon, unit, adjacency)
            if account.spent + cost > account.cap:
                raise BudgetError(_over_budget_message(dataset, account, epsilon))
            if dataset not in state.datasets:
                self._append(database, state, {"event": "DATASET", "dataset": dataset, **account.terms()})
            spending: dict[str, Any] = {
                "event": "RESERVED",
                "release": secrets.token_hex(16),
                "dataset": dataset,
                "task": task_id.hex(),
                "epsilon": epsilon,
                "delta": delta,
                "cost": cost,
                "note": note,
            }
            self._append(database, state, spending)
            return Reservation(spending["release"], state.position)

    def ready(self, release_id: str, payload: bytes) -> None:
        """Keep the noisy bytes of a reserved release; they are the only bytes that may be sent for it."""
        with self._transaction() as database:
            state = self._replay(database)
            self._expect(state, release_id, "RESERVED")
            database.execute("INSERT INTO payloads (release, payload) VALUES (?, ?)", (release_id, payload))
            self._append(database, state, {"event": "READY", "release": release_id, "payload": _digest(payload)})

    def published(self, release_id: str, record_id: bytes) -> None:
        """Note the record that carries a ready release. Saying the same again changes nothing."""
        with self._transaction() as database:
            state = self._replay(database)
            release = state.releases.get(release_id, {})
            if release.get("state") == "PUBLISHED" and release["record"] == record_id.hex():
                return
            self._expect(state, release_id, "READY")
            self._append(database, state, {"event": "PUBLISHED", "release": release_id, "record": record_id.hex()})

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
        names = [name for name in state.datasets if dataset in (None, name)]
        return [_statement(name, state) for name in names]

    def head(self) -> bytes:
        """32 bytes: the hash of the last entry; zeros for a new ledger."""
        with self._transaction() as database:
            return self._replay(database).head

    # --- the chain ------------------------------------------------------------------------------------------

    def _replay(self, database: sqlite3.Connection) -> _State:
        """The state after all entries; BudgetError where the chain does not hold."""
        state = _State()
        for position, body, stored_hash in database.execute(
            "SELECT position, body, hash FROM entries ORDER BY position"
        ):
            state.position += 1
            state.head = _chained(state.head, body)
            if position != state.position or stored_hash != state.head:
                raise BudgetError(
                    f"the budget ledger {self._path} was changed at entry {state.position}; "
                    "nothing is released until the original is restored"
                )
            _apply(state, json.loads(body))
        return state

    def _append(self, database: sqlite3.Connection, state: _State, event: dict[str, Any]) -> None:
        event = event | {"position": state.position + 1, "created_s": self._clock()}
        body = json.dumps(event, sort_keys=True, separators=(",", ":"), allow_nan=False)
        state.position += 1
        state.head = _chained(state.head, body)
        database.execute(
            "INSERT INTO entries (position, body, hash) VALUES (?, ?, ?)", (state.position, body, state.head)
        )
        _apply(state, event)

    def _expect(self, state: _State, release_id: str, wanted: str) -> None:
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


def _apply(state: _State, event: dict[str, Any]) -> None:
    """What one entry of the chain means."""
    match event["event"]:
        case "DATASET":
            terms = {key: event[key] for key in ("cap_epsilon", "delta", "unit", "adjacency")}
            state.datasets[event["dataset"]] = _Dataset(**terms)
        case "RESERVED":
            state.datasets[event["dataset"]].spent += event["cost"]
            state.releases[event["release"]] = event | {"state": "RESERVED", "record": None}
        case "READY":
            state.releases[event["release"]] |= {"state": "READY", "payload": event["payload"]}
        case "PUBLISHED":
            state.releases[event["release"]] |= {"state": "PUBLISHED", "record": event["record"]}
        case other:
            raise BudgetError(f"the budget ledger holds an entry of kind {other}; update this software")


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


def _check_account(dataset: str, account: _Dataset, cap_epsilon: float | None, unit: str, adjacency: str) -> None:
    if (unit, adjacency) != (account.unit, account.adjacency):
        raise BudgetError(
            f'the budget of dataset "{dataset}" counts {account.unit}s ({account.adjacency}); '
            "a release in another unit needs a dataset of its own"
        )
    if cap_epsilon is not None and cap_epsilon != account.cap_epsilon:
        raise BudgetError(
            f'dataset "{dataset}" has a lifetime budget of epsilon {account.cap_epsilon:g}, '
            "chosen at its first use; leave the budget out"
        )


def _over_budget_message(dataset: str, account: _Dataset, epsilon: float) -> str:
    left = _left_epsilon(account)
    advice = f"at most {left:g} is left" if left > 0 else "nothing is left"
    return (
        f'epsilon {epsilon:g} is over the budget of dataset "{dataset}" '
        f"(epsilon {account.cap_epsilon:g} in all, {advice}); no data was read"
    )


def _left_epsilon(account: _Dataset) -> float:
    """The largest epsilon, in ten-thousandths, of one more release at the account's delta."""
    left_mu = math.sqrt(max(0, account.cap - account.spent) / COST_UNITS)
    return math.floor(epsilon_of(left_mu, account.delta) * 1e4) / 1e4


def _statement(dataset: str, state: _State) -> DatasetStatement:
    account = state.datasets[dataset]
    entries = tuple(_entry(release) for release in state.releases.values() if release["dataset"] == dataset)
    return DatasetStatement(
        dataset=dataset,
        cap_epsilon=account.cap_epsilon,
        delta=account.delta,
        spent_epsilon=epsilon_of(math.sqrt(account.spent / COST_UNITS), account.delta),
        left_epsilon=_left_epsilon(account),
        entries=entries,
    )


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
    )
