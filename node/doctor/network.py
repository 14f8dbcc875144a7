"""The network of a node: its own port, each peer, and what clocks say.

Every member with an address is asked once for its health, over TLS pinned to its key, all of them side by side and each
for ASK_S at most. That shows whether the address can be resolved and reached, whether the peer's key answers there, and
whether it lets this node in."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from node.client import Dialer, Look
from node.config import CONNECT_TIMEOUT_S
from node.doctor.findings import Finding, Level, fail, ok, warn
from node.errors import PeerRefused, PeerUnreachable
from node.gossip.events import LinkState
from node.gossip.links import clock_words
from node.home import Home
from node.local_tables import Peer
from node.status import peers as peer_states

ASK_S: Final = CONNECT_TIMEOUT_S
AT_ONCE: Final = 32
WRONG_KEY: Final = "another key answers"


@dataclass(frozen=True)
class Asked:
    """What came of asking a peer: its answer, or why there is none."""

    look: Look | None = None
    refused: bool = False
    reason: str = ""


def ports(home: Home, served: bool, dialer: Dialer | None) -> Iterator[Finding]:
    """The address that peers dial: whether it can be had, or answers, and who can reach it."""
    listen = home.store.listening() if served else home.settings.listen
    if listen is None:
        yield ok("port", "none: this node dials out, which is enough")
        return
    if served:
        yield from _own_answer(home, listen, dialer)
    else:
        yield from _can_bind(listen)
    if _is_loopback(listen) and any(
        not _is_loopback(address) for peer in home.store.peers() for address in peer.addresses
    ):
        text = f"{listen} can be reached from this machine only, and there are peers elsewhere"
        yield warn("port", text, "listen on an address of the network: `serve --listen`, or node.json")


def _can_bind(listen: str) -> Iterator[Finding]:
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_UNSPEC
    try:
        place = socket.getaddrinfo(host.strip("[]"), int(port), family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with contextlib.closing(socket.create_server(place[4][:2], family=place[0])):
            pass
    except OSError as error:
        why = {
            errno.EADDRINUSE: "another program has it",
            errno.EADDRNOTAVAIL: "this machine does not have that address",
            errno.EACCES: "this user may not open ports below 1024",
        }.get(error.errno or 0, error.strerror or str(error))
        yield fail("port", f"{listen} cannot be listened on: {why}", "stop what holds it, or choose another address")
        return
    yield ok("port", f"{listen} is free for this node, which is not running")


def _own_answer(home: Home, listen: str, dialer: Dialer | None) -> Iterator[Finding]:
    """The running node, asked by itself."""
    if dialer is None:
        yield ok("port", f"the node says that it listens on {listen}")
        return
    asked = asyncio.run(_ask(dialer, Peer(home.me, home.settings.name, (_dialable(listen),), False, 0.0)))
    if asked.look is None:
        yield fail("port", f"this node runs and does not answer on {listen}: {asked.reason}", "start it again")
    elif asked.look.is_serving is False:
        yield fail("port", f"this node answers on {listen} that it is not serving", "see its log, and the disk below")
    else:
        yield ok("port", f"this node answers on {listen}")


def peers(home: Home, served: bool, dialer: Dialer | None) -> Iterator[Finding]:
    """One line a peer; then what their clocks say together."""
    listed = {one["key"]: one for one in peer_states(home, served)}
    members = [peer for peer in home.store.peers() if not peer.query_only]
    if not members:
        yield warn("peers", "none were added", "`tidings peer add KEY` with what `tidings id` prints on their side")
        return
    if dialer is None:
        yield warn("peers", "not asked: the keystore is locked", "give its passphrase, for example --passphrase-file")
    asked = asyncio.run(_ask_all(dialer, members)) if dialer is not None else {}
    for peer in members:
        state = listed[peer.key.text]
        yield _weighed(peer, state["state"], state["reason"], asked.get(peer))
    yield from _clocks({peer.name: one.look.ahead_s for peer, one in asked.items() if one.look and one.look.ahead_s})


def _weighed(peer: Peer, state: str, reason: str, asked: Asked | None) -> Finding:
    """A peer's line, of what `status` says of the link and what asking it showed."""
    remark = f"; {clock_words(asked.look.ahead_s)}".rstrip("; ") if asked and asked.look and asked.look.ahead_s else ""
    is_linked = state == LinkState.LINKED
    if asked is not None and asked.look is not None:
        if asked.look.is_serving is False:
            return warn("peers", f"{peer.name} answers that it is not serving{remark}", "tell its operator")
        return ok("peers", f"{peer.name} {'is linked' if is_linked else 'answers and knows this node'}{remark}")
    if is_linked:
        return ok("peers", f"{peer.name} is linked: it dials this node")
    if asked is not None:
        is_wrong = asked.refused or WRONG_KEY in asked.reason
        advice = "send it what `tidings id` prints" if asked.refused else ""
        return Finding("peers", Level.FAIL if is_wrong else Level.WARN, f"{peer.name}: {asked.reason}", advice)
    if state == LinkState.WAITING or not peer.addresses:
        return ok("peers", f"{peer.name} has no address here: it dials this node, or is reached through others")
    return warn("peers", f"{peer.name} is {state}: {reason}")


def _clocks(ahead: dict[str, float]) -> Iterator[Finding]:
    """Whose clock is wrong nobody can tell for two; that ours is, most of three or more can."""
    if not ahead:
        return
    middle = statistics.median(ahead.values())
    if words := clock_words(middle):
        who = "the peer that was asked has its" if len(ahead) == 1 else f"most of {len(ahead)} peers have their"
        remark = words.removesuffix(" (harmless)")
        yield warn("clock", f"{who} {remark} of this machine's", "check this machine's clock; nothing depends on it")
    else:
        yield ok("clock", f"as those of {len(ahead)} {'peer' if len(ahead) == 1 else 'peers'}, within a minute")


async def _ask_all(dialer: Dialer, members: list[Peer]) -> dict[Peer, Asked]:
    turn = asyncio.Semaphore(AT_ONCE)
    dialed = [peer for peer in members if peer.addresses]

    async def ask(peer: Peer) -> Asked:
        async with turn:
            return await _ask(dialer, peer)

    return dict(zip(dialed, await asyncio.gather(*map(ask, dialed)), strict=True))


async def _ask(dialer: Dialer, peer: Peer) -> Asked:
    """The first of the peer's addresses that answers, all of them tried at once."""
    looks = await asyncio.gather(*(dialer.look(peer.key, one, ASK_S) for one in peer.addresses), return_exceptions=True)
    failures = []
    for look in looks:
        if isinstance(look, Look):
            return Asked(look)
        if not isinstance(look, PeerUnreachable):
            raise look
        failures.append(look)
    refused = any(isinstance(one, PeerRefused) for one in failures)
    return Asked(None, refused, "; ".join(map(str, failures)))


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _dialable(listen: str) -> str:
    """Where this machine reaches what listens there: 0.0.0.0 and [::] stand for all of its addresses."""
    host, _, port = listen.rpartition(":")
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host) + f":{port}"  # noqa: S104 - is only compared
