"""P3: what two real nodes gossip a second, beside a bare gRPC stream of the same messages between two processes.

Gossip is timed from the link coming up to the last body being whole in the receiver's store: compared, announced, asked
for, hashed, kept with an fsync, settled. The bare stream (`bare_stream`) is timed from its first answer to its last
byte, which it drops. Both over TLS with the credentials of the same two identities, dialed by the receiver, on
loopback, in turn, so that both see the same machine.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from benchmarks.bare_stream import MEGABYTE
from benchmarks.progress import Progress
from crypto.sealing import new_epoch_key
from node.author import EpochKey
from node.config import CHUNK_BYTES
from node.database import STORE_FILE
from node.home import Home
from node.membership import add_peer
from node.records import Kind
from node.rehearsal import Site, free_ports

TARGET = 0.8
POLL_S = 0.01
WAIT_S = 120.0


@dataclass(frozen=True)
class Load:
    """How many bodies of how many MiB are sent, and how often both contenders do it."""

    bodies: int
    megabytes: int
    repetitions: int

    @property
    def total(self) -> int:
        """MiB of bodies in one repetition."""
        return self.bodies * self.megabytes


FULL = Load(bodies=16, megabytes=8, repetitions=5)
QUICK = Load(bodies=4, megabytes=4, repetitions=2)


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    return _section(FULL)


def quick(_out: Path) -> str:
    """Fewer and smaller bodies."""
    return _section(QUICK)


def _section(load: Load) -> str:
    tell = Progress("goodput")
    ours, bare, ratios = [], [], []
    for repetition in range(load.repetitions):
        with tempfile.TemporaryDirectory() as scratch:
            pair = Pair.make(Path(scratch), load)
            bare.append(load.total * MEGABYTE / 1e6 / bare_seconds(pair, load))
            ours.append(load.total * MEGABYTE / 1e6 / gossip_seconds(pair, load))
        ratios.append(ours[-1] / bare[-1])
        tell(f"{repetition + 1} of {load.repetitions}: {ours[-1]:.0f} and {bare[-1]:.0f} MB/s")
    return (
        "## P3: goodput between two nodes\n\n"
        f"{load.bodies} bodies of {load.megabytes} MiB in frames of {CHUNK_BYTES // 1024} KiB over TLS on loopback, "
        f"{load.repetitions} repetitions, mean ± standard deviation. Nodes: from the link to the last body whole in "
        "the receiver's store. Stream: the same messages, dropped on arrival.\n\n"
        "| what | MB/s | slowest | fastest |\n| --- | --- | --- | --- |\n"
        f"{_row('two nodes', ours)}{_row('a bare gRPC stream', bare)}\n"
        f"Gossip against the stream of the same repetition: {mean(ratios):.0%} ± {_spread(ratios):.0%} "
        f"(worst {min(ratios):.0%}); target at least {TARGET:.0%}.\n"
    )


def _row(name: str, figures: list[float]) -> str:
    return f"| {name} | {mean(figures):.0f} ± {_spread(figures):.0f} | {min(figures):.0f} | {max(figures):.0f} |\n"


def _spread(figures: list[float]) -> float:
    return stdev(figures) if len(figures) > 1 else 0.0


# --- the two contenders -----------------------------------------------------------------------------------------------


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


def bare_seconds(pair: Pair, load: Load) -> float:
    """How long the bare stream took."""
    command = [sys.executable, "-m", "benchmarks.bare_stream"]
    source = subprocess.Popen(
        [*command, "source", str(pair.sender.path), str(load.total)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert source.stdout is not None
        port = source.stdout.readline().strip()
        words = ["sink", str(pair.receiver.path), pair.sender.open().me.text, port, str(load.total)]
        done = subprocess.run([*command, *words], check=True, capture_output=True, text=True, timeout=WAIT_S)
        return float(done.stdout)
    finally:
        source.terminate()
        source.communicate(timeout=WAIT_S)


def gossip_seconds(pair: Pair, load: Load) -> float:
    """How long the two nodes took."""
    try:
        pair.sender.start()
        time.sleep(1.0)  # it listens by then, so that the first dial succeeds
        pair.receiver.start()
        settled_at = _when(lambda: _whole_bodies(pair.receiver) == load.bodies)
        _when(lambda: bool(_linked_since(pair.receiver)))
        return settled_at - _linked_since(pair.receiver)[0]
    finally:
        pair.receiver.stop()
        pair.sender.stop()


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
