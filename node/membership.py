"""Members come and go: what `peer add` and `peer remove` mean for records and keys, and the one door for whatever else
adds and removes members (`change_members`).

The operator has the last word. Whom he removed is denied: nothing but another `peer add` makes that key a peer again.
Whom he added stays until he says otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from crypto.keys import PublicKey
from node.errors import UsageError
from node.home import MAX_NAME_LENGTH, Home, check_name
from node.local_tables import OPERATOR, Peer
from node.peers import check_addresses, parse_key


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
    with home.store.batch():
        home.store.allow(key)
        home.store.add_peer(peer)
    home.epochs.grant_missing()
    return peer


def remove_peer(home: Home, key_or_name: str) -> str:
    """Stop trusting a peer and start a new epoch, granted to those who remain; returns its name here."""
    peer = home.peers.peer_of(key_or_name)
    with home.store.batch():
        home.store.remove_peer(peer.key)
        home.store.deny(peer.key, f"{peer.name} was removed here")
    home.epochs.grant_missing()
    return peer.name


@dataclass(frozen=True)
class Changed:
    """What `change_members` did."""

    added: tuple[Peer, ...]
    removed: tuple[Peer, ...]
    kept_out: tuple[PublicKey, ...]
    """Keys that should have joined and that the operator has removed by hand."""


def change_members(home: Home, joining: Iterable[Peer], leaving: Iterable[PublicKey]) -> Changed:
    """The door for members who come or go by other words than the operator's: those who join say whose in `via`.

    All or nothing, and again is no change. Whom the operator added is left as he added it; whom he removed stays out.
    A name that is taken gets the beginning of the key after it. Links, epochs and grants follow as with `peer add` and
    `peer remove`.
    """
    with home.store.batch():
        here = {peer.key: peer for peer in home.store.peers()}
        removed = [here[key] for key in leaving if key in here and here[key].via != OPERATOR]
        for peer in removed:
            home.store.remove_peer(peer.key)
            del here[peer.key]
        denied = {one.key for one in home.store.denied()}
        added, kept_out = [], []
        for peer in joining:
            if peer.key in denied:
                kept_out.append(peer.key)
            elif peer.key != home.me and peer.key not in here:
                taken = {home.settings.name, *(one.name for one in here.values())}
                free = replace(peer, name=_free_name(peer, taken))
                home.store.add_peer(free)
                here[peer.key] = free
                added.append(free)
    if added or removed:
        home.epochs.grant_missing()
    return Changed(tuple(added), tuple(removed), tuple(kept_out))


def _free_name(peer: Peer, taken: set[str]) -> str:
    if peer.name.casefold() not in {name.casefold() for name in taken}:
        return peer.name
    return f"{peer.name[: MAX_NAME_LENGTH - len(peer.key.short) - 1]} {peer.key.short}"
