"""Real nodes on this machine, for `tidings demo` and the examples: homes, processes, and waiting for what they do.

Everything a person would type runs as the real command in a process of its own.
"""

from __future__ import annotations

import errno
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from node.errors import NodeError
from node.home import Home
from node.records import HeldState, Kind
from node.tasks import listing

COMMAND_S = 300.0
WAIT_S = 40.0
STOP_S = 10.0
FIRST_PORT, LAST_PORT = 20_000, 30_000


class RehearsalFailed(NodeError):
    """The nodes did not get where they should; the sentence says where they stuck."""


@dataclass
class Site:
    """One node: its home, its address if it has one, and its process while it runs."""

    name: str
    path: Path
    address: str | None
    process: subprocess.Popen[bytes] | None = None
    bytes_sent: int = 0

    def tidings(self, *words: str) -> str:
        """Run one command on this home and return what it printed; RehearsalFailed with its error line otherwise."""
        command = [sys.executable, "-m", "node", "--home", str(self.path), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)  # noqa: S603 - ours
        if done.returncode != 0:
            raise RehearsalFailed(f"{self.name}: `tidings {' '.join(words)}` failed: {done.stderr.strip()}")
        return done.stdout

    def start(self) -> None:
        """Run the node in the background; its log goes into its home."""
        with open(self.path / "serve.log", "ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - ours
                [sys.executable, "-m", "node", "--home", str(self.path), "serve"], stdout=log, stderr=log
            )

    def stop(self) -> None:
        """End the node as Ctrl-C would, and count what it sent."""
        if self.process is None:
            return
        self.bytes_sent += sum(link.bytes_sent for link in self.open().store.links())
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def open(self) -> Home:
        """The home, to look into while the node runs."""
        return Home.open(self.path)

    def readable_summaries(self) -> int:
        """How many live summaries this node holds and can decrypt."""
        home = self.open()
        count = 0
        for held in home.store.held(kind=Kind.SUMMARY):
            try:
                home.epochs.open(held)
                count += 1
            except NodeError:
                continue
        return count

    def holds(self, kind: Kind, origin: Site, recipient: Site | None = None) -> bool:
        """Whether a whole record of this kind, from `origin` (and for `recipient`), has arrived here."""
        wanted = recipient.open().me if recipient else None
        return any(
            held.state is HeldState.COMPLETE and (wanted is None or held.record.header.recipient == wanted)
            for held in self.open().store.held(kind=kind, origin=origin.open().me)
        )


@dataclass
class Coalition:
    """Sites by name; whatever runs is stopped at the end of a `with`."""

    sites: dict[str, Site] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Site:
        return self.sites[name]

    def __enter__(self) -> Coalition:
        return self

    def __exit__(self, *_error: object) -> None:
        for site in self.sites.values():
            site.stop()

    @property
    def bytes_moved(self) -> int:
        """What all nodes sent so far, as their links counted it."""
        running = sum(
            link.bytes_sent for site in self.sites.values() if site.process for link in site.open().store.links()
        )
        return running + sum(site.bytes_sent for site in self.sites.values())


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """TCP ports of a loopback address that nobody uses at this moment.

    From below the range that systems hand out by themselves, so that no connection that is opened meanwhile, to or from
    any of the nodes, takes one before its node does. OSError where this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    chosen: list[int] = []
    while len(chosen) < count:
        port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT)
        try:
            socket.create_server((host.strip("[]"), port), family=family).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        if port not in chosen:
            chosen.append(port)
    return chosen


def wait_until(what: str, condition: Callable[[], bool], limit_s: float = WAIT_S) -> None:
    """Return once `condition` holds; RehearsalFailed where it takes longer than `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise RehearsalFailed(f"Waited {limit_s:.0f} s in vain until {what}.")
        time.sleep(0.2)


def knows_a_task(site: Site) -> bool:
    """Whether a proposal has reached the node, accepted or not."""
    return bool(listing(site.open()))
