"""Evidence: two records with one number are proven to everybody, neither is used, and who met which makes no
difference."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from disks import rolled_back
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.keys import Identity
from crypto.recovery import consent
from node import evidence, wire
from node.ask import select
from node.bundle_export import export_bundle
from node.bundle_import import import_bundle
from node.config import MAX_CONTESTED, GossipSettings
from node.errors import NotReadable
from node.frames import Announce, Ids, Missing, Records, SignedRecord, Want
from node.gossip import fetch
from node.gossip.compare import UNHEARD_AFTER
from node.gossip.events import Alarm, Close, Disk, DiskChanged, Keep, Unheard
from node.gossip.holdings import Holdings
from node.home import Home
from node.keys import rotate
from node.membership import add_peer, remove_peer
from node.publish import publish
from node.query import holdings
from node.records import (
    Evidence,
    Header,
    HeldState,
    Kind,
    Record,
    Succession,
    claim_of,
    evidence_of,
    slot_of,
)
from node.replacement import replace as replace_identity
from node.shared import listing, share
from node.simulation.store import FIRST_INCARNATION, author_record
from node.status import notices, records, status
from node.store import Store
from node.tasks import add, find, proposals
from tests.couriers import carry, gossip, meet
from tests.mutants import rewrite
from tests.processes import Node, joined, running
from tests.test_gossip import ALICE, BOB, CAROL, ME, SMALL, frames, linked, of

MakeHome = Callable[..., Home]
WORDS = "two records with number"


def told_by(author: Identity, first: Record, second: Record, sequence: int = 900) -> Record:
    """An EVIDENCE by `author` of these two."""
    header = Header(Kind.EVIDENCE, author.public_key, b"incarnat", sequence, 0)
    payload = wire.write_payload(evidence_of(first, claim_of(second)))
    return wire.author(author, replace(header, payload=payload))


def variants(count: int, sequence: int = 7, by: Identity = CAROL, targets: Sequence[bytes] = ()) -> list[Record]:
    """Different records with one number; the first ones take these others back."""
    named = [*targets, *[b""] * (count - len(targets))]
    return [
        author_record(by, sequence, bytes([n]) * 100, supersedes=target, chunk_bytes=1_024)
        for n, target in enumerate(named)
    ]


# ------------------------------------------------------------------------------------------------ what a proof is


def test_a_proof_has_300_bytes_and_needs_no_header() -> None:
    first, second = variants(2)
    told = told_by(ALICE, first, second)
    assert len(told.header.payload) < 300
    assert wire.read_evidence(told).slot == slot_of(first.header)
    assert wire.read_record(told.header_bytes, told.signature) == told


def test_proofs_of_one_pair_are_the_same_bytes_whoever_met_which_first() -> None:
    first, second = variants(2)
    payloads = {
        wire.write_payload(evidence_of(*pair)) for pair in ((first, claim_of(second)), (second, claim_of(first)))
    }
    assert len(payloads) == 1


def condemn(home: Home, accused: Identity) -> None:
    """Tell a home often enough that an origin signed numbers twice."""
    for sequence in range(1_000, 1_000 + MAX_CONTESTED):
        first, second = variants(2, sequence, accused)
        home.store.add_record(told_by(home.keystore.identity, first, second, sequence))


# --------------------------------------------------------------------------------------------------- the core


def rig_with(*records: Record, count: int = 2):
    rig = linked(count=count)
    for record in records:
        rig.deliver(1, record)
    return rig


def test_a_second_record_raises_an_alarm_with_the_proof_and_the_first_stays() -> None:
    first, second = variants(2)
    rig = rig_with(first)
    alarm = of(rig.deliver(2, second), Alarm)[0]
    assert (alarm.origin, alarm.proof) == (CAROL.public_key, second)
    assert not of(rig.deliver(2, second), Alarm)


def test_evidence_comes_before_anything_else_and_on_the_fullest_disk() -> None:
    first, second = variants(2)
    told = told_by(BOB, first, second)
    rig = linked()
    rig.tell(DiskChanged(Disk.FULL))
    wanted = frames(rig.announce(1, first, told), Want)
    assert [want.ids for want in wanted] == [(told.id,)]
    assert [keep.record for keep in of(rig.deliver(1, told), Keep)] == [told]


@pytest.mark.parametrize(
    "spoil",
    {
        "a signature that is not the accused's": lambda e: replace(
            e, claims=(e.claims[0], replace(e.claims[1], signature=e.claims[0].signature))
        ),
        "one record twice, sent again": lambda e: replace(e, claims=(e.claims[0], e.claims[0])),
        "an honest record under another number": lambda e: replace(e, sequence=e.sequence + 1),
        "another origin": lambda e: replace(e, accused=ALICE.public_key),
    }.values(),
)
def test_false_evidence_is_a_strike_and_harms_nobody(spoil: Callable[[Evidence], Evidence]) -> None:
    first, second = variants(2)
    rig = rig_with(first)
    for number in range(4):
        told = told_by(BOB, first, second, 900 + number)
        payload = wire.write_payload(spoil(wire.read_evidence(told)))
        header_bytes = wire.write_header(replace(told.header, payload=payload))
        statement = wire.statement_of(told.header, wire.record_id(header_bytes))
        signature = wire.sign_record(BOB, statement)
        actions = rig.say(1, Records((SignedRecord(header_bytes, signature),)))
        assert not of(actions, Keep)
    assert of(actions, Close)
    assert not rig.core._holdings.is_contested(first)


def test_two_honest_records_prove_nothing() -> None:
    """Evidence of records of two numbers cannot be signed for: each signature says its own."""
    first, second = author_record(CAROL, 1, SMALL), author_record(CAROL, 2, SMALL)
    with pytest.raises(Exception, match="did not sign"):
        told_by(BOB, first, second)


def test_nodes_with_different_records_of_a_number_have_equal_digests_once_they_have_the_evidence() -> None:
    first, second, third = variants(3)
    told, also = told_by(ALICE, first, second), told_by(BOB, second, third, 901)
    rigs = [rig_with(*held, told, also) for held in ((first,), (second,), (third,), ())]
    rigs.append(rig_with(second, also, told))
    assert len({rig.root() for rig in rigs}) == 1
    rigs.append(rig_with(told, also, first))  # evidence before any of the records
    assert len({rig.root() for rig in rigs}) == 1
    assert rigs[0].root() != rig_with(first).root()


def test_a_record_whose_number_is_contested_is_not_asked_for_any_more_nor_kept() -> None:
    first, second, third = variants(3)
    rig = rig_with(told_by(ALICE, first, second))
    for record in (first, second, third):
        assert not of(rig.deliver(1, record), Keep)
        assert not frames(rig.announce(1, record), Want), "it was refused a moment ago"


def test_whoever_asks_for_a_contested_record_gets_the_evidence() -> None:
    first, second = variants(2)
    told = told_by(ALICE, first, second)
    rig = rig_with(first, told)
    actions = rig.say(2, Want((first.id,)))
    assert [record.header_bytes for sent in frames(actions, Records) for record in sent.records] == [told.header_bytes]
    assert frames(actions, Missing) == [Missing(first.id)]


def test_a_body_that_was_on_its_way_is_wanted_no_more() -> None:
    first, second = (author_record(CAROL, 7, body, chunk_bytes=1_024) for body in (bytes(50_000), bytes(50_001)))
    rig = linked()
    rig.announce(1, first)
    rig.deliver(1, first)
    assert rig.core.fetching()
    rig.deliver(2, told_by(BOB, first, second))
    assert not rig.core.fetching()
    rig.chunk(1, first, bytes(50_000), 0)
    assert rig.core._holdings.get(first.id).is_settled


def test_a_third_record_matters_only_if_it_takes_something_back_that_nobody_knows_of() -> None:
    target = author_record(CAROL, 1, SMALL)
    first, second, third = variants(3)
    burying = variants(1, targets=[target.id])[0]
    rig = rig_with(target, told_by(ALICE, first, second))
    assert not of(rig.deliver(1, third), Alarm)
    assert of(rig.deliver(1, burying), Alarm)[0].proof == burying
    assert rig.core._holdings.get(target.id).buried_by is None
    told = told_by(BOB, first, burying)
    rig.deliver(1, told)
    assert rig.core._holdings.get(target.id).buried_by == told
    assert not of(rig.deliver(1, variants(2, targets=[b"", target.id])[1]), Alarm)


def test_evidence_is_offered_to_a_peer_that_lacks_its_token() -> None:
    first, second = variants(2)
    told = told_by(ALICE, first, second)
    rig = rig_with(told)
    actions = rig.say(2, Ids(CAROL.public_key.raw, (first.id,), reply=True))
    assert [advert.id for sent in frames(actions, Announce) for advert in sent.adverts] == [told.id]


def test_a_peer_that_goes_on_not_knowing_is_told_by_this_node_itself() -> None:
    """It may not trust the author of the evidence; it trusts this node."""
    first, second = variants(2)
    rig = rig_with(told_by(ALICE, first, second))
    said = [of(rig.say(2, Ids(CAROL.public_key.raw, (first.id,), reply=True)), Unheard) for _ in range(9)]
    assert [len(one) for one in said] == [int(n == UNHEARD_AFTER - 1) for n in range(9)]
    assert said[UNHEARD_AFTER - 1] == [Unheard(slot_of(first.header))]


def contest(index: int, by: Identity = CAROL) -> Record:
    first, second = variants(2, sequence=100 + index, by=by)
    return told_by(ALICE, first, second, 1_000 + index)


def test_an_origin_with_too_many_contested_numbers_is_condemned_and_nothing_of_it_is_asked_for() -> None:
    honest, large = author_record(CAROL, 1, SMALL), author_record(CAROL, 2, bytes(50_000), chunk_bytes=1_024)
    rig = rig_with(honest, large)
    for index in range(MAX_CONTESTED):
        assert rig.core._holdings.trusts(CAROL.public_key.raw)
        rig.deliver(1, contest(index))
    assert not rig.core._holdings.trusts(CAROL.public_key.raw)
    assert rig.core._holdings.servable(honest.id) is None
    assert not frames(rig.announce(2, author_record(CAROL, 3, SMALL)), Want)
    rig.members(ALICE, BOB, CAROL)
    assert not rig.core._holdings.trusts(CAROL.public_key.raw), "adding it again does not help"
    assert all(rig.core._holdings.trusts(one.public_key.raw) for one in (ALICE, BOB, ME))


def test_what_takes_many_records_back_under_one_number_is_condemned_too() -> None:
    """A thousand records under one number can each take another one back, and make others tell of each."""
    made = variants(MAX_CONTESTED, targets=[bytes([1, n]) * 16 for n in range(MAX_CONTESTED)])
    rig = linked()
    for n, (one, other) in enumerate(itertools.pairwise(made)):
        rig.deliver(1, told_by(ALICE, one, other, 1_000 + n))
    assert not rig.core._holdings.trusts(CAROL.public_key.raw)


# ---------------------------------------------------------------- whatever order: one outcome, in core and store alike

TARGETS = [author_record(CAROL, number, bytes([number]) * 50) for number in (1, 2)]
WITHDRAWN = author_record(CAROL, 3, supersedes=TARGETS[1].id)
TWINS = variants(4, targets=[TARGETS[0].id])
TOLD = [
    told_by(ALICE, TWINS[0], TWINS[1]),
    told_by(BOB, TWINS[1], TWINS[2], 901),
    told_by(BOB, TWINS[2], TWINS[3], 902),
]


@settings(max_examples=60)
@given(st.permutations([*TARGETS, WITHDRAWN, *TOLD]), st.lists(st.sampled_from(TWINS), max_size=2), st.data())
def test_any_order_of_records_and_evidence_comes_to_the_same_digest(
    arriving: list[Record], twins: list[Record], data: st.DataObject
) -> None:
    for twin in twins:
        arriving.insert(data.draw(st.integers(0, len(arriving))), twin)
    rig = rig_with(*arriving)
    expected = rig_with(*TARGETS, WITHDRAWN, *TOLD)
    assert rig.root() == expected.root()
    for target in TARGETS:
        entry = rig.core._holdings.get(target.id)
        assert entry is not None
        assert entry.buried_by is not None


@settings(max_examples=15)
@given(st.permutations([*TARGETS, WITHDRAWN, *TOLD, TWINS[0]]))
def test_the_store_buries_what_the_core_does(tmp_path_factory: pytest.TempPathFactory, arriving: list[Record]) -> None:
    store = Store.create(tmp_path_factory.mktemp("store"))
    rig = linked()
    for record in arriving:
        for keep in of(rig.deliver(1, record), Keep):
            store.add_record(keep.record)
    core = {held.record.id for held in store.held() if rig.core._holdings.get(held.record.id).buried_by}
    assert {held.record.id for held in store.held() if held.state is HeldState.BURIED} == core
    assert core >= {target.id for target in TARGETS}
    again = Holdings(GossipSettings())
    again.trust(frozenset(one.public_key.raw for one in (ALICE, BOB, CAROL, ME)))
    for held in store.held():
        again.learn(held.record, is_whole=held.state is not HeldState.FETCHING)
    assert again.index.root() == rig.root(), "as after a restart"
    store.close()


# --------------------------------------------------------------------------------------------------------- a home


@pytest.fixture
def trio(make_home: MakeHome) -> tuple[Home, Home, Home]:
    """alpha, who will sign two records with one number, and two who trust it and one another."""
    homes = (make_home("alpha"), make_home("beta"), make_home("gamma"))
    meet(*homes)
    return homes


def copied(home: Home) -> Home:
    """A second copy of a home that cannot know that it is one: what it signs next has the numbers of what the first one
    signs next."""
    path = home.path.with_name(f"{home.path.name}-copy")
    return Home.open(rolled_back(Path(shutil.copytree(home.path, path))))


def courier(source: Home, target: Home) -> None:
    """A bundle from one to the other."""
    stick = source.path.parent / "news.bundle"
    export_bundle(source, stick)
    import_bundle(target, stick)


def usable(home: Home, task: str = "triage") -> set[bytes]:
    """The summaries that a model would be made of."""
    found = holdings(home, find(home, task), select(home, task, None, None, None, "onnx"))
    return {one.record_id for one in found.usable}


def reason_of(home: Home, record: Record) -> str:
    return next(one["reason"] for one in records(home, None) if one["id"] == record.id.hex())


def told_of(home: Home, name: str) -> list[str]:
    """What `status` says against an origin."""
    return [one["reason"] for one in notices(home) if one["origin"] == name]


def release(home: Home, rows: Path) -> Record:
    return publish(home, find(home, "triage"), [rows], epsilon=1.0, dataset="default", cap_epsilon=None).record


def test_two_copies_publish_and_neither_is_used_by_anybody(
    trio: tuple[Home, Home, Home], task_file: Path, rows_file: Path
) -> None:
    alpha, beta, gamma = trio
    for home in trio:
        add(home, str(task_file))
    honest = release(beta, rows_file)
    gossip(*trio)
    other = copied(alpha)
    first, second = release(alpha, rows_file), release(other, rows_file)
    assert slot_of(first.header) == slot_of(second.header)
    carry(alpha, beta)
    carry(other, gamma)
    assert (usable(beta), usable(gamma)) == ({honest.id, first.id}, {honest.id, second.id})

    courier(beta, gamma)
    assert usable(gamma) == {honest.id}
    courier(gamma, beta)
    assert usable(beta) == {honest.id}
    for home, held in ((beta, first), (gamma, second)):
        assert WORDS in reason_of(home, held)
        assert home.store.get(held.id).state is HeldState.BURIED, "the body is gone"
        stuck = next(one for one in status(home)["tasks"] if one["name"] == "triage")["stuck"]
        assert [one["origin"] for one in stuck] == ["alpha"]
        (said,) = [one for one in told_of(home, "alpha") if "signed two records" in one]
        assert "proof from gamma; none of these is used" in said
    before = [len(home.store.held()) for home in (beta, gamma)]
    courier(beta, gamma)
    courier(gamma, beta)
    assert [len(home.store.held()) for home in (beta, gamma)] == before, "one witness is enough"

    courier(gamma, alpha)
    assert "two copies of its home are in use" in told_of(alpha, "alpha")[-1]
    again = release(alpha, rows_file)
    gossip(alpha, beta)
    assert again.header.incarnation != first.header.incarnation
    assert usable(beta) == {honest.id, again.id}, "the operator published once more"


def test_a_shared_model_of_a_contested_summary_is_not_used(
    trio: tuple[Home, Home, Home], task_file: Path, rows_file: Path
) -> None:
    alpha, beta, gamma = trio
    for home in trio:
        add(home, str(task_file))
    gossip(*trio)
    other = copied(alpha)
    release(alpha, rows_file)
    carry(alpha, beta)
    share(beta, select(beta, "triage", None, None, None, "safetensors"))
    carry(beta, gamma, lambda record: record.header.kind in (Kind.MODEL, Kind.KEY_GRANT))
    assert [one["reason"] for one in listing(gamma, find(gamma, "triage").id)] == [""]
    release(other, rows_file)
    carry(other, gamma)
    courier(beta, gamma)
    (reason,) = [one["reason"] for one in listing(gamma, find(gamma, "triage").id)]
    assert "has a twin under its number; beta can share a new one" in reason


def test_a_proposal_with_a_twin_is_none(trio: tuple[Home, Home, Home], task_file: Path, tmp_path: Path) -> None:
    alpha, beta, gamma = trio
    other = copied(alpha)
    changed = tmp_path / "other.toml"
    changed.write_text(task_file.read_text().replace("triage", "other"))
    add(alpha, str(task_file))
    add(other, str(changed))
    carry(alpha, beta)
    carry(other, gamma)
    assert [one.task.name for home in (beta, gamma) for one in proposals(home)] == ["triage", "other"]
    courier(beta, gamma)
    courier(gamma, beta)
    assert [one.task.name for home in (beta, gamma) for one in proposals(home)] == []


def test_a_contested_key_card_is_not_used_until_the_operator_rotates(trio: tuple[Home, Home, Home]) -> None:
    alpha, beta, gamma = trio
    other = copied(alpha)
    old = beta.epochs.key_card(alpha.me)
    rotate(alpha, encryption=True)
    rotate(other, encryption=True)
    carry(alpha, beta)
    carry(other, gamma)
    cards = [home.epochs.key_card(alpha.me) for home in (beta, gamma)]
    assert len({old, *cards}) == 3
    courier(beta, gamma)
    courier(gamma, beta)
    assert [home.epochs.key_card(alpha.me) for home in (beta, gamma)] == [old, old]
    courier(gamma, alpha)
    assert alpha.epochs.key_card(alpha.me) not in (old, *cards), "it publishes the card again under a number of its own"


def test_what_either_twin_takes_back_is_gone_everywhere(trio: tuple[Home, Home, Home]) -> None:
    alpha, beta, gamma = trio
    kept = [alpha.author.sealed(Kind.SUMMARY, bytes(32), bytes(90), alpha.epochs.live()) for _ in range(2)]
    gossip(*trio)
    other = copied(alpha)
    withdrawals = [alpha.author.withdrawal(kept[0]), other.author.withdrawal(kept[1])]
    assert len({slot_of(one.header) for one in withdrawals}) == 1
    carry(alpha, beta)
    carry(other, gamma)
    courier(beta, gamma)
    courier(gamma, beta)
    for home in (beta, gamma):
        states = [held.state for one in kept if (held := home.store.get(one.id)) is not None]
        assert states == [HeldState.BURIED] * 2
        assert all("withdrawn" in reason_of(home, one) for one in kept)


def test_a_proof_whose_witness_is_removed_is_told_by_another(trio: tuple[Home, Home, Home]) -> None:
    alpha, beta, gamma = trio
    first, second = clash(alpha)
    for home, record in ((beta, first), (gamma, second)):
        home.store.add_record(record)
    courier(beta, gamma)
    courier(gamma, beta)
    assert evidence.witness(beta) == []
    remove_peer(beta, "gamma")
    (told,) = evidence.witness(beta)
    assert wire.read_evidence(told).slot == slot_of(first.header)
    assert evidence.witness(beta) == []


def test_a_witness_that_equivocates_about_it_is_none(trio: tuple[Home, Home, Home]) -> None:
    """gamma signs its evidence and something else with one number: what it told stands, and beta tells it again."""
    alpha, beta, gamma = trio
    first, second = clash(alpha)
    twin = copied(gamma)
    gamma.store.add_record(first)
    gamma.store.add_conflict(second)
    (told,) = evidence.witness(gamma)
    other = twin.author.key_card()
    assert slot_of(told.header) == slot_of(other.header)
    carry(gamma, beta)
    beta.store.add_conflict(other)
    accused = {wire.read_evidence(one).accused for one in evidence.witness(beta)}
    assert accused == {alpha.me, gamma.me}
    assert beta.store.is_contested(slot_of(first.header))


def test_a_liar_cannot_make_others_write_without_end(trio: tuple[Home, Home, Home]) -> None:
    alpha, beta, _ = trio
    old = alpha.author.sealed(Kind.SUMMARY, bytes(32), bytes(90), alpha.epochs.live())
    gossip(*trio)
    with beta.store.batch():
        for number in range(3 * MAX_CONTESTED):
            first, second = clash(alpha, 1_000 + number)
            beta.store.add_record(first)
            beta.store.add_conflict(second)
    told = list(itertools.chain.from_iterable(iter(lambda: evidence.witness(beta), [])))
    assert len(told) == MAX_CONTESTED
    assert evidence.witness(beta) == []
    assert "nothing that it signs is used: remove it" in told_of(beta, "alpha")[-1]
    assert "again and again: nothing of it is used" in reason_of(beta, old)
    with pytest.raises(NotReadable, match="again and again"):
        beta.epochs.open(beta.store.get(old.id))


def test_proofs_against_keys_that_somebody_made_up_are_carried_and_told_to_nobody(make_home: MakeHome) -> None:
    home = make_home("alpha")
    for number in range(3):
        home.store.add_record(contest(number, Identity.generate()))
    assert len(home.store.proofs()) == 3
    assert evidence.findings(home) == []
    assert evidence.witness(home) == []
    assert home.store.condemned() == frozenset()


def clash(home: Home, sequence: int = 900) -> list[Record]:
    """Two withdrawals of nothing with one number, in an incarnation that no store of the home knows."""
    header = Header(Kind.WITHDRAWAL, home.me, b"contest!", sequence, 0)
    return [wire.author(home.keystore.identity, replace(header, supersedes=bytes([n]) * 32)) for n in (1, 2)]


# ------------------------------------------------------------------------------------------------- real processes


def test_two_running_nodes_that_met_different_twins_tell_each_other(tmp_path: Path) -> None:
    nodes = [Node.make(tmp_path, name) for name in ("alpha", "beta", "gamma")]
    alpha, beta, gamma = nodes
    for one, other in itertools.permutations(nodes, 2):
        one.knows(other)
    first, second = clash(alpha.home)
    beta.home.store.add_record(first)
    gamma.home.store.add_record(second)

    def told() -> list[set[bytes]]:
        return [{held.record.id for held in one.home.store.held(kind=Kind.EVIDENCE)} for one in (beta, gamma)]

    with joined(beta, gamma), running(beta, gamma):
        deadline = time.monotonic() + 60.0
        while not all(told()) or told()[0] != told()[1]:
            assert time.monotonic() < deadline, "the evidence does not come"
            time.sleep(0.1)
    assert 1 <= len(told()[0]) <= 2
    for one, record in ((beta, first), (gamma, second)):
        (said,) = told_of(one.home, "alpha")
        assert "it signed two records with one number; proof from" in said
        assert WORDS in reason_of(one.home, record)


# ------------------------------------------------------------------------------------------------ deliberate bugs


def check_liar(folder: Path) -> None:
    homes = tuple(Home.init(folder / name, name, None) for name in ("alpha", "beta", "gamma"))
    meet(*homes)
    test_a_liar_cannot_make_others_write_without_end(homes)


def check_burial(folder: Path) -> None:
    homes = tuple(Home.init(folder / name, name, None) for name in ("alpha", "beta", "gamma"))
    meet(*homes)
    test_what_either_twin_takes_back_is_gone_everywhere(homes)


MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Callable[[Path], None]]] = {
    "the token says which records there are": (
        lambda patch: rewrite(patch, Holdings, "_heed", ("token_of(slot)", "record.id")),
        lambda _: test_nodes_with_different_records_of_a_number_have_equal_digests_once_they_have_the_evidence(),
    ),
    "evidence is believed without its signatures": (
        lambda patch: patch.setattr(wire, "check_proof", lambda _: None),
        lambda _: test_false_evidence_is_a_strike_and_harms_nobody(lambda e: replace(e, sequence=e.sequence + 1)),
    ),
    "the id of a contested record goes back into the digest": (
        lambda patch: rewrite(patch, Holdings, "settle", ("if slot not in self._contested:", "if True:")),
        lambda _: test_nodes_with_different_records_of_a_number_have_equal_digests_once_they_have_the_evidence(),
    ),
    "a contested record is taken": (
        lambda patch: patch.setattr(Holdings, "is_contested", lambda self, record: False),
        lambda _: test_a_record_whose_number_is_contested_is_not_asked_for_any_more_nor_kept(),
    ),
    "what a twin takes back is forgotten": (
        lambda patch: patch.setattr(Evidence, "targets", frozenset()),
        check_burial,
    ),
    "nobody is condemned": (
        lambda patch: patch.setattr(Store, "is_condemned", lambda self, origin: False),
        check_liar,
    ),
    "evidence has no hurry": (
        lambda patch: rewrite(patch, fetch, "priority", ("Kind.EVIDENCE, ", "")),
        lambda _: test_evidence_comes_before_anything_else_and_on_the_fullest_disk(),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_checks_catch(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    mutate, check = MUTANTS[name]
    mutate(monkeypatch)
    with pytest.raises((AssertionError, IndexError, KeyError, ValueError)):
        check(tmp_path)
    record_property("mutant", (name, ("equivocation",)))


def succession(old: Identity, new: Identity) -> Record:
    payload = wire.write_payload(Succession(new.public_key, consent(new, old.public_key), ()))
    return wire.author(old, Header(Kind.SUCCESSION, old.public_key, b"incarnat", 9, 1, payload=payload))


def test_equivocation_by_an_identity_that_ended_is_told_of_too(make_home: MakeHome) -> None:
    """It is a trusted origin still, and its old seed may be in a stolen backup: two halves would differ for ever."""
    home = make_home("alpha")
    add_peer(home, CAROL.public_key.text, "carol", None, query_only=False)
    home.store.add(succession(CAROL, BOB))
    assert home.epochs.members() == [BOB.public_key]
    first, second = variants(2)
    home.store.add_record(first)
    home.store.add_conflict(second)
    (told,) = evidence.witness(home)
    assert wire.read_evidence(told).slot == slot_of(first.header)


def test_whoever_is_condemned_does_not_go_on_under_another_key(make_home: MakeHome) -> None:
    """A SUCCESSION is signed by it, and who condemned it before does not take it: all must come to the same."""
    outcomes = []
    for name, order in (("before", (succession, condemn)), ("after", (condemn, succession))):
        home = make_home(name)
        add_peer(home, CAROL.public_key.text, "carol", None, query_only=False)
        for step in order:
            if step is condemn:
                condemn(home, CAROL)
            else:
                home.store.add(succession(CAROL, BOB))
        outcomes.append((home.epochs.members(), home.trusted - {home.me}))
    assert outcomes == [([CAROL.public_key], frozenset())] * 2


def test_what_an_heir_took_back_under_a_contested_number_is_unused_whichever_of_the_two_came(
    make_home: MakeHome,
) -> None:
    summary = author_record(CAROL, 5, b"rows" * 100, chunk_bytes=1_024)
    ended = wire.write_payload(Succession(BOB.public_key, consent(BOB, CAROL.public_key), ((FIRST_INCARNATION, 5),)))
    end = wire.author(CAROL, Header(Kind.SUCCESSION, CAROL.public_key, FIRST_INCARNATION, 9, 1, payload=ended))
    twins = variants(2, by=BOB, targets=[summary.id])
    homes = [make_home(name) for name in ("first", "second")]
    for home, kept in zip(homes, twins, strict=True):
        add_peer(home, CAROL.public_key.text, "carol", None, query_only=False)
        for record in (end, summary, kept):
            home.store.add_record(record)
    assert [bool(home.store.unusable(summary)) for home in homes] == [True, False], "while only one is known"
    for home in homes:
        home.store.add_record(told_by(ALICE, *twins))
    assert all("took the place" in home.store.unusable(summary) for home in homes)
    # Of a condemned heir nothing is used, and who condemned it before took nothing of it.
    for home in homes:
        condemn(home, BOB)
    assert [home.store.unusable(summary) for home in homes] == ["", ""]


def test_a_node_whose_earlier_identity_is_condemned_does_not_say_its_last_word_again_and_again(
    make_home: MakeHome,
) -> None:
    home = replace_identity(make_home("alpha"), None).home
    condemn(home, home.keystore.former[0])
    assert home.store.standing().endings == {}
    for _ in range(3):
        home.epochs.grant_missing()
    assert len(home.store.held(kind=Kind.SUCCESSION)) == 1
