"""Members come and go: who can read what, with records carried between homes by hand, as gossip would carry them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from couriers import can_read, publish_rows

from node.epochs import AGAIN_A_DAY, DAY_S
from node.errors import NotReadable, StoreError, UsageError
from node.home import Home
from node.membership import add_peer, remove_peer
from node.records import HeldState, Kind, Record
from node.wire import read_record

MakeHome = Callable[..., Home]


def befriend(*homes: Home) -> None:
    """Every home adds every other one."""
    for one in homes:
        for other in homes:
            if one is not other:
                add_peer(one, other.me.text, other.settings.name, None, query_only=False)


def carry(source: Home, target: Home) -> None:
    """Bring every record of `source` to `target`, checked as on arrival, and let `target` grant what it can."""
    for held in source.store.held():
        record = read_record(held.record.header_bytes, held.record.signature)
        if held.state is HeldState.COMPLETE:
            target.store.add(record, source.store.body(record.id) if record.header.body_bytes else None)
        else:
            target.store.add_record(record)
    target.epochs.grant_missing()


def test_a_member_added_after_a_publish_reads_it_with_nobodys_help_beyond_its_grant(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    origin, late = make_home("origin"), make_home("late")
    published = publish_rows(origin, task_file, rows_file)
    carry(origin, late)
    assert not can_read(late, published)
    befriend(origin, late)
    carry(late, origin)
    carry(origin, late)
    assert can_read(late, published)


def test_a_removed_member_cannot_read_what_comes_next_and_the_others_can(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    origin, removed, stays = make_home("origin"), make_home("removed"), make_home("stays")
    befriend(origin, removed, stays)
    for member in (removed, stays):
        carry(member, origin)
    before = publish_rows(origin, task_file, rows_file, dataset="first")
    remove_peer(origin, "removed")
    after = publish_rows(origin, task_file, rows_file, dataset="second")
    for member in (removed, stays):
        carry(origin, member)
    assert can_read(removed, before)
    assert not can_read(removed, after)
    assert can_read(stays, before)
    assert can_read(stays, after)


def test_a_node_that_was_never_added_cannot_read_a_record_file_copied_to_it(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    origin, member, stranger = make_home("origin"), make_home("member"), make_home("stranger")
    befriend(origin, member)
    carry(member, origin)
    published = publish_rows(origin, task_file, rows_file)
    carry(origin, stranger)
    held = stranger.store.get(published)
    assert held is not None
    assert held.state is HeldState.COMPLETE
    with pytest.raises(NotReadable, match="waiting for the key grant"):
        stranger.epochs.open(held)


def test_granting_twice_grants_once(make_home: MakeHome) -> None:
    origin, member = make_home("origin"), make_home("member")
    befriend(origin, member)
    carry(member, origin)
    grants = len(origin.store.held(kind=Kind.KEY_GRANT))
    assert origin.epochs.grant_missing() == 0
    assert len(origin.store.held(kind=Kind.KEY_GRANT)) == grants


def test_a_member_that_publishes_key_cards_without_end_uses_up_nobodys_quota(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1_000.0
    monkeypatch.setattr("node.epochs.time.monotonic", lambda: now_s)
    origin, member, other = make_home("origin"), make_home("member"), make_home("other")
    befriend(origin, member, other)

    def granted(cards: int) -> int:
        before = len(origin.store.held(kind=Kind.KEY_GRANT))
        for _ in range(cards):
            origin.store.add_record(member.author.key_card())
            origin.epochs.grant_missing()
        return len(origin.store.held(kind=Kind.KEY_GRANT)) - before

    assert granted(3 * AGAIN_A_DAY) == 1 + AGAIN_A_DAY
    carry(other, origin)
    assert (other.me, newest_card(other).id) in origin.epochs.granted()
    now_s += DAY_S / AGAIN_A_DAY
    assert granted(3) == 1
    origin.epochs.rotate()
    assert (member.me, newest_card(member).id) in origin.epochs.granted()


def newest_card(home: Home) -> Record:
    card = home.epochs.key_card(home.me)
    assert card is not None
    return card


def test_removing_and_adding_again_starts_one_new_epoch_only(make_home: MakeHome) -> None:
    origin, member = make_home("origin"), make_home("member")
    befriend(origin, member)
    carry(member, origin)
    assert origin.epochs.live().number == 1
    remove_peer(origin, "member")
    assert origin.epochs.live().number == 2
    add_peer(origin, member.me.text, "member", None, query_only=False)
    assert origin.epochs.live().number == 2


def copy_of(home: Home) -> Home:
    """The home as a backup has it."""
    return Home.open(shutil.copytree(home.path, home.path.with_name(f"copy of {home.path.name}")))


def seal(home: Home) -> bytes:
    """A small shared model; returns the record's id."""
    record = home.author.sealed(Kind.MODEL, bytes(32), b"model", home.epochs.live())
    home.epochs.grant_missing()
    return record.id


def test_a_restored_home_seals_for_nobody_whom_the_lost_one_granted(make_home: MakeHome) -> None:
    origin, stays, lost = make_home("origin"), make_home("stays"), make_home("lost")
    befriend(origin, stays)
    carry(stays, origin)
    restored = copy_of(origin)
    befriend(origin, lost)
    carry(lost, origin)
    carry(origin, lost)
    carry(origin, restored)
    after = seal(restored)
    for member in (lost, stays):
        carry(restored, member)
    assert can_read(stays, after)
    assert not can_read(lost, after)


def test_a_reader_opens_what_two_copies_of_a_home_sealed_under_one_epoch_number(make_home: MakeHome) -> None:
    origin, member = make_home("origin"), make_home("member")
    restored = copy_of(origin)
    restored.store.renew_incarnation()
    for copy in (origin, restored):
        add_peer(copy, member.me.text, "member", None, query_only=False)
        carry(member, copy)
    add_peer(member, origin.me.text, "origin", None, query_only=False)
    sealed = [seal(copy) for copy in (origin, restored)]
    carry(restored, member)
    carry(origin, member)
    headers = [held.record.header for one in sealed if (held := member.store.get(one)) is not None]
    assert [header.epoch for header in headers] == [1, 1]
    assert all(can_read(member, one) for one in sealed)


def test_a_query_only_peer_is_granted_nothing(make_home: MakeHome, task_file: Path, rows_file: Path) -> None:
    origin, asker = make_home("origin"), make_home("asker")
    add_peer(origin, asker.me.text, "asker", None, query_only=True)
    carry(asker, origin)
    published = publish_rows(origin, task_file, rows_file)
    carry(origin, asker)
    assert not can_read(asker, published)


def test_making_a_member_query_only_starts_a_new_epoch(make_home: MakeHome) -> None:
    origin, member = make_home("origin"), make_home("member")
    befriend(origin, member)
    carry(member, origin)
    add_peer(origin, member.me.text, None, None, query_only=True)
    assert origin.epochs.live().number == 2


def test_a_second_summary_of_a_dataset_replaces_the_first_everywhere(
    make_home: MakeHome, task_file: Path, rows_file: Path
) -> None:
    origin, member = make_home("origin"), make_home("member")
    befriend(origin, member)
    carry(member, origin)
    first = publish_rows(origin, task_file, rows_file)
    carry(origin, member)
    assert can_read(member, first)
    second = publish_rows(origin, task_file, rows_file)
    carry(origin, member)
    for home in (origin, member):
        held = home.store.get(first)
        assert held is not None
        assert held.state is HeldState.BURIED
        assert held.buried_by == second
        assert can_read(home, second)


@pytest.mark.parametrize(
    ("key", "name", "error"),
    [
        ("", None, UsageError),
        ("tidings1qqqq", None, UsageError),
        ("alpha", None, UsageError),
    ],
)
def test_what_is_no_key_is_no_peer(make_home: MakeHome, key: str, name: str | None, error: type[Exception]) -> None:
    home = make_home("origin")
    with pytest.raises(error):
        add_peer(home, key, name, None, query_only=False)
    assert home.store.peers() == []


def test_a_key_with_one_mistyped_letter_is_no_peer(make_home: MakeHome) -> None:
    home, other = make_home("origin"), make_home("other")
    text = other.me.text
    mistyped = text[:20] + ("b" if text[20] != "b" else "c") + text[21:]
    with pytest.raises(UsageError, match="mistyped"):
        add_peer(home, mistyped, "other", None, query_only=False)
    assert home.store.peers() == []


def test_a_node_is_not_its_own_peer(make_home: MakeHome) -> None:
    home = make_home("origin")
    with pytest.raises(UsageError, match="this node itself"):
        add_peer(home, home.me.text, "twin", None, query_only=False)


def test_two_peers_cannot_share_a_name(make_home: MakeHome) -> None:
    home, one, two = make_home("origin"), make_home("one"), make_home("two")
    add_peer(home, one.me.text, "partner", None, query_only=False)
    with pytest.raises(StoreError, match="another peer named"):
        add_peer(home, two.me.text, "partner", None, query_only=False)
    assert [peer.key for peer in home.store.peers()] == [one.me]
