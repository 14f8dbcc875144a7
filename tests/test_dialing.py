"""Dialing: who is tried and when, how many links a node keeps of its own, and how components find each other again."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable

import pytest

from crypto.keys import Identity, PublicKey
from node.config import PROTOCOL_VERSION, GossipSettings
from node.frames import Hello
from node.gossip.core import Gossip
from node.gossip.dialing import Dialer
from node.gossip.events import (
    Action,
    Close,
    Dial,
    DialFailed,
    Event,
    FrameIn,
    LinkDown,
    LinkState,
    LinkUp,
    PeersChanged,
    Report,
    Tick,
)
from node.simulation.network import line, seeded
from node.simulation.simulator import Swarm

REAL = GossipSettings()
MANY = 40


@functools.cache
def key(number: int) -> PublicKey:
    return Identity.from_seed(number.to_bytes(32, "big")).public_key


class Dialed:
    """A core whose dials are answered by the test: at once, with a link to whoever is up, or with nothing."""

    def __init__(self, addressed: Iterable[int], up: Iterable[int] = (), *, fails_after_s: float = 0.0) -> None:
        self.core = Gossip(REAL, seeded(5), key(0), b"my-store", ())
        self.up = {key(number) for number in up}
        self.fails_after_s = fails_after_s
        self.now = 0.0
        self.numbers = itertools.count(1)
        self.links: dict[int, PublicKey] = {}
        self.tries: list[tuple[float, PublicKey]] = []
        self.closed: list[Close] = []
        self.reports: dict[PublicKey, Report] = {}
        self.pending: list[tuple[float, PublicKey]] = []
        self.tell(PeersChanged({key(number): (f"peer{number}:1",) for number in addressed}))

    def tell(self, event: Event) -> None:
        for action in self.core.handle(event, self.now):
            self.do(action)

    def do(self, action: Action) -> None:
        match action:
            case Dial(peer):
                self.tries.append((self.now, peer))
                self.pending.append((self.now + (0.05 if peer in self.up else self.fails_after_s), peer))
            case Close(link):
                del self.links[link]
                self.closed.append(action)
            case Report(peer):
                self.reports[peer] = action

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = min(self.pending, default=(end, key(0)))
            deadline = self.core.next_deadline()
            self.now = max(self.now, min(due[0], end if deadline is None else deadline))
            if self.now >= end:
                return
            if due[0] <= self.now and self.pending:
                self.pending.remove(due)
                self.answer(due[1])
            else:
                self.tell(Tick())

    def answer(self, peer: PublicKey) -> None:
        if peer not in self.up:
            self.tell(DialFailed(peer, "no answer"))
            return
        number = next(self.numbers)
        self.links[number] = peer
        self.tell(LinkUp(number, peer, dialed_by_us=True))
        self.tell(FrameIn(number, Hello(PROTOCOL_VERSION, peer.raw[:8])))

    def lose(self, peer: PublicKey) -> None:
        self.up.discard(peer)
        for number in [number for number, other in self.links.items() if other == peer]:
            del self.links[number]
            self.tell(LinkDown(number, "the connection was lost"))


def test_up_to_17_nodes_are_linked_all_to_all() -> None:
    node = Dialed(range(1, 17), up=range(1, 17))
    node.wait(600.0)
    assert len(node.links) == REAL.max_dialed == 16
    assert len(node.tries) == 16, "nobody is given up for anybody else"


def test_in_a_larger_coalition_a_node_keeps_a_few_links_of_its_own_and_one_more_at_times() -> None:
    node = Dialed(range(1, MANY + 1), up=range(1, MANY + 1))
    most = 0
    for _ in range(3_600):
        node.wait(1.0)
        most = max(most, len(node.links))
    assert 16 <= len(node.links) <= most == 17
    # About one more a minute, and over the hour nearly everybody.
    assert 40 <= len(node.tries) - 16 <= 80
    assert len({peer for _, peer in node.tries}) > 0.8 * MANY
    assert {close.reason for close in node.closed} == {"another member is linked in its place"}
    given_up = set(map(key, range(1, MANY + 1))) - set(node.links.values())
    states = {node.reports[peer].state for peer in given_up if peer in node.reports}
    assert states == {LinkState.WAITING}, "it is not unreachable"


def test_who_is_dialed_is_drawn_at_random() -> None:
    chosen = Counter(peer for seed in range(40) for peer in first_drawn(seed))
    assert len(chosen) == MANY
    assert max(chosen.values()) < 3 * 40 * 16 / MANY


def first_drawn(seed: int) -> list[PublicKey]:
    dialer = Dialer(REAL, seeded(seed), key(0))
    members = {key(number): ("a:1",) for number in range(1, MANY + 1)}
    dialer.set_members(members, tuple(members), 0.0)
    return [peer for peer, _ in dialer.due(set(), 0, 0.0)]


@pytest.mark.parametrize("seconds_to_fail", [0.0, 10.0])
def test_the_only_member_that_is_up_is_found_among_many(seconds_to_fail: float) -> None:
    node = Dialed(range(1, MANY + 1), up=[17], fails_after_s=seconds_to_fail)
    node.wait(60.0)
    assert list(node.links.values()) == [key(17)]


def test_a_link_that_is_lost_is_replaced_by_one_with_somebody_who_is_up() -> None:
    node = Dialed(range(1, MANY + 1), up=range(1, 31))
    node.wait(5.0)
    for peer in list(node.links.values())[:10]:
        node.lose(peer)
    node.wait(60.0)
    assert len(node.links) >= 16
    assert set(node.links.values()) <= node.up


def test_of_two_links_too_many_the_newest_is_never_the_one_that_goes() -> None:
    node = Dialed(range(1, MANY + 1), up=range(1, MANY + 1))
    while not node.closed:
        node.wait(1.0)
        newest = max(node.links)
    assert newest not in {close.link for close in node.closed}


def test_ten_thousand_members_out_of_reach_are_tried_a_few_a_second_for_ever() -> None:
    """As on a laptop without a network: every try fails at once."""
    dialer = Dialer(REAL, seeded(1), key(0))
    members = {key(number): ("a:1",) for number in range(1, 401)}
    crowd = tuple(members) * 25  # as if there were 10,000 of them; making so many keys takes longer than the test
    dialer.set_members(members, crowd, 0.0)
    now, tries = 0.0, Counter[PublicKey]()
    begun: list[float] = []
    while now < 1_000.0:
        for peer, _ in dialer.due(set(), 0, now):
            tries[peer] += 1
            begun.append(now)
            dialer.failed(peer, now)
        now = max(now, dialer.deadline())
    assert max(Counter(map(int, begun)).values()) <= 2 * REAL.max_dialed
    late = [at for at in begun if at > 600.0]
    assert len(late) / 400.0 < 5.0
    assert len(tries) == 400


def test_unready_links_of_one_peer_are_few() -> None:
    node = Dialed([1])
    for number in range(100, 110):
        node.links[number] = key(1)
        node.tell(LinkUp(number, key(1), dialed_by_us=False))
    assert list(node.links) == [107, 108, 109]


def test_members_without_an_address_are_let_in_however_many_they_are() -> None:
    """A hub: the only one that the others can reach."""
    node = Dialed([])
    node.tell(PeersChanged({key(number): () for number in range(1, 101)}))
    for number in range(1, 101):
        node.links[number] = key(number)
        node.tell(LinkUp(number, key(number), dialed_by_us=False))
        node.tell(FrameIn(number, Hello(PROTOCOL_VERSION, bytes(8))))
    assert len(node.links) == 100


# ------------------------------------------------------------------------------------------------------- in a swarm


@pytest.mark.parametrize("seed", range(30))
def test_a_pair_that_was_apart_for_an_hour_is_equal_within_two_periods_of_anti_entropy(seed: int) -> None:
    """One of them can dial; nobody helps."""
    swarm = Swarm(seed, 2, line(2), settings=REAL)
    swarm.start()
    swarm.run(10.0)
    swarm.partition([0, 1])
    for node in swarm.nodes:
        node.publish(b"x" * 20_000)
    swarm.run(3_600.0 + 97.3 * seed)
    swarm.partition(None)
    assert swarm.run_until_equal(2 * REAL.sync_max_s) <= 2 * REAL.sync_max_s


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 6))])
def test_two_halves_in_which_everybody_has_enough_links_find_each_other_again(seed: int) -> None:
    n = 2 * MANY
    everybody = [(a, b) for a in range(n) for b in range(n) if a != b]
    swarm = Swarm(seed, n, everybody, settings=REAL)
    swarm.start()
    swarm.run(10.0)
    swarm.partition([node.number % 2 for node in swarm.nodes])
    swarm.nodes[0].publish(b"even" * 20)
    swarm.nodes[1].publish(b"odd" * 20)
    swarm.run(240.0)
    ours = [sum(link.nodes[0] is node for link in node.links.values()) for node in swarm.nodes]
    assert sum(count >= 16 for count in ours) > n / 2, "most have found all the links they want within their half"
    swarm.partition(None)
    assert swarm.run_until_equal(2 * REAL.sync_max_s) <= 2 * REAL.sync_max_s
    assert max(len(node.links) for node in swarm.nodes) < 0.7 * n, "far from all to all"
