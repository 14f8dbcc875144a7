"""Epoch keys: who may read what this node seals, and what this node may read of others.

Everything here is derived from records in the store; no secret is kept beside the keystore. An origin
grants its epoch key to itself as it does to any member, so its own summaries are opened the way everybody's
are.

The live epoch is the origin's newest one. It is closed once somebody who is no longer a member holds a
grant of it: the next thing sealed goes under a new key, which those who remain are granted. It is also closed when its
operator says so (`rotate`), and when this node cannot open it any more, because an older keystore was restored.

Grants to this node go to its newest encryption key. Older ones open what was granted before.
"""

from __future__ import annotations

from crypto.errors import BadSeal, KeystoreLocked, Malformed, NotForUs
from crypto.keys import PublicKey
from crypto.keystore import Keyring
from crypto.sealing import content_key, new_epoch_key, open_sealed, unwrap_epoch_key, wrap_epoch_key
from node import wire
from node.author import Author, EpochKey
from node.errors import NotReadable
from node.peers import PeerBook
from node.records import Header, Held, HeldState, KeyCard, KeyGrant, Kind, Record, core
from node.store import Store


class EpochKeys:
    """The epoch keys that this node made or was granted."""

    def __init__(self, store: Store, keystore: Keyring, author: Author, peers: PeerBook) -> None:
        self._store = store
        self._keystore = keystore
        self._author = author
        self._peers = peers
        self._me = keystore.public_key
        self._unwrapped: dict[bytes, bytes] = {}

    def live(self) -> EpochKey:
        """The epoch to seal under now: the newest one, or a new one if a former member holds its key."""
        with self._author.lock:
            number = self.newest()
            self._own_card()
            key = self._own_epoch_key(number)
            holders = {recipient for recipient, _ in self.granted(number)}
            if key is None or not holders <= {self._me, *self.members()}:
                return self._begin(number + 1)
            return EpochKey(number, key)

    def rotate(self) -> int:
        """Begin a new epoch, granted to those who are members now; returns its number."""
        with self._author.lock:
            number = self._begin(self.newest() + 1).number
            self.grant_missing()
            return number

    def grant_missing(self) -> int:
        """Grant the live epoch to every member whose key card is known and who lacks it; returns how many.

        Idempotent. Called whenever peers or key cards change, by the daemon and by commands alike.
        """
        with self._author.lock:
            epoch = self.live()
            granted = self.granted(epoch.number)
            lacking = [
                member
                for member in self.members()
                if (card := self.key_card(member)) is not None and (member, card.id) not in granted
            ]
            for member in lacking:
                self._grant(member, epoch)
            return len(lacking)

    def newest(self) -> int:
        """The number of this node's newest epoch; 0 before the first."""
        grants = self._store.held(kind=Kind.KEY_GRANT, origin=self._me)
        return max((held.record.header.epoch for held in grants), default=0)

    def granted(self, epoch: int) -> set[tuple[PublicKey, bytes]]:
        """Who was granted this epoch of this node, itself included, and under which key card (the id of its record)."""
        return {
            (grant.recipient, _key_grant(grant).key_card)
            for grant in self._grants(self._me, epoch)
            if grant.recipient is not None
        }

    def members(self) -> list[PublicKey]:
        """Peers that take part in gossip and may read; query-only peers are none."""
        return [peer.key for peer in self._store.peers() if not peer.query_only]

    def key_card(self, member: PublicKey) -> Record | None:
        """The member's newest key card, if it has reached us."""
        cards = [held.record for held in self._store.held(kind=Kind.KEY_CARD, origin=member)]
        return _newest_first(cards)[0] if cards else None

    def open(self, held: Held) -> bytes:
        """The plaintext of a sealed record; NotReadable says why not."""
        header = held.record.header
        who = self._peers.name_of(header.origin)
        if held.state is HeldState.BURIED:
            raise NotReadable("withdrawn or replaced by its origin")
        if held.state is HeldState.FETCHING:
            total = len(header.chunk_hashes)
            raise NotReadable(f"{total - len(held.missing)} of {total} chunks arrived")
        try:
            key = content_key(self._epoch_key(header.origin, header.epoch), core(header))
            return open_sealed(self._store.body(held.record.id), key, core(header), header.key_commitment)
        except KeystoreLocked as error:
            raise NotReadable("this node's keystore is locked: give its passphrase to read this") from error
        except BadSeal as error:
            raise NotReadable(f"the seal is broken ({error}); tell {who}") from error

    def _begin(self, number: int) -> EpochKey:
        epoch = EpochKey(number, new_epoch_key())
        self._own_card()
        self._grant(self._me, epoch)
        return epoch

    def _own_card(self) -> None:
        """Publish the newest encryption key if the newest card is of another: a rotation that stopped in the middle, or
        an older keystore that was restored. Nobody should grant to a key that is lost."""
        card = self.key_card(self._me)
        if card is None or _public_of(card) != self._keystore.encryption_keys[0].public:
            self._author.key_card()

    def _own_epoch_key(self, number: int) -> bytes | None:
        try:
            return self._epoch_key(self._me, number) if number else None
        except NotReadable:
            return None

    def _grants(self, origin: PublicKey, epoch: int) -> list[Header]:
        grants = self._store.held(kind=Kind.KEY_GRANT, origin=origin)
        return [held.record.header for held in grants if held.record.header.epoch == epoch]

    def _grant(self, recipient: PublicKey, epoch: EpochKey) -> None:
        card = self.key_card(recipient)
        if card is None:
            raise NotReadable(f"{self._peers.name_of(recipient)} has published no key card")
        context = _context(self._me, epoch.number, recipient)
        wrapped = wrap_epoch_key(epoch.key, _public_of(card), context=context)
        self._author.grant(recipient, epoch.number, wrapped, card.id)

    def _epoch_key(self, origin: PublicKey, epoch: int) -> bytes:
        """The secret of one epoch, from the newest grant to us that opens."""
        grants = [held.record for held in self._store.held(kind=Kind.KEY_GRANT, origin=origin)]
        for grant in _newest_first(grants):
            if grant.header.epoch == epoch and grant.header.recipient == self._me:
                if grant.id not in self._unwrapped:
                    self._unwrap(grant)
                if grant.id in self._unwrapped:
                    return self._unwrapped[grant.id]
        who = self._peers.name_of(origin)
        raise NotReadable(f"waiting for the key grant of {who}; it must add this node")

    def _unwrap(self, record: Record) -> None:
        wrapped = _key_grant(record.header).wrapped_key
        context = _context(record.header.origin, record.header.epoch, self._me)
        for encryption_key in self._keystore.encryption_keys:
            try:
                self._unwrapped[record.id] = unwrap_epoch_key(wrapped, encryption_key, context=context)
                return
            except (NotForUs, Malformed):
                continue


def _public_of(card: Record) -> bytes:
    payload = wire.read_payload(card.header)
    if not isinstance(payload, KeyCard):
        raise TypeError("the store handed out a key card without its payload")
    return payload.encryption_public


def _key_grant(header: Header) -> KeyGrant:
    payload = wire.read_payload(header)
    if not isinstance(payload, KeyGrant):
        raise TypeError("the store handed out a key grant without its payload")
    return payload


def _context(origin: PublicKey, epoch: int, recipient: PublicKey) -> bytes:
    """What a wrapped key is bound to: whose epoch, which one, for whom."""
    return origin.raw + epoch.to_bytes(4, "big") + recipient.raw


def _newest_first(records: list[Record]) -> list[Record]:
    """Records of one origin: by sequence within an incarnation; the origin's own clock only orders incarnations."""
    last_written: dict[bytes, int] = {}
    for record in records:
        header = record.header
        last_written[header.incarnation] = max(header.created_unix_ms, last_written.get(header.incarnation, 0))

    def age(record: Record) -> tuple[int, int]:
        return last_written[record.header.incarnation], record.header.sequence

    return sorted(records, key=age, reverse=True)
