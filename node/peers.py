"""Who a key is here: petnames, given by the operator and known to this node alone."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from crypto.errors import Malformed
from crypto.keys import PublicKey
from node.errors import HomeError, UsageError

if TYPE_CHECKING:
    from node.local_tables import Peer
    from node.store import Store

MAX_NAME_LENGTH: Final = 64

MAX_ADDRESSES: Final = 8
"""Addresses of one peer: an office and a mobile line, IPv4 and IPv6 of each, and some room. Each is one more dial
before the first is tried again."""

_HOST: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}")
"""What DNS carries; a name with other letters is written in its xn-- form."""


@dataclass(frozen=True)
class PeerBook:
    """The peers of one node, by key and by name."""

    store: Store
    me: PublicKey
    my_name: str

    def name_of(self, key: PublicKey) -> str:
        """What people here call this key: its petname, or the beginning of the key."""
        if key == self.me:
            return self.my_name
        now = self.store.standing()
        if (former := now.former.get(key)) is not None:
            return f"{former.name or self.my_name} ({former.ending.word} key)"
        return next((peer.name for peer in now.peers if peer.key == key), key.short)

    def key_of(self, text: str) -> PublicKey:
        """The key that a person means by a name or a key in text form, this node's own included; UsageError if
        nobody is meant."""
        text = text.strip()
        if text == self.my_name:
            return self.me
        named = [peer.key for peer in self._known() if peer.name == text]
        if named:
            return named[0]
        if not text.lower().startswith("tidings1"):
            raise UsageError(f"There is no peer named {text!r} here; `tidings peer list` shows who is.")
        return parse_key(text)

    def peer_of(self, text: str) -> Peer:
        """The peer that a person means; UsageError if there is no such peer."""
        key = self.key_of(text)
        found = next((peer for peer in self._known() if peer.key == key), None)
        if found is None:
            raise UsageError(f"{text} is not a peer of this node; `tidings peer list` shows who is.")
        return found

    def _known(self) -> list[Peer]:
        """Who is trusted now, then those that were added and whose place nobody has."""
        now = self.store.peers()
        return [*now, *(peer for peer in self.store.added_peers() if peer.key not in {one.key for one in now})]


def check_name(name: str) -> str:
    """A name for people: printable, one line, short; HomeError otherwise."""
    if not name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise HomeError(f"A name is 1 to {MAX_NAME_LENGTH} printable characters; {name[:80]!r} is not.")
    if name.startswith("tidings1"):
        raise HomeError("A name must not look like a key; choose one that does not begin with tidings1.")
    return name.strip()


def parse_key(text: str) -> PublicKey:
    """A public key as typed; UsageError if it is mistyped."""
    try:
        return PublicKey.parse(text)
    except Malformed as error:
        raise UsageError(str(error)) from error


def check_addresses(texts: Iterable[str]) -> tuple[str, ...]:
    """Where a peer may be reached, in order, each once; UsageError if one is none that can be dialed, or there are too
    many."""
    addresses = tuple(dict.fromkeys(check_address(text) for text in texts))
    for address in addresses:
        if int(address.rpartition(":")[2]) == 0:
            raise UsageError(f"{address} names no port; write the one that the peer listens on, for example 7410.")
    if len(addresses) > MAX_ADDRESSES:
        raise UsageError(f"A peer has at most {MAX_ADDRESSES} addresses, these are {len(addresses)}.")
    return addresses


def check_address(text: str) -> str:
    """HOST:PORT, or [IPv6]:PORT; UsageError otherwise."""
    host, colon, port = text.strip().rpartition(":")
    is_port = len(port) <= 5 and port.isascii() and port.isdigit() and int(port) <= 65_535
    if not colon or not is_port or not (_is_ipv6(host) if ":" in host or "[" in host else _HOST.fullmatch(host)):
        raise UsageError(f"{text!r} is not an address; write HOST:PORT, for example 10.0.0.7:7410 or [::1]:7410.")
    return text.strip()


def _is_ipv6(host: str) -> bool:
    """Whether this is an IPv6 address in brackets, which may name the interface of a link-local one: [fe80::1%eth0]."""
    try:
        return bool(host[:1] == "[" and host[-1:] == "]" and ipaddress.IPv6Address(host[1:-1]))
    except ValueError:
        return False
