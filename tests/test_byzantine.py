"""Twenty nodes of which three lie: the honest ones come to the same, nobody honest is blamed, the proof reaches all."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import TASK_TOML, _rows

from fusion.fuse import Contribution
from fusion.model import build_model
from node import proofs
from node.ask import select
from node.gossip import holdings as gossip_holdings
from node.query import holdings
from node.records import HeldState, Kind
from node.tasks import find
from tests.byzantine import (
    LIARS,
    WITHDRAWS,
    Accuse,
    Coalition,
    Equivocate,
    EquivocateForEver,
    Flood,
    Forge,
    Garbage,
    Honest,
    Replay,
    Strategy,
    Together,
    Withhold,
    World,
    build,
)

FEW = 10
"""In the place of MAX_CONTESTED: a hundred numbers of each of three liars make a long simulation and show no more."""

WITHIN_S = 120.0
"""Simulated. Several rounds of anti-entropy (5 to 10 s here), penalties and stalled fetches."""
LIES_S = 20.0
"""So long the liars go on before honest nodes have news again."""


def rows(number: int) -> str:
    """Each node has a different slice of one population; what liars say in their twins is the opposite of it."""
    lines = _rows(200 + 10 * number).splitlines()
    if number >= 200:
        lines = [lines[0], *(f"{one[:-1]}{1 - int(one[-1])}" for one in lines[1:])]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    shared_memory = Path("/dev/shm")  # noqa: S108
    folder = Path(tempfile.mkdtemp(dir=shared_memory if os.access(shared_memory, os.W_OK) else None))
    task_file = folder / "triage.toml"
    task_file.write_text(TASK_TOML, encoding="utf-8")
    yield build(folder, task_file, rows)
    shutil.rmtree(folder)


STRATEGIES: dict[str, Callable[[World], Strategy]] = {
    "honest": lambda _: Strategy(),
    "equivocate": lambda world: Equivocate(world.twins),
    "equivocate for ever": lambda _: EquivocateForEver(3 * FEW),
    "withhold": lambda _: Withhold(),
    "garbage": lambda _: Garbage(),
    "replay": lambda world: Replay(world.withdrawn),
    "forge": lambda _: Forge(),
    "flood": lambda _: Flood(),
    "accuse": lambda _: Accuse(),
    "all at once": lambda world: Together(
        Equivocate(world.twins), Withhold(), Replay(world.withdrawn), Forge(), Flood(), Accuse()
    ),
}


EQUIVOCATORS = ("equivocate", "equivocate for ever", "all at once")
INVALID = ("garbage", "accuse", "all at once")
"""What these send breaks a rule. To be silent, late, wrong or talkative breaks none."""


def are_equal(coalition: Coalition, summaries: frozenset[bytes]) -> bool:
    """Whether honest nodes have equal digests, and all of these summaries."""
    if len({node.core._holdings.index.root() for node in coalition.honest}) > 1:
        return False
    return all(
        (entry := node.core._holdings.get(one)) is not None and entry.is_settled
        for node in coalition.honest
        for one in summaries
    )


def usable(node: Honest) -> tuple[Contribution, ...]:
    task = find(node.home, "triage")
    return holdings(node.home, task, select(node.home, "triage", None, None, None, "onnx")).usable


def check(coalition: Coalition, world: World, name: str) -> dict[str, float]:
    """What must hold of the honest nodes. Returns simulated seconds and counts."""
    accused = {node.key.raw for node in coalition.nodes[: LIARS if name in EQUIVOCATORS else 0]}

    def all_know() -> bool:
        known = ({origin for origin, _, _ in node.core._holdings._contested} for node in coalition.honest)
        return all(one == accused for one in known)

    found = {"proof everywhere": coalition.run(WITHIN_S, all_know)}
    found["equal"] = coalition.run(WITHIN_S, lambda: are_equal(coalition, world.honest_summaries))
    coalition.swarm.run(LIES_S)
    fresh, gone = coalition.honest[-1], coalition.nodes[WITHDRAWS]
    made = fresh.release(world.path, rows(50))
    taken_back = gone.take_back()
    since = coalition.swarm.now - coalition.began
    summaries = world.honest_summaries | {made}
    found["news"] = coalition.run(WITHIN_S, lambda: are_equal(coalition, summaries)) - since
    assert all_know()
    _nobody_honest_is_blamed(coalition, is_invalid=name in INVALID)
    for node in coalition.honest:
        held = node.held()
        assert all(held[one].state is HeldState.BURIED for one in (taken_back, world.withdrawn[0].id) if one in held)
    used = {frozenset(one.record_id for one in usable(node)) for node in coalition.honest}
    assert len(used) == 1, "they would not fuse the same"
    assert summaries - {taken_back} <= used.pop()
    assert {one.origin for one in usable(fresh)}.isdisjoint(accused)
    task = find(fresh.home, "triage")
    assert len({build_model(task, usable(node), None).digest for node in coalition.honest}) == 1
    found["evidence"] = len(fresh.store.held(kind=Kind.EVIDENCE))
    found["frames"] = sum(coalition.swarm.frames.values())
    return found


def _nobody_honest_is_blamed(coalition: Coalition, *, is_invalid: bool) -> None:
    honest = {node.name for node in coalition.honest}
    blamed = {name for node in coalition.honest for name, reason in node.closed if "invalid" in reason}
    assert blamed.isdisjoint(honest)
    assert bool(blamed) == is_invalid, "liars who send what is invalid are shut out, and nobody else is"
    for node in coalition.honest:
        assert {proof.accused for proof in node.store.proofs()}.isdisjoint(one.key for one in coalition.honest)


def run(world: World, patch: pytest.MonkeyPatch, name: str, seed: int) -> dict[str, float]:
    if name == "equivocate for ever":
        patch.setattr(proofs, "MAX_CONTESTED", FEW)
        patch.setattr(gossip_holdings, "MAX_CONTESTED", FEW)
    folder = Path(tempfile.mkdtemp(dir=world.path))
    coalition = Coalition(world, folder, [STRATEGIES[name](world) for _ in range(LIARS)], seed)
    try:
        return check(coalition, world, name)
    finally:
        coalition.stop()
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["equivocate", "accuse"])
def test_honest_nodes_agree_whatever_three_of_twenty_do(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run(world, monkeypatch, name, 1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 5))
@pytest.mark.parametrize("name", STRATEGIES)
def test_soak_honest_nodes_agree_whatever_three_of_twenty_do(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, seed: int
) -> None:
    """Prints the figures of RESULTS.md."""
    began = time.process_time()
    found = run(world, monkeypatch, name, seed)
    print(f"\n{name}, seed {seed}: {found}; {time.process_time() - began:.0f} s of CPU")
