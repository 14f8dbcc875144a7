"""P7: the bytes that ten real nodes move until a model is everywhere, beside those of federated averaging.

Every node is a process of its own on this machine, and every byte is counted by the links themselves (the messages of
gossip, as `tidings status` shows them, without the framing of TLS and HTTP/2) or is the size of a model file that
was asked for. The same holds of the peer: 30 rounds of float32 weights down and up, without any framing.

* **One fuses, nine ask.** Nine nodes know the tenth alone. Each comes online, hands over its summary and leaves; the
  tenth adds its own; then all nine ask it for the model.
* **All hold everything.** All ten know one another, nine dial the tenth, and all stay until each holds ten summaries.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import federated
from benchmarks.progress import Progress
from benchmarks.scaling import category_toml
from node.membership import add_peer
from node.rehearsal import Site, free_ports

TASK = "scaling"
CLASSES = 10
ROWS = 300
ROUNDS = 30
WAIT_S = 300.0
SETTLED_S = 4.0
ONE_FUSES, ALL_HOLD = 1 / 30, 1 / 4
"""Targets, as shares of the bytes of federated averaging."""


@dataclass(frozen=True)
class Sizes:
    """How many nodes, and the dimension of what they sum."""

    nodes: int
    dimension: int


FULL = (Sizes(10, 401), Sizes(10, 801))
QUICK = (Sizes(3, 65),)


@dataclass(frozen=True)
class Moved:
    """Bytes of gossip and of model files; the size of one summary."""

    gossip: int
    models: int
    summary: int

    @property
    def total(self) -> int:
        return self.gossip + self.models


def run(_out: Path) -> str:
    """The section of RESULTS.md."""
    return _section(FULL)


def quick(_out: Path) -> str:
    """Three nodes and small summaries."""
    return _section(QUICK)


def _section(all_sizes: Sequence[Sizes]) -> str:
    rows = [row for sizes in all_sizes for row in _rows(sizes)]
    nodes, megabytes = all_sizes[0].nodes, _fedavg_bytes(all_sizes[0]) / 1e6
    return (
        "## P7: bytes until the model is there\n\n"
        f"{nodes} node processes on loopback; summaries of d coordinates and {CLASSES} classes at epsilon 1. FedAvg "
        f"moves {megabytes:.1f} MB in {ROUNDS} rounds of {nodes} nodes (26,010 weights).\n\n"
        "| d | a summary, kB | what | gossip, MB | models asked for, MB | together, MB | of FedAvg's | target |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )


def _fedavg_bytes(sizes: Sizes) -> int:
    return federated.round_bytes(federated.tanh_cnn(), sizes.nodes) * ROUNDS


def _rows(sizes: Sizes) -> list[str]:
    tell = Progress("traffic")
    with tempfile.TemporaryDirectory() as scratch:
        one = _one_fuses(_sites(Path(scratch) / "one", sizes), tell)
        everybody = _all_hold(_sites(Path(scratch) / "all", sizes), tell)
    weights = _fedavg_bytes(sizes)
    return [
        f"| {sizes.dimension} | {moved.summary / 1e3:.0f} | {what} | {moved.gossip / 1e6:.2f} | "
        f"{moved.models / 1e6:.2f} | {moved.total / 1e6:.2f} | 1/{weights / moved.total:.1f} | 1/{1 / target:.0f} |"
        for what, moved, target in (
            (f"one fuses, {sizes.nodes - 1} ask", one, ONE_FUSES),
            (f"all {sizes.nodes} hold every summary", everybody, ALL_HOLD),
        )
    ]


# --- stories ----------------------------------------------------------------------------------------------------


def _one_fuses(sites: Sequence[Site], tell: Callable[[str], None]) -> Moved:
    """The first node collects; the others know it alone."""
    hub, *others = sites
    for site in others:
        _know(site, hub)
        _know(hub, site)
    with _serving([hub]):
        for done, site in enumerate(others, start=1):
            _publish(site)
            with _serving([site]):
                _wait(lambda done=done: hub.readable_summaries() == done)  # type: ignore[misc]
            tell(f"{done} of {len(others)} summaries have arrived")
        _publish(hub)
        models = sum(_asked(site, hub) for site in others)
        gossip = _settled(lambda: sum(link.bytes_sent + link.bytes_received for link in hub.open().store.links()))
        tell(f"{len(others)} nodes have the model")
        return Moved(gossip, models, _summary_bytes(hub))


def _all_hold(sites: Sequence[Site], tell: Callable[[str], None]) -> Moved:
    """Everybody knows everybody, the first one's address is known."""
    hub = sites[0]
    for site in sites:
        for other in sites:
            if other is not site:
                _know(site, other, dial=other is hub)
    for site in sites:
        _publish(site)
    with _serving(sites):
        for done, site in enumerate(sites, start=1):
            _wait(lambda site=site: site.readable_summaries() == len(sites))  # type: ignore[misc]
            tell(f"{done} of {len(sites)} nodes hold everything")
        gossip = _settled(lambda: sum(link.bytes_sent for site in sites for link in site.open().store.links()))
        return Moved(gossip, 0, _summary_bytes(hub))


# --- nodes ------------------------------------------------------------------------------------------------------


def _sites(folder: Path, sizes: Sizes) -> list[Site]:
    """Homes that have accepted the task and have rows, and know nobody yet; the first listens."""
    folder.mkdir()
    (folder / "task.toml").write_text(category_toml(sizes.dimension, CLASSES), encoding="utf-8")
    sites = []
    for number in range(sizes.nodes):
        address = f"127.0.0.1:{free_ports(1)[0]}" if number == 0 else None
        site = Site(f"node{number}", folder / f"node{number}", address)
        site.tidings("init", "--name", site.name, *(("--listen", address) if address else ()))
        site.tidings("task", "add", str(folder / "task.toml"))
        _write_rows(folder / f"node{number}.csv", sizes.dimension, number)
        sites.append(site)
    return sites


def _write_rows(path: Path, dimension: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = category_toml(dimension, CLASSES).count("[[columns]]")
    cells = rng.integers(0, 2, (ROWS, columns))
    lines = [",".join([*(f"c{place}" for place in range(columns)), "y"])]
    lines += [
        ",".join([*(f"v{cell}" for cell in row), str(label)])
        for row, label in zip(cells, rng.integers(0, CLASSES, ROWS), strict=True)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _know(site: Site, other: Site, *, dial: bool = True) -> None:
    """What `tidings peer add` does, without a process for each of ninety pairs."""
    add_peer(site.open(), other.open().me.text, other.name, other.address if dial else None, query_only=False)


def _publish(site: Site) -> None:
    site.tidings("publish", TASK, str(site.path.with_suffix(".csv")), "--epsilon", "1")


def _asked(site: Site, hub: Site) -> int:
    """Bytes of the model file that `hub` sends to `site`."""
    path = site.path.with_suffix(".safetensors")
    site.tidings("query", TASK, "--node", hub.name, "-o", str(path))
    return path.stat().st_size


def _summary_bytes(site: Site) -> int:
    from node.records import Kind

    return max(held.record.header.body_bytes for held in site.open().store.held(kind=Kind.SUMMARY))


@contextlib.contextmanager
def _serving(sites: Sequence[Site]) -> Iterator[None]:
    """These nodes run; they are stopped at the end, whatever happens."""
    try:
        for site in sites:
            site.start()
        yield
    finally:
        for site in sites:
            site.stop()


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT_S:.0f} s in vain")
        time.sleep(0.3)


def _settled(count: Callable[[], int]) -> int:
    """The count once it has stood still; nodes write their counters down every second."""
    seen = -1
    while (now := count()) != seen or now == 0:
        seen = now
        time.sleep(SETTLED_S)
    return seen
