"""Members who come and go by other words than the operator's: he has the last one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from crypto.keys import Identity, PublicKey
from node.home import Home
from node.local_tables import Peer
from node.membership import add_peer, change_members, remove_peer
from node.records import Kind

MakeHome = Callable[..., Home]
ONE, TWO, THREE = (Identity.from_seed(bytes([number]) * 32).public_key for number in range(1, 4))


def listed(key: PublicKey, name: str) -> Peer:
    return Peer(key, name, ("10.0.0.7:7410",), query_only=False, added_at=1.0, via="roster")


@pytest.fixture
def home(make_home: MakeHome) -> Home:
    return make_home("origin")


def names(home: Home) -> dict[str, str]:
    return {peer.name: peer.via for peer in home.store.peers()}


def test_members_join_and_leave_and_each_change_begins_an_epoch_where_it_must(home: Home, make_home: MakeHome) -> None:
    member = make_home("member")
    home.store.add(member.store.held(kind=Kind.KEY_CARD)[0].record)
    assert [peer.name for peer in change_members(home, [listed(member.me, "member")], []).added] == ["member"]
    assert home.epochs.live().number == 1
    assert change_members(home, [listed(member.me, "member")], []).added == ()
    assert [peer.name for peer in change_members(home, [], [member.me, ONE]).removed] == ["member"]
    assert home.epochs.live().number == 2
    assert change_members(home, [], [member.me]).removed == ()


def test_whom_the_operator_removed_stays_out_until_he_adds_it_again(home: Home) -> None:
    change_members(home, [listed(ONE, "one"), listed(TWO, "two")], [])
    remove_peer(home, "one")
    changed = change_members(home, [listed(ONE, "one"), listed(THREE, "three")], [])
    assert changed.kept_out == (ONE,)
    assert names(home) == {"two": "roster", "three": "roster"}
    add_peer(home, ONE.text, "one", None, query_only=False)
    assert home.store.denied() == []
    assert names(home)["one"] == "operator"


def test_whom_the_operator_added_is_left_as_he_added_it(home: Home) -> None:
    add_peer(home, ONE.text, "mine", None, query_only=True)
    changed = change_members(home, [listed(ONE, "one")], [ONE])
    assert (changed.added, changed.removed) == ((), ())
    (peer,) = home.store.peers()
    assert (peer.name, peer.query_only, peer.addresses) == ("mine", True, ())


def test_a_taken_name_and_the_node_itself_are_no_trouble(home: Home) -> None:
    add_peer(home, ONE.text, "North", None, query_only=False)
    change_members(home, [listed(TWO, "north"), listed(home.me, "me"), listed(THREE, "origin")], [])
    assert names(home) == {"North": "operator", f"north {TWO.short}": "roster", f"origin {THREE.short}": "roster"}
    assert len(f"{'n' * 64}") == 64
    long = change_members(home, [], [TWO]), change_members(home, [listed(TWO, "n" * 64), listed(TWO, "again")], [])
    assert [len(peer.name) for peer in long[1].added] == [64]
