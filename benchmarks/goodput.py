"""P3: what two real nodes gossip a second, beside bare gRPC streams between two processes.

Gossip is timed from the link coming up to the last body being whole in the receiver's store: compared, announced,
asked for, hashed at both ends, kept with an fsync, settled. The streams (`bare_stream`) are timed from their first
answer to their last byte. There are three: messages of one chunk, dropped on arrival; messages as large as nodes send
them on a fast link, dropped; and the same kept, as the least that a node must do with them. All over TLS with the
credentials of the same two identities, dialed by the receiver, on loopback, in turn, so that all see the same machine.
Beside the time the CPU time of both ends, which other programs on the machine disturb less. Linux, whose /proc tells it
of the nodes.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from benchmarks.bare_stream import MEGABYTE
from benchmarks.progress import Progress
from crypto.sealing import new_epoch_key
from node.author import EpochKey
from node.config import CHUNK_BYTES, CHUNKS_MAX_BYTES
from node.database import STORE_FILE
from node.home import Home
from node.membership import add_peer
from node.records import Kind
from node.rehearsal import Site, free_ports

TARGET = 0.8
POLL_S = 0.01
WAIT_S = 120.0
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

NODES = "two nodes"
CHUNK_STREAM = f"stream of {CHUNK_BYTES // 1024} KiB messages, dropped"
LARGE_STREAM = f"stream of {CHUNKS_MAX_BYTES // 1024} KiB messages, dropped"
KEPT_STREAM = f"stream of {CHUNKS_MAX_BYTES // 1024} KiB messages, hashed and kept once"


@dataclass(frozen=True)
class Load:
    """How many bodies of how many MiB are sent, and how often all contenders do it."""

    bodies: int
    megabytes: int
    repetitions: int

    @property
    def total(self) -> int:
        """MiB of bodies in one repetition."""
        return self.bodies * self.megabytes


@dataclass(frozen=True)
class Took:
    """What one contender took for one repetition: seconds by the clock, and of CPU time, both ends together."""

    wall_s: float
    cpu_s: float


FULL = Load(bodies=24, megabytes=8, repetitions=10)
QUICK = Load(bodies=4, megabytes=4, repetitions=2)


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    return _section(FULL)


def quick(_out: Path) -> str:
    """Fewer and smaller bodies."""
    return _section(QUICK)


def _section(load: Load) -> str:
    tell = Progress("goodput")
    took: dict[str, list[Took]] = {NODES: [], CHUNK_STREAM: [], LARGE_STREAM: [], KEPT_STREAM: []}
    for repetition in range(load.repetitions):
        with tempfile.TemporaryDirectory() as scratch:
            pair = Pair.make(Path(scratch), load)
            took[CHUNK_STREAM].append(bare(pair, load, CHUNK_BYTES))
            took[NODES].append(gossip(pair, load))
            took[LARGE_STREAM].append(bare(pair, load, CHUNKS_MAX_BYTES))
            took[KEPT_STREAM].append(bare(pair, load, CHUNKS_MAX_BYTES, Path(scratch)))
        words = " / ".join(f"{_rate(load, one[-1]):.0f}" for one in took.values())
        tell(f"{repetition + 1} of {load.repetitions}: {words} MB/s")
    rows = [_row(load, name, found) for name, found in took.items()]
    ratios = [_ratios(took[NODES], name, took[name]) for name in (CHUNK_STREAM, LARGE_STREAM, KEPT_STREAM)]
    ratios.append(_ratios(took[KEPT_STREAM], LARGE_STREAM, took[LARGE_STREAM], "a stream that is kept"))
    return (
        "## P3: goodput between two nodes\n\n"
        f"{load.bodies} bodies of {load.megabytes} MiB in chunks of {CHUNK_BYTES // 1024} KiB, of which "
        f"{CHUNKS_MAX_BYTES // CHUNK_BYTES} share a frame once the link has shown that it is fast, over TLS on "
        f"loopback; {load.repetitions} repetitions, in turn, mean ± standard deviation. Nodes: from the link to the "
        "last body whole in the receiver's store. CPU time: both ends together, for each chunk.\n\n"
        "| what | MB/s | slowest | fastest | CPU time a chunk |\n| --- | --- | --- | --- | --- |\n"
        f"{''.join(rows)}\n"
        "| | of | in MB/s | worst | in CPU time |\n| --- | --- | --- | --- | --- |\n"
        f"{''.join(ratios)}\n"
        f"P3 asks for {TARGET:.0%} of a stream of the same message size.\n"
    )


def _rate(load: Load, took: Took) -> float:
    """MB/s."""
    return load.total * MEGABYTE / 1e6 / took.wall_s


def _row(load: Load, name: str, found: Sequence[Took]) -> str:
    rates = [_rate(load, one) for one in found]
    costs = [one.cpu_s * 1e6 * CHUNK_BYTES / (load.total * MEGABYTE) for one in found]
    return (
        f"| {name} | {mean(rates):.0f} ± {_spread(rates):.0f} | {min(rates):.0f} | {max(rates):.0f} "
        f"| {mean(costs):.0f} ± {_spread(costs):.0f} µs |\n"
    )


def _ratios(mine: Sequence[Took], name: str, others: Sequence[Took], me: str = NODES) -> str:
    """How much of another contender's pace one has, repetition by repetition."""
    wall = [other.wall_s / one.wall_s for one, other in zip(mine, others, strict=True)]
    cpu = [other.cpu_s / one.cpu_s for one, other in zip(mine, others, strict=True)]
    return (
        f"| {me} | {name} | {mean(wall):.0%} ± {_spread(wall):.0%} | {min(wall):.0%} "
        f"| {mean(cpu):.0%} ± {_spread(cpu):.0%} |\n"
    )


def _spread(figures: Sequence[float]) -> float:
    return stdev(figures) if len(figures) > 1 else 0.0


# --- the contenders ---------------------------------------------------------------------------------------------------


@dataclass
class Pair:
    """A node that holds the bodies and listens, and one that knows its address."""

    sender: Site
    receiver: Site

    @classmethod
    def make(cls, folder: Path, load: Load) -> Pair:
        """Both homes, with all bodies in the sender's."""
        address = f"127.0.0.1:{free_ports(1)[0]}"
        sender = Home.init(folder / "sender", "sender", address)
        receiver = Home.init(folder / "receiver", "receiver", None)
        add_peer(sender, receiver.me.text, "receiver", None, query_only=False)
        add_peer(receiver, sender.me.text, "sender", address, query_only=False)
        for _ in range(load.bodies):
            # Nobody is granted this key: what is measured carries the bodies and never opens them.
            plaintext = os.urandom(load.megabytes * MEGABYTE - 40)
            sender.author.sealed(Kind.SUMMARY, os.urandom(32), plaintext, EpochKey(1, new_epoch_key()))
        for home in (sender, receiver):
            home.store.close()
        return cls(Site("sender", folder / "sender", address), Site("receiver", folder / "receiver", None))


def bare(pair: Pair, load: Load, message_bytes: int, folder: Path | None = None) -> Took:
    """A stream of messages of this size, kept in a folder or dropped."""
    command = [sys.executable, "-m", "benchmarks.bare_stream"]
    source = subprocess.Popen(
        [*command, "source", str(pair.sender.path), str(load.total), str(message_bytes)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert source.stdout is not None
        port = source.stdout.readline().strip()
        words = ["sink", str(pair.receiver.path), pair.sender.open().me.text, port, str(load.total)]
        words += [str(folder)] if folder else []
        done = subprocess.run([*command, *words], check=True, capture_output=True, text=True, timeout=WAIT_S)
        wall_s, cpu_s = map(float, done.stdout.split())
        return Took(wall_s, cpu_s + float(source.stdout.readline()))
    finally:
        source.terminate()
        source.communicate(timeout=WAIT_S)


def gossip(pair: Pair, load: Load) -> Took:
    """The two nodes."""
    try:
        pair.sender.start()
        time.sleep(1.0)  # it listens by then, so that the first dial succeeds
        pair.receiver.start()
        spent: list[tuple[float, float]] = []

        def is_done() -> bool:
            spent.append((time.time(), _cpu_s(pair.sender) + _cpu_s(pair.receiver)))
            return _whole_bodies(pair.receiver) == load.bodies

        settled_at = _when(is_done)
        _when(lambda: bool(_linked_since(pair.receiver)))
        linked_at = _linked_since(pair.receiver)[0]
        at_first = max(cpu_s for at, cpu_s in spent if at <= linked_at)
        return Took(settled_at - linked_at, spent[-1][1] - at_first)
    finally:
        pair.receiver.stop()
        pair.sender.stop()


def _cpu_s(site: Site) -> float:
    """CPU time of a running node so far."""
    assert site.process is not None
    fields = Path(f"/proc/{site.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def _whole_bodies(site: Site) -> int:
    """How many bodies have settled; one small read, because it is asked a hundred times a second."""
    store = sqlite3.connect(f"{(site.path / STORE_FILE).as_uri()}?mode=ro", uri=True)
    try:
        rows = store.execute(
            "SELECT count(*) FROM records WHERE kind = ? AND state = 'complete'", (int(Kind.SUMMARY),)
        ).fetchone()
        return int(rows[0])
    finally:
        store.close()


def _linked_since(site: Site) -> list[float]:
    """When the link came up, in seconds since 1970, once the node has written it down."""
    return [link.since for link in site.open().store.links() if link.state == "linked"]


def _when(condition: Callable[[], bool]) -> float:
    """Seconds since 1970 at which it was first seen to hold."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT_S:.0f} s in vain")
        time.sleep(POLL_S)
    return time.time()
