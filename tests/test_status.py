"""`status` explains: problems staged for real around one running node, and the one line that it shows for each.

The node under observation is a process of its own, as are the peers with another clock and another version; the others
are daemons in this process, plain sockets, and puppets: peers with a real key behind real TLS that say what they are
told to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROWS_CSV, TASK_TOML
from couriers import carry
from test_daemon import running

from crypto.keys import Identity, PublicKey
from crypto.sealing import chunk_hashes
from node import wire
from node.client import Dialer
from node.config import PROTOCOL_VERSION
from node.database import STORE_FILE
from node.errors import PeerUnreachable
from node.frames import Advert, Announce, Chunk, Digest, Frame, Hello, Records, SignedRecord, Want, WantChunks
from node.home import Home
from node.link import Link
from node.membership import add_peer
from node.publish import publish
from node.records import Header, Kind, Record
from node.store import Store
from node.tasks import add

PATIENCE_S = 40.0
HOUR_S = 3_600

# ----------------------------------------------------------------------------------------- what status is to say of it

CARD = "; waiting for the key card of {name}"

PEERS: dict[str, tuple[str, str, str]] = {
    "it has not added this node": (
        "aloof",
        "refused",
        "it has probably not added this node's key yet" + CARD,
    ),
    "nothing listens there": (
        "down",
        "unreachable",
        "nothing listens at {at}; check that its node runs" + CARD,
    ),
    "somebody else's key answers": (
        "impostor",
        "unreachable",
        "another key answers at {at}; check key and address" + CARD,
    ),
    "a web server answers": (
        "web",
        "unreachable",
        "no Tidings node answers at {at}; check the address" + CARD,
    ),
    "something hangs up at once": (
        "curt",
        "unreachable",
        "{at} closed the connection at once; check that a Tidings node is there" + CARD,
    ),
    "its name cannot be found": (
        "nameless",
        "unreachable",
        "name not found: {at}; check the address" + CARD,
    ),
    "its address is silent": ("silent", "unreachable", "no answer from {at} within 10 s" + CARD),
    "it has no address": ("homeless", "waiting", "no address here: it must dial this node" + CARD),
    "its clock is 3 h ahead": ("early", "linked", "clock 3 h ahead (harmless)"),
    "it speaks another version": (
        "newer",
        "unreachable",
        "it speaks version 2, this node version 1" + CARD,
    ),
    "its key card has not come": ("mute", "linked", CARD[2:]),
    "it sends garbage": (
        "garbage",
        "refused",
        "it sent too much that was invalid; lastly: A digest has 32 bytes, this one 31." + CARD,
    ),
}
"""What was staged: the name of the peer, its state, and why."""

SUMMARIES = {
    "its key grant has not come": (
        "hidden",
        "waiting for the key grant of hidden; it must add this node",
    ),
    "nobody has the rest of a body": ("fragment", "12 of 40 chunks arrived; nobody linked has the rest"),
}

NOTICES = {
    "two nodes run with one key": (
        "twin",
        "it came back with another store; two nodes run with its key, or its home was made anew; {ago}",
    ),
    "this node's own home was copied": (
        "me",
        "a record of this node came back that it does not hold; was its home restored from a copy?; {ago}",
    ),
}

# ------------------------------------------------------------------------------------------------------------ the stage


@dataclass(frozen=True)
class Seen:
    """What `status` said: for programs, at two widths for people, and after the node was stopped."""

    state: dict[str, Any]
    wide: list[str]
    narrow: list[str]
    listed: list[str]
    stopped: dict[str, Any]
    address: str
    addresses: dict[str, str]


class Puppet:
    """A peer in the hands of this test, over real TLS; notes what it hears."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.up = asyncio.Event()
        self.heard: list[Frame] = []
        self._link: Link | None = None
        self._call: asyncio.Task[None] | None = None

    async def dial(self, node: Home, address: str) -> None:
        self._call = asyncio.create_task(self._exchange(node, address))
        await asyncio.wait_for(self.up.wait(), PATIENCE_S)
        self.say(Hello(PROTOCOL_VERSION, self.identity.public_key.raw[:8]))

    async def _exchange(self, node: Home, address: str) -> None:
        while not self.up.is_set():  # until the node has noticed that it was added
            with contextlib.suppress(PeerUnreachable):
                await Dialer.for_identity(self.identity).exchange(node.me, address, self)
            await asyncio.sleep(0.2)

    def say(self, frame: Frame) -> None:
        assert self._link is not None
        self._link.send(frame)

    async def leave(self) -> None:
        if self._call is not None:
            self._call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._call

    def may_exchange(self, peer: PublicKey) -> bool:
        return True

    def link_up(self, link: Link) -> None:
        self._link = link
        self.up.set()

    def frame_in(self, link: Link, frame: Frame) -> None:
        self.heard.append(frame)

    def bad_frame(self, link: Link, reason: str) -> None:
        raise AssertionError(reason)

    def load_chunks(self, record_id: bytes, indexes: Sequence[int]) -> list[bytes | None]:
        raise AssertionError("chunks are said as they are")

    async def room(self) -> None: ...

    def link_down(self, link: Link, reason: str) -> None: ...


def tidings(home: Home, *words: str) -> str:
    command = [sys.executable, "-m", "node", "--home", str(home.path), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def on_a_terminal(home: Home, columns: int, *words: str) -> list[str]:
    """The lines of a command that runs on a terminal so wide."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [sys.executable, "-m", "node", "--home", str(home.path), *words]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(command, stdout=theirs, env=environment):
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux: EIO is how a terminal ends
            while part := os.read(ours, 65_536):
                shown += part
    os.close(ours)
    return shown.decode().replace("\r\n", "\n").splitlines()


@contextmanager
def served(home: Home, preamble: str = "") -> Iterator[str]:
    """A node as a process of its own, after some lines of Python; gives its address."""
    code = f"{preamble}\nfrom node.__main__ import main\nmain()"
    command = [sys.executable, "-c", code, "--home", str(home.path), "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"listens on (\S+:\d+)", process.stderr.readline())
            assert found is not None
            yield found[1]
        finally:
            process.terminate()


A_CLOCK_AHEAD = textwrap.dedent(
    f"""
    import time
    right, right_ns = time.time, time.time_ns
    time.time, time.time_ns = lambda: right() + {3 * HOUR_S}, lambda: right_ns() + {3 * HOUR_S * 10**9}
    """
)
A_LATER_VERSION = "import node.gossip.links\nnode.gossip.links.PROTOCOL_VERSION = 2"


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[str]:
    """A TCP server that is no node: it says this and hangs up, or nothing for ever (None)."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer is None:
            await reader.read()  # and all that it hears is the other side giving up
        elif answer:
            await reader.read(100)
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    host, port = server.sockets[0].getsockname()[:2]
    yield f"{host}:{port}"
    server.close()


def closed_port() -> str:
    """An address at which nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{held.getsockname()[1]}"


def peer(home: Home, name: str, *addresses: str, key: PublicKey | None = None) -> Identity:
    """The node adds a peer; returns a fresh identity, the peer's unless a key is given."""
    identity = Identity.generate()
    add_peer(home, (key or identity.public_key).text, name, *addresses, query_only=False)
    return identity


def in_forty_chunks(origin: Identity, task_id: bytes) -> tuple[Record, bytes]:
    """A summary that nobody could open, of 40 chunks."""
    body = os.urandom(40 * 1024)
    header = Header(
        Kind.SUMMARY,
        origin.public_key,
        b"incarnat",
        1,
        0,
        epoch=1,
        task_id=task_id,
        body_bytes=len(body),
        chunk_bytes=1024,
        chunk_hashes=chunk_hashes(body, 1024),
        key_commitment=bytes(32),
    )
    return wire.author(origin, header), body


async def offer(puppet: Puppet, record: Record) -> None:
    """Announce a record, and send its header when it is asked for."""
    header = record.header
    puppet.say(Announce((Advert(record.id, header.kind, header.origin.raw, header.body_bytes),)))
    await until(lambda: Want((record.id,)) in puppet.heard)
    puppet.say(Records((SignedRecord(record.header_bytes, record.signature),)))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.05)


@dataclass
class Stage:
    """The node under observation, and a folder for the homes of others."""

    folder: Path
    me: Home
    task_file: Path
    rows_file: Path

    def home(self, name: str) -> Home:
        return Home.init(self.folder / name, name, None)

    def a_summary_without_a_grant(self) -> None:
        """A courier brought it; its origin has not added this node."""
        hidden = self.home("hidden")
        peer(self.me, "hidden", key=hidden.me)
        task, _ = add(hidden, str(self.task_file))
        publish(hidden, task, [self.rows_file], epsilon=1.0, dataset="default", cap_epsilon=None)
        carry(hidden, self.me)

    async def twins(self, address: str) -> None:
        """One key, two stores: both come to see this node."""
        first = self.home("twin")
        peer(self.me, "twin", key=first.me)
        add_peer(first, self.me.me.text, "me", address, query_only=False)
        copy = self.folder / "copy"
        shutil.copytree(first.path, copy)
        for file in copy.glob(f"{STORE_FILE}*"):
            file.unlink()
        Store.create(copy).close()
        second = Home.open(copy)
        second.author.key_card()
        add_peer(second, self.me.me.text, "me", address, query_only=False)
        for home in (first, second):
            async with running(home, listens=False) as twin:
                await until(lambda twin=twin: "linked" in [one.state for one in twin.home.store.links()])

    async def a_copy_of_this_home(self, address: str) -> None:
        """Another copy of this node's home has signed something, and a peer brings it."""
        copy = self.folder / "restored"
        bringer = Puppet(peer(self.me, "bringer"))
        shutil.copytree(self.me.path, copy)
        record = Home.open(copy).author.withdrawal(self.me.store.held(kind=Kind.TASK)[0].record)
        await bringer.dial(self.me, address)
        await offer(bringer, record)
        await until(lambda: self.me.store.get(record.id) is not None)
        await bringer.leave()

    async def a_body_that_stops(self, address: str) -> None:
        """Its origin sends 12 chunks of 40 and goes."""
        identity = peer(self.me, "fragment")
        record, body = in_forty_chunks(identity, self.me.store.tasks()[0].task_id)
        puppet = Puppet(identity)
        await puppet.dial(self.me, address)
        await offer(puppet, record)
        await until(lambda: any(isinstance(frame, WantChunks) for frame in puppet.heard))
        for index in range(12):
            puppet.say(Chunk(record.id, index, body[1024 * index : 1024 * (index + 1)]))
        await until(lambda: len(getattr(self.me.store.get(record.id), "missing", ())) == 28)
        await puppet.leave()

    async def garbage(self, address: str) -> None:
        puppet = Puppet(peer(self.me, "garbage"))
        await puppet.dial(self.me, address)
        for _ in range(4):
            puppet.say(Digest(bytes(31)))

    async def mute(self, address: str) -> None:
        await Puppet(peer(self.me, "mute")).dial(self.me, address)


async def play(stage: Stage) -> Seen:
    """Stage everything at once and read what `status` says of it."""
    me = stage.me
    async with AsyncExitStack() as around:
        processes = around.enter_context(ExitStack())
        aloof = await around.enter_async_context(running(stage.home("aloof")))
        early, newer = stage.home("early"), stage.home("newer")
        for home in (early, newer):
            add_peer(home, me.me.text, "me", query_only=False)
        assert aloof.address is not None
        addresses = {
            "aloof": aloof.address,
            "impostor": aloof.address,
            "down": closed_port(),
            "web": await around.enter_async_context(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
            "curt": await around.enter_async_context(answering(b"")),
            "silent": await around.enter_async_context(answering(None)),
            "nameless": "no-such-hospital.invalid:7410",
            "early": processes.enter_context(served(early, A_CLOCK_AHEAD)),
            "newer": processes.enter_context(served(newer, A_LATER_VERSION)),
        }
        keys = {"aloof": aloof.home.me, "early": early.me, "newer": newer.me}
        for name, address in addresses.items():
            peer(me, name, address, key=keys.get(name))
        peer(me, "homeless")
        stage.a_summary_without_a_grant()
        node = ExitStack()
        address = processes.enter_context(node) and node.enter_context(served(me))
        await stage.twins(address)
        await stage.a_copy_of_this_home(address)
        await stage.a_body_that_stops(address)
        await stage.garbage(address)
        await stage.mute(address)
        deadline = time.monotonic() + PATIENCE_S
        while (state := json.loads(await asyncio.to_thread(tidings, me, "status", "--json"))) and not settled(state):
            assert time.monotonic() < deadline, state
            await asyncio.sleep(0.5)
        wide, narrow, listed = [
            await asyncio.to_thread(on_a_terminal, me, *how)
            for how in ((120, "status"), (80, "status"), (80, "peer", "list"))
        ]
        node.close()
        stopped = json.loads(await asyncio.to_thread(tidings, me, "status", "--json"))
    return Seen(state, wide, narrow, listed, stopped, address, addresses)


def settled(state: dict[str, Any]) -> bool:
    """Whether nobody is being dialed for the first time any more, and the bodies' outlook is written down."""
    stuck = " ".join(one["reason"] for task in state["tasks"] for one in task["stuck"])
    return all(one["state"] != "connecting" for one in state["peers"]) and "nobody linked" in stuck


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("status")
    task_file, rows_file = folder / "triage.toml", folder / "rows.csv"
    task_file.write_text(TASK_TOML, encoding="utf-8")
    rows_file.write_text(ROWS_CSV, encoding="utf-8")
    me = Home.init(folder / "me", "me", None)
    add(me, str(task_file))
    return asyncio.run(play(Stage(folder, me, task_file, rows_file)))


def pattern(words: str, name: str, seen: Seen) -> str:
    """What the words of the table match."""
    escaped = re.escape(words.replace("{name}", name).replace("{at}", seen.addresses.get(name, "")))
    return escaped.replace(re.escape("{ago}"), r"\d+ s ago")


# ------------------------------------------------------------------------------------------------------------ the tests


@pytest.mark.timeout(120)
@pytest.mark.parametrize("problem", PEERS)
def test_status_says_in_one_line_what_is_wrong_with_a_peer(problem: str, seen: Seen) -> None:
    name, state, words = PEERS[problem]
    told = {one["name"]: one for one in seen.state["peers"]}[name]
    assert told["state"] == state
    assert re.fullmatch(pattern(words, name, seen), told["reason"]), told["reason"]
    essence = words.split("; ")[0]
    for lines, width in ((seen.wide, 120), (seen.narrow, 80)):
        line = next(line for line in lines if line.startswith(f"{name} "))
        assert re.search(rf"{state} +(\d+ s|-) +{pattern(essence, name, seen)}", line), line
        assert len(line) <= width
    assert any(line.startswith(f"{name} ") for line in seen.listed)


@pytest.mark.parametrize("problem", SUMMARIES)
def test_status_says_in_one_line_why_a_summary_is_stuck(problem: str, seen: Seen) -> None:
    origin, words = SUMMARIES[problem]
    stuck = {one["origin"]: one["reason"] for task in seen.state["tasks"] for one in task["stuck"]}
    assert stuck[origin] == words
    assert f"  {origin}: {words}" in seen.narrow
    assert len(f"  {origin}: {words}") <= 80


@pytest.mark.parametrize("problem", NOTICES)
def test_status_warns_in_one_line(problem: str, seen: Seen) -> None:
    origin, words = NOTICES[problem]
    told = [one["reason"] for one in seen.state["notices"] if one["origin"] == origin]
    assert any(re.fullmatch(pattern(words, origin, seen), reason) for reason in told), told
    essence = pattern(words.split("; ")[0], origin, seen)
    for lines, width in ((seen.wide, 120), (seen.narrow, 80)):
        assert any(re.match(f"WARNING  {origin}: {essence}", line) and len(line) <= width for line in lines)


def test_status_says_that_the_node_is_not_running_and_nothing_of_links_that_are_gone(seen: Seen) -> None:
    assert seen.stopped["node"]["serving"] is False
    reasons = {(one["state"], one["reason"]) for one in seen.stopped["peers"]}
    assert reasons == {("offline", "this node is not running; start it with `tidings serve`")}
    assert {one["bytes_sent"] for one in seen.stopped["peers"]} == {0}
    stuck = {one["origin"]: one["reason"] for task in seen.stopped["tasks"] for one in task["stuck"]}
    assert stuck["fragment"] == "12 of 40 chunks arrived; this node is not running"


def test_status_says_where_the_node_really_listens(seen: Seen) -> None:
    assert seen.state["node"]["listen"] == seen.address
    assert f"listening on {seen.address}" in seen.narrow[0]
    assert seen.stopped["node"]["listen"] is None, "what its own settings say"


def test_a_peer_without_trouble_is_linked_and_no_reason_is_given(seen: Seen) -> None:
    """Nobody is called unreachable while a link is up: the linked ones are exactly those that are there."""
    linked = {one["name"] for one in seen.state["peers"] if one["state"] == "linked"}
    assert linked == {"early", "mute"}
