"""Real `tidings serve` processes for tests, and a proxy with faults on every link between them."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from proxy import Faults, Proxy

from crypto.sealing import new_epoch_key
from node.author import EpochKey
from node.home import Home
from node.membership import add_peer
from node.records import HeldState, Kind, Record
from node.rehearsal import Site, free_ports
from node.status import peers


class Node(Site):
    """A node and a second view of its home, as a command would have."""

    @classmethod
    def make(cls, directory: Path, name: str, host: str = "127.0.0.1") -> Node:
        """A new home that will listen on a free port of `host`."""
        address = f"{host}:{free_ports(1, host)[0]}"
        Home.init(directory / name, name, address).store.close()
        return cls(name, directory / name, address)

    @functools.cached_property
    def home(self) -> Home:
        """One view for the whole test: opening costs more than asking."""
        return Home.open(self.path)

    def open(self) -> Home:
        """The same view, for what a Site asks of its home."""
        return self.home

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def knows(self, other: Node, *addresses: str) -> None:
        """Add a member, or give one its new addresses."""
        add_peer(self.home, other.home.me.text, other.name, *addresses, query_only=False)

    def sees(self, other: Node) -> dict[str, Any]:
        """What `status` says of a peer."""
        return next(peer for peer in peers(self.home, served=True) if peer["key"] == other.home.me.text)

    def is_linked_with(self, other: Node) -> bool:
        """Whether `status` says so."""
        return bool(self.sees(other)["state"] == "linked")

    def author(self, body: bytes) -> Record:
        """A summary with this body, of a task that nobody knows: carried by all, opened by none."""
        return self.home.author.sealed(Kind.SUMMARY, bytes(32), body, EpochKey(1, new_epoch_key()))

    def has_whole(self, record: Record) -> bool:
        """Whether a record is here with all of its body."""
        held = self.home.store.get(record.id)
        return held is not None and held.state is HeldState.COMPLETE


@contextmanager
def running(*nodes: Node, start: Callable[[Node], None] = Node.start) -> Iterator[None]:
    """The nodes serve, started in their own way if they have one; all are killed at the end."""
    try:
        for node in nodes:
            start(node)
        yield
    finally:
        for node in nodes:
            node.kill()


@contextmanager
def joined(dialer: Node, answerer: Node, faults: Faults | None = None, *, seed: int = 0) -> Iterator[Proxy]:
    """A one-way link: each is a member for the other, and only the dialer has an address, that of a proxy."""
    host = str(answerer.address).rpartition(":")[0].strip("[]")
    with Proxy(str(answerer.address), faults, seed=seed, host=host) as proxy:
        dialer.knows(answerer, proxy.address)
        answerer.knows(dialer)
        yield proxy


@contextmanager
def in_a_line(nodes: Sequence[Node], faults: Faults, seed: int) -> Iterator[list[Proxy]]:
    """One-way links between neighbors, dialed by whichever of the two the seed says. All are members of each other."""
    rng = random.Random(seed)  # noqa: S311 - chooses directions
    with ExitStack() as stack:
        proxies = []
        for number, pair in enumerate(itertools.pairwise(nodes)):
            dialer, answerer = rng.sample(pair, 2)
            proxies.append(stack.enter_context(joined(dialer, answerer, faults, seed=100 * seed + number)))
        for one, other in itertools.permutations(nodes, 2):
            one.knows(other)
        yield proxies
