"""A member that floods: what it costs its victim, and what is left for the others.

Four real processes on loopback: the victim; two honest nodes that it is linked with; and the hostile member
(`hostile`), with several connections at once, which comes back whenever it is thrown out. For each kind of flood the
victim's processor time and memory are read from /proc while nothing else happens. Then both honest nodes publish large
bodies, by turns undisturbed and during a flood, and what arrives at the victim a second is compared.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.hostile import CONTROL, KINDS
from benchmarks.progress import Progress
from crypto.keys import Identity
from crypto.sealing import new_epoch_key
from node.author import EpochKey
from node.database import STORE_FILE
from node.home import Home
from node.membership import add_peer
from node.records import Kind
from node.rehearsal import Site, free_ports

CONNECTIONS = 4
WAIT_S = 120.0
POLL_S = 0.01
MEGABYTE = 1_048_576
CPU_BAR, GOODPUT_BAR = 0.20, 0.80
RATE = "8MB/s"


@dataclass(frozen=True)
class Effort:
    """How long each flood lasts, and what is published in a measurement of goodput."""

    kinds: Sequence[str]
    seconds: float
    repetitions: int
    bodies: int
    megabytes: int


FULL = Effort((CONTROL, *KINDS), seconds=10.0, repetitions=3, bodies=6, megabytes=4)
QUICK = Effort(("wrong lengths", "vectors"), seconds=3.0, repetitions=1, bodies=3, megabytes=4)


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    return _section(FULL)


def quick(_out: Path) -> str:
    """Two kinds of flood, and smaller bodies."""
    return _section(QUICK)


def _section(effort: Effort) -> str:
    tell = Progress("flood")
    rows = []
    for kind in effort.kinds:
        with tempfile.TemporaryDirectory() as scratch, Stage.set(Path(scratch), 1 + effort.repetitions) as stage:
            costs = stage.cost_of(kind, effort.seconds)
            pairs = [stage.goodputs(kind, effort) for _ in range(effort.repetitions)]
        rows.append((kind, costs, pairs))
        tell(f"{kind}: {costs.cpu:.0%} of a core, {_left(pairs):.0%} of the goodput left")
    return _page(effort, rows)


def _left(pairs: Sequence[tuple[float, float]]) -> float:
    """All that came in the floods against all that came just before them."""
    return mean(flooded for _, flooded in pairs) / mean(calm for calm, _ in pairs)


def _page(effort: Effort, rows: Sequence[tuple[str, Costs, Sequence[tuple[float, float]]]]) -> str:
    lines = [
        "## A member that floods",
        "",
        f"One member with {CONNECTIONS} connections at once that comes back whenever it is thrown out, for "
        f"{effort.seconds:g} s a kind; the victim is linked with two honest nodes. Processor time as a share of one "
        "core, over the whole flood with its beginning, while nothing else happens. Memory is resident, at the end and "
        f"at most. Goodput: {effort.bodies} bodies of {effort.megabytes} MiB of each honest node at once, each sent at "
        f"{RATE}, in a flood against just before it, {effort.repetitions} times. The flooder runs at nice 19: on a "
        f"member's machine it would take nothing from the victim's {os.cpu_count()} cores. Sent is what TCP and HTTP/2 "
        f"took of it. `{CONTROL}` is no flood: how much the figures vary by themselves; the machine's load average was "
        f"{os.getloadavg()[2]:.0f} in the last quarter of an hour.",
        "",
        "| kind | sent, frames/s | streams | victim's CPU | memory, MB (before, after, peak) | goodput left (worst) |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_row(*row) for row in rows),
        "",
        f"Bars: at most {CPU_BAR:.0%} of a core, at least {GOODPUT_BAR:.0%} of the goodput. The last two kinds are no "
        "frames and are not held to the first bar: whoever reaches the port can make it do handshakes, 1.2 ms each, "
        "and gRPC refuse streams, 20 µs each, before any code of this project hears of it (docs/operations.md says "
        "what a firewall can do).",
        "",
    ]
    return "\n".join(lines)


def _row(kind: str, costs: Costs, pairs: Sequence[tuple[float, float]]) -> str:
    memory = f"{costs.memory_before:.0f}, {costs.memory_after:.0f}, {costs.memory_peak:.0f}"
    left = f"{_left(pairs):.0%} ({min(flooded / calm for calm, flooded in pairs):.0%})"
    sent, streams = costs.tally["sent"] / costs.tally["seconds"], costs.tally["streams"]
    return f"| {kind} | {sent:,.0f} | {streams:,} | {costs.cpu:.1%} | {memory} | {left} |"


# -------------------------------------------------------------------------------------------------------- the nodes


@dataclass(frozen=True)
class Costs:
    """What a flood took of its victim: a share of a core, and MB of memory."""

    cpu: float
    memory_before: float
    memory_after: float
    memory_peak: float
    tally: dict[str, Any]


@dataclass
class Stage:
    """The victim, the honest nodes, and who floods."""

    victim: Site
    honest: tuple[Site, Site]
    hostile: list[Identity]
    """One for each flood: who was thrown out before would be at a disadvantage."""

    @classmethod
    @contextmanager
    def set(cls, folder: Path, floods: int) -> Iterator[Stage]:
        """All of them running and linked, but for the flood; stopped at the end."""
        hostile = [Identity.generate() for _ in range(floods)]
        ports = free_ports(3)
        sites = []
        for name, port in zip(("victim", "first", "second"), ports, strict=True):
            Home.init(folder / name, name, f"127.0.0.1:{port}").store.close()
            sites.append(Site(name, folder / name, f"127.0.0.1:{port}"))
        victim, *honest = sites
        _introduce(victim, honest, hostile)
        try:
            victim.start()
            for site in honest:
                _start_limited(site)
            _when(lambda: sum(link.state == "linked" for link in victim.open().store.links()) == 2)
            yield cls(victim, (honest[0], honest[1]), hostile)
        finally:
            for site in sites:
                site.stop()

    def flooder(self, kind: str, seconds: float) -> subprocess.Popen[str]:
        """The hostile member at work."""
        words = [self.hostile.pop().seed.hex(), str(self.victim.address), kind, str(seconds), str(CONNECTIONS)]
        return subprocess.Popen(
            ["nice", "-n", "19", sys.executable, "-m", "benchmarks.hostile", *words], stdout=subprocess.PIPE, text=True
        )

    def cost_of(self, kind: str, seconds: float) -> Costs:
        """Flood, and see what it takes."""
        assert self.victim.process is not None
        pid = self.victim.process.pid
        before_s, memory_before = cpu_s(pid), memory(pid, "VmRSS")
        flood = self.flooder(kind, seconds)
        said, _ = flood.communicate(timeout=seconds + WAIT_S)
        tally = json.loads(said)
        used_s = cpu_s(pid) - before_s
        return Costs(used_s / tally["seconds"], memory_before, memory(pid, "VmRSS"), memory(pid, "VmHWM"), tally)

    def goodputs(self, kind: str, effort: Effort) -> tuple[float, float]:
        """Goodput just before a flood, and in it."""
        calm = self.goodput(effort)
        flood = self.flooder(kind, WAIT_S)
        try:
            time.sleep(2.0)  # it imports, connects and is under way
            return calm, self.goodput(effort)
        finally:
            flood.kill()
            flood.communicate()

    def goodput(self, effort: Effort) -> float:
        """Bytes a second of the bodies that both honest nodes publish at once, from the first chunk at the victim."""
        held = self._whole()
        for site in self.honest:
            home = site.open()
            for _ in range(effort.bodies):
                plaintext = os.urandom(effort.megabytes * MEGABYTE - 40)
                home.author.sealed(Kind.SUMMARY, os.urandom(32), plaintext, EpochKey(1, new_epoch_key()))
            home.store.close()
        wanted = held + len(self.honest) * effort.bodies
        began_at, bytes_then = time.monotonic(), self._bytes()
        _when(lambda: self._whole() == wanted)
        return (self._bytes() - bytes_then) / (time.monotonic() - began_at)

    def _whole(self) -> int:
        return self._ask("SELECT count(*) FROM records WHERE kind = ? AND state = 'complete'", int(Kind.SUMMARY))

    def _bytes(self) -> int:
        return self._ask("SELECT coalesce(sum(length(data)), 0) FROM chunks")

    def _ask(self, sql: str, *values: object) -> int:
        store = sqlite3.connect(f"{(self.victim.path / STORE_FILE).as_uri()}?mode=ro", uri=True)
        try:
            return int(store.execute(sql, values).fetchone()[0])
        finally:
            store.close()


def _start_limited(site: Site) -> None:
    """Serve with a limit to what is sent, so that what decides is the victim and not how many cores all share."""
    command = [sys.executable, "-m", "node", "--home", str(site.path), "serve", "--bandwidth", RATE]
    with open(site.path / "serve.log", "ab") as log:
        site.process = subprocess.Popen(command, stdout=log, stderr=log)


def _introduce(victim: Site, honest: Sequence[Site], hostile: Sequence[Identity]) -> None:
    mine = victim.open()
    for one in hostile:
        add_peer(mine, one.public_key.text, None, None, query_only=False)
    for site in honest:
        home = site.open()
        add_peer(mine, home.me.text, site.name, site.address, query_only=False)
        add_peer(home, mine.me.text, "victim", None, query_only=False)
        home.store.close()
    mine.store.close()


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, all its threads, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int, what: str) -> float:
    """`VmRSS` or `VmHWM` of a process, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{what}:")]
    return int(line.split()[1]) * 1024 / 1e6


def _when(condition: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT_S:.0f} s in vain")
        time.sleep(POLL_S)
