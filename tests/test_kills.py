"""`kill -9` of a running node at random moments while it takes records and chunks: what it told anybody is there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from crypto.keys import Identity, PublicKey
from node.client import Dialer
from node.config import MAX_ADVERTS, PROTOCOL_VERSION
from node.errors import PeerUnreachable
from node.frames import Advert, Announce, Frame, Hello, Records, SignedRecord, Want, WantChunks
from node.home import Home
from node.link import Link
from node.membership import add_peer
from node.records import HeldState, Record
from node.simulation.network import seeded
from node.simulation.store import author_record
from node.store import Store

ROOT = Path(__file__).parent.parent
CHUNK = 4_096
NEW_EACH_LIFE = 20
LONGEST_LIFE_S = 0.25
LIVES_A_HOME = 40
"""A node starts slower the more it holds, and this test is about kills: it begins anew now and then."""


class Feeder:
    """A peer that has many records, and hands them over as fast as they are asked for."""

    def __init__(self, rng: random.Random) -> None:
        self.identity = Identity.from_seed(rng.randbytes(32))
        self.rng = rng
        self.records: dict[bytes, Record] = {}
        self.bodies: dict[bytes, bytes] = {}
        self.greeted = asyncio.Event()

    def author_more(self) -> None:
        """New records: bodies of up to a dozen chunks, and withdrawals of some that came before."""
        for _ in range(NEW_EACH_LIFE):
            sequence, body = len(self.records) + 1, self.rng.randbytes(self.rng.randint(100, 12 * CHUNK))
            if self.bodies and self.rng.random() < 0.2:
                taken_back = self.rng.choice(list(self.bodies))
                record = author_record(self.identity, sequence, supersedes=taken_back)
            else:
                record = author_record(self.identity, sequence, body, chunk_bytes=CHUNK)
                self.bodies[record.id] = body
            self.records[record.id] = record

    def may_exchange(self, peer: PublicKey) -> bool:
        return True

    def link_up(self, link: Link) -> None:
        link.send(Hello(PROTOCOL_VERSION, bytes(8)))

    def frame_in(self, link: Link, frame: Frame) -> None:
        if isinstance(frame, Hello):
            self.greeted.set()
            self.announce(link)
        elif isinstance(frame, Want):
            for wanted in frame.ids:
                record = self.records[wanted]
                link.send(Records((SignedRecord(record.header_bytes, record.signature),)))
                if record.header.body_bytes <= CHUNK:
                    for index in range(len(record.header.chunk_hashes)):
                        link.send_chunk(wanted, index)
        elif isinstance(frame, WantChunks):
            for index in frame.indexes:
                link.send_chunk(frame.id, index)

    def announce(self, link: Link) -> None:
        adverts = [
            Advert(record.id, record.header.kind, record.header.origin.raw, record.header.body_bytes)
            for record in self.records.values()
        ]
        for start in range(0, len(adverts), MAX_ADVERTS):
            link.send(Announce(tuple(adverts[start : start + MAX_ADVERTS])))

    async def room(self) -> None: ...

    def bad_frame(self, link: Link, reason: str) -> None:
        raise AssertionError(reason)

    def load_chunks(self, record_id: bytes, indexes: Sequence[int]) -> list[bytes | None]:
        body = self.bodies[record_id]
        return [body[index * CHUNK : (index + 1) * CHUNK] for index in indexes]

    def link_down(self, link: Link, reason: str) -> None: ...


class Witness(Feeder):
    """A peer that has nothing and notes what it is told."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.announced: dict[bytes, None] = {}

    def frame_in(self, link: Link, frame: Frame) -> None:
        if isinstance(frame, Hello):
            self.greeted.set()
        elif isinstance(frame, Announce):
            self.announced.update(dict.fromkeys(advert.id for advert in frame.adverts))


class Victim:
    """The node, life after life."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.authored: dict[int, str] = {}

    async def start(self) -> tuple[int, int]:
        """Its process id and port."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        await self._process.stdin.drain()
        pid = int((await self._word("pid"))[0])
        return pid, int((await self._word("port"))[0])

    async def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        await self._word("ended")

    async def _word(self, awaited: str) -> list[str]:
        assert self._process.stdout is not None
        while line := await asyncio.wait_for(self._process.stdout.readline(), 60):
            name, *values = line.decode().split()
            if name == "authored":
                sequence, record_id = int(values[0]), values[1]
                assert self.authored.setdefault(sequence, record_id) == record_id, "a sequence was used twice"
            if name == awaited:
                return values
        raise AssertionError("the victim's parent died")


@asynccontextmanager
async def victim_of(home: Path) -> AsyncIterator[Victim]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.victim", str(home)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Victim(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def one_life(victim: Victim, me: PublicKey, peers: Sequence[Feeder], rng: random.Random) -> None:
    """Let the node run for a random moment with both peers, then kill it."""
    pid, port = await victim.start()

    async def talk(peer: Feeder) -> None:
        with contextlib.suppress(PeerUnreachable):
            await Dialer.for_identity(peer.identity).exchange(me, f"127.0.0.1:{port}", peer)

    calls = [asyncio.create_task(talk(peer)) for peer in peers]
    for peer in peers:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(peer.greeted.wait(), 20)
        peer.greeted.clear()
    await asyncio.sleep(rng.random() * LONGEST_LIFE_S)
    await victim.kill(pid)
    await asyncio.wait_for(asyncio.gather(*calls), 60)


def check_whole(home: Path, feeder: Feeder, witness: Witness, victim: Victim) -> None:
    """The store opens clean and holds, whole, what was announced, and every record of its own."""
    store = Store.open(home)
    for record_id in witness.announced:
        held = store.get(record_id)
        assert held is not None, "it announced what it does not have"
        assert held.state is not HeldState.FETCHING, "it announced what is not whole"
        if held.state is HeldState.COMPLETE and record_id in feeder.bodies:
            assert store.body(record_id) == feeder.bodies[record_id]
        elif record_id in feeder.bodies:
            assert held.buried_by in feeder.records
    for record_id in victim.authored.values():
        assert store.get(bytes.fromhex(record_id)) is not None, "a record of its own is lost"
    own = [
        held.record.header.sequence for held in store.held() if held.record.header.origin != feeder.identity.public_key
    ]
    assert len(own) == len(set(own))
    store.close()


async def story(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kill so often; returns how many records were acknowledged, and how many there were."""
    rng, acknowledged, there_were = seeded(seed), 0, 0
    for first in range(0, kills, LIVES_A_HOME):
        home = Home.init(folder / "home", "victim", None)
        feeder, witness = Feeder(rng), Witness(rng)
        for name, peer in (("feeder", feeder), ("witness", witness)):
            add_peer(home, peer.identity.public_key.text, name, None, query_only=False)
        home.store.close()
        async with victim_of(home.path) as victim:
            for _ in range(min(LIVES_A_HOME, kills - first)):
                feeder.author_more()
                await one_life(victim, home.me, (feeder, witness), rng)
                check_whole(home.path, feeder, witness, victim)
            acknowledged += len(witness.announced)
            there_were += len(feeder.records) + len(victim.authored)
        shutil.rmtree(home.path)
    return acknowledged, there_were


@pytest.mark.parametrize("kills", [20, pytest.param(1_000, marks=[pytest.mark.soak, pytest.mark.timeout(3_000)])])
def test_a_node_killed_while_it_takes_records_has_all_that_it_told_anybody(tmp_path: Path, kills: int) -> None:
    acknowledged, there_were = asyncio.run(story(tmp_path, kills, seed=kills))
    print(f"{kills} kills, {acknowledged} of {there_were} records acknowledged, none lost")
    assert acknowledged > kills // 2
