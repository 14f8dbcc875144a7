"""Swarms on paper: whatever happens to links and nodes, all stores become equal, and little is sent twice.

A failure names its seed; `Swarm(seed, …)` with the test's arguments replays it event by event.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from node.config import GossipSettings
from node.frames import Chunk, Frame
from node.records import HeldState, Record
from node.simulated_network import Conditions, Edge, Wire, line, random_graph, ring, seeded
from node.simulator import Node, Swarm, settled_ids

KB = 1_024
NO_SYNC = GossipSettings(sync_min_s=1e9, sync_max_s=2e9)
"""Announcements only: what push alone achieves."""


def graph(name: str, n: int) -> list[Edge]:
    match name:
        case "line":
            return line(n)
        case "ring":
            return ring(n)
        case "random":
            return random_graph(n, 3, seeded(n))
    raise ValueError(name)


def publish_some(swarm: Swarm, count: int, largest: int = 60_000) -> int:
    """Let nodes publish bodies of many sizes; returns the body bytes that the others need."""
    needed = 0
    for _ in range(count):
        body = swarm.rng.randbytes(swarm.rng.randint(50, largest))
        swarm.rng.choice(swarm.nodes).publish(body, chunk_bytes=4 * KB)
        needed += len(body) * (len(swarm.nodes) - 1)
        swarm.run(swarm.rng.random())
    return needed


def assert_each_body_came_once(swarm: Swarm) -> None:
    """Every node that is not the origin kept every byte of a body exactly once."""
    for held in swarm.nodes[0].store.held():
        expected = held.record.header.body_bytes * (len(swarm.nodes) - 1)
        assert swarm.kept[held.record.id] == expected


# --------------------------------------------------------------------------------------------------- fair weather


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("name", "n"), [("line", 2), ("line", 8), ("ring", 16), ("random", 32), ("random", 64)])
def test_all_stores_become_equal_and_no_body_is_sent_twice(name: str, n: int, seed: int) -> None:
    swarm = Swarm(seed, n, graph(name, n))
    swarm.start()
    needed = publish_some(swarm, 10)
    swarm.run_until_equal(60.0)
    assert_each_body_came_once(swarm)
    assert swarm.sent["Chunk"] <= 1.05 * needed


@pytest.mark.parametrize("n", [16, 64])
def test_announcements_alone_reach_99_percent_within_log2_n_rounds(n: int) -> None:
    for seed in range(3):
        swarm = Swarm(seed, n, random_graph(n, 4, seeded(seed)), settings=NO_SYNC)
        swarm.start()
        swarm.run(10.0)
        record = swarm.nodes[0].publish(bytes(2_000))
        rounds = math.log2(n) * NO_SYNC.rumor_round_s
        assert swarm.run(rounds, lambda: share_with(swarm, record) >= 0.99), f"seed {seed}"  # noqa: B023


def share_with(swarm: Swarm, record: Record) -> float:
    return sum(record.id in settled_ids(node) for node in swarm.nodes) / len(swarm.nodes)


def test_an_equal_pair_costs_less_than_100_bytes_each_way_to_connect_and_little_to_keep() -> None:
    swarm = Swarm(1, 2, line(2), settings=GossipSettings())
    swarm.start()
    swarm.nodes[0].publish(bytes(500))
    swarm.run(5.0)
    assert swarm.are_equal()
    swarm.cut(next(iter(swarm.nodes[0].links.values())))
    before = sum(swarm.sent.values())
    swarm.run(3.0)
    assert swarm.links() == {frozenset((0, 1))}
    assert sum(swarm.sent.values()) - before < 2 * 100
    before = sum(swarm.sent.values())
    swarm.run(3_600.0)
    assert sum(swarm.sent.values()) - before < 60 * 100, "a minute of an idle link"


def test_two_nodes_that_dial_each_other_end_up_with_one_link_and_leave_it_alone() -> None:
    for seed in range(10):
        swarm = Swarm(seed, 6, [(a, b) for a in range(6) for b in range(6) if a != b])
        for node in swarm.nodes:
            swarm.at(swarm.now, node.start)
        swarm.run(20.0)
        hellos = swarm.frames["Hello"]
        assert len(swarm.links()) == 15
        assert sum(len(node.links) for node in swarm.nodes) == 30
        swarm.run(600.0)
        assert swarm.frames["Hello"] == hellos, "a link flaps"


def test_a_node_without_an_address_takes_full_part() -> None:
    swarm = Swarm(1, 3, [(0, 1), (2, 1)])
    swarm.start()
    for node in swarm.nodes:
        node.publish(swarm.rng.randbytes(20_000))
    swarm.run_until_equal(30.0)
    assert swarm.links() == {frozenset((0, 1)), frozenset((1, 2))}


def test_records_spread_although_never_all_nodes_are_up_at_once() -> None:
    """A to B, A stops, B to C, B stops, C to D: store and forward."""
    swarm = Swarm(1, 4, line(4))
    for node in swarm.nodes:
        node.publish(swarm.rng.randbytes(30_000))
    swarm.nodes[0].start()
    for before, after in pairwise(swarm.nodes):
        after.start()
        swarm.run(30.0)
        before.stop()
    assert len(settled_ids(swarm.nodes[3])) == 4


# ---------------------------------------------------------------------------------------------------- foul weather


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "n"), [("line", 5), ("ring", 12), ("random", 24)])
def test_stores_become_equal_while_links_are_cut_all_the_time(name: str, n: int, seed: int) -> None:
    swarm = Swarm(seed, n, graph(name, n), conditions=Conditions(mean_link_life_s=8.0, late_notice_s=10.0))
    swarm.start()
    needed = publish_some(swarm, 12)
    swarm.run_until_equal(600.0)
    assert swarm.sent["Chunk"] <= 1.2 * needed


@pytest.mark.parametrize("seed", range(3))
def test_stores_become_equal_although_frames_are_lost(seed: int) -> None:
    """Harsher than a stream can be: every tenth frame vanishes, Hello and all, and has to be sent again."""
    swarm = Swarm(seed, 12, random_graph(12, 3, seeded(seed)), conditions=Conditions(frame_loss=0.1))
    swarm.start()
    needed = publish_some(swarm, 8, largest=20_000)
    swarm.run_until_equal(900.0)
    assert swarm.sent["Chunk"] * 0.9 <= 1.2 * needed


@pytest.mark.parametrize("seed", range(4))
def test_stores_become_equal_although_nodes_stop_and_start_all_the_time(seed: int) -> None:
    """Each life begins with what the last one stored, half fetched bodies and all."""
    swarm = Swarm(seed, 10, random_graph(10, 3, seeded(seed)), conditions=Conditions(bandwidth=40_000))
    swarm.start()
    for _ in range(40):
        swarm.run(swarm.rng.uniform(0.5, 3.0))
        node = swarm.rng.choice(swarm.nodes)
        if not node.is_up:
            node.start()
        elif swarm.rng.random() < 0.5:
            node.stop()
        else:
            node.publish(swarm.rng.randbytes(swarm.rng.randint(50, 60_000)), chunk_bytes=4 * KB)
    for node in swarm.nodes:
        if not node.is_up:
            node.start()
    swarm.run_until_equal(300.0)
    assert_each_body_came_once(swarm)


def test_a_thin_line_that_is_cut_every_5_s_carries_5_mb_and_repeats_about_a_chunk_per_cut() -> None:
    """64 kbit/s, chunks of the usual size. A cut costs the chunk on the line, and one that had left and not arrived."""
    swarm = Swarm(1, 2, line(2), conditions=Conditions(bandwidth=8_000))
    cuts = 0

    def cut_and_come_again() -> None:
        nonlocal cuts
        for link in list(swarm.nodes[0].links.values()):
            swarm.cut(link)
            cuts += 1
        swarm.after(5.0, cut_and_come_again)

    swarm.start()
    swarm.run(3.0)
    body = swarm.rng.randbytes(5_000_000)
    swarm.nodes[0].publish(body, chunk_bytes=16 * KB)
    swarm.after(5.0, cut_and_come_again)
    took_s = swarm.run_until_equal(3_600.0)
    assert cuts > 100
    assert swarm.sent["Chunk"] - len(body) <= 1.1 * cuts * 16 * KB
    assert swarm.kept.total() == len(body)
    assert took_s < 2 * len(body) / 8_000


@pytest.mark.parametrize(("n", "hours"), [(16, 1), (8, 24)])
def test_a_partition_heals_by_itself_within_two_periods_of_anti_entropy(n: int, hours: int) -> None:
    """With the settings of a real node, whose dials have backed off to minutes by then."""
    settings = GossipSettings()
    swarm = Swarm(hours, n, random_graph(n, 4, seeded(hours)), settings=settings)
    swarm.start()
    swarm.run(10.0)
    swarm.partition([node.number % 2 for node in swarm.nodes])
    publish_some(swarm, 6)
    swarm.run(hours * 3_600.0)
    assert not swarm.are_equal()
    swarm.partition(None)
    swarm.run_until_equal(2 * settings.sync_max_s)


@pytest.mark.parametrize("seed", range(6))
def test_withdrawals_hold_everywhere_through_cuts_restarts_and_partitions(seed: int) -> None:
    """Stateful: publish, replace, take back, stop, start, part, heal. Then: equal, and no body of a buried record."""
    swarm = Swarm(seed, 8, random_graph(8, 3, seeded(seed)), conditions=Conditions(mean_link_life_s=20.0))
    swarm.start()
    published: list[tuple[Node, Record]] = []
    for _ in range(60):
        swarm.run(swarm.rng.uniform(0.0, 2.0))
        random_step(swarm, published)
    swarm.partition(None)
    for node in swarm.nodes:
        if not node.is_up:
            node.start()
    swarm.run_until_equal(600.0)
    graves = [graves_of(node) for node in swarm.nodes]
    assert all(grave == graves[0] for grave in graves)
    assert graves[0], "the script took something back"
    for node in swarm.nodes:
        assert all(node.store.chunk(buried, 0) is None for buried in graves[0])


def graves_of(node: Node) -> set[bytes]:
    return {held.record.id for held in node.store.held() if held.state is HeldState.BURIED}


def random_step(swarm: Swarm, published: list[tuple[Node, Record]]) -> None:
    node = swarm.rng.choice(swarm.nodes)
    body = swarm.rng.randbytes(swarm.rng.randint(50, 30_000))
    match swarm.rng.choice(["publish", "publish", "replace", "withdraw", "withdraw", "stop", "start", "part", "heal"]):
        case "publish":
            published.append((node, node.publish(body, chunk_bytes=4 * KB)))
        case "replace" if published:
            origin, record = swarm.rng.choice(published)
            published.append((origin, origin.publish(body, supersedes=record.id, chunk_bytes=4 * KB)))
        case "withdraw" if published:
            origin, record = swarm.rng.choice(published)
            origin.publish(supersedes=record.id)
        case "stop" if node.is_up:
            node.stop()
        case "start" if not node.is_up:
            node.start()
        case "part":
            swarm.partition([swarm.rng.randrange(2) for _ in swarm.nodes])
        case "heal":
            swarm.partition(None)


# ------------------------------------------------------------------------------------------------- who is trusted


def test_a_member_added_later_gets_what_was_there_and_gives_what_it_has() -> None:
    swarm = Swarm(1, 4, line(4))
    late = swarm.nodes[3]
    members = {node.number: node.members for node in swarm.nodes}
    for node in swarm.nodes[:3]:
        node.set_members({key: where for key, where in node.members.items() if key != late.key})
    swarm.start()
    for node in swarm.nodes:
        node.publish(swarm.rng.randbytes(20_000))
    swarm.run(30.0)
    assert [len(settled_ids(node)) for node in swarm.nodes] == [3, 3, 3, 1]
    for node in swarm.nodes[:3]:
        node.set_members(members[node.number])
    swarm.run_until_equal(60.0)


def test_a_removed_member_gets_nothing_more_and_its_old_records_stay_where_they_are() -> None:
    swarm = Swarm(1, 4, ring(4))
    removed = swarm.nodes[3]
    swarm.start()
    old = removed.publish(swarm.rng.randbytes(9_000))
    swarm.run_until_equal(30.0)
    for node in swarm.nodes[:3]:
        node.set_members({key: address for key, address in node.members.items() if key != removed.key})
    new = swarm.nodes[0].publish(swarm.rng.randbytes(9_000))
    late = removed.publish(swarm.rng.randbytes(9_000))
    swarm.run(60.0)
    assert [settled_ids(node) for node in swarm.nodes] == [{old.id, new.id}] * 3 + [{old.id, late.id}]


class Liar(Wire):
    """A link on which one node sends chunks with a flipped bit."""

    liar = 0

    def _load(self, sender: Node, wanted: object) -> Frame:
        frame = super()._load(sender, wanted)  # type: ignore[arg-type]
        if sender.number == self.liar and isinstance(frame, Chunk):
            return Chunk(frame.id, frame.index, bytes([frame.data[0] ^ 1]) + frame.data[1:])
        return frame


def test_a_node_that_corrupts_what_it_relays_is_kept_out_and_the_others_become_equal() -> None:
    swarm = Swarm(1, 6, random_graph(6, 4, seeded(1)), wire=Liar)
    swarm.start()
    honest = swarm.nodes[1:]
    bodies = [swarm.rng.randbytes(30_000) for _ in honest]
    records = {node.publish(body, chunk_bytes=4 * KB).id for node, body in zip(honest, bodies, strict=True)}
    assert swarm.run(120.0, lambda: all(settled_ids(node) == records for node in honest))
    # Only what a node had kept of good chunks is there: bodies are whole.
    for node in honest:
        assert all(held.state is HeldState.COMPLETE for held in node.store.held())


# ------------------------------------------------------------------------------------------------------ long runs


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(200))
def test_soak_withdrawals_hold_everywhere(seed: int) -> None:
    test_withdrawals_hold_everywhere_through_cuts_restarts_and_partitions(1_000 + seed)


@pytest.mark.soak
@pytest.mark.parametrize("n", [256, 512])
def test_soak_large_swarms_become_equal(n: int) -> None:
    swarm = Swarm(n, n, random_graph(n, 4, seeded(n)), settings=GossipSettings())
    swarm.start()
    swarm.run(20.0)
    needed = publish_some(swarm, 10, largest=6_000)
    swarm.run_until_equal(math.log2(n) + 3 * 60.0)
    assert swarm.sent["Chunk"] <= 1.05 * needed
