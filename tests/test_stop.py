"""A node that is asked to stop has stopped within 5 s, whatever it was doing, and has lost nothing that it
acknowledged.

Real processes and signals, with the time that each took."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import grpc.aio
import pytest
from commands import after, eventually
from daemons import in_an_event_loop
from daemons import running as daemon_on
from processes import Node, running

from crypto.keys import PublicKey
from node import wire
from node.bundle_export import export_bundle
from node.client import Dialer
from node.frames import Query
from node.home import Home
from node.membership import add_peer
from node.pb import tidings_pb2_grpc as rpc
from node.publish import publish
from node.records import HeldState, Kind
from node.serve import STOP_LIMIT_S
from node.tasks import add

LIMIT_S = 5.0
RECORDS = 15
MB = 1_000_000


def end(node: Node, number: signal.Signals = signal.SIGTERM, *, code: int = 0, limit_s: float = LIMIT_S) -> None:
    """Send one signal: the node ends in time, with this exit code."""
    assert node.process is not None
    began = time.monotonic()
    node.process.send_signal(number)
    returned = node.process.wait(30)
    took_s = time.monotonic() - began
    node.process = None
    assert (returned, took_s < limit_s) == (code, True), f"{node.name}: {took_s:.2f} s\n{_log(node)}"


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_program(pid: int, word: str) -> bool:
    """Whether a process runs a command with this word."""
    return word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody waits for may stay listed after its end."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """Two nodes that are linked; the first one dials."""
    one, other = (Node.make(tmp_path, name) for name in ("one", "other"))
    one.knows(other, str(other.address))
    other.knows(one)
    with running(one, other):
        eventually(lambda: one.is_linked_with(other) and other.is_linked_with(one))
        yield one, other


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("dialer_stops", [True, False], ids=["it dialed", "it was dialed"])
def test_whoever_is_linked_with_a_node_that_stops_is_told_so(
    pair: tuple[Node, Node], number: signal.Signals, dialer_stops: bool
) -> None:
    stopped, left = pair if dialer_stops else pair[::-1]
    end(stopped, number)
    eventually(lambda: left.sees(stopped)["state"] != "linked")
    # The one that dials may have tried again by now, and found the port closed: its log has the moment itself.
    assert f"{stopped.name} is not linked any more: its node was stopped" in _log(left)
    assert stopped.home.store.links() == []
    assert _log(stopped).rstrip().endswith("Stopped.")


def test_a_node_that_fetches_large_bodies_stops_and_goes_on_where_it_was(tmp_path: Path) -> None:
    source, reader = (Node.make(tmp_path, name) for name in ("source", "reader"))
    reader.knows(source, str(source.address))
    source.knows(reader)
    record = source.author(os.urandom(4 * MB))

    def slowly(node: Node) -> None:
        with open(node.path / "serve.log", "ab") as log:
            words = [sys.executable, "-m", "node", "--home", str(node.path), "serve", "--bandwidth", "1MB/s"]
            node.process = subprocess.Popen(words, stdout=log, stderr=log)

    def missing() -> int:
        held = reader.home.store.get(record.id)
        return len(held.missing) if held is not None else len(record.header.chunk_hashes)

    with running(source, reader, start=slowly):
        eventually(lambda: missing() < len(record.header.chunk_hashes) - 20)
        for node in (reader, source):
            end(node)
        left = missing()
        assert 0 < left < len(record.header.chunk_hashes)
        slowly(source)
        slowly(reader)
        assert missing() <= left
        eventually(lambda: reader.has_whole(record))


@pytest.fixture
def fusing(tmp_path: Path, task_file: Path, rows_file: Path) -> Iterator[tuple[Node, int]]:
    """A node with a peer's query, and the process that fuses for it."""
    node, asker = (Node.make(tmp_path, name) for name in ("node", "asker"))
    node.knows(asker)
    asker.knows(node, str(node.address))
    for home in (node.home, asker.home):
        task, _ = add(home, str(task_file))
    publish(node.home, task, [rows_file], epsilon=1.0, dataset="default", cap_epsilon=None)
    with running(node):
        assert node.process is not None
        pid = node.process.pid
        eventually(lambda: "running" in _log(node))
        words = [sys.executable, "-m", "node", "--home", str(asker.path), "query", "triage", "--node", "node"]
        query = subprocess.Popen([*words, "-o", str(tmp_path / "m.onnx")], stderr=subprocess.PIPE, text=True)
        eventually(lambda: bool(children(pid)))
        child = children(pid)[0]
        # It has begun to look into the home. Until its own program begins it has the maps of the node, which waits.
        eventually(lambda: is_program(child, "answer") and "_upb" in Path(f"/proc/{child}/maps").read_text())
        os.kill(child, signal.SIGSTOP)  # and will not end by itself
        yield node, child
        _, said = query.communicate(timeout=30)
        assert query.returncode == 1
        assert said.startswith("the other node is fusing")
        assert said.endswith("ended the connection before the model was there; its node may have been stopped.\n")


def test_a_node_that_fuses_stops_and_ends_what_fuses(fusing: tuple[Node, int]) -> None:
    node, child = fusing
    end(node)
    eventually(lambda: not is_alive(child), 2.0)


def test_what_fuses_ends_with_a_node_that_is_killed(fusing: tuple[Node, int]) -> None:
    node, child = fusing
    node.kill()
    eventually(lambda: not is_alive(child), 2.0)


@in_an_event_loop
async def test_a_node_stops_though_a_peer_reads_its_model_slowly(make_home: Callable[..., Home]) -> None:
    asker = make_home("asker")
    async with daemon_on(make_home("a")) as a:
        add_peer(a.home, asker.me.text, "asker", None, query_only=True)

        async def large(_peer: PublicKey, _query: Query) -> AsyncIterator[bytes | str]:
            yield bytes(64 * MB)

        a.daemon._answers.answer = large  # type: ignore[method-assign]
        await a.admits_its_peers()
        async with Dialer.for_identity(asker.keystore.identity).channel(a.home.me, str(a.address)) as channel:
            call = rpc.NodeStub(channel).Query(wire.query_to_pb(Query(bytes(32), "", (), (), "onnx")))
            assert await call.read()  # and no more of it
            began = asyncio.get_running_loop().time()
            a.daemon.stop()
            async with asyncio.timeout(LIMIT_S):
                while a.home.store.listening() is not None:
                    await asyncio.sleep(0.02)
            assert asyncio.get_running_loop().time() - began < LIMIT_S
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await call.read():
                    pass


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Node, Node, Path]:
    """A node, its peer, and a bundle that the peer wrote: large enough to be interrupted in the middle."""
    reader, source = (Node.make(tmp_path, name) for name in ("reader", "source"))
    reader.knows(source)
    source.knows(reader)
    for _ in range(RECORDS):
        source.author(os.urandom(4 * MB))
    path = tmp_path / "news.bundle"
    export_bundle(source.home, path)
    return reader, source, path


def importing(node: Node, path: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "node", "--home", str(node.path), "bundle", "import", str(path)]
    # A shell that runs the tests in the background has told them to ignore SIGINT, and children inherit that.
    words = after("import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)", words)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def has_begun() -> bool:
        assert process.poll() is None, process.communicate()
        return len(node.home.store.held(kind=Kind.SUMMARY)) > 1

    eventually(has_begun)
    return process


def whole(node: Node) -> int:
    return sum(held.state is HeldState.COMPLETE for held in node.home.store.held(kind=Kind.SUMMARY))


def test_a_node_stops_while_a_bundle_is_imported_and_the_import_goes_on(bundle: tuple[Node, Node, Path]) -> None:
    reader, _, path = bundle
    with running(reader):
        eventually(lambda: "running" in _log(reader))
        process = importing(reader, path)
        end(reader)
        assert process.wait(60) == 0, process.communicate()
    assert whole(reader) == RECORDS


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_an_import_that_is_interrupted_can_be_repeated(
    bundle: tuple[Node, Node, Path], number: signal.Signals, code: int
) -> None:
    reader, _, path = bundle
    process = importing(reader, path)
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - began < LIMIT_S
    assert process.returncode == code, said
    assert "Traceback" not in said
    before = whole(reader)
    again = importing(reader, path)
    assert again.wait(60) == 0
    assert before <= whole(reader) == RECORDS


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Node]:
    """A node whose store somebody else keeps locked, so that nothing it does at its end gets through."""
    node = Node.make(tmp_path, "stuck")
    with running(node):
        eventually(lambda: "running" in _log(node))
        with closing(sqlite3.connect(node.path / "node.db", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            yield node


def test_a_node_whose_store_is_locked_is_ended_in_time_and_says_so(stuck: Node) -> None:
    end(stuck, code=1)
    assert f"did not stop within {STOP_LIMIT_S:g} s" in _log(stuck)


def test_a_second_interrupt_ends_it_at_once(stuck: Node) -> None:
    assert stuck.process is not None
    stuck.process.send_signal(signal.SIGINT)
    eventually(lambda: "Stopping (SIGINT)" in _log(stuck))
    time.sleep(0.5)
    assert stuck.process.poll() is None
    end(stuck, signal.SIGINT, code=130, limit_s=0.5)


def test_a_service_manager_is_told_that_it_runs_lives_and_stops(tmp_path: Path) -> None:
    node = Node.make(tmp_path, "node")
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        words = [sys.executable, "-m", "node", "--home", str(node.path), "serve"]
        node.process = subprocess.Popen(words, env=os.environ | {"NOTIFY_SOCKET": str(path)}, stderr=subprocess.PIPE)
        with running(node, start=lambda _: None):
            said = {manager.recv(100) for _ in range(4)}
            assert said == {b"READY=1", b"WATCHDOG=1"}
            node.process.terminate()
            while (word := manager.recv(100)) == b"WATCHDOG=1":
                pass
            assert word == b"STOPPING=1"
            _, log = node.process.communicate(timeout=10)
            assert node.process.returncode == 0, log


def _log(node: Node) -> str:
    return (node.path / "serve.log").read_text()
