"""A stolen identity: the recovery key, what it revokes, and a home that comes back from its backup."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import pytest
from commands import eventually, serving, tidings
from couriers import can_read, carry, gossip, meet, publish_rows
from disks import rolled_back
from hypothesis import given
from hypothesis import strategies as st
from secret_search import bytes_of, found_in
from test_equivocation import condemn
from test_gossip import ALICE, BOB, ME, Rig, of

from crypto.errors import Malformed
from crypto.keys import EncryptionKey, Identity
from crypto.recovery import RecoveryKey, consent
from crypto.signing import record_id, sign_record
from fusion.errors import BudgetError
from node import heads, keys, wire
from node.bundle_import import NO_RECOVERY_KEY, Imported, _Keeper, import_bundle
from node.config import MAX_LAST_WORDS, GossipSettings
from node.errors import IdentityEnded, RecordError, UsageError
from node.frames import Advert, Announce, Records, SignedRecord, Want
from node.gossip.events import Alarm, Keep, RecordAdded, Send
from node.gossip.intake import MAX_WAITING, NOT_ITS_RECOVERY_KEY
from node.home import Home
from node.membership import add_peer
from node.passphrase import recovery_key
from node.publish import publish
from node.records import Header, Held, HeldState, KeyCard, Kind, Record, Revocation, Succession, statement_of
from node.replacement import (
    Revoked,
    identity_meant,
    last_good,
    listing,
    parse_last_good,
    publish_recovery,
    replace,
    revoke,
    write_bundle,
)
from node.status import notices, peers
from node.tasks import find

MakeHome = Callable[..., Home]


def home_with(path: Path, recovery: RecoveryKey) -> Home:
    """As `tidings init` makes one."""
    return Home.init(path, path.name, None, recovery_hash=recovery.hash)


def again(home: Home) -> Home:
    return Home.open(home.path)


def settle(*homes: Home) -> None:
    for _ in range(3):
        gossip(*homes)
        for home in homes:
            home.epochs.grant_missing()


class Robbed:
    """North was robbed of a copy of its home; south and west are partners; all have published."""

    def __init__(self, base: Path, task_file: Path, rows_file: Path) -> None:
        self.recovery = RecoveryKey.generate()
        self.task_file, self.rows_file = task_file, rows_file
        self.north = home_with(base / "north", self.recovery)
        self.south = Home.init(base / "south", "south", None)
        self.west = Home.init(base / "west", "west", None)
        meet(self.north, self.south, self.west)
        self.good = publish_rows(self.north, task_file, rows_file, "wards")
        settle(self.north, self.south, self.west)
        self.thief = Home.open(Path(shutil.copytree(self.north.path, base / "thief")))
        self.robbed = self.north.me

    def revoke(self) -> Revoked:
        """What its owner does in the home that is left."""
        good = last_good(self.north, self.robbed)
        return revoke(self.north, self.robbed, self.recovery, good, takes_over=True)

    def publish(self, home: Home, dataset: str) -> bytes:
        return publish_rows(home, self.task_file, self.rows_file, dataset)


@pytest.fixture
def robbed(tmp_path: Path, task_file: Path, rows_file: Path) -> Robbed:
    return Robbed(tmp_path, task_file, rows_file)


LETTERS = "abcdefghijklmnopqrstuvwxyz234567019-é"
NO_NUMBERS = ["", "x", "none:1", "00:1", f"{'00' * 8}:1", *(f"{'ab' * 8}:{number}" for number in ("0", "-1", "", "²"))]

# ------------------------------------------------------------------------------------------------- the recovery key


def test_init_shows_the_recovery_key_once_and_no_file_holds_it(tmp_path: Path) -> None:
    done = tidings(tmp_path / "a", "init", "--name", "a")
    (text,) = [line for line in done.stderr.splitlines() if line.startswith("tidings-recovery1")]
    assert done.stdout.strip() == tidings(tmp_path / "a", "id").stdout.strip(), "stdout has the public key alone"
    recovery = RecoveryKey.parse(text)
    made = json.loads(tidings(tmp_path / "b", "init", "--json").stdout)
    other = RecoveryKey.parse(made["recovery_key"])
    assert made["key"] == tidings(tmp_path / "b", "id").stdout.strip()
    secrets = {f"seed {number}": one.identity.seed for number, one in enumerate((recovery, other))}
    everything = bytes_of(tmp_path, but=())
    assert found_in(everything, secrets) == []
    assert text.encode() not in everything
    assert Home.open(tmp_path / "a").store.recovery_hashes(Home.open(tmp_path / "a").me) == [recovery.hash]
    assert json.loads(tidings(tmp_path / "a", "keys", "show", "--json").stdout)["recovery_key"] is True
    assert "recovery key: published" in tidings(tmp_path / "a", "keys", "show").stdout


@given(
    st.binary(min_size=32, max_size=32), st.integers(0, 74), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567019-é")
)
def test_a_recovery_key_comes_back_from_its_text_and_a_mistyped_letter_is_refused(
    seed: bytes, place: int, letter: str
) -> None:
    key = RecoveryKey(seed)
    assert RecoveryKey.parse(f" {key.text[:20].upper()}\n{key.text[20:]} ").hash == key.hash
    assert len(key.text) == 75
    mistyped = key.text[:place] + letter + key.text[place + 1 :]
    if mistyped != key.text:
        with pytest.raises(Malformed) as caught:
            RecoveryKey.parse(mistyped)
        assert key.text[30:60] not in str(caught.value)
    assert key.text not in repr(key)
    assert seed.hex() not in repr(key)


def test_a_recovery_key_is_no_public_key_and_the_other_way_round() -> None:
    from crypto.keys import PublicKey

    with pytest.raises(Malformed, match="starts with 'tidings1'"):
        PublicKey.parse(RecoveryKey.generate().text)
    with pytest.raises(Malformed, match="starts with 'tidings-recovery1'"):
        RecoveryKey.parse(Identity.generate().public_key.text)


def test_a_home_of_an_earlier_release_gets_a_recovery_key_once(make_home: MakeHome) -> None:
    home, south = make_home("north"), make_home("south")
    meet(home, south)
    assert keys.show(home)["recovery_key"] is False
    made = json.loads(tidings(home.path, "keys", "recovery", "--json").stdout)
    recovery = RecoveryKey.parse(made["recovery_key"])
    settle(home, south)
    assert south.store.recovery_hashes(home.me) == [recovery.hash]
    assert "has published a recovery key" in tidings(home.path, "keys", "recovery", code=2).stderr
    keys.rotate(again(home), encryption=True)
    settle(again(home), south)
    assert south.store.recovery_hashes(home.me) == [recovery.hash], "later cards say the same"
    assert revoke(home, home.me, recovery, (), takes_over=False).is_checked


def test_a_recovery_key_that_could_not_be_shown_is_not_published(make_home: MakeHome) -> None:
    home = make_home("north")
    with pytest.raises(InterruptedError):
        publish_recovery(home, RecoveryKey.generate(), stopped)
    assert home.author.recovery_hash() is None
    made, shown = RecoveryKey.generate(), list[RecoveryKey]()
    publish_recovery(home, made, shown.append)
    assert shown == [made]
    assert home.store.recovery_hashes(home.me) == [made.hash]
    with pytest.raises(UsageError, match="hold to the first"):
        publish_recovery(home, RecoveryKey.generate(), shown.append)
    assert shown == [made], "one that does not count is not shown"


def test_bytes_that_are_no_text_are_no_recovery_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"tidings-recovery1\xff\xfe\n"), encoding="utf-8"))
    with pytest.raises(UsageError, match="starts with"):
        recovery_key(None)


def test_peers_hold_to_the_first_hash_and_say_that_another_came(robbed: Robbed) -> None:
    own = RecoveryKey.generate()
    robbed.thief.store.set_recovery_hash(robbed.thief.me, own.hash)
    card = KeyCard(EncryptionKey.generate().public, own.hash)
    robbed.thief.author._without_body(Kind.KEY_CARD, payload=wire.write_payload(card))
    carry(robbed.thief, robbed.south)
    assert robbed.south.store.recovery_hashes(robbed.robbed)[0] == robbed.recovery.hash
    assert any("another recovery key" in one["reason"] for one in notices(robbed.south))
    with pytest.raises(UsageError, match="not the recovery key"):
        revoke(robbed.south, robbed.robbed, own, (), takes_over=False)
    assert not robbed.south.store.held(kind=Kind.REVOKE)
    revoke(robbed.south, robbed.robbed, robbed.recovery, (), takes_over=False)
    assert robbed.robbed not in robbed.south.epochs.members()


# --------------------------------------------------------------------------------------------- what a revocation does


def test_the_revoked_key_is_cut_off_and_what_it_signed_later_is_not_used(robbed: Robbed) -> None:
    bad = robbed.publish(robbed.thief, "made up")
    carry(robbed.thief, robbed.south)
    assert robbed.robbed in robbed.south.epochs.members()
    epoch = robbed.south.epochs.live().number
    revoked = revoke(
        robbed.north, robbed.robbed, robbed.recovery, last_good(robbed.north, robbed.robbed), takes_over=True
    )
    north = revoked.home
    settle(north, robbed.south, robbed.west)
    for home in (robbed.south, robbed.west):
        assert set(home.epochs.members()) == {north.me, *({robbed.south.me, robbed.west.me} - {home.me})}
        assert home.peers.name_of(robbed.robbed) == "north (revoked key)"
        assert home.epochs.live().number == epoch + 1
    assert {member for member, _ in robbed.south.epochs.granted()} == {north.me, robbed.south.me, robbed.west.me}
    held = robbed.south.store.get(bad)
    assert held is not None
    assert "was revoked" in robbed.south.store.unusable(held.record)
    good = robbed.south.store.get(robbed.good)
    assert good is not None
    assert robbed.south.store.unusable(good.record) == ""
    later = robbed.publish(robbed.south, "later")
    settle(north, robbed.south, robbed.west)
    carry(robbed.south, robbed.thief)
    assert can_read(north, later)
    assert not can_read(robbed.thief, later)
    assert can_read(north, robbed.good), "the old encryption keys open what was granted before"
    assert any("revoked after a theft" in one["reason"] for one in notices(robbed.west))


def test_a_home_counts_of_its_own_key_what_it_signed_itself_and_nothing_of_the_thief(robbed: Robbed) -> None:
    bad = robbed.publish(robbed.thief, "made up")
    mine = robbed.publish(robbed.north, "more")
    carry(robbed.thief, robbed.north)
    good = dict(last_good(again(robbed.north), robbed.robbed))
    record = {one: robbed.north.store.get(one).record.header for one in (bad, mine)}  # type: ignore[union-attr]
    assert good[record[mine].incarnation] >= record[mine].sequence
    assert record[bad].incarnation not in good
    rows = listing(robbed.north, robbed.robbed, tuple(sorted(good.items())))
    assert {one["incarnation"]: one["last_good"] for one in rows}[record[bad].incarnation.hex()] == 0


def test_only_the_recovery_key_revokes(robbed: Robbed) -> None:
    with pytest.raises(UsageError, match="not the recovery key"):
        revoke(robbed.thief, robbed.robbed, RecoveryKey.generate(), (), takes_over=True)
    assert again(robbed.thief).me == robbed.robbed, "nothing was changed"
    # A REVOKE that the thief signs with a key of his own is a valid record, and counts for nothing.
    made = RecoveryKey.generate()
    record = robbed.thief.author.revocation(robbed.robbed, made.identity, Revocation(made.identity.public_key, ()))
    robbed.south.store.add(record)
    assert robbed.robbed in robbed.south.epochs.members()


@pytest.mark.parametrize("first", ["the thief", "the owner"])
def test_a_revocation_undoes_what_a_thief_made_of_the_identity(robbed: Robbed, first: str) -> None:
    owner = revoke(
        robbed.north, robbed.robbed, robbed.recovery, last_good(robbed.north, robbed.robbed), takes_over=True
    ).home
    thief = replace(robbed.thief, None).home
    late = robbed.publish(thief, "made up")
    for home in (thief, owner) if first == "the thief" else (owner, thief):
        carry(home, robbed.south)
    assert set(robbed.south.epochs.members()) == {owner.me, robbed.west.me}
    assert thief.me not in robbed.south.trusted
    held = robbed.south.store.get(late)
    assert held is not None
    assert "does not count" in robbed.south.store.unusable(held.record)


def test_of_two_revocations_the_smaller_number_counts_whichever_came_first(robbed: Robbed) -> None:
    north = robbed.north
    few = last_good(north, robbed.robbed)
    robbed.publish(north, "more")
    many = last_good(north, robbed.robbed)
    assert dict(few) != dict(many)
    records = [revoke(north, robbed.robbed, robbed.recovery, good, takes_over=False).record for good in (few, many)]
    for order in itertools.permutations(records):
        peer = Home.init(north.path.with_name(f"peer {order[0].id.hex()[:6]}"), "peer", None)
        carry(north, peer, lambda record: record.header.kind is Kind.KEY_CARD)
        for record in order:
            peer.store.add(record)
        assert peer.store.standing().endings[robbed.robbed].good == dict(few)


def test_after_a_revocation_without_a_successor_the_home_says_so_and_signs_nothing(robbed: Robbed) -> None:
    revoke(robbed.north, robbed.robbed, robbed.recovery, last_good(robbed.north, robbed.robbed), takes_over=False)
    spent = robbed.north.ledger().totals()
    with pytest.raises(IdentityEnded):
        robbed.publish(robbed.north, "wards")
    assert robbed.north.ledger().totals() == spent
    settle(robbed.north, robbed.south)
    (row,) = [one for one in peers(robbed.south, served=True) if one["name"] == "north"]
    assert (row["state"], row["key"]) == ("revoked", robbed.robbed.text)


def test_a_stolen_identity_whose_former_owner_replaced_it_long_ago_is_revoked_from_the_new_one(robbed: Robbed) -> None:
    north = replace(robbed.north, None).home
    robbed.thief.store.renew_incarnation()
    impostor = replace(robbed.thief, None).home
    settle(north, robbed.south)
    carry(impostor, robbed.south)
    assert robbed.south.epochs.members() == [robbed.west.me], "two claim its place"
    revoked = revoke(north, robbed.robbed, robbed.recovery, last_good(north, robbed.robbed), takes_over=True)
    carry(revoked.home, robbed.south)
    assert set(robbed.south.epochs.members()) == {north.me, robbed.west.me}
    assert robbed.south.store.recovery_hashes(north.me) == [robbed.recovery.hash], "the key on paper serves on"


def test_a_revocation_that_was_stopped_in_the_middle_is_simply_repeated(
    robbed: Robbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new identity is in the keystore then, and nobody knows of it: it is not the one to revoke."""
    with monkeypatch.context() as patched:
        patched.setattr("node.author.Author.revocation", stopped)
        with pytest.raises(InterruptedError):
            robbed.revoke()
    renewed = again(robbed.north)
    assert renewed.me != robbed.robbed
    meant = identity_meant(renewed, None)
    assert meant == robbed.robbed
    revoked = revoke(renewed, meant, robbed.recovery, last_good(renewed, meant), takes_over=True)
    settle(revoked.home, robbed.south, robbed.west)
    assert revoked.home.me == renewed.me
    assert robbed.south.store.standing().endings[robbed.robbed].is_revoked
    assert renewed.me in robbed.south.epochs.members()
    assert identity_meant(revoked.home, None) == renewed.me, "now this one is known"
    assert robbed.south.store.recovery_hashes(renewed.me) == [robbed.recovery.hash]


@pytest.mark.parametrize("wants_another", [True, False])
def test_a_recovery_key_of_a_revocation_that_was_stopped_gives_way_to_that_of_the_next(
    robbed: Robbed, monkeypatch: pytest.MonkeyPatch, wants_another: bool
) -> None:
    """The first one may have been for a program that never got it."""
    never_shown, another, north = RecoveryKey.generate(), RecoveryKey.generate(), robbed.north
    good = last_good(north, robbed.robbed)
    with monkeypatch.context() as patched:
        patched.setattr("node.author.Author.revocation", stopped)
        with pytest.raises(InterruptedError):
            revoke(north, robbed.robbed, robbed.recovery, good, takes_over=True, new_recovery=never_shown)
    renewed, asked_for = again(north), another if wants_another else None
    home = revoke(renewed, robbed.robbed, robbed.recovery, good, takes_over=True, new_recovery=asked_for).home
    carry(home, robbed.south)
    expected = another if wants_another else robbed.recovery
    assert robbed.south.store.recovery_hashes(home.me) == [expected.hash]


def test_a_revocation_names_the_earlier_keys_that_the_thief_has_too(robbed: Robbed) -> None:
    """With one of these he disputes the succession, and the new identity has nobody's place any more."""
    north, first = replace(robbed.north, None).home, robbed.robbed
    settle(north, robbed.south, robbed.west)
    thief = Home.open(Path(shutil.copytree(north.path, north.path.with_name("second thief"))))
    revoked = revoke(north, north.me, robbed.recovery, last_good(north, north.me), takes_over=True)
    assert revoked.earlier == (first,)
    assert first.text in revoked.describe()
    carry(revoked.home, robbed.south)
    heir, former = Identity.generate(), thief.keystore.former[0]
    thief.author.succession(former, Succession(heir.public_key, consent(heir, first), ()))
    carry(thief, robbed.south)
    assert revoked.home.me not in robbed.south.epochs.members()
    second = revoke(revoked.home, first, robbed.recovery, last_good(revoked.home, first), takes_over=True)
    assert second.earlier == ()
    carry(second.home, robbed.south)
    assert revoked.home.me in robbed.south.epochs.members()
    good = robbed.south.store.get(robbed.good)
    assert good is not None
    assert robbed.south.store.unusable(good.record) == ""


def stopped(*_: object) -> None:
    raise InterruptedError


def test_what_a_thief_says_still_counts_is_no_limit_to_what_its_owner_says(robbed: Robbed) -> None:
    expected = last_good(robbed.north, robbed.robbed)
    heir, thief = Identity.generate(), robbed.thief
    named = Succession(heir.public_key, consent(heir, robbed.robbed), ())
    thief.author.succession(thief.keystore.identity, named)
    carry(thief, robbed.north)
    assert robbed.north.store.standing().endings[robbed.robbed].good == {}
    assert last_good(again(robbed.north), robbed.robbed) == expected != ()
    revoked = robbed.revoke()
    carry(revoked.home, robbed.south)
    assert revoked.home.me in robbed.south.epochs.members()


def test_an_identity_without_a_recovery_key_is_not_given_up_for_a_revocation_that_nobody_believes(
    make_home: MakeHome,
) -> None:
    home = make_home("north")
    for takes_over in (True, False):
        with pytest.raises(UsageError, match="no recovery key"):
            revoke(home, home.me, RecoveryKey.generate(), last_good(home, home.me), takes_over=takes_over)
    assert again(home).me == home.me
    assert home.store.held(kind=Kind.REVOKE) == []


# -------------------------------------------------------------------------------------------------- records and gossip

OLD, NEW = (Identity.from_seed(bytes([number]) * 32) for number in (11, 12))
RECOVERY = RecoveryKey(bytes(range(32)))
PUBLIC = RECOVERY.identity.public_key


def revoke_header(payload: Revocation) -> Header:
    return Header(Kind.REVOKE, OLD.public_key, bytes(8), 5, 1, payload=wire.write_payload(payload))


def revocation(payload: Revocation, changes: dict[str, Any] | None = None) -> Record:
    return wire.author(RECOVERY.identity, replaced(revoke_header(payload), **(changes or {})))


def test_a_revocation_is_signed_by_the_recovery_key_and_carried_by_the_identity() -> None:
    payload = Revocation(PUBLIC, ((b"incarnat", 7),), NEW.public_key, consent(NEW, OLD.public_key))
    record = revocation(payload)
    read = wire.read_record(record.header_bytes, record.signature)
    assert read.header.origin == OLD.public_key
    assert wire.read_payload(read.header) == payload
    assert payload.recovery_hash == RECOVERY.hash


@pytest.mark.parametrize(
    ("payload", "changes", "reason"),
    [
        (Revocation(PUBLIC, ()), {"incarnation": b"incarnat"}, "no incarnation"),
        (Revocation(PUBLIC, ()), {"sequence": 0}, "sequence"),
        (Revocation(PUBLIC, ()), {"supersedes": bytes(32)}, "must not have a superseded"),
        (Revocation(PUBLIC, (), NEW.public_key, bytes(64)), {}, "has not signed"),
        (Revocation(PUBLIC, (), NEW.public_key, consent(OLD, OLD.public_key)), {}, "has not signed"),
        (Revocation(PUBLIC, (), OLD.public_key, consent(OLD, OLD.public_key)), {}, "of itself"),
        (Revocation(PUBLIC, (), None, bytes(64)), {}, "does not name"),
        (Revocation(PUBLIC, ((bytes(8), 1),)), {}, "not all zero"),
        (Revocation(PUBLIC, ()), {"payload": b""}, "key that is none"),
        (Revocation(PUBLIC, ()), {"payload": b"\xff\xff"}, "is not one"),
    ],
)
def test_a_revocation_that_breaks_a_rule_is_refused(payload: Revocation, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        revocation(payload, changes)


def test_the_identity_itself_and_any_other_key_sign_no_revocation() -> None:
    header = revoke_header(Revocation(PUBLIC, ()))
    header_bytes = wire.write_header(header)
    for signer in (OLD, NEW):
        with pytest.raises(RecordError, match="signature"):
            wire.read_record(header_bytes, sign_record(signer, statement_of(header, record_id(header_bytes))))


def test_only_a_revocation_has_no_incarnation() -> None:
    header = Header(Kind.WITHDRAWAL, OLD.public_key, bytes(8), 1, 1, supersedes=bytes(32))
    with pytest.raises(RecordError, match="every other record"):
        wire.author(OLD, header)


def card_of(identity: Identity, recovery: RecoveryKey | None) -> Record:
    payload = KeyCard(EncryptionKey.generate().public, recovery.hash if recovery else b"")
    header = Header(Kind.KEY_CARD, identity.public_key, b"incarnat", 1, 1, payload=wire.write_payload(payload))
    return wire.author(identity, header)


def signed(*records: Record) -> Records:
    return Records(tuple(SignedRecord(one.header_bytes, one.signature) for one in records))


def alices(recovery: RecoveryKey, sequence: int = 5) -> Record:
    payload = Revocation(recovery.identity.public_key, ())
    header = Header(Kind.REVOKE, ALICE.public_key, bytes(8), sequence, 1, payload=wire.write_payload(payload))
    return wire.author(recovery.identity, header)


def kept(rig: Rig) -> list[Kind]:
    return [action.record.header.kind for action in of(rig.actions, Keep)]


def test_a_revocation_waits_for_the_key_card_that_it_needs() -> None:
    rig = Rig()
    rig.members(ALICE, BOB)
    bob = rig.link(BOB)
    rig.say(bob, signed(alices(RECOVERY)))
    assert kept(rig) == []
    rig.say(bob, signed(card_of(ALICE, None)))
    assert kept(rig) == [Kind.KEY_CARD], "a card without a hash says nothing about it"
    rig.say(bob, signed(alices(RECOVERY)))
    assert kept(rig) == []
    later = card_of(ALICE, RECOVERY)
    other = wire.author(ALICE, Header(Kind.KEY_CARD, ALICE.public_key, b"incarnat", 2, 1, payload=later.header.payload))
    rig.say(bob, signed(other))
    assert kept(rig) == [Kind.KEY_CARD, Kind.REVOKE]
    assert of(rig.actions, Alarm) == []


def test_a_revocation_that_waits_is_taken_when_a_bundle_or_a_command_brought_the_card() -> None:
    rig = Rig()
    rig.members(ALICE, BOB)
    bob = rig.link(BOB)
    rig.say(bob, signed(alices(RECOVERY)))
    rig.tell(RecordAdded(Held(card_of(ALICE, RECOVERY), HeldState.COMPLETE, 0.0)))
    assert kept(rig) == [Kind.REVOKE]


def test_of_one_identity_no_more_revocations_are_kept_than_count() -> None:
    """Only the recovery key makes them, and its owner may be the one who fills disks."""
    rig = Rig()
    rig.members(ALICE, BOB)
    bob = rig.link(BOB)
    rig.say(bob, signed(card_of(ALICE, RECOVERY)))
    taken = 0
    for sequence in range(1, MAX_LAST_WORDS + 20):
        rig.say(bob, signed(alices(RECOVERY, sequence)))
        taken += len(kept(rig))
    assert taken == MAX_LAST_WORDS


def test_a_revocation_of_another_recovery_key_is_told_and_neither_kept_nor_asked_for_again() -> None:
    rig = Rig()
    rig.members(ALICE, BOB)
    bob = rig.link(BOB)
    rig.say(bob, signed(card_of(ALICE, RECOVERY)))
    wrong = alices(RecoveryKey(bytes(32)))
    rig.say(bob, signed(wrong))
    assert kept(rig) == []
    assert [alarm.reason for alarm in of(rig.actions, Alarm)] == [NOT_ITS_RECOVERY_KEY]
    rig.say(bob, Announce((Advert(wrong.id, Kind.REVOKE, ALICE.public_key.raw, 0),)))
    assert [one for one in of(rig.actions, Send) if isinstance(one.frame, Want)] == []
    rig.say(bob, signed(alices(RECOVERY, sequence=6)))
    assert kept(rig) == [Kind.REVOKE]


def test_a_quota_that_a_thief_used_up_shuts_no_revocation_out() -> None:
    rig = Rig(settings=GossipSettings(quotas=1e-9))
    rig.members(ALICE, BOB)
    bob = rig.link(BOB)
    rig.say(bob, signed(card_of(ALICE, RECOVERY)))
    payload = card_of(ALICE, None).header.payload
    another = wire.author(ALICE, Header(Kind.KEY_CARD, ALICE.public_key, b"incarnat", 2, 1, payload=payload))
    rig.say(bob, signed(another))
    assert kept(rig) == [], "its quota is used up"
    rig.say(bob, Announce((Advert(alices(RECOVERY).id, Kind.REVOKE, ALICE.public_key.raw, 0),)))
    assert len([one for one in of(rig.actions, Send) if isinstance(one.frame, Want)]) == 1
    rig.say(bob, signed(alices(RECOVERY)))
    assert kept(rig) == [Kind.REVOKE]


def test_revocations_that_somebody_made_up_are_told_once() -> None:
    rig = Rig()
    rig.members(ALICE, BOB)
    bob = rig.link(BOB)
    rig.say(bob, signed(card_of(ALICE, RECOVERY)))
    told = []
    for number in range(1, 20):
        rig.say(bob, signed(alices(RecoveryKey.generate(), sequence=number)))
        told += of(rig.actions, Alarm)
    assert [one.reason for one in told] == [NOT_ITS_RECOVERY_KEY]


def test_revocations_in_a_bundle_that_wait_for_a_key_card_take_little_room(tmp_path: Path) -> None:
    imported = Imported(tmp_path, None, None)  # type: ignore[arg-type] - nothing was looked at
    keeper = _Keeper(Home.init(tmp_path / "reader", "reader", None), imported)
    for number in range(1, 2 * MAX_WAITING):
        assert not keeper._may_revoke(alices(RECOVERY, sequence=number))
    assert len(keeper._waiting) == MAX_WAITING
    assert [one["reason"] for one in imported.findings] == [NO_RECOVERY_KEY]


def test_what_waits_for_a_key_card_takes_little_room() -> None:
    rig = Rig()
    rig.members(ALICE, BOB)
    bob = rig.link(BOB)
    for number in range(1, 200):
        rig.say(bob, signed(alices(RECOVERY, sequence=number)))
    assert len(rig.core._intake._waiting) == 64
    assert ME.public_key.raw not in rig.core._intake._waiting


# ------------------------------------------------------------------------------------------ with the real command line


@pytest.fixture
def node_homes(tmp_path: Path) -> dict[str, Path]:
    return {name: tmp_path / name for name in ("north", "south", "west", "fresh")}


def key_of(home: Path) -> str:
    return tidings(home, "id").stdout.strip()


@pytest.mark.timeout(280)
def test_a_stolen_laptop_is_revoked_from_another_machine_and_partners_go_on(
    node_homes: dict[str, Path], task_file: Path, rows_file: Path, tmp_path: Path
) -> None:
    """As docs/operations.md says: a new home, `keys revoke` with the key from paper, a bundle for the first partner."""
    north, south, west, fresh = node_homes.values()
    recovery = json.loads(tidings(north, "init", "--name", "north", "--json").stdout)["recovery_key"]
    for home in (south, west):
        tidings(home, "init", "--name", home.name, "--listen", "127.0.0.1:0")
    names = {key_of(home): home.name for home in (north, south, west)}
    stolen = key_of(north)
    for home in (north, south, west):
        for key, name in names.items():
            if key != key_of(home):
                tidings(home, "peer", "add", key, "--name", name)
    tidings(north, "task", "add", str(task_file))
    tidings(north, "publish", "triage", str(rows_file), "--epsilon", "1", "--dataset", "wards")
    with serving(south) as at_south, serving(west) as at_west:
        tidings(west, "peer", "add", key_of(south), "--name", "south", "--address", at_south)
        tidings(north, "peer", "add", key_of(south), "--name", "south", "--address", at_south)
        with serving_out(north):
            eventually(lambda: len(Home.open(west).store.held(kind=Kind.SUMMARY)) == 1)
        # The thief has the laptop and publishes in north's name.
        tidings(north, "publish", "triage", str(rows_file), "--epsilon", "1", "--dataset", "made up")
        with serving_out(north):
            eventually(lambda: len(Home.open(west).store.held(kind=Kind.SUMMARY)) == 2)

        # A partner says what it has of the stolen key, and up to where it is good.
        rows = json.loads(tidings(south, "keys", "revoke", stolen, "--dry-run", "--json").stdout)
        summaries = [held.record for held in Home.open(south).store.held(kind=Kind.SUMMARY)]
        good = f"{rows[0]['incarnation']}:{summaries[0].header.sequence}"
        tidings(fresh, "init", "--name", "north")
        bundle = tmp_path / "revoked.bundle"
        words = ["keys", "revoke", stolen, "--successor", "--last-good", good, "-o", str(bundle), "--json"]
        made = json.loads(tidings(fresh, *words, typed=f"{recovery}\n").stdout)
        assert made["successor"] == key_of(fresh)
        tidings(fresh, "peer", "add", key_of(south), "--name", "south", "--address", at_south)
        tidings(fresh, "peer", "add", key_of(west), "--name", "west", "--address", at_west)
        tidings(south, "bundle", "import", str(bundle))

        def members(home: Path) -> set[str]:
            return {one["key"] for one in json.loads(tidings(home, "peer", "list", "--json").stdout)}

        eventually(lambda: members(west) == {key_of(fresh), key_of(south)})
        assert members(south) == {key_of(fresh), key_of(west)}
        row = next(one for one in json.loads(tidings(west, "peer", "list", "--json").stdout) if one["replaces"])
        assert (row["name"], row["replaces"]) == ("north", stolen)
        with serving_out(fresh):
            eventually(lambda: state_of(fresh, "south") == "linked" and state_of(fresh, "west") == "linked")
            eventually(lambda: can_use(fresh, west) == {summaries[0].id})
        assert can_use(west, west) == can_use(south, south) == {summaries[0].id}
        with serving_out(north):
            eventually(lambda: state_of(north, "south") in ("refused", "unreachable"))
            assert state_of(north, "south") != "linked"
        assert all(one != Home.open(north).me for one in Home.open(south).epochs.members())


@pytest.mark.timeout(280)
@pytest.mark.parametrize("how", ["replace", "revoke"])
def test_running_partners_follow_a_node_that_has_a_new_identity(how: str, node_homes: dict[str, Path]) -> None:
    """The node itself brings the news, over a link as the key that its partners know."""
    north, south, west, _ = node_homes.values()
    recovery = json.loads(tidings(north, "init", "--name", "north", "--json").stdout)["recovery_key"]
    for home in (south, west):
        tidings(home, "init", "--name", home.name, "--listen", "127.0.0.1:0")
    names = {key_of(home): home.name for home in (north, south, west)}
    before = key_of(north)
    for home in (north, south, west):
        for key in names.keys() - {key_of(home)}:
            tidings(home, "peer", "add", key, "--name", names[key])
    with serving(south) as at_south, serving(west) as at_west:
        tidings(north, "peer", "add", key_of(south), "--name", "south", "--address", at_south)
        tidings(west, "peer", "add", key_of(south), "--name", "south", "--address", at_south)
        tidings(north, "peer", "add", key_of(west), "--name", "west", "--address", at_west)
        with serving_out(north):
            eventually(lambda: state_of(north, "south") == state_of(north, "west") == "linked")
            refused = tidings(north, "keys", "replace", code=1)
            assert "already serving" in refused.stderr
        tidings(north, "keys", how, typed=f"{recovery}\n")
        after = key_of(north)
        assert after != before
        with serving_out(north):
            eventually(lambda: state_of(north, "south") == state_of(north, "west") == "linked")
            for home in (south, west):
                eventually(
                    lambda home=home: Home.open(north).me in {one for one, _ in Home.open(home).epochs.granted()}
                )
                (row,) = [one for one in listed(home) if one["name"] == "north"]
                assert (row["key"], row["replaces"]) == (after, before)
                eventually(lambda home=home: state_of(home, "north") == "linked")


@contextmanager
def serving_out(home: Path) -> Iterator[None]:
    """Run a node that only dials out."""
    command = [sys.executable, "-m", "node", "--home", str(home), "serve"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(15)


def state_of(home: Path, peer: str) -> str:
    return str(next(one["state"] for one in listed(home) if one["name"] == peer))


def listed(home: Path) -> list[dict[str, Any]]:
    """What `peer list` says."""
    found: list[dict[str, Any]] = json.loads(tidings(home, "peer", "list", "--json").stdout)
    return found


def can_use(home: Path, held_at: Path) -> set[bytes]:
    """The summaries of what is held there that nothing is against here, as far as they have come."""
    opened = Home.open(home)
    ids = {held.record.id for held in Home.open(held_at).store.held(kind=Kind.SUMMARY)}
    return {
        one for one in ids if (held := opened.store.get(one)) is not None and not opened.store.unusable(held.record)
    }


def test_the_recovery_key_comes_from_a_file_or_standard_input_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    home = tmp_path / "north"
    recovery = json.loads(tidings(home, "init", "--json").stdout)["recovery_key"]
    before, key = bytes_of(home, but=("node.db-wal", "node.db-shm")), key_of(home)
    wrong = RecoveryKey.generate().text
    for typed, reason, code in (
        (f"{wrong}\n", "not the recovery key", 2),
        ("\n", "starts with", 2),
        ("", "starts with", 2),
        (recovery[:-1], "characters", 2),
    ):
        done = tidings(home, "keys", "revoke", typed=typed, code=code)
        assert reason in done.stderr
        assert typed.strip() == "" or typed.strip()[20:60] not in done.stderr
    assert key_of(home) == key
    assert before
    file = tmp_path / "paper"
    file.write_text(recovery + "\n")
    file.chmod(0o644)
    assert "open to others" in tidings(home, "keys", "revoke", "--recovery-key-file", str(file), code=1).stderr
    file.chmod(0o600)
    done = tidings(home, "keys", "revoke", "--recovery-key-file", str(file), "--new-recovery-key")
    assert key_of(home) != key
    assert key in done.stdout
    (shown,) = [line for line in done.stderr.splitlines() if line.startswith("tidings-recovery1")]
    assert Home.open(home).store.recovery_hashes(Home.open(home).me) == [RecoveryKey.parse(shown).hash]
    assert recovery not in done.stdout + done.stderr
    # What is shown once is shown even where the bundle has no place.
    words = ["--recovery-key-file", str(file), "--new-recovery-key", "--json", "-o", str(file / "no folder")]
    file.write_text(shown + "\n")
    failed = tidings(home, "keys", "revoke", *words, code=1)
    last = RecoveryKey.parse(json.loads(failed.stdout)["recovery_key"])
    assert Home.open(home).store.recovery_hashes(Home.open(home).me) == [last.hash]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_a_last_good_number_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_last_good([text])


def test_last_good_numbers_are_read_as_they_are_shown() -> None:
    assert parse_last_good(["none"]) == ()
    assert parse_last_good([f"{'ff' * 8}:3", f"{'ab' * 8}:12"]) == ((b"\xab" * 8, 12), (b"\xff" * 8, 3))
    with pytest.raises(UsageError):
        parse_last_good([f"{'ab' * 8}:1", f"{'ab' * 8}:2"])


def test_a_revocation_for_somebody_unknown_needs_to_be_told_what_counts(make_home: MakeHome) -> None:
    home = make_home("fresh")
    stolen = Identity.generate().public_key.text
    assert "No record of" in tidings(home.path, "keys", "revoke", stolen, code=2, typed="x\n").stderr


def test_a_bundle_brings_a_revocation_to_whom_no_link_reaches_and_waits_for_no_card_in_vain(
    robbed: Robbed, tmp_path: Path
) -> None:
    north = revoke(
        robbed.north, robbed.robbed, robbed.recovery, last_good(robbed.north, robbed.robbed), takes_over=True
    )
    write_bundle(north.home, north.record, tmp_path / "revoked.bundle")
    assert import_bundle(robbed.south, tmp_path / "revoked.bundle").new == 1
    assert north.home.me in robbed.south.epochs.members()
    # A partner who has no key card of the robbed one keeps nothing that it cannot judge.
    stranger = Home.init(tmp_path / "stranger", "stranger", None)
    add_peer(stranger, robbed.robbed.text, "north", None, query_only=False)
    told = import_bundle(stranger, tmp_path / "revoked.bundle")
    assert told.new == 0
    assert "no key card" in told.findings[0]["reason"]
    carry(robbed.north, stranger, lambda record: record.header.kind is Kind.KEY_CARD)
    assert import_bundle(stranger, tmp_path / "revoked.bundle").new == 1


def test_a_bundle_brings_the_revocation_of_an_identity_that_its_thief_got_condemned(
    robbed: Robbed, tmp_path: Path
) -> None:
    thief, south = robbed.thief.keystore.identity, robbed.south
    condemn(south, thief)
    assert robbed.robbed not in south.trusted
    revoked = robbed.revoke()
    write_bundle(revoked.home, revoked.record, tmp_path / "revoked.bundle")
    assert import_bundle(south, tmp_path / "revoked.bundle").new == 1
    assert revoked.home.me in south.epochs.members()
    assert revoked.home.me in south.trusted
    assert robbed.robbed not in south.trusted, "what it signed is used no more for that"


# --------------------------------------------------------------------------------------------------- backup and restore


@pytest.mark.timeout(280)
@pytest.mark.parametrize("how", ["stopped", "running"])
def test_a_home_is_backed_up_and_restored_as_the_documents_say(
    how: str, node_homes: dict[str, Path], task_file: Path, rows_file: Path, tmp_path: Path
) -> None:
    north, south, *_ = node_homes.values()
    for home in (north, south):
        tidings(home, "init", "--name", home.name, "--listen", "127.0.0.1:0")
    tidings(north, "peer", "add", key_of(south), "--name", "south")
    tidings(south, "peer", "add", key_of(north), "--name", "north")
    tidings(north, "task", "add", str(task_file))
    tidings(north, "publish", "triage", str(rows_file), "--epsilon", "0.5")
    backup = tmp_path / "backup"
    with serving(south) as address:
        tidings(north, "peer", "add", key_of(south), "--name", "south", "--address", address)
        with serving(north):
            eventually(lambda: len(Home.open(south).store.held(kind=Kind.SUMMARY)) == 1)
            if how == "running":
                back_up_running(north, backup)
        if how == "stopped":
            subprocess.run(["cp", "-a", str(north), str(backup)], check=True)
        # After the backup more is spent, and peers are told.
        tidings(north, "publish", "triage", str(rows_file), "--epsilon", "1")
        with serving(north):
            with opened(north) as home:
                newer = home.store.held(kind=Kind.SUMMARY)[-1].record
            # Its HEAD, too: what no peer heard of is lost with the disk.
            eventually(lambda: {newer.id} <= ids_in(north) <= ids_in(south))
        # The disk is lost. The backup comes back.
        north.rename(tmp_path / "lost")
        subprocess.run(["cp", "-a", str(backup), str(north)], check=True)
        lost = Home.open(tmp_path / "lost").store.incarnation
        assert key_of(north) == Home.open(tmp_path / "lost").me.text
        restored = Home.open(north)
        assert restored.store.incarnation != Home.open(backup).store.incarnation
        assert restored.store.incarnation != lost
        with serving(north):
            eventually(lambda: state_of(north, "south") == "linked")
            eventually(lambda: any("old copy" in one["reason"] for one in notices(Home.open(north))))
            eventually(lambda: Home.open(north).store.get(newer.id) is not None)
        refused = tidings(north, "publish", "triage", str(rows_file), "--epsilon", "0.1", code=1)
        assert "accept-rollback" in refused.stderr
        tidings(north, "budget", "accept-rollback")
        (account,) = json.loads(tidings(north, "budget", "--json").stdout)
        assert account["spent_epsilon"] > 1.0, "what the lost home spent counts"
        tidings(north, "publish", "triage", str(rows_file), "--epsilon", "0.1")
        with serving(north):
            last = Home.open(north).store.held(kind=Kind.SUMMARY)[-1].record
            eventually(lambda: Home.open(south).store.get(last.id) is not None)
        assert Home.open(south).store.conflicts() == [], "no number was used twice"


@contextmanager
def opened(path: Path) -> Iterator[Home]:
    """A view of a home that is about to go elsewhere: a connection that outlived that would, when it ends, take away
    the write-ahead log that is under its path by then."""
    home = Home.open(path)
    try:
        yield home
    finally:
        home.store.close()


def ids_in(path: Path) -> set[bytes]:
    with opened(path) as home:
        return {held.record.id for held in home.store.held()}


def back_up_running(home: Path, target: Path) -> None:
    """The commands of docs/operations.md, "Backup", for a node that runs."""
    target.mkdir(mode=0o700)
    for name in ("node.db", "ledger.db"):
        script = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).backup(sqlite3.connect(sys.argv[2]))"
        subprocess.run([sys.executable, "-c", script, str(home / name), str(target / name)], check=True)
        os.chmod(target / name, 0o600)
    for name in ("keystore.json", "node.json"):
        subprocess.run(["cp", "-a", str(home / name), str(target)], check=True)


def test_a_copy_of_a_home_numbers_its_records_apart_from_the_first_moment(make_home: MakeHome, tmp_path: Path) -> None:
    home = make_home("north")
    before = home.store.incarnation
    assert again(home).store.incarnation == before, "opened again, it is the same"
    home.store.close()
    moved = home.path.rename(tmp_path / "moved")
    assert Home.open(moved).store.incarnation == before, "moved, it is the same"
    copied = Home.open(Path(shutil.copytree(moved, tmp_path / "copied")))
    assert copied.store.incarnation not in (before, None)
    assert again(copied).store.incarnation == copied.store.incarnation, "drawn once"
    back = Home.open(rolled_back(Path(shutil.copytree(moved, tmp_path / "back"))))
    assert back.store.incarnation == before, "what a rolled-back disk cannot tell, peers do"
    with sqlite3.connect(tmp_path / "copied" / "node.db") as database:
        assert database.execute("SELECT count(*) FROM place").fetchone() == (1,)


def test_a_restored_home_that_was_replaced_meanwhile_learns_it_from_its_peers(robbed: Robbed, rows_file: Path) -> None:
    backup = Path(shutil.copytree(robbed.north.path, robbed.north.path.with_name("backup")))
    north = replace(robbed.north, None).home
    settle(north, robbed.south)
    restored = Home.open(backup)
    carry(robbed.south, restored)
    task = find(restored, "triage")
    with pytest.raises(IdentityEnded, match="newer copy"):
        publish(restored, task, [rows_file], epsilon=0.1, dataset="wards", cap_epsilon=None)
    assert any("newer copy" in one["reason"] for one in notices(restored))


def test_after_a_theft_the_ledger_goes_on_and_the_thiefs_spending_is_not_ours(robbed: Robbed) -> None:
    robbed.publish(robbed.thief, "wards")
    carry(robbed.thief, robbed.north)
    with pytest.raises(BudgetError, match="accept-rollback"):
        robbed.publish(robbed.north, "wards")
    good = last_good(robbed.north, robbed.robbed)
    north = revoke(robbed.north, robbed.robbed, robbed.recovery, good, takes_over=True).home
    settle(north, robbed.south)
    assert not heads.is_behind(north)
    robbed.publish(north, "wards")
    settle(north, robbed.south)
    assert heads.findings(robbed.south) == []
