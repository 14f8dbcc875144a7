"""The listening side of a node: who gets in while peers come and go, and that nobody can bring it down by knocking."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from daemons import eventually, in_an_event_loop
from grpc.experimental.session_cache import ssl_session_cache_lru

from crypto.keys import Identity, PublicKey
from crypto.tls import anchor_pem, make_leaf, server_name
from node.client import Dialer
from node.config import MAX_WANT
from node.errors import PeerUnreachable, UsageError
from node.frames import Frame, Query, Records, SignedRecord
from node.link import MAX_QUEUED_ENTRIES, Link
from node.server import EXCHANGE, Doors, NodeServer

A, B, C = (Identity.from_seed(letter * 32) for letter in (b"a", b"b", b"c"))


class Lobby:
    """Counts who comes in. Both what the server asks of a daemon, and what a link asks of one."""

    def __init__(self, *admitted: Identity) -> None:
        self.admitted = frozenset(identity.public_key for identity in admitted)
        self.links: list[Link] = []
        self.doors = Doors(lambda: self.admitted, self.answer)

    async def answer(self, peer: PublicKey, query: Query) -> AsyncIterator[bytes | str]:
        yield b"model"

    def may_exchange(self, peer: PublicKey) -> bool:
        return peer in self.admitted

    def link_up(self, link: Link) -> None:
        self.links.append(link)

    def frame_in(self, link: Link, frame: Frame) -> None: ...

    def bad_frame(self, link: Link, reason: str) -> None: ...

    def link_down(self, link: Link, reason: str) -> None:
        self.links.remove(link)


@asynccontextmanager
async def serving(lobby: Lobby) -> AsyncIterator[tuple[NodeServer, str]]:
    server = NodeServer(A, lobby, lobby.doors)  # type: ignore[arg-type]
    port = await server.start("127.0.0.1:0")
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await server.stop(0.1)


@asynccontextmanager
async def linked(identity: Identity, address: str) -> AsyncIterator[Lobby]:
    """A link from `identity` to the server, open for as long as this lasts."""
    lobby = Lobby(A)
    task = asyncio.create_task(Dialer.for_identity(identity).exchange(A.public_key, address, lobby))  # type: ignore[arg-type]
    try:
        await eventually(lambda: bool(lobby.links) or task.done())
        if task.done():
            task.result()
        yield lobby
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, PeerUnreachable):
            await task


async def gets_in(identity: Identity, address: str) -> bool:
    try:
        async with linked(identity, address):
            return True
    except PeerUnreachable:
        return False


@in_an_event_loop
async def test_a_peer_added_later_gets_in_and_the_links_of_others_go_on() -> None:
    lobby = Lobby(B)
    async with serving(lobby) as (server, address), linked(B, address) as of_b:
        assert not await gets_in(C, address)
        lobby.admitted |= {C.public_key}
        await server.readmit()
        assert await gets_in(C, address)
        await eventually(lambda: [link.peer for link in lobby.links] == [B.public_key])
        assert len(of_b.links) == 1


@in_an_event_loop
async def test_a_removed_peer_gets_no_new_link_even_when_it_was_the_last_one() -> None:
    lobby = Lobby(B, C)
    async with serving(lobby) as (server, address):
        for gone in (B, C):
            assert await gets_in(gone, address)
            lobby.admitted -= {gone.public_key}
            assert not await gets_in(gone, address), "every stream is checked, whatever TLS trusts"
            await server.readmit()
            assert not await gets_in(gone, address)


@in_an_event_loop
async def test_a_removed_peer_cannot_resume_its_tls_session() -> None:
    lobby = Lobby(B, C)
    async with serving(lobby) as (server, address):
        leaf = make_leaf(B)
        options = (
            ("grpc.ssl_target_name_override", server_name(A.public_key)),
            ("grpc.ssl_session_cache", ssl_session_cache_lru(8)),
            ("grpc.use_local_subchannel_pool", 1),
        )
        credentials = grpc.ssl_channel_credentials(anchor_pem(A.public_key), leaf.private_key_pem, leaf.certificate_pem)

        async def refusal() -> str:
            async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
                call = channel.stream_stream("/tidings.v1.Node/Nothing")()
                return str(await call.details())

        assert [await refusal() for _ in range(3)] == ["Method not found!"] * 3
        lobby.admitted -= {B.public_key}
        await server.readmit()
        assert "Method not found" not in await refusal(), "TLS hangs up"


@in_an_event_loop
async def test_a_closed_link_ends_although_its_peer_reads_nothing() -> None:
    """Else every such link would stay for as long as the peer likes, with all that waits on it."""
    lobby = Lobby(B)
    async with serving(lobby) as (_, address), Dialer.for_identity(B).channel(A.public_key, address) as channel:
        call = channel.stream_stream(EXCHANGE, None, None)(None)
        await eventually(lambda: bool(lobby.links))
        link = lobby.links[0]
        for _ in range(200):  # 40 MB, more than the windows of HTTP/2
            link.send(Records(tuple(SignedRecord(bytes(64_000), bytes(64)) for _ in range(3))))
        await asyncio.sleep(0.2)
        assert link._frames
        link.close("it was removed here")
        await eventually(lambda: not lobby.links)
        call.cancel()


@in_an_event_loop
async def test_who_asks_for_more_than_it_reads_costs_bounded_memory() -> None:
    link = Link(B.public_key, Lobby(B), dialed_by_us=True)  # type: ignore[arg-type]
    headers = Records(tuple(SignedRecord(b"", b"") for _ in range(MAX_WANT)))
    sent = 0
    while link.closed_because is None:
        link.send(headers)
        sent += 1
    assert sent * MAX_WANT <= MAX_QUEUED_ENTRIES
    assert link.closed_because == "it asks for more than it reads"
    assert not link._frames


@in_an_event_loop
async def test_the_port_is_not_opened_anew_while_the_same_peers_are_admitted() -> None:
    async with serving(Lobby(B)) as (server, _):
        before = server._server
        await server.readmit()
        assert server._server is before


@in_an_event_loop
async def test_a_port_that_somebody_takes_meanwhile_is_had_again_once_it_is_free() -> None:
    lobby = Lobby(B)
    async with serving(lobby) as (server, address):
        await server._server.stop(None)  # type: ignore[union-attr]
        with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
            lobby.admitted |= {C.public_key}
            assert not await server.readmit()
        assert await server.readmit()
        assert await gets_in(C, address)


@in_an_event_loop
async def test_a_port_that_is_taken_at_the_start_is_an_error_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        lobby = Lobby(B)
        server = NodeServer(A, lobby, lobby.doors)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="Cannot listen on"):
            await server.start(f"127.0.0.1:{other.getsockname()[1]}")


@in_an_event_loop
async def test_stopping_ends_links_that_are_older_than_the_last_change_of_peers() -> None:
    lobby = Lobby(B)
    async with serving(lobby) as (server, address), linked(B, address) as of_b:
        lobby.admitted |= {C.public_key}
        await server.readmit()
        await server.stop(0.1)
        await eventually(lambda: not of_b.links and not lobby.links)


# ------------------------------------------------------------------------------------------------------------- knocking


def knock(address: str, files: Iterable[Path], until: float, counts: list[int]) -> None:
    """Finish TLS handshakes and hang up, again and again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(*files)
    host, _, port = address.rpartition(":")
    done = 0
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as plain:
            context.wrap_socket(plain).close()
            done += 1
    counts.append(done)


def test_a_storm_of_handshakes_while_peers_come_and_go_does_not_end_the_node(tmp_path: Path) -> None:
    """With credentials that gRPC reloads, some hundred handshakes at once ended the process by a segmentation fault."""

    def tidings(*words: str) -> str:
        command = [sys.executable, "-m", "node", "--home", str(tmp_path / "home"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    tidings("init")
    leaf = make_leaf(B)
    files = (tmp_path / "certificate.pem", tmp_path / "key.pem")
    files[0].write_bytes(leaf.certificate_pem)
    files[1].write_bytes(leaf.private_key_pem)
    tidings("peer", "add", B.public_key.text)
    command = [sys.executable, "-m", "node", "--home", str(tmp_path / "home"), "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = process.stderr.readline().split("listens on ")[1].split(". ")[0]
        counts: list[int] = []
        until = time.monotonic() + 4.0
        knocking = [threading.Thread(target=knock, args=(address, files, until, counts)) for _ in range(8)]
        for thread in knocking:
            thread.start()
        for number in range(5):
            tidings("peer", "add", Identity.from_seed(bytes([number]) * 32).public_key.text)
        for thread in knocking:
            thread.join()
        code = process.poll()
        process.terminate()
        process.wait(10)
    assert code is None, f"the node ended with {code}"
    assert sum(counts) > 100
