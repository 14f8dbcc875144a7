"""Group commit: what the gossip core wants kept is written by a thread of its own, all that waits in one transaction.

A transaction waits for the disk (fsync), whether it holds one chunk or a hundred. So while one is on its way, what else
the core wants kept gathers, and goes into the next. The slower the disk, the larger the groups; an idle node's single
record is on disk as soon as before.

Nothing is acknowledged that could be lost. An action is *ready* if nothing waits to be kept that was decided before it.
Until then everything that tells a peer what is held here (announcements, digests, vectors, records, chunks, Missing)
waits, in the order in which the core decided it, and is carried out when the transaction with all that came before it
has been committed: with `synchronous=FULL` it is on disk then, whatever happens to process and power next. Only frames
that claim nothing pass at once: Hello, Want and WantChunks, so that the line stays full while the disk works. A process
that is killed has lost at most what no peer and no operator was told of, and asks for it again.

If the store refuses (a full disk), the whole group and what waited for it is dropped, and the daemon starts again from
what the store holds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from node.errors import StoreError
from node.frames import Hello, Want, WantChunks, entries
from node.gossip.events import Action, Alarm, Dial, Keep, KeepChunk, Report, Send, SendRecords, Unheard
from node.store import Store

MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
"""What may wait to be written, or to be said after that, before links are read no further. Four windows of chunks; it
bounds memory when the disk is slower than the network, whose senders then wait as they do on a slow line."""

GATHER_S: Final = 0.02
GATHER_BYTES: Final = 1024 * 1024
"""After a transaction the next one begins so much later, or when so much has gathered. The first of a row begins at
once, so that a single record waits for nothing; in a row of them each is large enough that its fixed cost (waking the
thread, fsync) is small."""

ENTRY_BYTES: Final = 100
"""What one thing that a frame names takes in memory."""

ALARM: Final = "alarm"
"""The topic of notices that come from the core; the newest one about a node stands."""

_T = TypeVar("_T")


class GroupCommit:
    """Carries out actions in order: keeps what is to be kept, and holds back what must not be said before.

    `perform` carries out one action other than writing (for Keep and Alarm: what follows from it, once it is on disk).
    `failed` is told that the store refused a write; everything that waited is forgotten by then.
    """

    def __init__(self, home: Path, perform: Callable[[Action], None], failed: Callable[[StoreError], None]) -> None:
        self._perform = perform
        self._failed = failed
        self._thread = ThreadPoolExecutor(1, "tidings-store")
        self._store = self._thread.submit(Store.open, home)
        self._writes: list[Action] = []
        self._waiting: list[Action] = []
        self._waiting_bytes = 0
        self._round = 0
        self._commits: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._enough = asyncio.Event()

    def carry_out(self, actions: Iterable[Action]) -> None:
        """Carry these out, now or as soon as what they depend on is on disk."""
        for action in actions:
            if isinstance(action, Keep | KeepChunk | Alarm):
                self._writes.append(action)
                self._count(_size(action))
            if isinstance(action, KeepChunk):
                continue
            if _claims_nothing(action) or not (self._writes or self._commits):
                self._perform(action)
            else:
                self._waiting.append(action)
                self._count(_held_back(action))
        if self._writes and self._commits is None:
            self._commits = asyncio.create_task(self._commit())

    @property
    def is_busy(self) -> bool:
        """Whether something waits for the disk, or did a moment ago."""
        return self._commits is not None

    async def room(self) -> None:
        """Wait until more may come."""
        if not self._room.is_set():
            await self._room.wait()

    async def run(self, work: Callable[[Store], _T]) -> _T:
        """Do some other work with the thread's store; StoreError as it says. Its connection's own changes are those
        that `Store.change_counter` does not count."""
        return await asyncio.wrap_future(self._thread.submit(lambda: work(self._store.result())))

    def forget(self) -> None:
        """Drop what waits: the core that decided it is given up."""
        self._round += 1
        self._writes.clear()
        self._waiting.clear()
        self._count(-self._waiting_bytes)

    async def close(self) -> None:
        """Write what waits, then let go of the store."""
        if self._commits is not None:
            await asyncio.wait([self._commits])
        with contextlib.suppress(StoreError):  # it could not even be opened
            await self.run(Store.close)
        self._thread.shutdown()

    async def _commit(self) -> None:
        """Until nothing waits. Whatever goes wrong, the core is not left with what nobody keeps any more."""
        try:
            await self._commit_all()
        except Exception as error:
            self._commits = None
            self.forget()
            self._failed(StoreError(f"What came cannot be kept ({type(error).__name__}): a fault of this program."))
            raise
        self._commits = None

    async def _commit_all(self) -> None:
        """One transaction after the other."""
        while self._writes or self._waiting:
            writes, self._writes = self._writes, []
            waiting, self._waiting = self._waiting, []
            now = self._round
            try:
                await self.run(lambda store, writes=writes: _keep(store, writes))  # type: ignore[misc]
            except StoreError as error:
                if now == self._round:
                    self.forget()
                    self._failed(error)
                continue
            if now == self._round:
                self._count(-sum(map(_size, writes)) - sum(map(_held_back, waiting)))
                for action in waiting:
                    self._perform(action)
            await self._gather()

    async def _gather(self) -> None:
        """Let more come in before the next transaction."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_S):
                await self._enough.wait()

    def _count(self, more: int) -> None:
        self._waiting_bytes += more
        if self._waiting_bytes < MAX_WAITING_BYTES:
            self._room.set()
        else:
            self._room.clear()
        if self._waiting_bytes >= GATHER_BYTES:
            self._enough.set()
        else:
            self._enough.clear()


def _claims_nothing(action: Action) -> bool:
    """Whether the action says nothing about what is held here."""
    if isinstance(action, Send):
        return isinstance(action.frame, Hello | Want | WantChunks)
    return isinstance(action, Dial | Report | Unheard)


def _size(action: Action) -> int:
    match action:
        case KeepChunk(data=data):
            return len(data)
        case Keep(record=record):
            return len(record.header_bytes)
    return 0


def _held_back(action: Action) -> int:
    """About how many bytes of memory it takes while it waits: what answers peers while the disk stands still."""
    match action:
        case Send(frame=frame):
            return ENTRY_BYTES * entries(frame)
        case SendRecords(records=records):
            return ENTRY_BYTES * len(records)
    return ENTRY_BYTES


def _keep(store: Store, actions: list[Action]) -> None:
    """All of them in one transaction. Chunks go last: a header always comes before its chunks, and a burial among the
    headers leaves nothing to add them to."""
    with store.batch():
        for action in actions:
            if isinstance(action, Keep):
                store.add_record(action.record)
            elif isinstance(action, Alarm) and action.proof is not None:
                store.add_conflict(action.proof)
            elif isinstance(action, Alarm):
                store.set_notice(action.origin, ALARM, action.reason)
        chunks = [(one.record_id, one.index, one.data) for one in actions if isinstance(one, KeepChunk)]
        store.add_chunks(chunks)
