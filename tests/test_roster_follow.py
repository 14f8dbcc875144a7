"""Following a roster: what a home does about the versions that reach it, and who passes them on."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from couriers import can_read, carry
from couriers import gossip as carry_everything

from crypto.recovery import RecoveryKey
from node.doctor import state as doctor
from node.doctor.findings import Level
from node.errors import RosterError, StoreError, UsageError
from node.home import Home
from node.membership import add_peer, remove_peer
from node.records import Kind
from node.replacement import replace as replace_identity
from node.replacement import revoke
from node.roster import Roster, RosterMember, SignedRoster, in_order, unsigned
from node.roster_follow import (
    COPIES,
    TURN_S,
    Seen,
    allow,
    catch_up,
    choose,
    deny,
    follow,
    publish,
    roll,
    unfollow,
    version,
    wanting,
)
from node.roster_propose import Changes, check_signing, create, look_at, propose, sign, united
from node.roster_sources import disputed, named_key, versions_of
from node.roster_status import notices, status
from node.roster_watch import RosterWatch
from node.roster_wire import hash_in, read_kept, write_document, write_file

MakeHome = Callable[..., Home]


@dataclass
class Coalition:
    """Homes by name, and what their operators do with rosters."""

    homes: dict[str, Home]
    folder: Path

    def __getitem__(self, name: str) -> Home:
        return self.homes[name]

    def named(self, names: str) -> list[Home]:
        return [self.homes[name] for name in names.split()]

    def first(self, members: str, *, admins: str = "", threshold: int = 1) -> list[SignedRoster]:
        """Version 1, signed by all its administrators."""
        administrators = self.named(admins or members.split()[0])
        listed = tuple(RosterMember(home.me, home.settings.name) for home in self.named(members))
        keys = tuple(home.me for home in administrators)
        roster = in_order(Roster(1, "heart", keys, threshold, listed))
        return [self.signed(roster, administrators)]

    def after(self, chain: list[SignedRoster], members: str, signers: str, **fields: Any) -> list[SignedRoster]:
        """The chain and a version more, with these members."""
        before = chain[-1]
        listed = tuple(RosterMember(home.me, home.settings.name) for home in self.named(members))
        number = before.roster.version + 1
        roster = replace(
            before.roster, version=number, coalition=before.coalition, previous=before.hash, members=listed, **fields
        )
        return [*chain, self.signed(in_order(roster), self.named(signers))]

    def signed(self, roster: Roster, signers: Iterable[Home]) -> SignedRoster:
        version = unsigned(roster, write_document(roster))
        for home in signers:
            version = version.signed_by(home.keystore.identity)
        return version

    def follow(self, chain: Sequence[SignedRoster], names: str) -> None:
        for home in self.named(names):
            follow(home, list(chain), adopt=False)


@pytest.fixture
def coalition(make_home: MakeHome, tmp_path: Path) -> Callable[[str], Coalition]:
    def make(names: str) -> Coalition:
        return Coalition({name: make_home(name) for name in names.split()}, tmp_path)

    return make


def peers(home: Home) -> dict[str, str]:
    """The peers by name, and by whose word each is one."""
    return {peer.name: peer.via for peer in home.store.peers()}


def link(one: Home, other: Home) -> None:
    """What a link brings: each has what the other has of origins that both trust. Only members of both are linked."""
    if one.me not in other.trusted or other.me not in one.trusted:
        return
    both = one.trusted & other.trusted
    for source, target in ((one, other), (other, one)):
        carry(source, target, lambda record: record.header.origin in both)


def settle(homes: Sequence[Home], rounds: int = 32) -> None:
    """The daemons of these homes run, linked with each other, until nothing moves. News takes a fraction of a turn, as
    on every network: where it took a whole one, those whose turn comes next would not hear of each other in time."""
    watches = [RosterWatch(home) for home in homes]
    for step in range(rounds):
        before = sum(len(home.store.held()) for home in homes)
        for watch in watches:
            watch.look_again()
            watch.tend(step * TURN_S / 4)
        for home in homes:
            home.epochs.grant_missing()
        for one in homes:
            for other in homes:
                link(one, other)
        if sum(len(home.store.held()) for home in homes) == before and not any(map(wanting, homes)):
            return


def version_of(home: Home) -> int:
    held = roll(home)
    assert held is not None
    return held.in_force.roster.version


# -------------------------------------------------------------------------------------------------- members come and go


def test_members_of_the_roster_come_in_and_go_by_themselves(coalition: Callable[[str], Coalition]) -> None:
    homes = coalition("ann bea cid")
    one = homes.first("ann bea")
    two = homes.after(one, "ann bea cid", "ann")
    three = homes.after(two, "ann cid", "ann")
    homes.follow(one, "ann bea")
    assert peers(homes["ann"]) == {"bea": "roster version 1"}
    follow(homes["ann"], two, adopt=False)
    assert peers(homes["ann"]) == {"bea": "roster version 1", "cid": "roster version 2"}
    carry_everything(homes["bea"], homes["ann"])
    assert homes["ann"].epochs.live().number == 1
    sealed = homes["ann"].author.sealed(Kind.MODEL, bytes(32), b"model", homes["ann"].epochs.live())
    homes["ann"].epochs.grant_missing()
    follow(homes["ann"], three, adopt=False)
    assert peers(homes["ann"]) == {"cid": "roster version 2"}
    assert homes["ann"].epochs.live().number == 2, "who left reads nothing that is sealed from now on"
    after = homes["ann"].author.sealed(Kind.MODEL, bytes(32), b"model", homes["ann"].epochs.live())
    carry_everything(homes["ann"], homes["bea"])
    assert can_read(homes["bea"], sealed.id)
    assert not can_read(homes["bea"], after.id)


def test_names_addresses_and_rights_follow_and_two_may_change_names(coalition: Callable[[str], Coalition]) -> None:
    homes = coalition("ann bea cid")
    chain = homes.first("ann bea cid")
    homes.follow(chain, "ann")
    swapped = {"bea": "cid", "cid": "bea", "ann": "ann"}
    listed = tuple(
        replace(one, name=swapped[one.name], addresses=("10.0.0.9:7410",), query_only=one.name == "bea")
        for one in chain[0].roster.members
    )
    two = homes.after(chain, "ann", "ann")[1].roster
    follow(homes["ann"], [*chain, homes.signed(in_order(replace(two, members=listed)), [homes["ann"]])], adopt=False)
    found = {peer.key: peer for peer in homes["ann"].store.peers()}
    assert found[homes["bea"].me].name == "cid"
    assert found[homes["bea"].me].query_only
    assert found[homes["cid"].me].name == "bea"
    assert found[homes["cid"].me].addresses == ("10.0.0.9:7410",)


def test_looking_again_changes_nothing(coalition: Callable[[str], Coalition]) -> None:
    homes = coalition("ann bea")
    homes.follow(homes.first("ann bea"), "ann")
    writes = homes["ann"].store._db.total_changes
    assert catch_up(homes["ann"]) == (None, {})
    assert homes["ann"].store._db.total_changes == writes


def test_nothing_comes_between_what_a_node_reads_and_what_it_does(
    coalition: Callable[[str], Coalition], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a daemon brings in, and grants, whom a command has just removed with a newer version."""
    homes = coalition("ann bea cid")
    chain = homes.first("ann bea")
    homes.follow(chain, "ann")
    command = Home.open(homes["ann"].path)
    command.store._db.execute("PRAGMA busy_timeout = 10")
    tried: list[str] = []

    def roll_and_be_disturbed(home: Home) -> Any:
        held = roll(home)
        with pytest.raises(StoreError, match="in use by another process") as refused:
            command.store.unfollow_roster()
        tried.append(str(refused.value))
        return held

    two = homes.after(chain, "ann cid", "ann")
    homes["ann"].author.roster(two[1])
    with monkeypatch.context() as patched:
        patched.setattr("node.roster_follow.roll", roll_and_be_disturbed)
        catch_up(homes["ann"])
    assert len(tried) == 2, "when the version was taken, and when it was acted on"
    assert set(peers(homes["ann"])) == {"cid"}


def test_whom_the_operator_removed_or_denied_stays_out_until_he_says_otherwise(
    coalition: Callable[[str], Coalition],
) -> None:
    homes = coalition("ann bea cid dan")
    chain = homes.first("ann bea cid")
    homes.follow(chain, "ann")
    remove_peer(homes["ann"], "bea")
    deny(homes["ann"], *named_key(homes["ann"], "cid"))
    deny(homes["ann"], homes["dan"].me, "dan")
    two = homes.after(chain, "ann bea cid dan", "ann")
    follow(homes["ann"], two, adopt=False)
    assert peers(homes["ann"]) == {}
    states = {one["name"]: one["state"] for one in status(homes["ann"])["followed"]["members"]}
    assert states == {"ann": "this node", "bea": "denied", "cid": "denied", "dan": "denied"}
    allow(homes["ann"], named_key(homes["ann"], "cid")[0])
    add_peer(homes["ann"], homes["bea"].me.text, "bea", None, query_only=False)
    assert peers(homes["ann"]) == {"bea": "operator", "cid": "roster version 2"}
    with pytest.raises(RosterError, match="is not denied"):
        allow(homes["ann"], homes["cid"].me)


def test_whom_the_operator_added_stays_when_the_roster_drops_it_and_he_is_told(
    coalition: Callable[[str], Coalition],
) -> None:
    homes = coalition("ann bea")
    add_peer(homes["ann"], homes["bea"].me.text, "my own bea", None, query_only=False)
    chain = homes.first("ann bea")
    homes.follow(chain, "ann")
    assert peers(homes["ann"]) == {"my own bea": "operator"}
    assert notices(homes["ann"]) == []
    follow(homes["ann"], homes.after(chain, "ann", "ann"), adopt=False)
    assert peers(homes["ann"]) == {"my own bea": "operator"}
    (told,) = notices(homes["ann"])
    assert "my own bea left the roster and stays" in told


def test_adopted_members_go_with_the_roster(coalition: Callable[[str], Coalition]) -> None:
    homes = coalition("ann bea")
    add_peer(homes["ann"], homes["bea"].me.text, "my own bea", None, query_only=False)
    chain = homes.first("ann bea")
    follow(homes["ann"], chain, adopt=True)
    assert peers(homes["ann"]) == {"bea": "roster version 1"}
    follow(homes["ann"], homes.after(chain, "ann", "ann"), adopt=False)
    assert peers(homes["ann"]) == {}


def test_a_name_that_the_operator_gave_to_another_is_not_taken_away(coalition: Callable[[str], Coalition]) -> None:
    homes = coalition("ann bea cid")
    add_peer(homes["ann"], homes["cid"].me.text, "Bea", None, query_only=False)
    chain = homes.first("ann bea")
    homes.follow(chain, "ann")
    assert set(peers(homes["ann"])) == {"Bea", f"bea {homes['bea'].me.short}"}
    follow(homes["ann"], chain, adopt=False)
    assert set(peers(homes["ann"])) == {"Bea", f"bea {homes['bea'].me.short}"}


@pytest.mark.parametrize(
    ("keep", "left"), [(False, {"cid": "operator"}), (True, {"bea": "operator", "cid": "operator"})]
)
def test_who_leaves_the_roster_loses_whom_it_brought_or_keeps_them(
    coalition: Callable[[str], Coalition], keep: bool, left: dict[str, str]
) -> None:
    homes = coalition("ann bea cid")
    add_peer(homes["ann"], homes["cid"].me.text, "cid", None, query_only=False)
    homes.follow(homes.first("ann bea cid"), "ann")
    unfollow(homes["ann"], keep=keep)
    assert peers(homes["ann"]) == left
    assert status(homes["ann"])["followed"] is None


# --------------------------------------------------------------------------------------------- what is and is not taken


def test_what_is_refused_changes_nothing(coalition: Callable[[str], Coalition]) -> None:
    homes = coalition("ann bea cid")
    one = homes.first("ann bea", admins="ann bea", threshold=2)
    two = homes.after(one, "ann", "ann bea")
    three = homes.after(two, "ann cid", "ann bea")
    lacking = [homes.signed(one[0].roster, [homes["ann"]])]
    with pytest.raises(RosterError, match="lacks 1 of the 2"):
        follow(homes["cid"], lacking, adopt=False)
    assert homes["cid"].store.followed_roster() is None
    homes.follow(two, "cid")
    before = peers(homes["cid"])
    for versions, reason in (
        (one, "older than version 2"),
        ([homes.after(two, "cid", "ann")[-1]], "lacks 1 of the 2"),
        ([homes.after(three, "cid", "ann bea")[-1]], "Version 4 has come, and 3 to 3 have not"),
        (homes.first("ann cid", admins="cid"), "another coalition"),
    ):
        with pytest.raises(RosterError, match=reason):
            follow(homes["cid"], versions, adopt=False)
        assert peers(homes["cid"]) == before
        assert version_of(homes["cid"]) == 2


def test_a_later_version_can_be_the_first_and_files_that_begin_earlier_are_taken_after_it(
    coalition: Callable[[str], Coalition],
) -> None:
    homes = coalition("ann bea cid")
    one = homes.first("ann bea")
    two = homes.after(one, "ann bea cid", "ann")
    three = homes.after(two, "ann cid", "ann")
    follow(homes["cid"], two[1:], adopt=False)
    assert set(peers(homes["cid"])) == {"ann", "bea"}
    follow(homes["cid"], three, adopt=False)
    assert set(peers(homes["cid"])) == {"ann"}
    assert status(homes["cid"])["followed"]["coalition"] == one[0].hash.hex()


def test_a_roster_of_another_coalition_is_carried_and_not_acted_on(coalition: Callable[[str], Coalition]) -> None:
    homes = coalition("ann bea cid")
    homes.follow(homes.first("ann bea"), "ann bea")
    strange = homes.first("bea cid", admins="bea")
    homes["bea"].author.roster(strange[0])
    settle(homes.named("ann bea"))
    assert set(peers(homes["ann"])) == {"bea"}
    (carried,) = status(homes["ann"])["carried"]
    assert (carried["coalition"], carried["from"]) == (strange[0].hash.hex(), ["bea"])


def test_what_a_member_made_up_is_read_once_and_stops_nobody_who_follows_by_id(
    coalition: Callable[[str], Coalition], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any member can publish versions that claim to be of this coalition, with administrators of its own."""
    homes = coalition("ann bea new")
    chain = homes.first("ann bea", admins="ann")
    homes.follow(chain, "ann bea")
    add_peer(homes["new"], homes["bea"].me.text, "bea", None, query_only=False)
    homes["bea"].author.roster(chain[0])
    alone = {"administrators": (homes["bea"].me,), "threshold": 1}
    made_up = homes.after(chain, "bea", "bea", **alone)
    beyond = homes.after(made_up, "ann bea", "bea")
    for one in (*made_up[1:], *beyond[2:], *homes.first("bea new", admins="bea")):
        homes["bea"].author.roster(one)
    for name in ("ann", "new"):
        carry(homes["bea"], homes[name])
    reads: list[bytes] = []
    monkeypatch.setattr("node.roster_follow.read_kept", lambda data: (reads.append(data), read_kept(data))[1])
    seen = Seen()
    _, refused = catch_up(homes["ann"], seen)
    assert sorted(refused.values()) == [
        "Version 2 lacks 1 of the 1 signatures that version 1 asks of its administrators.",
        "Version 3 has come, and 2 to 2 have not.",
    ]
    payloads = {held.record.header.payload for held in homes["ann"].store.held(kind=Kind.ROSTER)}
    assert payloads & set(reads)
    reads.clear()
    assert catch_up(homes["ann"], seen) == (None, {})
    assert not {one for one in payloads if hash_in(one) != chain[0].hash} & set(reads)
    follow(homes["new"], versions_of(homes["new"], [chain[0].hash.hex()]), adopt=True)
    assert version_of(homes["new"]) == 1


def test_a_version_that_came_too_early_is_looked_at_again(coalition: Callable[[str], Coalition]) -> None:
    homes = coalition("ann bea")
    chain = homes.first("ann bea")
    three = homes.after(homes.after(chain, "ann", "ann"), "ann bea", "ann")
    homes.follow(chain, "bea")
    add_peer(homes["bea"], homes["ann"].me.text, "ann", None, query_only=False)
    seen = Seen()
    homes["ann"].author.roster(three[2])
    carry(homes["ann"], homes["bea"])
    assert list(catch_up(homes["bea"], seen)[1].values()) == ["Version 3 has come, and 2 to 2 have not."]
    homes["ann"].author.roster(three[1])
    carry(homes["ann"], homes["bea"])
    assert catch_up(homes["bea"], seen)[1] == {}
    catch_up(homes["bea"], seen)
    assert version_of(homes["bea"]) == 3
    unfollow(homes["bea"], keep=False)
    homes.follow(chain, "bea")
    catch_up(homes["bea"], seen)
    assert version_of(homes["bea"]) == 3, "what was taken then is taken again"


# ------------------------------------------------------------------------------------------------------------ by gossip


def test_versions_reach_everybody_by_gossip_and_each_is_published_a_few_times(
    coalition: Callable[[str], Coalition],
) -> None:
    homes = coalition("ann bea cid dan eve")
    everybody = list(homes.homes.values())
    chain = homes.first("ann bea cid dan eve")
    homes.follow(chain, "ann bea cid dan eve")
    settle(everybody)
    for members in ("ann bea cid dan", "ann bea cid dan eve"):
        chain = homes.after(chain, members, "ann")
        follow(homes["ann"], chain, adopt=False)
        settle(everybody)
    follow(homes["eve"], chain, adopt=False)
    settle(everybody)
    assert [version_of(home) for home in everybody] == [3] * 5
    published = [held.record.header.origin for held in homes["bea"].store.held(kind=Kind.ROSTER)]
    assert len(published) in range(3 * COPIES, 3 * COPIES + 3), "and again where eve was one of those and had left"
    assert [wanting(home) for home in everybody] == [[]] * 5


def test_who_missed_versions_gets_all_of_them_from_members_whom_it_knows(
    coalition: Callable[[str], Coalition],
) -> None:
    """X is away while the one who published version 2 leaves, and those who publish later ones are new."""
    homes = coalition("ann bea cid dan eve away")
    chain = homes.first("ann bea away", admins="ann bea", threshold=1)
    homes.follow(chain, "ann bea away")
    settle(homes.named("ann bea away"))
    chain = homes.after(chain, "ann bea cid dan eve away", "ann")
    homes.follow(chain, "ann cid dan eve")
    settle(homes.named("ann cid dan eve"))
    settle(homes.named("ann bea cid dan eve"))
    chain = homes.after(chain, "bea cid dan eve away", "bea")
    follow(homes["dan"], chain, adopt=False)
    settle(homes.named("bea cid dan eve"), rounds=12)
    chain = homes.after(chain, "bea cid dan away", "bea")
    follow(homes["cid"], chain, adopt=False)
    settle(homes.named("bea cid dan"), rounds=12)
    assert version_of(homes["away"]) == 1
    settle(homes.named("bea away"), rounds=12)
    assert version_of(homes["away"]) == 4
    assert set(peers(homes["away"])) == {"bea", "cid", "dan"}


def test_a_node_that_keeps_a_publisher_out_hears_of_the_version_from_another(
    coalition: Callable[[str], Coalition],
) -> None:
    homes = coalition("ann bea cid dan")
    chain = homes.first("ann bea cid dan")
    homes.follow(chain, "ann bea cid dan")
    remove_peer(homes["dan"], "ann")
    chain = homes.after(chain, "ann bea dan", "ann")
    follow(homes["ann"], chain, adopt=False)
    settle(list(homes.homes.values()))
    assert version_of(homes["dan"]) == 2
    assert set(peers(homes["dan"])) == {"bea"}


def test_a_copy_with_a_strangers_signature_counts_as_no_copy(coalition: Callable[[str], Coalition]) -> None:
    homes = coalition("ann bea cid")
    chain = homes.first("ann bea cid")
    homes.follow(chain, "ann bea cid")
    two = homes.after(chain, "ann bea", "ann")
    spoiled = two[1].signed_by(homes["cid"].keystore.identity)
    homes["cid"].author.roster(spoiled)
    settle(homes.named("ann bea cid"))
    assert [version_of(homes[name]) for name in ("ann", "bea")] == [1, 1]
    follow(homes["ann"], two, adopt=False)
    settle(homes.named("ann bea"))
    assert version_of(homes["bea"]) == 2
    origins = {held.record.header.origin for held in homes["bea"].store.held(kind=Kind.ROSTER)}
    assert {homes["ann"].me, homes["bea"].me} <= origins


def test_a_restored_home_that_knows_an_old_version_meets_the_newer_ones(
    coalition: Callable[[str], Coalition], tmp_path: Path
) -> None:
    homes = coalition("ann bea cid")
    chain = homes.first("ann bea cid")
    homes.follow(chain, "ann bea cid")
    settle(list(homes.homes.values()))
    shutil.copytree(homes["cid"].path, tmp_path / "backup")
    chain = homes.after(chain, "ann cid", "ann")
    homes.follow(chain, "ann cid")
    settle(homes.named("ann cid"))
    restored = Home.open(tmp_path / "backup")
    assert version_of(restored) == 1
    settle([homes["ann"], restored])
    assert version_of(restored) == 2
    assert set(peers(restored)) == {"ann"}


def test_the_coalition_can_be_followed_by_its_id_once_a_peer_has_passed_it_on(
    coalition: Callable[[str], Coalition],
) -> None:
    homes = coalition("ann bea new")
    chain = homes.after(homes.first("ann bea"), "ann bea new", "ann")
    homes.follow(chain, "ann bea")
    add_peer(homes["new"], homes["ann"].me.text, "ann", None, query_only=False)
    settle(list(homes.homes.values()))
    (offered,) = status(homes["new"])["carried"]
    follow(homes["new"], versions_of(homes["new"], [offered["coalition"]]), adopt=True)
    assert set(peers(homes["new"])) == {"ann", "bea"}
    assert version_of(homes["new"]) == 2
    with pytest.raises(RosterError, match="No version 1 of this coalition"):
        versions_of(homes["new"], ["0" * 64])
    with pytest.raises(UsageError, match="neither a file nor the id"):
        versions_of(homes["new"], ["nowhere.roster"])


# -------------------------------------------------------------------------------------------------------------- dispute


@pytest.mark.parametrize("seed", range(4))
def test_everybody_who_saw_both_versions_freezes_in_the_same_state(
    coalition: Callable[[str], Coalition], seed: int
) -> None:
    homes = coalition("ann bea cid dan eve")
    everybody = list(homes.homes.values())
    chain = homes.first("ann bea cid dan", admins="ann bea cid", threshold=2)
    homes.follow(chain, "ann bea cid dan")
    settle(homes.named("ann bea cid dan"))
    one = homes.after(chain, "ann bea cid dan eve", "ann bea")
    other = homes.after(chain, "ann bea cid", "bea cid")
    rng = random.Random(seed)  # noqa: S311 - chooses an order
    first, second = rng.sample([one, other], 2)
    follow(homes[rng.choice(["ann", "bea"])], first, adopt=False)
    follow(homes["cid"], second, adopt=False)
    settle(everybody, rounds=12)
    for name in ("ann", "bea", "cid"):
        held = roll(homes[name])
        assert held is not None
        assert held.standing.is_disputed
        assert version_of(homes[name]) == 1
        assert set(peers(homes[name])) == {"ann", "bea", "cid"} - {name}
        frozen = status(homes[name])["followed"]["frozen"]
        assert "2 different versions 2 of roster heart count" in frozen
        assert frozen.endswith("more than one of them is signed by bea")
        assert any("changes are frozen" in told for told in notices(homes[name]))
        (finding,) = doctor.roster(homes[name])
        assert finding.level is Level.WARN
        with pytest.raises(RosterError, match="changes are frozen"):
            propose(homes[name], Changes(remove=["cid"]))


def test_the_operator_ends_a_dispute_for_his_own_node(coalition: Callable[[str], Coalition]) -> None:
    homes = coalition("ann bea cid")
    chain = homes.first("ann bea", admins="ann", threshold=1)
    one, other = homes.after(chain, "ann bea cid", "ann"), homes.after(chain, "ann", "ann")
    homes.follow(one, "bea")
    with pytest.raises(RosterError, match="Nothing is disputed"):
        disputed(homes["bea"], one[1].hash.hex()[:8])
    follow(homes["bea"], other, adopt=False)
    assert set(peers(homes["bea"])) == {"ann"}
    with pytest.raises(UsageError, match="not one of the disputed"):
        disputed(homes["bea"], chain[0].hash.hex())
    choose(homes["bea"], disputed(homes["bea"], one[1].hash.hex()[:8]).hash)
    assert set(peers(homes["bea"])) == {"ann", "cid"}
    assert not status(homes["bea"])["followed"]["frozen"]
    follow(homes["bea"], homes.after(one, "ann bea", "ann"), adopt=False)
    assert set(peers(homes["bea"])) == {"ann"}


# ------------------------------------------------------------------------------------------------ administrators' files


def test_the_first_roster_is_made_of_the_peers_that_there_are(coalition: Callable[[str], Coalition]) -> None:
    homes = coalition("ann bea cid")
    add_peer(homes["ann"], homes["bea"].me.text, "bea", "10.0.0.2:7410", query_only=False)
    add_peer(homes["ann"], homes["cid"].me.text, "cid", None, query_only=True)
    (made,) = create(homes["ann"], "heart", Changes(add_admins=["ann", "bea"]))
    assert {(one.name, one.addresses, one.query_only) for one in made.roster.members} == {
        ("ann", (), False),
        ("bea", ("10.0.0.2:7410",), False),
        ("cid", (), True),
    }
    assert (len(made.roster.administrators), made.roster.threshold) == (2, 2)


def test_a_proposal_says_what_it_changes(coalition: Callable[[str], Coalition], tmp_path: Path) -> None:
    homes = coalition("ann bea cid dan")
    homes.follow(homes.first("ann bea cid", admins="ann bea"), "ann")
    changes = Changes(
        add=[f"{homes['dan'].me.text}=dan"],
        remove=["bea"],
        rename=["cid=sid"],
        addresses=["dan=10.0.0.4:7410", "dan=[::1]:7410"],
        add_admins=["dan"],
        threshold=2,
    )
    path = tmp_path / "next.roster"
    write_file(path, propose(homes["ann"], changes))
    proposal = look_at(homes["ann"], path)
    assert proposal.changes == [
        f"+ dan  {homes['dan'].me.text}, at 10.0.0.4:7410, [::1]:7410",
        f"- bea  {homes['bea'].me.text}",
        "cid is called sid now",
        f"+ administrator dan  {homes['dan'].me.text}",
        "bea stays an administrator",
        "2 of 3 administrators must sign",
    ]
    assert proposal.missing == [
        "1 signature of administrators of version 1",
        "2 signatures of administrators of version 2",
    ]


def test_a_member_under_a_new_key_keeps_its_place(coalition: Callable[[str], Coalition]) -> None:
    homes = coalition("ann bea new")
    homes.follow(homes.first("ann bea", admins="ann bea"), "ann")
    roster = propose(homes["ann"], Changes(replace=[f"bea={homes['new'].me.text}"]))[-1].roster
    assert {one.name: one.key for one in roster.members} == {"ann": homes["ann"].me, "bea": homes["new"].me}
    assert set(roster.administrators) == {homes["ann"].me, homes["new"].me}


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        (Changes(), RosterError, "leave the roster as it is"),
        (Changes(remove=["nobody"]), UsageError, "no peer named"),
        (Changes(remove=["cid"]), UsageError, "is not a member in the roster"),
        (Changes(add=["bea"]), UsageError, "not of the form KEY=NAME"),
        (Changes(add=["tidings1x=bea"]), UsageError, "has 66 characters"),
        (Changes(addresses=["bea=nowhere"]), UsageError, "not an address"),
        (Changes(threshold=2), RosterError, "threshold of 2 cannot be met"),
        (Changes(remove_admins=["ann"]), RosterError, "1 to 32 administrators"),
        (Changes(rename=["bea=ann"]), RosterError, "same name"),
        (Changes(replace=["cid=ann"]), UsageError, "starts with"),
    ],
)
def test_a_proposal_that_cannot_be_meant_is_refused(
    coalition: Callable[[str], Coalition], changes: Changes, error: type[Exception], reason: str
) -> None:
    homes = coalition("ann bea cid")
    add_peer(homes["ann"], homes["cid"].me.text, "cid", None, query_only=False)
    homes.follow(homes.first("ann bea"), "ann")
    with pytest.raises(error, match=reason):
        propose(homes["ann"], changes)


def test_an_administrator_does_not_sign_two_versions_with_one_number_unawares(
    coalition: Callable[[str], Coalition], tmp_path: Path
) -> None:
    homes = coalition("ann bea cid")
    homes.follow(homes.first("ann bea", admins="ann bea", threshold=2), "ann bea")
    one, other = tmp_path / "one", tmp_path / "other"
    write_file(one, propose(homes["ann"], Changes(remove=["bea"])))
    write_file(other, propose(homes["ann"], Changes(rename=["bea=robert"])))
    check_signing(homes["ann"], look_at(homes["ann"], one), again=False)
    sign(homes["ann"], one, look_at(homes["ann"], one))
    check_signing(homes["ann"], look_at(homes["ann"], one), again=False)
    with pytest.raises(RosterError, match="has signed another version 2"):
        check_signing(homes["ann"], look_at(homes["ann"], other), again=False)
    check_signing(homes["ann"], look_at(homes["ann"], other), again=True)
    with pytest.raises(RosterError, match="no administrator of this roster"):
        check_signing(homes["cid"], look_at(homes["cid"], one), again=False)


def test_what_is_signed_is_what_was_shown_and_nobodys_signature_is_lost(
    coalition: Callable[[str], Coalition], tmp_path: Path
) -> None:
    """While a person reads, the file on a shared disk may become another, or get the signature of somebody else."""
    homes = coalition("ann bea")
    homes.follow(homes.first("ann bea", admins="ann bea", threshold=2), "ann bea")
    file, other = tmp_path / "file", tmp_path / "other"
    write_file(file, propose(homes["ann"], Changes(rename=["bea=robert"])))
    write_file(other, propose(homes["ann"], Changes(remove=["bea"])))
    shown = look_at(homes["ann"], file)
    sign(homes["bea"], file, look_at(homes["bea"], file))
    assert sign(homes["ann"], file, shown).missing == []
    assert look_at(homes["ann"], file).last.signers == {homes["ann"].me, homes["bea"].me}
    shown = look_at(homes["ann"], file)
    before = other.read_bytes()
    other.replace(file)
    with pytest.raises(RosterError, match="another version than the one that was shown"):
        sign(homes["ann"], file, shown)
    assert file.read_bytes() == before


def test_a_file_that_does_not_follow_what_is_in_force_is_not_signed(
    coalition: Callable[[str], Coalition], tmp_path: Path
) -> None:
    homes = coalition("ann bea")
    one = homes.first("ann bea")
    homes.follow(one, "ann")
    write_file(tmp_path / "stale", propose(homes["ann"], Changes(rename=["bea=robert"])))
    follow(homes["ann"], homes.after(one, "ann", "ann"), adopt=False)
    with pytest.raises(RosterError, match="does not follow version 2"):
        check_signing(homes["ann"], look_at(homes["ann"], tmp_path / "stale"), again=False)
    write_file(tmp_path / "strange", homes.first("bea", admins="ann"))
    with pytest.raises(RosterError, match="of another coalition"):
        check_signing(homes["ann"], look_at(homes["ann"], tmp_path / "strange"), again=False)


def test_copies_that_administrators_signed_at_the_same_time_are_united(
    coalition: Callable[[str], Coalition], tmp_path: Path
) -> None:
    homes = coalition("ann bea")
    (draft,) = homes.first("ann bea", admins="ann bea", threshold=2)
    copies = [homes.signed(draft.roster, [home]) for home in homes.named("ann bea")]
    follow(homes["ann"], united([[one] for one in copies]), adopt=False)
    assert [one.text for one in doctor.roster(homes["ann"])] == ["version 1 of heart is in force"]
    assert list(doctor.roster(homes["bea"])) == []
    with pytest.raises(RosterError, match="different versions"):
        united([[copies[0]], homes.first("bea")])


def test_a_version_that_the_disk_damaged_is_neither_followed_nor_passed_on(
    coalition: Callable[[str], Coalition],
) -> None:
    homes = coalition("ann bea")
    (one,) = homes.first("ann bea")
    homes.follow([one], "ann")
    kept = homes["ann"].store.roster(one.hash)
    for at in range(len(kept)):
        damaged = kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :]
        homes["ann"].store._rows("UPDATE rosters SET signed = ?", damaged)
        with pytest.raises(StoreError, match="damaged"):
            publish(homes["ann"], version(homes["ann"], one.hash))
    unfollow(homes["ann"], keep=True)
    follow(homes["ann"], [one], adopt=False)
    assert homes["ann"].store.roster(one.hash) == kept


# ------------------------------------------------------------------------------------------------------ replaced keys


def test_a_member_with_a_new_key_stands_in_its_place_until_a_version_names_that_key(
    coalition: Callable[[str], Coalition],
) -> None:
    homes = coalition("ann bea cid")
    chain = homes.first("ann bea cid", admins="ann")
    homes.follow(chain, "ann bea cid")
    settle(homes.named("ann bea cid"))
    before = homes["bea"].me
    homes.homes["bea"] = replace_identity(homes["bea"], None).home
    carry_everything(*homes.named("ann bea cid"))
    settle(homes.named("ann bea cid"))
    now = homes["bea"].me
    assert {peer.name: peer.key for peer in homes["ann"].store.peers()} == {"bea": now, "cid": homes["cid"].me}
    assert set(peers(homes["bea"])) == {"ann", "cid"}, "its own earlier key is no peer of it"
    assert status(homes["bea"])["followed"]["is_member"]
    states = {one["name"]: one["state"] for one in status(homes["ann"])["followed"]["members"]}
    assert states == {"ann": "this node", "bea": "member", "cid": "member"}

    renamed = propose(homes["ann"], Changes(replace=[f"bea={now.text}"]))[-1]
    chain = [*chain, renamed.signed_by(homes["ann"].keystore.identity)]
    follow(homes["ann"], chain, adopt=False)
    settle(homes.named("ann bea cid"))
    for name in ("ann", "cid"):
        (bea,) = [peer for peer in homes[name].store.peers() if peer.name == "bea"]
        assert (bea.key, bea.replaces, bea.via) == (now, None, "roster version 2")
    assert version_of(homes["bea"]) == 2
    assert before not in {peer.key for peer in homes["bea"].store.peers()}


def test_a_member_that_was_added_under_an_earlier_key_is_adopted_under_its_name(
    coalition: Callable[[str], Coalition],
) -> None:
    homes = coalition("ann bea")
    for one, other in (("ann", "bea"), ("bea", "ann")):
        add_peer(homes[one], homes[other].me.text, other, None, query_only=False)
    before = homes["bea"].me
    homes.homes["bea"] = replace_identity(homes["bea"], None).home
    carry_everything(*homes.named("ann bea"))
    follow(homes["ann"], homes.first("ann bea"), adopt=True)
    (peer,) = homes["ann"].store.peers()
    assert (peer.key, peer.name, peer.via) == (homes["bea"].me, "bea", "roster version 1")
    assert before in homes["ann"].trusted


def test_whom_the_operator_denied_stays_out_under_the_new_key_that_it_has(
    coalition: Callable[[str], Coalition],
) -> None:
    homes = coalition("ann bea")
    chain = homes.first("ann bea", admins="ann")
    homes.follow(chain, "ann bea")
    settle(homes.named("ann bea"))
    homes.homes["bea"] = replace_identity(homes["bea"], None).home
    carry_everything(*homes.named("ann bea"))
    deny(homes["ann"], *named_key(homes["ann"], "bea"))
    assert homes["ann"].store.peers() == []
    renamed = propose(homes["ann"], Changes(replace=[f"bea={homes['bea'].me.text}"]))[-1]
    follow(homes["ann"], [*chain, renamed.signed_by(homes["ann"].keystore.identity)], adopt=False)
    assert homes["ann"].store.peers() == []
    allow(homes["ann"], homes["bea"].me)
    assert set(peers(homes["ann"])) == {"bea"}
    assert homes["ann"].store.denied() == []


def test_the_status_says_of_a_member_whose_key_ended_that_nobody_is_in_its_place(
    coalition: Callable[[str], Coalition], tmp_path: Path
) -> None:
    homes = coalition("ann")
    recovery = RecoveryKey.generate()
    homes.homes["bea"] = Home.init(tmp_path / "bea", "bea", None, recovery_hash=recovery.hash)
    homes.follow(homes.first("ann bea", admins="ann"), "ann bea")
    settle(homes.named("ann bea"))
    revoke(homes["bea"], homes["bea"].me, recovery, (), takes_over=False)
    carry(homes["bea"], homes["ann"])
    assert homes["ann"].store.peers() == []
    told = {one["name"]: (one["state"], one["reason"]) for one in status(homes["ann"])["followed"]["members"]}
    assert told["bea"][0] == "left out"
    assert "was revoked, and nobody has its place" in told["bea"][1]


def test_who_leaves_the_roster_leaves_with_its_new_key_too(coalition: Callable[[str], Coalition]) -> None:
    homes = coalition("ann bea")
    chain = homes.first("ann bea", admins="ann")
    homes.follow(chain, "ann bea")
    settle(homes.named("ann bea"))
    homes.homes["bea"] = replace_identity(homes["bea"], None).home
    carry_everything(*homes.named("ann bea"))
    assert [peer.key for peer in homes["ann"].store.peers()] == [homes["bea"].me]
    follow(homes["ann"], homes.after(chain, "ann", "ann"), adopt=False)
    assert homes["ann"].store.peers() == []
