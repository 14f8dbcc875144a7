"""The same partners as real nodes: a home and a process each on this machine, and the commands that a person types.

Each node knows all others by key and its neighbors in a ring by address (what `tidings peer add` does, ninety times for
ten nodes, happens here without a process for each). The first proposes the task, the others accept
it as it reaches them, all publish once, and any of them can be asked for the model: the last one is, and the first
checks that its own summaries give the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from node.membership import add_peer
from node.rehearsal import Coalition, Site, free_ports, knows_a_task, wait_until

WORKERS = 4  # commands at a time
GOSSIP_S = 120.0


@dataclass(frozen=True)
class Told:
    """What came of it: the model file, and all bytes that the nodes sent."""

    model: Path
    bytes_moved: int


def gossip(
    task_file: Path,
    name: str,
    train: Mapping[str, tuple[Path, ...]],
    epsilon: float,
    scratch: Path,
    model: Path,
    tell: Callable[[str], None],
) -> Told:
    """Publish every partner's rows at `epsilon` and write the model of the last node to `model`."""
    ports = free_ports(len(train))
    coalition = Coalition(
        {who: Site(who, scratch / who, f"127.0.0.1:{port}") for who, port in zip(train, ports, strict=True)}
    )
    sites = list(coalition.sites.values())
    with coalition, ThreadPoolExecutor(WORKERS) as pool:
        _introduce(sites, pool)
        tell(f"{len(sites)} homes; each node knows the others' keys and its two neighbors' addresses")
        for site in sites:
            site.start()
        sites[0].tidings("task", "add", str(task_file))
        for site in sites[1:]:
            wait_until(f"{site.name} hears of the task", functools.partial(knows_a_task, site), GOSSIP_S)
        list(pool.map(lambda site: site.tidings("task", "add", name), sites[1:]))
        tell("the task has reached every node and is accepted")
        publish = ("publish", name, "--epsilon", f"{epsilon:g}")
        list(pool.map(lambda site: site.tidings(*publish, *map(str, train[site.name])), sites))
        tell(f"every node published one summary at epsilon {epsilon:g}")
        for site in (sites[0], sites[-1]):
            wait_until(f"{site.name} reads all", lambda site=site: site.readable_summaries() == len(sites), GOSSIP_S)
        sites[-1].tidings("query", name, "-o", str(model.resolve()))
        sites[0].tidings("verify", str(model.resolve()))
        moved = coalition.bytes_moved
    tell(f"{sites[-1].name} fused them; {sites[0].name} made the same model of the summaries it holds")
    return Told(model, moved)


def _introduce(sites: list[Site], pool: ThreadPoolExecutor) -> None:
    def init(site: Site) -> str:
        return site.tidings("init", "--name", site.name, "--listen", site.address or "").strip()

    keys = dict(zip((site.name for site in sites), pool.map(init, sites), strict=True))

    for place, site in enumerate(sites):
        home = site.open()
        for other, peer in enumerate(sites):
            if other != place:
                near = (other - place) % len(sites) in (1, len(sites) - 1)
                add_peer(home, keys[peer.name], peer.name, peer.address if near else None, query_only=False)
        home.store.close()
