"""Members come and go: what `peer add` and `peer remove` mean for records and keys."""

from __future__ import annotations

import time

from node.errors import UsageError
from node.home import Home
from node.local_tables import Peer
from node.peers import check_addresses, check_name, parse_key


def add_peer(home: Home, key_text: str, name: str | None, *addresses: str | None, query_only: bool) -> Peer:
    """Trust a key, or change the name or the addresses of one that is trusted already.

    The addresses are tried in the order given and take the place of those known before; without any (None is none) the
    old ones stay. Grants of the live epoch follow by themselves once the member's key card is here.
    """
    key = parse_key(key_text)
    if key == home.me:
        raise UsageError("This is the key of this node itself; add the keys of others.")
    known = next((peer for peer in home.store.peers() if peer.key == key), None)
    peer = Peer(
        key,
        check_name(name) if name else (known.name if known else key.short),
        check_addresses([address for address in addresses if address]) or (known.addresses if known else ()),
        query_only,
        known.added_at if known else time.time(),
    )
    if peer.name == home.settings.name:
        raise UsageError(f"{peer.name} is this node's own name; choose another --name for the peer.")
    home.store.add_peer(peer)
    home.epochs.grant_missing()
    return peer


def remove_peer(home: Home, key_or_name: str) -> str:
    """Stop trusting a peer and start a new epoch, granted to those who remain; returns its name here."""
    peer = home.peers.peer_of(key_or_name)
    home.store.remove_peer(peer.key)
    home.epochs.grant_missing()
    return peer.name
