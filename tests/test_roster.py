"""Rosters: which versions count, what is in force, and that the order in which they come makes no difference."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rosters import (
    ALICE,
    BAD,
    BOB,
    CAROL,
    DORA,
    EVE,
    FRED,
    IDENTITIES,
    ODD_DOCUMENTS,
    ONE,
    TWO,
    after,
    first,
    keys,
    members,
    signed,
    signed_by,
)

from crypto.keys import Identity
from crypto.signing import roster_hash, sign
from node.config import HEADER_LIMIT_BYTES, ROSTER_LIMIT_BYTES, ROSTER_PAYLOAD_LIMIT_BYTES
from node.errors import RecordError, RosterError
from node.pb import tidings_pb2 as pb
from node.records import Header, Kind
from node.roster import (
    MAX_ADMINISTRATORS,
    MAX_MEMBERS,
    MAX_RIVALS,
    MAX_SIGNATURES,
    Place,
    Roster,
    RosterMember,
    RosterTree,
    SignedRoster,
    check_carried,
    check_first,
    check_follows,
    check_roster,
    check_signatures,
    in_order,
    new_version,
    signed_both,
    unsigned,
)
from node.roster_wire import (
    FILE_START,
    read_document,
    read_file,
    read_signed,
    read_versions,
    write_document,
    write_file,
    write_signed,
)
from node.wire import author, read_payload, write_header


class Versions:
    """A tree and what it holds."""

    def __init__(self, root: SignedRoster, chosen: bytes = b"") -> None:
        self.held = {root.hash: root}
        place = Place(root.hash, root.roster.previous, root.roster.version)
        self.tree = RosterTree(root.hash, [place], self.held.__getitem__, chosen)

    def offer(self, version: SignedRoster) -> bool:
        self.held[version.hash] = version
        return self.tree.place(version)

    @property
    def in_force(self) -> SignedRoster:
        return self.held[self.tree.standing().in_force]

    @property
    def names(self) -> set[str]:
        return {member.name for member in self.tree.members().values()}


# ---------------------------------------------------------------------------------------------------- one version alone


@pytest.mark.parametrize("case", BAD)
def test_a_roster_is_refused(case: str) -> None:
    fields, reason = BAD[case]
    with pytest.raises(RosterError, match=reason):
        check_roster(replace(first(), **fields))


def many(count: int, name_letters: int, addresses: tuple[str, ...] = ()) -> Roster:
    identities = [Identity.from_seed(number.to_bytes(32, "big")) for number in range(1, count + 1)]
    listed = [
        RosterMember(one.public_key, f"{number:0{name_letters}}", addresses) for number, one in enumerate(identities)
    ]
    return in_order(replace(first(), members=tuple(listed)))


@pytest.mark.parametrize(
    ("count", "name_letters", "addresses"), [(1_000, 17, ()), (600, 20, ("hospital.example:7410",))]
)
def test_the_greatest_coalition_fits_one_record_with_every_signature_that_there_can_be(
    count: int, name_letters: int, addresses: tuple[str, ...]
) -> None:
    document = write_document(many(count, name_letters, addresses))
    assert len(document) <= ROSTER_LIMIT_BYTES
    signatures = tuple((identity.public_key, bytes(64)) for identity in IDENTITIES * 11)[:MAX_SIGNATURES]
    padded = SignedRoster(many(count, name_letters, addresses), bytes(ROSTER_LIMIT_BYTES), signatures, bytes(32))
    payload = write_signed(padded)
    assert len(payload) <= ROSTER_PAYLOAD_LIMIT_BYTES
    header = Header(Kind.ROSTER, ALICE.public_key, b"12345678", 2**63 - 1, 2**63 - 1, payload=payload)
    assert len(write_header(header)) <= HEADER_LIMIT_BYTES
    with pytest.raises(RosterError, match="shorten names"):
        write_document(many(MAX_MEMBERS, 64))
    with pytest.raises(RosterError, match="1 to 1000 members"):
        check_roster(many(MAX_MEMBERS + 1, 4))


# -------------------------------------------------------------------------------------------- one version after another


def stranger_signed(version: SignedRoster) -> SignedRoster:
    return signed_by(version, (FRED,))


FOLLOWS: dict[str, tuple[Callable[[], SignedRoster], str]] = {
    "one signature short of the threshold": (lambda: signed(TWO.roster, ALICE), "lacks 1 of the 2 signatures"),
    "nobody's": (lambda: unsigned(TWO.roster, TWO.document), "lacks 2 of the 2 signatures"),
    "a member's, who is no administrator": (lambda: signed(TWO.roster, ALICE, DORA), "administrator neither"),
    "complete, with a stranger's signature beside": (lambda: stranger_signed(TWO), "administrator neither"),
    "version 1 again": (lambda: ONE, "does not follow"),
    "version 3 of a version 2 that is not here": (lambda: signed(after(TWO)), "does not follow"),
    "a version 3 that says that it follows version 1": (
        lambda: signed(replace(TWO.roster, version=3)),
        "does not follow",
    ),
    "a version 2 of another version 1": (lambda: signed(replace(TWO.roster, previous=bytes(32))), "does not follow"),
    "another coalition's": (lambda: signed(replace(TWO.roster, coalition=bytes(32))), "another coalition"),
    "signed by those whom it makes administrators, not by those who are": (
        lambda: signed(after(ONE, administrators=keys(DORA, EVE, FRED)), DORA, EVE),
        "lacks 2 of the 2 signatures that version 1",
    ),
    "signed by those who are administrators, not by those whom it makes": (
        lambda: signed(after(ONE, administrators=keys(DORA, EVE, FRED)), ALICE, BOB),
        "lacks 2 of the 2 signatures that version 2",
    ),
    "of a higher threshold than its signatures": (
        lambda: signed(after(ONE, threshold=3), ALICE, BOB),
        "lacks 1 of the 3 signatures that version 2",
    ),
}


@pytest.mark.parametrize("case", FOLLOWS)
def test_a_version_does_not_follow_if_it_is(case: str) -> None:
    make, reason = FOLLOWS[case]
    with pytest.raises(RosterError, match=reason):
        check_follows(make(), ONE)


def test_a_version_follows_with_both_thresholds() -> None:
    check_first(ONE)
    check_follows(TWO, ONE)
    handed_over = signed(after(ONE, administrators=keys(DORA, EVE)), ALICE, BOB, DORA, EVE)
    check_follows(handed_over, ONE)
    check_follows(signed(after(handed_over), DORA, EVE), handed_over)
    with pytest.raises(RosterError, match="administrator neither"):
        check_follows(signed(after(handed_over), ALICE, BOB, DORA, EVE), handed_over)


def test_an_administrator_counts_once_however_often_it_signs() -> None:
    twice = replace(ONE, signatures=(ONE.signatures[0], ONE.signatures[0]))
    with pytest.raises(RosterError, match="each key once"):
        check_signatures(twice.document, twice.signatures)
    assert signed(first(), ALICE, ALICE).signers == {ALICE.public_key}
    with pytest.raises(RosterError, match="lacks 1 of the 2"):
        check_first(signed(first(), ALICE, ALICE))


def test_a_signature_for_something_else_is_none() -> None:
    other_use = sign(ALICE, b"tidings/v1/bundle\0", ONE.document)
    for signature in (other_use, ALICE.sign_raw(ONE.document), bytes(64)):
        with pytest.raises(RosterError, match="discard the copy"):
            check_signatures(ONE.document, ((ALICE.public_key, signature),))
    with pytest.raises(RosterError, match="64 bytes"):
        check_signatures(ONE.document, ((ALICE.public_key, other_use[:63]),))


def test_version_1_takes_no_signature_of_a_stranger() -> None:
    with pytest.raises(RosterError, match="none of its administrators"):
        check_first(stranger_signed(ONE))


def test_a_version_that_changes_nothing_is_not_made() -> None:
    with pytest.raises(RosterError, match="leave the roster as it is"):
        new_version(ONE, lambda roster: roster)
    changed = new_version(ONE, lambda roster: replace(roster, members=roster.members[1:]))
    assert (changed.version, changed.coalition, changed.previous) == (2, ONE.hash, ONE.hash)


# ----------------------------------------------------------------------------------------------------- what is in force


def test_each_version_takes_the_place_of_the_one_before() -> None:
    versions = Versions(ONE)
    assert versions.names == {"alice", "bob", "carol"}
    assert versions.offer(TWO)
    assert not versions.offer(TWO)
    assert versions.names == {"alice", "bob", "carol", "dora"}
    assert versions.offer(signed(after(TWO, members=members(ALICE))))
    assert versions.names == {"alice"}


def test_a_gap_a_roll_back_and_garbage_are_refused_in_a_sentence() -> None:
    three = signed(after(TWO))
    versions = Versions(ONE)
    with pytest.raises(RosterError, match="Version 3 has come, and 2 to 2 have not"):
        versions.tree.place(three)
    versions.offer(TWO)
    for older in (signed(first(ALICE, threshold=1), ALICE), signed(first(), ALICE, CAROL)):
        if older.hash != ONE.hash:
            with pytest.raises(RosterError, match="another coalition"):
                versions.tree.place(older)
    elsewhere = signed(after(signed(after(ONE, name="other"))))
    with pytest.raises(RosterError, match="follows a version 2 that is not known"):
        versions.tree.place(elsewhere)
    late = Versions(TWO)
    assert not late.tree.place(TWO)
    with pytest.raises(RosterError, match="not newer than the first version"):
        late.tree.place(ONE)
    assert versions.in_force is not None
    assert versions.in_force.hash == TWO.hash


RIVAL = signed(after(ONE, members=members(ALICE, BOB, EVE)), BOB, CAROL)


def test_two_versions_that_follow_the_same_one_freeze_what_was_before_them() -> None:
    versions = Versions(ONE)
    versions.offer(TWO)
    versions.offer(RIVAL)
    standing = versions.tree.standing()
    assert versions.in_force.hash == ONE.hash
    assert standing.is_disputed
    assert set(standing.rivals) == {TWO.hash, RIVAL.hash}
    assert signed_both(TWO, RIVAL) == [BOB.public_key]
    assert versions.names == {"alice", "bob"}, "nobody comes in, and whom one of them leaves out stays out"
    versions.offer(signed(after(TWO, members=members(ALICE, CAROL, DORA, FRED))))
    assert versions.in_force.hash == ONE.hash
    assert versions.names == {"alice"}, "a later version on a branch can only take away"


def test_in_a_dispute_a_member_may_do_the_least_that_any_version_says() -> None:
    versions = Versions(ONE)
    asking = tuple(replace(one, query_only=one.name == "bob") for one in members(ALICE, BOB))
    versions.offer(TWO)
    versions.offer(signed(after(ONE, members=asking)))
    assert {one.name: one.query_only for one in versions.tree.members().values()} == {"alice": False, "bob": True}


def test_the_operators_choice_ends_a_dispute_and_stands_against_later_rivals() -> None:
    versions = Versions(ONE, chosen=TWO.hash)
    versions.offer(TWO)
    versions.offer(RIVAL)
    assert versions.in_force.hash == TWO.hash
    three = signed(after(TWO, members=members(DORA)))
    versions.offer(three)
    versions.offer(signed(after(ONE, members=members(EVE)), BOB, CAROL))
    assert versions.in_force.hash == three.hash
    versions.offer(signed(after(TWO, members=members(FRED))))
    assert versions.in_force.hash == TWO.hash, "a choice settles what was chosen, and nothing that comes after it"


def test_of_endlessly_many_rivals_some_are_kept() -> None:
    versions = Versions(ONE)
    for number in range(MAX_RIVALS):
        versions.offer(signed(after(ONE, name=f"heart {number}")))
    with pytest.raises(RosterError, match="one more proves no more"):
        versions.offer(signed(after(ONE, name="one more")))
    assert len(versions.tree.standing().rivals) == MAX_RIVALS


@st.composite
def histories(draw: st.DrawFn) -> list[SignedRoster]:
    """Version 1 and up to ten that follow it or one another, with forks."""
    made = [ONE]
    for number in range(draw(st.integers(0, 10))):
        before = made[draw(st.integers(max(0, len(made) - 4), len(made) - 1))]
        chosen = draw(st.sets(st.sampled_from(IDENTITIES), min_size=1))
        made.append(signed(after(before, name=f"v{number}", members=members(*chosen)), *draw(signer_pairs)))
    return made


signer_pairs = st.sampled_from([(ALICE, BOB), (BOB, CAROL), (ALICE, CAROL), (ALICE, BOB, CAROL)])


def told_in(order: Iterable[SignedRoster], chosen: bytes) -> Versions:
    """A node that hears the versions in this order; what comes too early is looked at again later, as records are."""
    versions = Versions(ONE, chosen)
    waiting = list(order)
    while waiting:
        early = []
        for one in waiting:
            try:
                versions.offer(one)
            except RosterError:
                early.append(one)
        if len(early) == len(waiting):
            break
        waiting = early
    return versions


@settings(max_examples=60)
@given(histories(), st.randoms(use_true_random=False), st.booleans())
def test_all_who_saw_the_same_versions_in_any_order_end_in_the_same_state(
    history: list[SignedRoster], rng: random.Random, has_chosen: bool
) -> None:
    chosen = rng.choice(history).hash if has_chosen else b""
    one, other = (told_in(rng.sample(history, len(history)), chosen) for _ in range(2))
    assert one.tree.standing() == other.tree.standing()
    assert one.tree.members() == other.tree.members()


@settings(max_examples=60)
@given(histories())
def test_a_dispute_brings_nobody_in_and_takes_out_whom_any_branch_leaves_out(history: list[SignedRoster]) -> None:
    versions = told_in(history, b"")
    standing = versions.tree.standing()
    now = versions.tree.members().keys()
    assert now <= versions.in_force.roster.keys
    if not standing.is_disputed:
        assert now == versions.in_force.roster.keys
    for branch in standing.branches:
        assert now <= versions.held[branch].roster.keys


@settings(max_examples=60)
@given(histories())
def test_a_version_more_never_brings_back_whom_a_dispute_took_out(history: list[SignedRoster]) -> None:
    before, all_of_them = told_in(history[:-1], b""), told_in(history, b"")
    if before.tree.standing().is_disputed and all_of_them.in_force.hash == before.in_force.hash:
        assert all_of_them.tree.members().keys() <= before.tree.members().keys()


# ---------------------------------------------------------------------------------------------------------------- bytes

names = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=20)
hosts = st.sampled_from(["10.0.0.7:7410", "[::1]:7410", "clinic.example:443"])


@st.composite
def rosters(draw: st.DrawFn) -> Roster:
    """Rosters that no rule forbids."""
    version = draw(st.integers(1, 2**32 - 1))
    some = draw(st.lists(st.sampled_from(IDENTITIES), min_size=1, unique=True))
    called = draw(st.lists(names, min_size=len(some), max_size=len(some), unique_by=str.casefold))
    listed = tuple(
        RosterMember(one.public_key, name, tuple(draw(st.lists(hosts, unique=True, max_size=3))), draw(st.booleans()))
        for one, name in zip(some, called, strict=True)
    )
    administrators = draw(st.lists(st.sampled_from(IDENTITIES), min_size=1, unique=True))
    threshold = draw(st.integers(1, len(administrators)))
    hashes = st.just(b"") if version == 1 else st.binary(min_size=32, max_size=32)
    return in_order(Roster(version, draw(names), keys(*administrators), threshold, listed, draw(hashes), draw(hashes)))


@given(rosters())
def test_a_roster_comes_back_as_it_went(roster: Roster) -> None:
    document = write_document(roster)
    assert read_document(document) == roster
    version = signed_by(unsigned(roster, document), IDENTITIES[: roster.threshold])
    assert read_signed(write_signed(version)) == version


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_never_taken_for_what_was_signed(at: int, change: int) -> None:
    payload = bytearray(write_signed(TWO))
    payload[at % len(payload)] ^= change
    try:
        read = read_signed(bytes(payload))
    except RosterError:
        return
    assert read.document == TWO.document
    assert read.signers < TWO.signers, "a signature may get lost on the way, and nothing else"


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_roster_error(data: bytes) -> None:
    for read in (read_document, read_signed, lambda one: read_versions(FILE_START + one, "file")):
        with contextlib.suppress(RosterError):
            read(data)


@pytest.mark.parametrize("case", ODD_DOCUMENTS)
def test_a_document_is_refused_although_well_signed(case: str) -> None:
    document, reason = ODD_DOCUMENTS[case]
    signatures = [
        pb.RosterSignature(administrator=one.public_key.raw, signature=sign(one, b"tidings/v1/roster\0", document))
        for one in sorted((ALICE, BOB), key=lambda one: one.public_key)
    ]
    with pytest.raises(RosterError, match=reason):
        read_signed(pb.SignedRoster(document=document, signatures=signatures).SerializeToString())


def test_signatures_beyond_every_administrator_are_not_even_looked_at() -> None:
    signatures = [pb.RosterSignature()] * (MAX_SIGNATURES + 1)
    with pytest.raises(RosterError, match="at most 64 signatures"):
        read_signed(pb.SignedRoster(document=ONE.document, signatures=signatures).SerializeToString())
    with pytest.raises(RosterError, match="at most 64512 bytes"):
        read_signed(bytes(ROSTER_PAYLOAD_LIMIT_BYTES + 1))
    assert MAX_SIGNATURES == 2 * MAX_ADMINISTRATORS


def test_a_record_carries_a_version_and_a_relay_refuses_one_that_too_few_signed() -> None:
    def record(version: SignedRoster) -> Header:
        payload = write_signed(version)
        return author(FRED, Header(Kind.ROSTER, FRED.public_key, b"12345678", 1, 1, payload=payload)).header

    assert read_payload(record(ONE)) == ONE
    check_carried(ONE)
    with pytest.raises(RecordError, match="lacks 1 of the 2"):
        record(signed(first(), ALICE))
    with pytest.raises(RecordError, match="payload of a roster is refused"):
        author(FRED, Header(Kind.ROSTER, FRED.public_key, b"12345678", 1, 1, payload=b"\xff"))
    with pytest.raises(RecordError, match="must not have a body"):
        author(FRED, Header(Kind.ROSTER, FRED.public_key, b"12345678", 1, 1, body_bytes=100, payload=write_signed(ONE)))


def test_a_file_comes_back_as_it_went_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "heart.roster"
    write_file(path, [ONE, TWO])
    assert read_file(path) == [ONE, TWO]
    content = path.read_bytes()
    for damaged, reason in {
        content[:-1]: "damaged or cut off",
        content[: len(FILE_START) + 2]: "damaged or cut off",
        FILE_START: "holds no roster",
        b"hello": "not a roster file",
        FILE_START + b"\xff\xff\xff\xff" + content: "damaged or cut off",
    }.items():
        with pytest.raises(RosterError, match=reason):
            read_versions(damaged, "heart.roster")


def test_golden_bytes() -> None:
    """Version 1 of the wire: what was signed once must be read for ever."""
    roster = first(ALICE, members=members(BOB), threshold=1)
    version = signed(roster, ALICE)
    assert version.document.hex() == GOLDEN_DOCUMENT
    assert version.hash.hex() == GOLDEN_HASH
    assert write_signed(version).hex() == GOLDEN_PAYLOAD
    assert roster_hash(bytes.fromhex(GOLDEN_DOCUMENT)) == version.hash
    assert read_signed(bytes.fromhex(GOLDEN_PAYLOAD)) == version


GOLDEN_DOCUMENT = (
    "080110012a05686561727432208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c380142270a"
    "208139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b3941203626f62"
)
GOLDEN_HASH = "abf060e3901958fc1aaf7f7d1377c4d3964e167a2f6f0394e1cf9b1891d6b3c4"
GOLDEN_PAYLOAD = (
    "0a58080110012a05686561727432208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c380142"
    "270a208139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b3941203626f6212640a208a88e3dd7409"
    "f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c1240f32db264860e3730e5b4480c957d3fb401da9c8f942c"
    "63fe60c40a50490c96842aa6e6bc67d4275204b53d1aeaafec0120b9be7ec55566d53d5e6d93c81e5d00"
)
