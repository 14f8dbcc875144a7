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
from node.home import Home
from node.local_tables import OPERATOR, Peer
from node.peers import MAX_NAME_LENGTH, check_addresses, check_name, parse_key


def add_peer(home: Home, key_text: str, name: str | None, *addresses: str | None, query_only: bool) -> Peer:
    """Trust a key, or change the name or the addresses of one that is trusted already.

    The addresses are tried in the order given and take the place of those known before; without any (None is none) the
    old ones stay. Grants of the live epoch follow by themselves once the member's key card is here.
    """
    key = parse_key(key_text)
    if key == home.me:
        raise UsageError("This is the key of this node itself; add the keys of others.")
    known = next((peer for peer in (*home.store.peers(), *home.store.added_peers()) if peer.key == key), None)
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
        if known is not None and known.replaces is not None:
            home.store.remove_peer(known.replaces)  # it stood there for this one, and its name is free now
        home.store.allow(key)
        home.store.add_peer(peer)
    home.epochs.grant_missing()
    return peer


def remove_peer(home: Home, key_or_name: str) -> str:
    """Stop trusting a peer, whatever identities it has had, and start a new epoch, granted to those who remain; returns
    its name here."""
    peer = home.peers.peer_of(key_or_name)
    with home.store.batch():
        standing = home.store.standing()
        added = [one.key for one in home.store.added_peers() if standing.person(one.key) == standing.person(peer.key)]
        for key in {peer.key, *added}:
            home.store.remove_peer(key)
            home.store.deny(key, f"{peer.name} was removed here")
    home.epochs.grant_missing()
    return peer.name


@dataclass(frozen=True)
class Changed:
    """What `change_members` did."""

    added: tuple[Peer, ...]
    removed: tuple[Peer, ...]
    kept_out: tuple[PublicKey, ...]
    """Keys that should have joined and that the operator has removed by hand."""
    changed: tuple[Peer, ...] = ()
    """Members who have another name, other addresses or other rights now."""

    @property
    def is_nothing(self) -> bool:
        """Whether all members are as they were."""
        return not (self.added or self.removed or self.changed)


def change_members(
    home: Home, joining: Iterable[Peer], leaving: Iterable[PublicKey], changing: Iterable[Peer] = ()
) -> Changed:
    """The door for members who come or go by other words than the operator's: those who join say whose in `via`.

    All or nothing, and again is no change. Whom the operator added is left as he added it; whom he removed stays out.
    `changing` are members who are here by other words than his, as they are to be from now on. A name that is taken
    gets the beginning of the key after it. Links, epochs and grants follow as with `peer add` and `peer remove`.
    """
    changed = change_tables(home, joining, leaving, changing)
    if not changed.is_nothing:
        home.epochs.grant_missing()
    return changed


def change_tables(
    home: Home, joining: Iterable[Peer], leaving: Iterable[PublicKey], changing: Iterable[Peer]
) -> Changed:
    """What `change_members` does but for the grants, which the caller makes once its own transaction has ended."""
    with home.store.batch():
        here = {peer.key: peer for peer in home.store.added_peers()}
        removed = [here[key] for key in leaving if key in here and here[key].via != OPERATOR]
        for peer in removed:
            home.store.remove_peer(peer.key)
            del here[peer.key]
        changed = [peer for peer in changing if peer.key in here and here[peer.key].via != OPERATOR]
        for peer in changed:  # under names that nobody has, so that two can change names with each other
            here[peer.key] = replace(here[peer.key], name=peer.key.text)
            home.store.add_peer(here[peer.key])
        changed = [_with_free_name(home, peer, here) for peer in changed]
        denied = {one.key for one in home.store.denied()}
        selves = home.store.standing().selves
        added, kept_out = [], []
        for peer in joining:
            if peer.key in denied:
                kept_out.append(peer.key)
            elif peer.key not in selves and peer.key not in here:
                added.append(_with_free_name(home, peer, here))
    return Changed(tuple(added), tuple(removed), tuple(kept_out), tuple(changed))


def _with_free_name(home: Home, peer: Peer, here: dict[PublicKey, Peer]) -> Peer:
    """Keep the peer, which is added to `here`, under its name or, if another has that, one with the key after it."""
    taken = {home.settings.name, *(one.name for one in here.values() if one.key != peer.key)}
    here[peer.key] = replace(peer, name=free_name(peer.name, peer.key, taken))
    home.store.add_peer(here[peer.key])
    return here[peer.key]


def free_name(name: str, key: PublicKey, taken: Iterable[str]) -> str:
    """This name, or, if it is taken, as much of it as fits with the beginning of the key after it."""
    if name.casefold() not in {one.casefold() for one in taken}:
        return name
    return f"{name[: MAX_NAME_LENGTH - len(key.short) - 1]} {key.short}"
