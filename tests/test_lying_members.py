"""Twenty nodes of which three publish lies: the summaries gossip like any other, every honest node fuses the same model
of them, and with the robust option that of the honest ones."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import attacks
from fusion.dataset import Batch
from fusion.encoders import encoder_for
from fusion.heads import forward
from fusion.model import Model, build_model
from fusion.summary import Summary
from node.ask import select
from node.home import Home
from node.query import holdings
from node.records import Kind
from tests.byzantine import LIARS, NAMES, Coalition, Strategy, World, introduce
from tests.partners import WARD, ward_rows
from tests.test_byzantine import WITHIN_S, are_equal

EPSILON = 3.0
ROWS = [ward_rows(400 + 20 * number, number) for number in range(len(NAMES))]
TEST_ROWS = ward_rows(4_000, 1_000)

Lie = Callable[[Sequence[Batch]], list[Summary]]


def each(attack: Callable[..., Summary]) -> Lie:
    return lambda rows: [attack(WARD, one, EPSILON) for one in rows]


LIES: dict[str, Lie] = {
    "label flip": each(attacks.label_flip),
    "scaled label flip": each(attacks.scaled_flip),
    "backdoor": each(attacks.backdoor),
    "forged second moments": each(attacks.forged_moments),
    "one lie, told by all": lambda rows: attacks.same_lie(WARD, rows, EPSILON, max(map(len, ROWS))),
    "noise only": each(attacks.noise_only),
}
HARMLESS = ("noise only",)
"""Nothing but noise is what a partner without rows publishes: it stays."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Twenty homes; the seventeen honest ones have published."""
    shared_memory = Path("/dev/shm")  # noqa: S108
    folder = Path(tempfile.mkdtemp(dir=shared_memory if os.access(shared_memory, os.W_OK) else None))
    homes = [Home.init(folder / "new" / name, name, None) for name in NAMES]
    for home in homes:
        home.store.accept_task(WARD.id, WARD.name, WARD.canonical())
    introduce(homes)
    made = [publish(home, attacks.honest(WARD, ROWS[n], EPSILON)) for n, home in enumerate(homes) if n >= LIARS]
    for home in homes:
        home.store.close()
    yield World(folder, honest_summaries=frozenset(made))
    shutil.rmtree(folder)


def publish(home: Home, summary: Summary) -> bytes:
    """What `publish` sends of a summary, and any liar can send of his."""
    return home.author.sealed(Kind.SUMMARY, WARD.id, summary.to_bytes(), home.epochs.live()).id


def accuracy(model: Model, encoded: NDArray[np.float64]) -> float:
    return float((forward(model.layers, encoded).argmax(axis=1) == TEST_ROWS.label).mean())


def told(world: World, name: str) -> World:
    """The same world after the three have published their lies."""
    folder = Path(tempfile.mkdtemp(dir=world.path))
    shutil.copytree(world.path / "new", folder / "new")
    made = set()
    for number, lie in enumerate(LIES[name](ROWS[:LIARS])):
        home = Home.open(folder / "new" / NAMES[number])
        made.add(publish(home, lie))
        home.store.close()
    return World(folder, honest_summaries=world.honest_summaries | made)


def fused(coalition: Coalition, liars: int, but: frozenset[bytes] = frozenset()) -> Model:
    """The model that all honest nodes fuse, without these origins; AssertionError if two fuse different ones."""
    models = []
    for node in coalition.honest:
        usable = holdings(node.home, WARD, select(node.home, WARD.name, None, None, None, "onnx")).usable
        models.append(build_model(WARD, [one for one in usable if one.origin not in but], None, liars=liars))
    assert len({model.digest for model in models}) == 1
    return models[0]


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[] if one == "scaled label flip" else pytest.mark.soak) for one in LIES]
)
def test_every_honest_node_fuses_the_model_of_the_honest_whatever_three_of_twenty_publish(
    world: World, name: str
) -> None:
    """Prints the figures of RESULTS.md."""
    lying = told(world, name)
    place = Path(tempfile.mkdtemp(dir=world.path))
    coalition = Coalition(lying, place, [Strategy() for _ in range(LIARS)], seed=1)
    try:
        seconds = coalition.run(WITHIN_S, lambda: are_equal(coalition, lying.honest_summaries))
        liars = frozenset(node.key.raw for node in coalition.nodes[:LIARS])
        encoded = encoder_for(WARD).encode(TEST_ROWS)
        alone, without, robust = fused(coalition, 0, but=liars), fused(coalition, 0), fused(coalition, LIARS)
        scores = [accuracy(one, encoded) for one in (alone, without, robust)]
        left_out = {bytes.fromhex(one["origin"]) for one in robust.manifest["method"]["robust"]["left_out"]}
        print(f"\n{name}: equal after {seconds:.1f} s; honest alone, without, with the option: {scores}")
        assert left_out == (set() if name in HARMLESS else liars)
        assert scores[2] > scores[0] - 0.02
    finally:
        coalition.stop()
        for folder in (place, lying.path):
            shutil.rmtree(folder)
