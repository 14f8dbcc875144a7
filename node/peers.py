"""Who a key is here: petnames, given by the operator and known to this node alone."""

from __future__ import annotations

from dataclasses import dataclass

from crypto.errors import Malformed
from crypto.keys import PublicKey
from node.errors import UsageError
from node.store import Peer, Store


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
        return next((peer.name for peer in self.store.peers() if peer.key == key), key.short)

    def key_of(self, text: str) -> PublicKey:
        """The key that a person means by a name or a key in text form, this node's own included; UsageError if
        nobody is meant."""
        text = text.strip()
        if text == self.my_name:
            return self.me
        named = [peer.key for peer in self.store.peers() if peer.name == text]
        if named:
            return named[0]
        if not text.lower().startswith("tidings1"):
            raise UsageError(f"There is no peer named {text!r} here; `tidings peer list` shows who is.")
        return parse_key(text)

    def peer_of(self, text: str) -> Peer:
        """The peer that a person means; UsageError if there is no such peer."""
        key = self.key_of(text)
        found = next((peer for peer in self.store.peers() if peer.key == key), None)
        if found is None:
            raise UsageError(f"{text} is not a peer of this node; `tidings peer list` shows who is.")
        return found


def parse_key(text: str) -> PublicKey:
    """A public key as typed; UsageError if it is mistyped."""
    try:
        return PublicKey.parse(text)
    except Malformed as error:
        raise UsageError(str(error)) from error


def check_address(text: str) -> str:
    """HOST:PORT, or [IPv6]:PORT; UsageError otherwise."""
    host, colon, port = text.strip().rpartition(":")
    bare_ipv6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
    if not colon or not host or bare_ipv6 or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise UsageError(f"{text!r} is not an address; write HOST:PORT, for example 10.0.0.7:7410 or [::1]:7410.")
    return text.strip()
