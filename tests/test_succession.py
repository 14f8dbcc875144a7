"""An identity is replaced: peers follow by themselves, what it signed stays good, and nobody counts twice."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from couriers import can_read, carry, gossip, meet, publish_rows
from crashing import Killer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto.errors import KeystoreError
from crypto.keys import Identity, PublicKey
from crypto.keystore import LEAST, Keyring, Keystore
from crypto.recovery import RecoveryKey, consent
from crypto.signing import Statement, record_id, sign_record
from fusion.task import Task
from node import heads, keys, wire
from node.config import MAX_LAST_WORDS
from node.errors import IdentityEnded, RecordError, UsageError
from node.frames import Query
from node.home import Home
from node.membership import add_peer, remove_peer
from node.publish import publish, withdraw
from node.query import holdings
from node.records import Claim, Evidence, Header, HeldState, Kind, Record, Revocation, Succession, statement_of
from node.replacement import replace
from node.status import notices, peers, tasks
from node.succession import MAX_LINE

MakeHome = Callable[..., Home]


def task_of(home: Home) -> Task:
    return Task.from_canonical(home.store.tasks()[0].canonical)


def usable(home: Home) -> set[bytes]:
    """The summaries that a model made here would use."""
    task = task_of(home)
    return {one.record_id for one in holdings(home, task, Query(task.id, "", (), (), "onnx")).usable}


def settle(*homes: Home) -> None:
    """Gossip until nothing is new: records, then the grants that follow from them, and theirs."""
    for _ in range(3):
        gossip(*homes)
        for home in homes:
            home.epochs.grant_missing()


def again(home: Home) -> Home:
    """The home as the next command opens it."""
    return Home.open(home.path)


def copy_of(home: Home, name: str) -> Home:
    """What a thief has who copied the whole home. He numbers apart: a number used twice would give him away at once."""
    thief = Home.open(Path(shutil.copytree(home.path, home.path.with_name(name))))
    thief.store.renew_incarnation()
    return thief


@pytest.fixture
def three(make_home: MakeHome, task_file: Path, rows_file: Path) -> tuple[Home, Home, Home]:
    """Three partners, two of whom have published."""
    homes = (make_home("north"), make_home("south"), make_home("west"))
    meet(*homes)
    for home in homes[:2]:
        publish_rows(home, task_file, rows_file)
    settle(*homes)
    publish_rows(homes[2], task_file, rows_file)
    settle(*homes)
    return homes


# ------------------------------------------------------------------------------------------------- peers follow


def test_peers_follow_a_replaced_identity_under_its_name_and_addresses(make_home: MakeHome) -> None:
    north, south = make_home("north"), make_home("south")
    meet(north, south)
    add_peer(south, north.me.text, "north", "10.0.0.1:7410", query_only=False)
    before = north.me
    replaced = replace(north, None)
    north = replaced.home
    assert replaced.former == before != north.me
    settle(north, south)
    (peer,) = south.store.peers()
    assert (peer.key, peer.name, peer.addresses, peer.replaces) == (north.me, "north", ("10.0.0.1:7410",), before)
    assert south.epochs.members() == [north.me]
    assert before in south.trusted, "what it signed is still carried, and the record that ended it must spread"
    assert south.peers.name_of(before) == "north (replaced key)"
    assert [peer.key for peer in north.store.peers()] == [south.me]


def test_a_new_epoch_begins_that_the_old_key_is_not_granted(three: tuple[Home, Home, Home], rows_file: Path) -> None:
    north, south, west = three
    thief = copy_of(north, "copy")
    north = replace(north, None).home
    settle(north, south, west)
    after = publish(south, task_of(south), [rows_file], epsilon=0.5, dataset="more", cap_epsilon=None).record
    settle(north, south, west)
    carry(south, thief)
    assert can_read(north, after.id)
    assert can_read(west, after.id)
    assert not can_read(thief, after.id)


def test_what_was_published_before_stays_good_and_is_read_on_both_sides(three: tuple[Home, Home, Home]) -> None:
    north, south, west = three
    before = usable(south)
    assert len(before) == 3
    north = replace(north, None).home
    settle(north, south, west)
    assert usable(north) == usable(south) == usable(west) == before
    assert notices(south) == [], "nothing here is a warning"
    assert heads.findings(west) == []


def test_a_query_only_peer_stays_one_and_is_no_member_under_its_new_key(make_home: MakeHome) -> None:
    north, south = make_home("north"), make_home("south")
    add_peer(south, north.me.text, "north", None, query_only=True)
    north = replace(north, None).home
    carry(north, south)  # it sends nothing itself; say another one who trusts it did
    assert [(peer.key, peer.query_only) for peer in south.store.peers()] == [(north.me, True)]
    assert south.epochs.members() == []
    assert south.trusted == {south.me}


def test_replaced_again_and_again_the_line_is_followed_to_its_end(make_home: MakeHome) -> None:
    north, south = make_home("north"), make_home("south")
    meet(north, south)
    line = [north.me]
    for _ in range(3):
        north = replace(north, None).home
        line.append(north.me)
    settle(north, south)
    assert [peer.key for peer in south.store.peers()] == [line[-1]]
    assert south.trusted == {south.me, *line}
    assert north.keystore.former_keys == tuple(reversed(line[:-1]))
    assert len(keys.show(north)["former"]) == 3


def test_an_endless_line_of_successors_ends_where_it_is_cut(make_home: MakeHome) -> None:
    south, first = make_home("south"), Identity.generate()
    add_peer(south, first.public_key.text, "north", None, query_only=False)
    line = [first, *(Identity.generate() for _ in range(MAX_LINE + 5))]
    for old, new in itertools.pairwise(line):
        south.store.add(succession(old, new))
    assert south.store.peers() == []
    assert len(south.trusted) == 1 + MAX_LINE


def test_a_node_gets_no_identity_that_peers_do_not_follow(make_home: MakeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("succession", "replacement"):
        monkeypatch.setattr(f"node.{module}.MAX_LINE", 3)
    north, south = make_home("north"), make_home("south")
    meet(north, south)
    for _ in range(2):
        north = replace(north, None).home
    settle(north, south)
    assert [peer.key for peer in south.store.peers()] == [north.me]
    with pytest.raises(UsageError, match="peers follow no further"):
        replace(north, None)
    assert again(north).me == north.me


def test_of_more_incarnations_than_a_record_holds_the_last_ones_count(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.records.MAX_GOOD", 2)
    north = make_home("north")
    used = []
    for _ in range(5):
        north.store.renew_incarnation()
        used.append(north.author.key_card().header.incarnation)
    before = north.me
    north = replace(north, None).home
    assert set(north.store.standing().endings[before].good) == set(used[-2:])


def test_identities_that_name_each_other_in_a_circle_are_nobody(make_home: MakeHome) -> None:
    south, one, two = make_home("south"), Identity.generate(), Identity.generate()
    add_peer(south, one.public_key.text, "north", None, query_only=False)
    south.store.add(succession(one, two))
    assert [peer.key for peer in south.store.peers()] == [two.public_key]
    south.store.add(succession(two, one))
    assert south.store.peers() == []
    assert [one["state"] for one in peers(south, served=False)] == ["replaced"]


# --------------------------------------------------------------------------------------------------- nobody twice


def test_a_summary_under_the_new_key_takes_the_place_of_the_one_under_the_old(
    three: tuple[Home, Home, Home], task_file: Path, rows_file: Path
) -> None:
    north, south, west = three
    (old,) = [held.record.id for held in north.store.held(kind=Kind.SUMMARY, origin=north.me)]
    north = replace(north, None).home
    new = publish_rows(north, task_file, rows_file)
    settle(north, south, west)
    for home in (north, south, west):
        assert len(usable(home)) == 3
        assert new in usable(home)
        assert old not in usable(home)
        assert tasks(home)[0]["stuck"] == [], "nothing waits for anything"
    assert all(one["since"] for one in keys.show(north)["encryption_keys"]), "the old card was published too"
    newest = publish_rows(north, task_file, rows_file)
    settle(north, south, west)
    assert all({new, old}.isdisjoint(usable(home)) and newest in usable(home) for home in (north, south, west))


def test_the_new_identity_takes_back_what_the_old_one_published(three: tuple[Home, Home, Home]) -> None:
    north, south, west = three
    (old,) = [held.record.id for held in north.store.held(kind=Kind.SUMMARY, origin=north.me)]
    north = replace(north, None).home
    taken = withdraw(north, old.hex())
    settle(north, south, west)
    assert taken.id == old
    for home in (north, south, west):
        held = home.store.get(old)
        assert held is not None
        assert held.state is HeldState.BURIED
        assert len(usable(home)) == 2


def test_who_is_no_successor_takes_nothing_back(three: tuple[Home, Home, Home]) -> None:
    north, south, west = three
    theirs = [held.record for held in west.store.held(kind=Kind.SUMMARY) if held.record.header.origin != west.me]
    for record in theirs:
        west.author.withdrawal(record)
    settle(north, south, west)
    assert len(usable(south)) == 3


def test_peers_see_one_budget_that_goes_on_under_the_same_tags(
    three: tuple[Home, Home, Home], task_file: Path, rows_file: Path
) -> None:
    north, south, west = three
    thief = copy_of(north, "copy")
    north = replace(north, None).home
    publish_rows(north, task_file, rows_file)
    settle(north, south, west)
    told = [held.record for held in south.store.held(kind=Kind.HEAD) if held.record.header.origin in north_keys(north)]
    tags = [[one.tag for one in payload.datasets] for record in told if (payload := wire.read_payload(record.header))]  # type: ignore[union-attr]
    assert len(told) == 2
    assert tags[0] == tags[1], "the dataset keeps the name that peers know it by"
    assert told[1].header.supersedes == told[0].id
    assert heads.findings(south) == []
    # Whoever still has the old key and ledger and goes on with them changes nothing for anybody.
    publish_rows(thief, task_file, rows_file)
    carry(thief, south)
    carry(thief, north)
    assert heads.findings(south) == []
    assert not heads.is_behind(again(north))


def north_keys(home: Home) -> set[PublicKey]:
    return {home.me, *home.keystore.former_keys}


# ------------------------------------------------------------------------------------------------ what does not count


def test_what_the_old_key_signs_afterwards_is_carried_and_used_for_nothing(
    three: tuple[Home, Home, Home], task_file: Path, rows_file: Path
) -> None:
    north, south, west = three
    thief = copy_of(north, "copy")
    north = replace(north, None).home
    settle(north, south, west)
    late = publish_rows(thief, task_file, rows_file, "another dataset")
    carry(thief, south)
    assert late not in usable(south)
    held = south.store.get(late)
    assert held is not None
    assert "was replaced" in south.store.unusable(held.record)
    settle(south, west, north)
    assert usable(north) == usable(south) == usable(west)


def test_a_home_whose_identity_was_replaced_elsewhere_spends_nothing_more(
    three: tuple[Home, Home, Home], task_file: Path, rows_file: Path
) -> None:
    north, _, _ = three
    old_copy = copy_of(north, "copy")
    renewed = replace(north, None).home
    carry(renewed, old_copy)
    old_copy = again(old_copy)
    spent = old_copy.ledger().totals()
    with pytest.raises(IdentityEnded, match="newer copy"):
        publish_rows(old_copy, task_file, rows_file)
    assert old_copy.ledger().totals() == spent
    assert old_copy.epochs.grant_missing() == 0
    assert keys.show(old_copy)["ended"] == "replaced"
    assert any("newer copy" in one["reason"] for one in notices(old_copy))
    with pytest.raises(IdentityEnded):
        replace(old_copy, None)


def test_two_successors_of_one_identity_are_none_until_the_operator_says_which(three: tuple[Home, Home, Home]) -> None:
    north, south, west = three
    thief = copy_of(north, "copy")
    north, thief = replace(north, None).home, replace(thief, None).home
    carry(north, south)
    assert north.me in south.epochs.members()
    carry(thief, south)
    assert south.epochs.members() == [west.me]
    (row,) = [one for one in peers(south, served=True) if one["name"] == "north"]
    assert row["state"] == "replaced"
    assert "several" in row["reason"]
    assert any("several keys" in one["reason"] for one in notices(south))
    add_peer(south, north.me.text, "north again", None, query_only=False)
    assert {north.me, west.me} == set(south.epochs.members())
    assert thief.me not in south.trusted


def test_a_successor_that_the_operator_removed_does_not_come_back_by_itself(three: tuple[Home, Home, Home]) -> None:
    north, south, west = three
    before = north.me
    north = replace(north, None).home
    settle(north, south, west)
    assert remove_peer(south, "north") == "north"
    assert south.epochs.members() == [west.me]
    assert {one.key for one in south.store.denied()} == {before, north.me}
    add_peer(south, before.text, "north", None, query_only=False)
    assert south.epochs.members() == [west.me], "the old key is back, and stands for one that was removed"
    add_peer(south, north.me.text, "new north", None, query_only=False)
    assert north.me in south.epochs.members()


def test_who_was_removed_does_not_come_back_through_a_successor_of_its_own(make_home: MakeHome) -> None:
    south, first, second, third = make_home("south"), *(Identity.generate() for _ in range(3))
    add_peer(south, first.public_key.text, "north", None, query_only=False)
    south.store.add(succession(first, second))
    remove_peer(south, "north")
    add_peer(south, first.public_key.text, "north", None, query_only=False)
    south.store.add(succession(second, third))
    assert south.store.peers() == []
    south.store.allow(second.public_key)
    assert [peer.key for peer in south.store.peers()] == [third.public_key]


def test_an_old_key_that_is_added_again_keeps_the_name_and_the_addresses_of_its_line(make_home: MakeHome) -> None:
    north, south = make_home("north"), make_home("south")
    meet(north, south)
    before = north.me
    north = replace(north, None).home
    settle(north, south)
    add_peer(south, before.text, None, "10.0.0.1:7410", query_only=False)
    (peer,) = south.store.peers()
    assert (peer.key, peer.name, peer.addresses) == (north.me, "north", ("10.0.0.1:7410",))
    add_peer(south, before.text, None, query_only=False)
    assert south.store.peers()[0].addresses == ("10.0.0.1:7410",)


def test_what_a_hundred_successions_say_is_nothing(make_home: MakeHome) -> None:
    """Nobody keeps more, and whoever keeps others must come to the same."""
    south, old = make_home("south"), Identity.generate()
    add_peer(south, old.public_key.text, "north", None, query_only=False)
    heir = Identity.generate()
    for number in range(1, MAX_LAST_WORDS + 1):
        assert [peer.key for peer in south.store.peers()] == [old.public_key if number == 1 else heir.public_key]
        payload = Succession(heir.public_key, consent(heir, old.public_key), ((b"incarnat", 8),))
        south.store.add(
            wire.author(
                old,
                Header(Kind.SUCCESSION, old.public_key, b"incarnat", number, 1, payload=wire.write_payload(payload)),
            )
        )
    assert south.store.peers() == []
    ending = south.store.standing().endings[old.public_key]
    assert (ending.successor, ending.good) == (None, {})


def test_a_successor_that_the_operator_adds_by_hand_is_his_from_then_on(three: tuple[Home, Home, Home]) -> None:
    north, south, west = three
    before = north.me
    north = replace(north, None).home
    settle(north, south, west)
    add_peer(south, north.me.text, None, "10.0.0.9:1", query_only=False)
    (peer,) = [one for one in south.store.peers() if one.key == north.me]
    assert (peer.name, peer.replaces, peer.addresses) == ("north", None, ("10.0.0.9:1",))
    assert before in south.trusted
    assert len(usable(south)) == 3


# ------------------------------------------------------------------------------------------------- records of that kind

OLD, NEW, OTHER = (Identity.from_seed(bytes([number]) * 32) for number in range(1, 4))


def header_of(kind: Kind, payload: Succession | Revocation, **changes: object) -> Header:
    fields = {"incarnation": b"incarnat" if kind is Kind.SUCCESSION else bytes(8), "sequence": 9, **changes}
    return Header(kind, OLD.public_key, created_unix_ms=1, payload=wire.write_payload(payload), **fields)  # type: ignore[arg-type]


def succession(old: Identity, new: Identity) -> Record:
    payload = Succession(new.public_key, consent(new, old.public_key), ((b"incarnat", 8),))
    header = Header(Kind.SUCCESSION, old.public_key, b"incarnat", 9, 1, payload=wire.write_payload(payload))
    return wire.author(old, header)


def test_a_succession_is_signed_by_both_sides() -> None:
    record = succession(OLD, NEW)
    read = wire.read_payload(wire.read_record(record.header_bytes, record.signature).header)
    assert read == Succession(NEW.public_key, consent(NEW, OLD.public_key), ((b"incarnat", 8),))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (Succession(NEW.public_key, consent(OTHER, OLD.public_key), ()), "has not signed"),
        (Succession(NEW.public_key, consent(NEW, OTHER.public_key), ()), "has not signed"),
        (Succession(NEW.public_key, bytes(64), ()), "has not signed"),
        (Succession(NEW.public_key, b"", ()), "has not signed"),
        (Succession(OLD.public_key, consent(OLD, OLD.public_key), ()), "of itself"),
        (Succession(NEW.public_key, consent(NEW, OLD.public_key), ((b"short", 1),)), "8 bytes"),
        (Succession(NEW.public_key, consent(NEW, OLD.public_key), ((bytes(8), 1),)), "not all zero"),
        (Succession(NEW.public_key, consent(NEW, OLD.public_key), ((b"bbbbbbbb", 1), (b"aaaaaaaa", 1))), "ascending"),
        (Succession(NEW.public_key, consent(NEW, OLD.public_key), ((b"aaaaaaaa", 1), (b"aaaaaaaa", 2))), "ascending"),
        (Succession(NEW.public_key, consent(NEW, OLD.public_key), ((b"aaaaaaaa", 0),)), "last sequence"),
        (Succession(NEW.public_key, consent(NEW, OLD.public_key), ((b"aaaaaaaa", 2**63),)), "last sequence"),
        (
            Succession(
                NEW.public_key,
                consent(NEW, OLD.public_key),
                tuple((number.to_bytes(8, "big"), 1) for number in range(1, 258)),
            ),
            "at most 256",
        ),
    ],
)
def test_a_succession_that_breaks_a_rule_is_refused(payload: Succession, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        wire.author(OLD, header_of(Kind.SUCCESSION, payload))


def test_nobody_signs_the_succession_of_another() -> None:
    header = header_of(Kind.SUCCESSION, Succession(NEW.public_key, consent(NEW, OLD.public_key), ()))
    header_bytes = wire.write_header(header)
    signature = sign_record(NEW, statement_of(header, record_id(header_bytes)))
    with pytest.raises(RecordError, match="signature"):
        wire.read_record(header_bytes, signature)


def test_a_succession_whose_number_is_signed_twice_ends_the_identity_and_names_nobody(make_home: MakeHome) -> None:
    """Some have met the one record and some the other: all must come to the same."""
    records = [succession(OLD, NEW), succession(OLD, OTHER)]
    outcomes = []
    for name, order in (("one", records), ("two", records[::-1])):
        home = make_home(name)
        add_peer(home, OLD.public_key.text, "north", None, query_only=False)
        home.store.add(order[0])
        assert len(home.store.peers()) == 1
        home.store.add_conflict(order[1])
        outcomes.append(
            (home.store.peers(), home.trusted - {home.me}, home.store.standing().endings[OLD.public_key].good)
        )
    assert outcomes == [([], {OLD.public_key}, {})] * 2


def test_evidence_is_never_of_revocations_whose_numbers_are_drawn() -> None:
    """Else whoever has the stolen key could sign two records with the number of the REVOKE, and void it."""
    claims = tuple(
        Claim(Kind.REVOKE, one, b"", sign_record(OLD, Statement("revoke", bytes(8), 7, b"", one)))
        for one in (bytes(32), b"\1" * 32)
    )
    payload = wire.write_payload(Evidence(OLD.public_key, bytes(8), 7, claims))
    header = Header(Kind.EVIDENCE, NEW.public_key, b"incarnat", 1, 1, payload=payload)
    with pytest.raises(RecordError, match="are drawn"):
        wire.author(NEW, header)


# ----------------------------------------------------------------------------------------------- any order of arrival


class Affair:
    """A robbed partner, what it and the thief have signed, and a peer to whom all of it comes in some order."""

    def __init__(self, peer: Home, records: list[Record], bodies: dict[bytes, bytes], sorts: dict[str, set[bytes]]):
        self.peer, self.records, self.bodies, self.sorts = peer, records, bodies, sorts


def outcome(affair: Affair, order: list[Record], path: Path) -> tuple[object, ...]:
    """Members, origins and what may be used when the records came in this order."""
    shutil.rmtree(path, ignore_errors=True)
    home = Home.open(Path(shutil.copytree(affair.peer.path, path)))
    try:
        for record in order:
            home.store.add(record, affair.bodies.get(record.id))
        usable_ids = {record.id for record in order if record.header.body_bytes and not home.store.unusable(record)}
        names = {home.peers.name_of(record.header.origin) for record in order}
        return home.epochs.members(), home.trusted, usable_ids & summaries(order), names
    finally:
        home.store.close()


def summaries(records: list[Record]) -> set[bytes]:
    return {record.id for record in records if record.header.kind is Kind.SUMMARY}


@pytest.fixture(scope="module")
def affair(tmp_path_factory: pytest.TempPathFactory) -> Affair:
    """A thief with north's key named himself its successor and published; north revoked the key, twice."""
    from conftest import ROWS_CSV, TASK_TOML

    from node.replacement import last_good, revoke

    base = tmp_path_factory.mktemp("affair")
    task_file, rows_file = base / "task.toml", base / "rows.csv"
    task_file.write_text(TASK_TOML)
    rows_file.write_text(ROWS_CSV)
    recovery = RecoveryKey.generate()
    north = Home.init(base / "north", "north", None, recovery_hash=recovery.hash)
    peer = Home.init(base / "peer", "peer", None)
    add_peer(peer, north.me.text, "north", "10.0.0.1:1", query_only=False)
    peer.store.close()
    publish_rows(north, task_file, rows_file, "good")
    thief = copy_of(north, "thief")
    good = last_good(north, north.me)
    publish_rows(north, task_file, rows_file, "not counted any more")
    more = last_good(north, north.me)
    robbed = north.me
    early = revoke(north, robbed, recovery, good, takes_over=False)
    thief = replace(thief, None).home
    publish_rows(thief, task_file, rows_file, "by the thief")
    north = revoke(north, robbed, recovery, more, takes_over=True).home
    publish_rows(north, task_file, rows_file, "good")
    north, late = again(north), publish_rows(north, task_file, rows_file, "new")
    sorts = {"early": {early.record.id}, "late": {late}}
    held = {held.record.id: (held, home) for home in (thief, north) for held in home.store.held()}
    bodies = {
        one: home.store.body(one)
        for one, (held, home) in held.items()
        if held.record.header.body_bytes and held.state is HeldState.COMPLETE
    }
    return Affair(Home.open(peer.path), [held.record for held, _ in held.values()], bodies, sorts)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_order_of_arrival_leads_to_the_same_members_and_the_same_usable_set(
    affair: Affair, tmp_path: Path, data: st.DataObject
) -> None:
    expected = outcome(affair, affair.records, tmp_path / "expected")
    order = data.draw(st.permutations(affair.records))
    assert outcome(affair, order, tmp_path / "other") == expected
    # And at any moment: what has come so far leads to the same, however it came.
    count = data.draw(st.integers(0, len(order)))
    part = order[:count]
    assert outcome(affair, part, tmp_path / "one") == outcome(affair, part[::-1], tmp_path / "two")


def test_in_that_affair_the_revocation_has_the_last_word(affair: Affair, tmp_path: Path) -> None:
    members, _, used, names = outcome(affair, affair.records, tmp_path / "home")
    last = [record for record in affair.records if record.header.kind is Kind.REVOKE]
    named = {
        payload.successor for record in last if isinstance(payload := wire.read_payload(record.header), Revocation)
    }
    assert members == [next(key for key in named if key is not None)]
    assert len(used) == 2  # type: ignore[arg-type]
    assert affair.sorts["late"] <= used  # type: ignore[operator]
    assert "north (revoked key)" in names  # type: ignore[operator]


# ---------------------------------------------------------------------------------------------------------- crashes

STEPS: tuple[tuple[str, int, str], ...] = (
    ("node.local_tables:LocalTables.set_recovery_hash", 1, "before"),
    ("node.local_tables:LocalTables.set_recovery_hash", 1, "after"),
    ("crypto.keystore:Keyring.succeed", 1, "before"),
    ("crypto.private_files:replace", 1, "before"),
    ("crypto.private_files:replace", 1, "after"),
    ("crypto.keystore:Keyring.succeed", 1, "after"),
    ("node.author:Author.finish_succession", 1, "before"),
    ("node.store:Store.reserve_sequence", 1, "after"),
    ("node.wire:author", 1, "after"),
    ("node.store:Store.add", 1, "before"),
    ("node.store:Store.add", 1, "after"),
    ("node.author:Author.finish_succession", 1, "after"),
    ("node.author:Author.key_card", 1, "before"),
    ("node.author:Author.key_card", 1, "after"),
    ("node.author:Author.grant", 1, "after"),
    ("node.epochs:EpochKeys.grant_missing", 1, "after"),
)


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as running:
        yield running


@pytest.mark.parametrize("step", STEPS, ids=[f"{target.partition(':')[2]} {when}" for target, _, when in STEPS])
def test_a_replacement_killed_at_any_step_is_undone_or_finished(
    step: tuple[str, int, str], killer: Killer, tmp_path: Path
) -> None:
    recovery = RecoveryKey.generate()
    home = Home.init(tmp_path / "north", "north", None, recovery_hash=recovery.hash)
    south = Home.init(tmp_path / "south", "south", None)
    meet(home, south)
    before = home.me
    home.store.close()
    assert killer.run(step, ["--home", str(home.path), "keys", "replace"]).killed, step
    opened = again(home)
    is_done = opened.me != before
    assert opened.keystore.former_keys == ((before,) if is_done else ())
    opened.epochs.grant_missing()  # what `serve` and most commands do first
    settle(opened, south)
    assert [peer.key for peer in south.store.peers()] == [opened.me]
    assert len(opened.store.held(kind=Kind.SUCCESSION)) == int(is_done)
    assert south.store.recovery_hashes(opened.me) == [recovery.hash]
    assert can_read_of_each_other(opened, south)
    if not is_done:
        assert killer.run(None, ["--home", str(home.path), "keys", "replace"]).exit_code == 0
        finished = again(home)
        settle(finished, south)
        assert [peer.key for peer in south.store.peers()] == [finished.me] != [before]


def test_a_replacement_killed_and_typed_again_leaves_no_identity_behind(killer: Killer, tmp_path: Path) -> None:
    """Whoever saw "Killed" types it again, before anything has said the last word of the first identity."""
    north, south = Home.init(tmp_path / "north", "north", None), Home.init(tmp_path / "south", "south", None)
    meet(north, south)
    words = ["--home", str(north.path), "keys", "replace"]
    assert killer.run(("crypto.keystore:Keyring.succeed", 1, "after"), words).killed
    assert killer.run(None, words).exit_code == 0
    north = again(north)
    assert len(north.keystore.former_keys) == 2
    settle(north, south)
    assert [peer.key for peer in south.store.peers()] == [north.me]


@pytest.mark.parametrize(
    "step",
    [
        ("crypto.private_files:replace", 1, "before"),
        ("crypto.keystore:Keyring.succeed", 1, "after"),
        ("node.wire:author", 1, "after"),
        ("node.store:Store.add", 1, "after"),
        ("node.author:Author.key_card", 1, "before"),
        ("node.author:Author.key_card", 1, "after"),
        ("node.author:Author.grant", 1, "after"),
    ],
    ids=lambda step: f"{step[0].partition(':')[2]} {step[2]}",
)
def test_a_revocation_killed_at_any_step_and_typed_again_revokes_what_was_stolen(
    step: tuple[str, int, str], killer: Killer, tmp_path: Path
) -> None:
    recovery = RecoveryKey.generate()
    north = Home.init(tmp_path / "north", "north", None, recovery_hash=recovery.hash)
    south = Home.init(tmp_path / "south", "south", None)
    meet(north, south)
    stolen, paper = north.me, tmp_path / "paper"
    paper.write_text(recovery.text)
    paper.chmod(0o600)
    words = ["--home", str(north.path), "keys", "revoke", "--recovery-key-file", str(paper)]
    assert killer.run(step, words).killed
    assert killer.run(None, words).exit_code in (0, 2), "2: it is revoked already"
    north = again(north)
    north.epochs.grant_missing()
    settle(north, south)
    assert south.store.standing().endings[stolen].is_revoked
    assert [peer.key for peer in south.store.peers()] == [north.me]
    assert south.store.recovery_hashes(north.me) == [recovery.hash]
    assert can_read_of_each_other(north, south)


def test_a_command_that_was_opened_before_a_replacement_does_not_bring_the_old_keystore_back(
    make_home: MakeHome,
) -> None:
    """`keys passphrase` waits for a person, `serve` and `keys rotate` for a lock; meanwhile peers were told."""
    home = make_home("north")
    waiting = again(home)
    waiting.keystore.open()
    renewed = replace(home, None).home
    for late in (
        lambda: keys.set_passphrase(waiting, None),
        lambda: keys.rotate(waiting, encryption=True),
        lambda: waiting.keystore.succeed(Identity.generate()),
        lambda: waiting.serving().__enter__(),
    ):
        with pytest.raises(KeystoreError, match="another identity"):
            late()
    assert again(home).me == renewed.me
    assert len(again(home).keystore.encryption_keys) == 2


def can_read_of_each_other(one: Home, other: Home) -> bool:
    grants = {member for home in (one, other) for member, _ in home.epochs.granted()}
    return grants >= {one.me, other.me}


def test_a_running_node_is_not_replaced_under_its_feet(make_home: MakeHome) -> None:
    from node.errors import HomeError

    home = make_home("north")
    with again(home).serving(), pytest.raises(HomeError, match="already serving"):
        replace(home, None)
    assert again(home).me == home.me


# ------------------------------------------------------------------------------------------------------ the keystore


@pytest.mark.parametrize("secret", [None, "five words drawn by chance"])
def test_a_keystore_keeps_the_identities_it_had(tmp_path: Path, secret: str | None) -> None:
    path = tmp_path / "keystore.json"
    first = Keystore.generate()
    first.write_new(path)
    ring = Keyring(path)
    if secret is not None:
        ring.set_passphrase(secret, LEAST)
    successors = [Identity.generate() for _ in range(3)]
    for one in successors:
        ring.succeed(one)
    expected = (successors[1].public_key, successors[0].public_key, first.public_key)
    reopened = Keyring(path, lambda _: str(secret))
    assert reopened.former_keys == expected, "known without the passphrase"
    assert reopened.public_key == ring.public_key == successors[2].public_key
    opened = reopened.open()
    assert [one.seed for one in opened.former] == [successors[1].seed, successors[0].seed, first.identity.seed]
    assert len(opened.encryption_keys) == 4
    assert opened.encryption_keys[-1].public == first.encryption_keys[0].public
    assert Keystore.from_bytes(opened.to_bytes()).to_bytes() == opened.to_bytes()
    reopened.add_encryption_key()
    assert Keyring(path, lambda _: str(secret)).former_keys == expected


def test_former_identities_in_a_sealed_keystore_cannot_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "keystore.json"
    Keystore.generate().write_new(path)
    ring = Keyring(path)
    ring.set_passphrase("five words drawn by chance", LEAST)
    ring.succeed(Identity.generate())
    fields = json.loads(path.read_text())
    assert fields["version"] == 4
    for former in ([OTHER.public_key.text], [], fields["former_identities"] * 2, None, [1]):
        path.write_text(json.dumps(fields | {"former_identities": former}))
        with pytest.raises(KeystoreError, match="damaged"):
            Keyring(path)
    path.write_text(json.dumps({key: value for key, value in fields.items() if key != "former_identities"}))
    with pytest.raises(KeystoreError, match="damaged"):
        Keyring(path)


def test_a_name_with_two_keys_is_not_revoked_by_name(three: tuple[Home, Home, Home]) -> None:
    from node.replacement import identity_meant

    north, south, west = three
    before = north.me
    north = replace(north, None).home
    settle(north, south, west)
    with pytest.raises(UsageError, match="two keys"):
        identity_meant(south, "north")
    assert identity_meant(south, before.text) == before
    assert identity_meant(south, north.me.text) == north.me
    assert identity_meant(south, None) == south.me
