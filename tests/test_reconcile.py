"""Reconciliation: any two holdings become equal on what both sides trust, in few frames, whatever the peer says."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.keys import Identity
from node import wire
from node.config import FRAME_LIMIT_BYTES, MAX_ORIGINS, GossipSettings
from node.frames import Announce, Digest, Frame, Ids, Origins, OriginVector, Span, Spans, Vector
from node.gossip.compare import Comparison
from node.gossip.digest_tree import DIGITS, LEAF_ENTRIES, DigestTree
from node.gossip.events import Action, Send
from node.gossip.holdings import Holdings
from node.gossip.links import PeerLink
from node.gossip.reconcile import Index
from node.records import Record
from node.simulation.network import Conditions, ring, seeded
from node.simulation.simulator import Swarm
from node.simulation.store import author_record

PEOPLE = 300
A, B = (Identity.from_seed(bytes([letter]) * 32).public_key for letter in b"AB")
SETTINGS = GossipSettings(list_origins=8)
"""Lists are short, so that a few hundred origins are enough to divide ranges twice."""


@functools.cache
def record(person: int, sequence: int) -> Record:
    """A record without a body; nobody cares here what it says."""
    identity = Identity.from_seed(person.to_bytes(32, "big"))
    return author_record(identity, sequence, supersedes=bytes(32))


def raw(person: int) -> bytes:
    return record(person, 1).header.origin.raw


@dataclass
class Side:
    """One node as far as comparing goes: what it holds and trusts, and its end of one link."""

    link: PeerLink
    settings: GossipSettings = SETTINGS
    out: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.holdings = Holdings(self.settings)
        self.comparison = Comparison(self.settings, seeded(3), self.holdings, self.out)

    def holds(self, records: Iterable[Record]) -> None:
        for one in records:
            if self.holdings.get(one.id) is None:
                self.holdings.learn(one, is_whole=True)

    def trusts(self, people: Iterable[int]) -> None:
        self.holdings.trust(frozenset(map(raw, people)))

    def hear(self, frame: Frame) -> None:
        """As node.gossip does; a record that is announced is taken from `record` at once."""
        match frame:
            case Digest():
                self.comparison.digest(self.link, frame, 0.0)
            case Origins():
                self.comparison.origins(self.link, frame, 0.0)
            case Spans():
                self.comparison.spans(self.link, frame, 0.0)
            case Vector():
                self.comparison.vectors(self.link, frame, 0.0)
            case Ids():
                self.comparison.ids(self.link, frame, 0.0)
            case Announce(adverts):
                wanted = {advert.id for advert in adverts if self.holdings.trusts(advert.origin)}
                self.holds(one for one in self.told if one.id in wanted)
            case other:
                pytest.fail(f"{other} is no part of a comparison")

    told: list[Record] = field(default_factory=list)

    def said(self) -> list[Frame]:
        frames = [action.frame for action in self.out if isinstance(action, Send)]
        self.out.clear()
        return frames

    def settled(self, people: Iterable[int]) -> dict[bytes, bytes | None]:
        """The digest of each of these."""
        tree = self.holdings.index._current()
        return {raw(person): tree.digest_of(raw(person)) for person in people}


class Pair:
    """Two sides and the line between them, which carries real frames and loses some if told to."""

    def __init__(self, settings: GossipSettings = SETTINGS, *, loses: float = 0.0, seed: int = 0) -> None:
        self.a = Side(PeerLink(1, B, True, 0.0, is_ready=True, has_compared=True, store_id=b"b-store-"), settings)
        self.b = Side(PeerLink(1, A, False, 0.0, is_ready=True, has_compared=True, store_id=b"a-store-"), settings)
        self.loses, self.rng = loses, seeded(seed)
        self.frames: Counter[str] = Counter()
        self.bytes = 0

    def round(self, first: Side) -> int:
        """One round, opened by this side; returns how many bytes both sent."""
        before = self.bytes
        first.comparison.begin(first.link, 0.0)
        self.talk()
        return self.bytes - before

    def talk(self) -> None:
        """Until nothing is left to say."""
        waiting: deque[tuple[Side, bytes]] = deque()
        for _ in range(10_000):
            for side, other in ((self.a, self.b), (self.b, self.a)):
                other.told = [entry.record for entry in side.holdings._entries.values()]
                waiting += [(other, self.encoded(frame)) for frame in side.said()]
            if not waiting:
                return
            receiver, data = waiting.popleft()
            frame = wire.decode(data)
            assert frame is not None
            if self.rng.random() >= self.loses:
                receiver.hear(frame)
        pytest.fail("the two never stop talking")

    def encoded(self, frame: Frame) -> bytes:
        data = wire.encode(frame)
        assert len(data) <= FRAME_LIMIT_BYTES
        self.frames[type(frame).__name__] += 1
        self.bytes += len(data)
        return data

    @property
    def roots(self) -> tuple[bytes, bytes]:
        return self.a.holdings.index.root(), self.b.holdings.index.root()


def some(seed: int, share: float, people: int = PEOPLE) -> list[int]:
    rng = seeded(seed)
    return [person for person in range(people) if rng.random() < share]


shares = st.sampled_from([0.0, 0.03, 0.5, 0.97, 1.0])
seeds = st.integers(0, 2**32)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_two_holdings_become_equal_on_what_both_trust_in_two_rounds(data: st.DataObject) -> None:
    pair = Pair()
    trusted = [some(data.draw(seeds), data.draw(shares)) for _ in "ab"]
    for side, people in zip((pair.a, pair.b), trusted, strict=True):
        held = some(data.draw(seeds), data.draw(shares))
        # At first everything that is held is held of strangers; then people are trusted.
        side.holds(record(person, sequence) for person in held for sequence in range(1, 1 + person % 3))
        side.trusts(people)
    pair.round(pair.a)
    pair.round(pair.b)
    both = sorted(set(trusted[0]) & set(trusted[1]))
    assert pair.a.settled(both) == pair.b.settled(both)
    if trusted[0] == trusted[1]:
        assert len(set(pair.roots)) == 1
    # A round is a digest, at most a span frame per level, a list per frame of spans, and vectors for what differs.
    assert sum(pair.frames.values()) <= 60, pair.frames


@pytest.mark.parametrize("seed", range(5))
def test_two_holdings_become_equal_although_frames_are_lost(seed: int) -> None:
    pair = Pair(loses=0.3, seed=seed)
    for side, start in ((pair.a, 1), (pair.b, 2)):
        side.trusts(range(PEOPLE))
        side.holds(record(person, sequence) for person in some(seed + start, 0.6) for sequence in (start, 3))
    rounds = 0
    while len(set(pair.roots)) == 2 and rounds < 60:
        pair.round(pair.a if rounds % 2 else pair.b)
        rounds += 1
    assert len(set(pair.roots)) == 1, "a digest that was compared in vain must be compared again"


def equal_pair(people: int = PEOPLE) -> Pair:
    pair = Pair()
    for side in (pair.a, pair.b):
        side.trusts(range(PEOPLE))
        side.holds(record(person, 1) for person in range(people))
    assert pair.round(pair.a) + pair.round(pair.b) <= 100, "an equal pair, one round from either side"
    return pair


def test_a_coalition_above_the_size_of_one_list_is_compared_whole() -> None:
    """5,000 origins, of which no list of one frame could speak: the index sees the difference wherever it is."""
    ours, theirs = Index(SETTINGS), Index(SETTINGS)
    origins = [hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(5_000)]
    assert len(origins) > 2 * MAX_ORIGINS
    for index in (ours, theirs):
        index.trust(frozenset(origins))
        for origin in origins:
            index.settle(origin, bytes(8), 1, origin)
    assert ours.root() == theirs.root()
    for origin in sorted(origins)[:: len(origins) // 7]:
        before = ours.root()
        ours.settle(origin, bytes(8), 2, origin[::-1])
        assert ours.root() != before
        assert narrowed(ours, theirs) == {origin}
        theirs.settle(origin, bytes(8), 2, origin[::-1])
        assert ours.root() == theirs.root()


def narrowed(one: Index, other: Index) -> set[bytes]:
    """The origins that two indexes find to differ in a full comparison."""
    here, there, found = one, other, set()
    opening = there.opening()
    assert isinstance(opening, Spans)
    spans = opening.spans
    while spans:
        spans_next, few, vectors = here.narrow(Spans(spans))
        found |= {vector.origin for vector in vectors}
        for prefix in few:
            found |= {v.origin for v in there.differing(Origins(tuple(here.listed(prefix)), (prefix,))) or ()}
        spans, here, there = tuple(spans_next), there, here
    return found


# ------------------------------------------------------------------------------------------------- what was in common


def test_what_changed_since_the_last_common_digest_is_all_that_is_listed() -> None:
    pair = equal_pair()
    pair.a.holds([record(5, 2)])
    pair.b.holds([record(9, 2), record(9, 3)])
    pair.frames.clear()
    spent = pair.round(pair.a)
    assert len(set(pair.roots)) == 1
    assert pair.frames == Counter(Digest=1, Origins=1, Vector=2, Announce=2)
    assert spent <= 1_000, "three digests, four vectors of an origin, three announcements"


def test_a_restored_peer_is_compared_from_scratch_whatever_the_other_remembers() -> None:
    """It has forgotten some records, and with them its memory of what was in common."""
    for store in (b"a-store-", b"restored"):
        pair = equal_pair()
        old = equal_pair(people=PEOPLE - 40).a
        pair.a = replace(old, link=old.link)
        pair.a.holdings, pair.a.comparison, pair.a.out = old.holdings, old.comparison, old.out
        pair.a.comparison._common.clear()
        pair.a.holdings.trust(frozenset())
        pair.a.trusts(range(PEOPLE))
        pair.b.link.store_id = store
        pair.round(pair.b)
        assert len(set(pair.roots)) == 1, store


def test_a_common_digest_is_not_proposed_to_another_store() -> None:
    pair = equal_pair()
    pair.b.holds([record(9, 2)])
    pair.b.comparison.begin(pair.b.link, 0.0)
    (digest,) = pair.b.said()
    assert isinstance(digest, Digest)
    assert digest.common
    pair.b.link.store_id = b"restored"
    pair.b.comparison.begin(pair.b.link, 0.0)
    assert pair.b.said() == [replace(digest, common=b"")]


def test_a_digest_that_is_not_known_any_more_leads_to_a_full_comparison() -> None:
    pair = equal_pair()
    pair.a.holds([record(5, 2)])
    pair.a.comparison.origins(pair.a.link, Origins((), common=bytes(32)), 0.0)
    pair.talk()
    assert len(set(pair.roots)) == 1
    assert pair.frames["Spans"] == 2, "everything, and then the one sixteenth that differs"


def test_what_was_in_common_is_forgotten_when_others_are_trusted() -> None:
    """B has had records of somebody whom A trusts only from now on; neither digest has changed at B since."""
    pair = Pair()
    newcomer = 7
    pair.a.trusts(set(range(50)) - {newcomer})
    pair.b.trusts(range(50))
    for side in (pair.a, pair.b):
        side.holds(record(person, 1) for person in range(50) if person != newcomer)
    pair.round(pair.a)
    pair.b.holds([record(newcomer, 1)])
    for _ in range(10):
        pair.round(pair.a)
    assert pair.a.settled([newcomer]) == {raw(newcomer): None}
    pair.a.trusts(range(50))
    pair.a.comparison.begin_anew(pair.a.link)
    pair.talk()
    assert len(set(pair.roots)) == 1


def test_the_memory_of_what_was_in_common_is_bounded() -> None:
    few = replace(SETTINGS, max_marks=4, max_known_peers=2)
    pair = Pair(few)
    for side in (pair.a, pair.b):
        side.trusts(range(PEOPLE))
    for sequence in range(1, 9):
        for side in (pair.a, pair.b):
            side.holds([record(1, sequence)])
            side.link.peer = record(sequence, 1).header.origin
        pair.round(pair.a)
    assert len(pair.a.holdings.index._marks) == 4
    assert len(pair.b.comparison._common) == 2


# ---------------------------------------------------------------------------------------------- different trusted sets


def test_an_idle_pair_that_trusts_different_origins_soon_says_little_and_is_never_silent_for_ever() -> None:
    pair = Pair()
    pair.a.trusts(range(PEOPLE))
    pair.b.trusts(range(0, PEOPLE, 2))
    for side in (pair.a, pair.b):
        side.holds(record(person, 1) for person in range(PEOPLE))
    spent = [pair.round(pair.a) for _ in range(64)]
    compared = [number for number, cost in enumerate(spent) if cost > 100]
    assert compared == [0, 1, 2, 4, 8, 16, 32, 48]
    # What comes to lie within both is found at once, in the next round.
    pair.a.holds([record(4, 2)])
    pair.round(pair.a)
    assert pair.b.settled([4]) == pair.a.settled([4])


def test_one_stranger_among_many_costs_the_ranges_around_it_and_not_everything() -> None:
    pair = Pair()
    pair.a.trusts(range(PEOPLE))
    pair.b.trusts(range(1, PEOPLE))
    for side in (pair.a, pair.b):
        side.holds(record(person, 1) for person in range(PEOPLE))
    assert pair.round(pair.a) < 5 * 600 < PEOPLE * 72


# ------------------------------------------------------------------------------------------------------- hostile peers


NONSENSE = st.one_of(
    st.binary(min_size=32, max_size=32).map(Digest),
    st.builds(
        lambda texts, digest: Spans(tuple(Span(text, (digest,) * 16) for text in texts)),
        st.sampled_from([("",), ("0", "1", "f"), ("00", "7", "8a"), tuple(DIGITS)]),
        st.sampled_from([b"", bytes(32), bytes([1]) * 32]),
    ),
    st.builds(Origins, st.just(()), st.sampled_from([(), tuple(DIGITS), ("",), ("0" * 64,)])),
    st.builds(Origins, st.just(()), common=st.binary(min_size=32, max_size=32)),
    st.builds(lambda n: Vector((OriginVector(raw(n), bytes(32), ()),), reply=False), st.integers(0, 50)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(NONSENSE, max_size=6))
def test_nonsense_is_answered_with_at_most_what_is_held_and_harms_nothing(script: list[Frame]) -> None:
    side = Pair().a
    side.trusts(range(120))
    side.holds(record(person, 1) for person in range(120))
    before = side.holdings.index.root()
    for frame in script:
        side.hear(frame)
        answer = sum(len(wire.encode(said)) for said in side.said())
        # Every origin once as a vector or an entry, and every range that the tree has once as a span.
        assert answer <= 120 * 150 + 17 * 600
    assert side.holdings.index.root() == before


def test_a_peer_that_asks_for_ever_is_answered_at_a_bounded_rate_and_one_comparison_is_never_too_large() -> None:
    pair = Pair(replace(SETTINGS, compare_burst=500, compare_rate=10))
    side = pair.a
    side.trusts(range(PEOPLE))
    side.holds(record(person, 1) for person in range(PEOPLE))
    answered = [second for second in range(600) for _ in range(5) if is_answered(side, float(second))]
    assert answered[:2] == [0, 0]
    assert len(answered) == pytest.approx((500 + 600 * 10) / PEOPLE, abs=2)
    pair.b.trusts(range(PEOPLE))
    pair.round(pair.b)
    assert pair.a.settled(range(PEOPLE)) != pair.b.settled(range(PEOPLE)), "it is in debt"
    pair.a.comparison._credit.clear()
    pair.round(pair.b)
    assert pair.a.settled(range(PEOPLE)) == pair.b.settled(range(PEOPLE))


def is_answered(side: Side, now: float) -> bool:
    """Whether it goes along with somebody who says that he has nothing at all."""
    side.comparison.origins(side.link, Origins(()), now)
    return bool(side.said())


# ------------------------------------------------------------------------------------------------------ the digest tree


def plain_digest(entries: dict[bytes, bytes], prefix: str = "") -> bytes:
    """The definition in proto/tidings.proto, word for word."""
    inside = {origin: digest for origin, digest in sorted(entries.items()) if origin.hex().startswith(prefix)}
    if len(inside) <= LEAF_ENTRIES:
        text, person = b"".join(origin + digest for origin, digest in inside.items()), b"tidings-root-v1"
    else:
        parts = [plain_digest(inside, prefix + digit) for digit in DIGITS]
        empty = plain_digest({})
        text, person = b"".join(bytes(32) if part == empty else part for part in parts), b"tidings-span-v1"
    return hashlib.blake2b(text, digest_size=32, person=person).digest()


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(0, 400), st.sampled_from([0, 1, 3, 20]))
def test_every_range_has_the_digest_that_its_definition_says_whatever_the_order(seed: int, n: int, same: int) -> None:
    """`same` leading bytes that all keys share: somebody chose them so."""
    rng = seeded(seed)
    entries = {bytes(same) + rng.randbytes(32 - same): rng.randbytes(32) for _ in range(n)}
    tree, looked = DigestTree(), DigestTree()
    for origin in entries:
        looked.set(origin, bytes(32))
        if rng.random() < 0.1:
            looked.root()
    for origin in rng.sample(sorted(entries), len(entries)):
        tree.set(origin, entries[origin])
        looked.set(origin, entries[origin])
    assert tree.root() == looked.root() == plain_digest(entries)
    for depth in (1, 2, 3, 2 * same + 1, 64):
        prefix = (min(entries, default=bytes(32))).hex()[:depth]
        inside = [origin for origin in sorted(entries) if origin.hex().startswith(prefix)]
        assert tree.origins(prefix) == inside
        assert tree.count(prefix) == len(inside)
        assert tree.digest(prefix) == (plain_digest(entries, prefix) if inside else b"")
    assert len(tree) == len(entries)


def test_a_change_makes_only_the_digests_above_it_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = DigestTree()
    origins = [hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(10_000)]
    for origin in origins:
        tree.set(origin, bytes(32))
    tree.root()
    made = Counter[str]()
    real = hashlib.blake2b
    monkeypatch.setattr(hashlib, "blake2b", lambda *args, **more: (made.update(["hash"]), real(*args, **more))[1])
    tree.set(origins[0], bytes([1]) * 32)
    tree.root()
    assert 1 <= made["hash"] <= 6


# ------------------------------------------------------------------------------------------------------- in a swarm


@pytest.mark.parametrize("seed", range(6))
def test_a_node_restored_from_an_old_copy_gets_everything_again_although_its_peers_remember_what_was_common(
    seed: int,
) -> None:
    swarm = Swarm(seed, 6, ring(6), conditions=Conditions(mean_link_life_s=40.0))
    swarm.start()
    victim = swarm.nodes[seed % 6]
    for node in swarm.nodes:
        node.publish(b"before" * 20)
    swarm.run_until_equal(120.0)
    copy = victim.copy()
    for node in swarm.nodes:
        if node is not victim:
            node.publish(b"after!" * 20)
    swarm.run_until_equal(120.0)
    swarm.run(30.0)
    assert any(other.core._comparison._common for other in swarm.nodes), "there is something to be misled by"
    victim.restore(copy)
    assert not swarm.are_equal()
    swarm.run_until_equal(120.0)
