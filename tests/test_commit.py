"""Group commit: nothing that tells what is held goes out before it is on disk, and a group is kept whole or not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from crypto.keys import Identity
from node import commit
from node.commit import ENTRY_BYTES, MAX_WAITING_BYTES, GroupCommit
from node.errors import StoreError
from node.frames import Advert, Announce, Digest, Frame, Hello, Missing, Records, SignedRecord, Want, WantChunks
from node.gossip.events import Action, Keep, KeepChunk, Send, SendChunk
from node.records import HeldState, Record
from node.simulation.network import seeded
from node.simulation.store import author_record
from node.store import Store

ALICE = Identity.from_seed(bytes([1]) * 32)
CHUNK = 4_096


def record_with_body(sequence: int, chunks: int) -> tuple[Record, list[KeepChunk]]:
    body = seeded(sequence).randbytes(CHUNK * chunks)
    record = author_record(ALICE, sequence, body, chunk_bytes=CHUNK)
    pieces = [KeepChunk(record.id, index, body[index * CHUNK : (index + 1) * CHUNK]) for index in range(chunks)]
    return record, pieces


def announcement(record: Record) -> Send:
    header = record.header
    return Send(1, Announce((Advert(record.id, header.kind, header.origin.raw, header.body_bytes),)))


class Shell:
    """Notes what is carried out, and what a second connection saw on disk at that moment."""

    def __init__(self, home: Path) -> None:
        self.eyes = Store.open(home)
        self.done: list[Action] = []
        self.errors: list[StoreError] = []
        self.commit = GroupCommit(home, self._perform, self.errors.append)

    def _perform(self, action: Action) -> None:
        self.done.append(action)
        if isinstance(action, Send) and isinstance(action.frame, Announce):
            held = self.eyes.get(action.frame.adverts[0].id)
            assert held is not None, "announced before it was on disk"
            assert held.state is not HeldState.FETCHING, "announced before all of it was on disk"

    async def settled(self) -> None:
        async with asyncio.timeout(20):
            while self.commit.is_busy:
                await asyncio.sleep(0.005)

    async def close(self) -> None:
        await self.commit.close()
        self.eyes.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    Store.create(tmp_path / "home").close()
    return tmp_path / "home"


@pytest.mark.parametrize("seed", range(5))
def test_what_is_announced_is_on_disk_whole_and_everything_keeps_its_order(home: Path, seed: int) -> None:
    async def story() -> None:
        shell, rng = Shell(home), seeded(seed)
        decided: list[Action] = []
        for sequence in range(1, 30):
            record, pieces = record_with_body(sequence, rng.randint(1, 6))
            shell.commit.carry_out([Keep(record)])
            rng.shuffle(pieces)
            for piece in pieces:
                shell.commit.carry_out([piece])
                if rng.random() < 0.3:
                    await asyncio.sleep(0.002 * rng.random())
            decided += [Keep(record), announcement(record)]
            shell.commit.carry_out([announcement(record)])
        await shell.settled()
        assert shell.done == decided
        assert {held.state for held in shell.eyes.held()} == {HeldState.COMPLETE}
        assert shell.errors == []
        await shell.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("frame", "passes"),
    [
        (Hello(1, bytes(8)), True),
        (Want((bytes(32),)), True),
        (WantChunks(bytes(32), (1,)), True),
        (Missing(bytes(32)), False),
        (Digest(bytes(32)), False),
        (Records((SignedRecord(b"", b""),)), False),
    ],
)
def test_while_the_disk_works_only_frames_that_claim_nothing_pass(home: Path, frame: Frame, passes: bool) -> None:
    async def story() -> None:
        shell = Shell(home)
        record, pieces = record_with_body(1, 2)
        shell.commit.carry_out([Keep(record), *pieces, SendChunk(1, record.id, 0), Send(1, frame)])
        assert shell.done == ([Send(1, frame)] if passes else [])
        await shell.settled()
        waited = [Keep(record), SendChunk(1, record.id, 0)]
        assert shell.done == ([Send(1, frame), *waited] if passes else [*waited, Send(1, frame)])
        await shell.close()

    asyncio.run(story())


def test_with_nothing_to_keep_nothing_waits(home: Path) -> None:
    async def story() -> None:
        shell = Shell(home)
        shell.commit.carry_out([Send(1, Digest(bytes(32)))])
        assert shell.done == [Send(1, Digest(bytes(32)))]
        await shell.close()

    asyncio.run(story())


def test_a_group_that_the_store_refuses_is_dropped_whole_with_what_waited_for_it(home: Path) -> None:
    async def story() -> None:
        shell = Shell(home)
        record, pieces = record_with_body(1, 2)
        stray = KeepChunk(bytes(32), 0, b"of a record that is not held")
        shell.commit.carry_out([Keep(record), *pieces, stray, announcement(record)])
        await shell.settled()
        assert shell.done == []
        assert len(shell.errors) == 1
        assert shell.eyes.held() == []
        # The position that was rolled back goes to another record; its chunks must not be taken for the first one's.
        other, others = record_with_body(2, 3)
        shell.commit.carry_out([Keep(other), *others, announcement(other)])
        await shell.settled()
        assert shell.eyes.body(other.id) == b"".join(piece.data for piece in others)
        shell.commit.carry_out([Keep(record), *pieces, announcement(record)])
        await shell.settled()
        assert shell.eyes.body(record.id) == b"".join(piece.data for piece in pieces)
        await shell.close()

    asyncio.run(story())


def test_what_is_forgotten_is_not_carried_out_later(home: Path) -> None:
    async def story() -> None:
        shell = Shell(home)
        record, pieces = record_with_body(1, 2)
        shell.commit.carry_out([Keep(record), *pieces, announcement(record)])
        await asyncio.sleep(0)  # the transaction is on its way
        shell.commit.forget()
        await shell.settled()
        assert shell.done == []
        await shell.close()

    asyncio.run(story())


def test_links_wait_while_the_disk_is_behind(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "MAX_WAITING_BYTES", 10 * CHUNK)
    assert MAX_WAITING_BYTES > 10 * CHUNK

    async def story() -> None:
        shell = Shell(home)
        record, pieces = record_with_body(1, 20)
        shell.commit.carry_out([Keep(record), *pieces])
        waiting = asyncio.create_task(shell.commit.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        async with asyncio.timeout(20):
            await waiting
        assert shell.eyes.body(record.id) == b"".join(piece.data for piece in pieces)
        await shell.close()

    asyncio.run(story())


def test_a_row_of_small_writes_costs_few_transactions(home: Path) -> None:
    async def story() -> None:
        shell = Shell(home)
        record, pieces = record_with_body(1, 200)
        before = shell.eyes.change_counter()
        shell.commit.carry_out([Keep(record)])
        for piece in pieces:
            shell.commit.carry_out([piece])
            await asyncio.sleep(0)
        await shell.settled()
        assert shell.eyes.change_counter() - before <= 20
        await shell.close()

    asyncio.run(story())


def test_links_wait_while_answers_pile_up_behind_a_disk_that_stands_still(home: Path) -> None:
    async def story() -> None:
        shell = Shell(home)
        record, _ = record_with_body(1, 1)
        with shell.eyes.batch():  # another process writes, and takes long
            shell.commit.carry_out([Keep(record)])
            headers = Records(tuple(SignedRecord(b"", b"") for _ in range(256)))
            shell.commit.carry_out([Send(1, headers)] * (MAX_WAITING_BYTES // (ENTRY_BYTES * 256) + 1))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await shell.commit.room()
        async with asyncio.timeout(20):
            await shell.commit.room()
        await shell.settled()
        assert shell.commit._waiting_bytes == 0
        await shell.close()

    asyncio.run(story())


def test_a_fault_while_something_is_carried_out_does_not_stop_everything_that_comes_later(home: Path) -> None:
    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        shell = Shell(home)
        record, pieces = record_with_body(1, 1)
        early = announcement(record_with_body(2, 1)[0])  # of what is not here: the shell does not take it
        shell.commit.carry_out([Keep(record), early])
        await shell.settled()
        assert len(shell.errors) == 1
        shell.commit.carry_out([*pieces, announcement(record)])
        await shell.settled()
        assert shell.done[-1] == announcement(record)
        await shell.close()

    asyncio.run(story())
