"""Epoch keys: who may read what this node seals, and what this node may read of others.

Everything here is derived from records in the store; no secret is kept beside the keystore. An origin
grants its epoch key to itself as it does to any member, so its own summaries are opened the way everybody's
are.

The live epoch is the newest one that this node began in its present incarnation. It is closed once somebody who is no
longer a member holds a grant of it: the next thing sealed goes under a new key, which those who remain are granted. Its
operator can close it (`rotate`), and it is closed when this node cannot open it any more, because an older keystore was
restored. A new incarnation closes it too, because nobody can know to whom another copy of this home granted what. That
copy may have used the number of an epoch for a key of its own: a reader tries every key that it was granted under the
number, and the record's commitment says which is right.

Grants to this node go to its newest encryption key; older ones open what was granted before, to earlier identities of
this node too. One whose identity has ended seals and grants nothing (`IdentityEnded`): nobody would count it. Of two
records with one number neither is used, a key card no more than a summary; but a grant is, where it fits, because what
it opens is proven by the commitment of the body and not by the grant.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from crypto.errors import BadSeal, KeystoreLocked, Malformed, NotForUs
from crypto.keys import PublicKey
from crypto.keystore import Keyring
from crypto.sealing import content_key, new_epoch_key, open_sealed, unwrap_epoch_key, wrap_epoch_key
from node import wire
from node.author import Author, EpochKey
from node.config import QUOTA_RECORDS_A_DAY_PER_MEMBER
from node.errors import IdentityEnded, NotReadable
from node.peers import PeerBook
from node.records import Header, Held, HeldState, KeyCard, KeyGrant, Kind, Record, core, slot_of
from node.store import Store

AGAIN_A_DAY: Final = QUOTA_RECORDS_A_DAY_PER_MEMBER
"""How often a process grants one epoch anew to one member because of a newer key card: so many at once, then so many a
day. Others take as many of this node's grants for each member. Without a bound a member that publishes cards without
end would have every node use up its quota at all others, so that nobody's grants came through any more."""

DAY_S: Final = 86_400.0

ENDED: Final = (
    "This node's identity was {word}: peers count nothing that it signs from now on. If there is a newer copy of this "
    "home, use that one; if this was not your doing, use the recovery key: `tidings keys revoke`."
)


class EpochKeys:
    """The epoch keys that this node made or was granted."""

    def __init__(self, store: Store, keystore: Keyring, author: Author, peers: PeerBook) -> None:
        self._store = store
        self._keystore = keystore
        self._author = author
        self._peers = peers
        self._me = keystore.public_key
        self._unwrapped: dict[bytes, bytes] = {}
        self._again: dict[PublicKey, tuple[float, float]] = {}

    def live(self) -> EpochKey:
        """The epoch to seal under now, granted to every member whose key card is known; IdentityEnded."""
        self.refuse_if_ended()
        with self._author.lock:
            epoch = self._live_or_new()
            self._grant_lacking(epoch)
            return epoch

    def rotate(self) -> int:
        """Begin a new epoch, granted to those who are members now; returns its number. IdentityEnded."""
        self.refuse_if_ended()
        with self._author.lock:
            epoch = self._begin()
            self._grant_lacking(epoch)
            return epoch.number

    def grant_missing(self) -> int:
        """Grant the live epoch to every member whose key card is known and who lacks it; returns how many.

        Idempotent. Called whenever peers or key cards change, by the daemon and by commands alike.
        """
        if self._me in self._store.standing().endings:
            return 0
        with self._author.lock:
            return self._grant_lacking(self._live_or_new())

    def refuse_if_ended(self) -> None:
        """IdentityEnded if nobody would count what this node signs."""
        ending = self._store.standing().endings.get(self._me)
        if ending is not None:
            raise IdentityEnded(ENDED.format(word=ending.word))

    def live_grants(self) -> list[Record]:
        """The grants of the epoch that is live, as far as it has begun, in order of sequence; none before the first."""
        return self._live_grants(self._store.incarnation)

    def granted(self) -> set[tuple[PublicKey, bytes]]:
        """Who was granted the live epoch, this node included, and under which key card (the id of its record)."""
        grants = [(one.header.recipient, _key_grant(one).key_card) for one in self.live_grants()]
        return {(recipient, card) for recipient, card in grants if recipient is not None}

    def members(self) -> list[PublicKey]:
        """Peers that take part in gossip and may read; query-only peers are none."""
        return [peer.key for peer in self._store.peers() if not peer.query_only]

    def key_card(self, member: PublicKey) -> Record | None:
        """The member's newest key card, if it has reached us and is the only record with its number."""
        cards = _newest_first([held.record for held in self._store.held(kind=Kind.KEY_CARD, origin=member)])
        return next((card for card in cards if not self._store.is_contested(slot_of(card.header))), None)

    def open(self, held: Held) -> bytes:
        """The plaintext of a sealed record; NotReadable says why not."""
        if why := self._store.why_unusable(held.record.header):
            raise NotReadable(why)
        if held.state is HeldState.BURIED:
            raise NotReadable("withdrawn or replaced by its origin")
        if held.state is HeldState.FETCHING:
            total = len(held.record.header.chunk_hashes)
            raise NotReadable(f"{total - len(held.missing)} of {total} chunks arrived")
        if reason := self._store.unusable(held.record):
            raise NotReadable(reason)
        try:
            return self._opened(held)
        except KeystoreLocked as error:
            raise NotReadable("this node's keystore is locked: give its passphrase to read this") from error

    def _opened(self, held: Held) -> bytes:
        header = held.record.header
        who = self._peers.name_of(header.origin)
        body, reason = self._store.body(held.record.id), ""
        for epoch_key in self._epoch_keys(header):
            try:
                return open_sealed(body, content_key(epoch_key, core(header)), core(header), header.key_commitment)
            except BadSeal as error:
                reason = str(error)
        if reason:
            raise NotReadable(f"the seal is broken ({reason}); tell {who}")
        raise NotReadable(f"waiting for the key grant of {who}; it must add this node")

    def _live_or_new(self) -> EpochKey:
        """The newest epoch, or a new one if a former member holds its key or this node cannot open it."""
        self._author.finish_succession()
        self._own_card()
        grants = self._live_grants(self._store.number_apart(self._me))
        epoch = self._epoch_of(grants)
        if epoch is None or not {grant.header.recipient for grant in grants} <= {self._me, *self.members()}:
            return self._begin()
        return epoch

    def _grant_lacking(self, epoch: EpochKey) -> int:
        granted = self.granted()
        before = {recipient for recipient, _ in granted}
        lacking = [
            member
            for member in self.members()
            if (card := self.key_card(member)) is not None
            and (member, card.id) not in granted
            and (member not in before or self._may_have_another(member))
        ]
        for member in lacking:
            self._grant(member, epoch)
        return len(lacking)

    def _may_have_another(self, member: PublicKey) -> bool:
        """Whether a member that was granted this epoch may have it granted again, to a newer key card."""
        now = time.monotonic()
        left, at = self._again.get(member, (float(AGAIN_A_DAY), now))
        left = min(AGAIN_A_DAY, left + (now - at) * AGAIN_A_DAY / DAY_S)
        self._again[member] = (left - 1 if left >= 1 else left), now
        return left >= 1

    def _begin(self) -> EpochKey:
        epoch = EpochKey(self._newest() + 1, new_epoch_key())
        self._own_card()
        self._grant(self._me, epoch)
        return epoch

    def _own_card(self) -> None:
        """Publish the newest encryption key if the newest card is of another: a rotation that stopped in the middle, or
        an older keystore that was restored. Nobody should grant to a key that is lost."""
        card = self.key_card(self._me)
        if card is None or _public_of(card) != self._keystore.encryption_keys[0].public:
            self._author.key_card()

    def _newest(self) -> int:
        """The highest number that this node, in whatever copy of its home, gave an epoch; 0 if none is known."""
        return max((grant.header.epoch for grant in self._grants(self._me)), default=0)

    def _live_grants(self, incarnation: bytes) -> list[Record]:
        """The grants of the newest epoch that this node began in this incarnation, in order of sequence."""
        ours = [grant for grant in self._grants(self._me) if grant.header.incarnation == incarnation]
        newest = max((grant.header.epoch for grant in ours), default=0)
        return sorted((one for one in ours if one.header.epoch == newest), key=lambda one: one.header.sequence)

    def _grants(self, origin: PublicKey) -> list[Record]:
        return [held.record for held in self._store.held(kind=Kind.KEY_GRANT, origin=origin)]

    def _epoch_of(self, grants: list[Record]) -> EpochKey | None:
        """The epoch that this node granted itself, among these grants of one epoch; None if it cannot be opened."""
        for grant in grants:
            key = self._unwrap(grant) if grant.header.recipient == self._me else None
            if key is not None:
                return EpochKey(grant.header.epoch, key)
        return None

    def _grant(self, recipient: PublicKey, epoch: EpochKey) -> None:
        card = self.key_card(recipient)
        if card is None:
            raise NotReadable(f"{self._peers.name_of(recipient)} has published no key card")
        context = _context(self._me, epoch.number, recipient)
        wrapped = wrap_epoch_key(epoch.key, _public_of(card), context=context)
        self._author.grant(recipient, epoch.number, wrapped, card.id)

    def _epoch_keys(self, header: Header) -> Iterator[bytes]:
        """The secrets that this record may be sealed under: of the grants to us of its epoch, newest first."""
        selves = self._store.standing().selves
        for grant in _newest_first(self._grants(header.origin)):
            if grant.header.epoch == header.epoch and grant.header.recipient in selves:
                key = self._unwrap(grant)
                if key is not None:
                    yield key

    def _unwrap(self, grant: Record) -> bytes | None:
        """The secret in a grant to us, None if it does not open."""
        wrapped, recipient = _key_grant(grant).wrapped_key, grant.header.recipient
        context = _context(grant.header.origin, grant.header.epoch, recipient or self._me)
        for encryption_key in self._keystore.encryption_keys:
            if grant.id in self._unwrapped:
                break
            try:
                self._unwrapped[grant.id] = unwrap_epoch_key(wrapped, encryption_key, context=context)
            except (NotForUs, Malformed):
                continue
        return self._unwrapped.get(grant.id)


def _public_of(card: Record) -> bytes:
    payload = wire.read_payload(card.header)
    if not isinstance(payload, KeyCard):
        raise TypeError("the store handed out a key card without its payload")
    return payload.encryption_public


def _key_grant(grant: Record) -> KeyGrant:
    payload = wire.read_payload(grant.header)
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
