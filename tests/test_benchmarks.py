"""What benchmarks rest on: rows dealt out without loss, peers as private as they say, a page kept by heading."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import __main__ as page
from benchmarks import federated
from benchmarks.federated import PrivateSgd, Rows, Sgd
from benchmarks.partitions import PARTITIONS, one_class


@pytest.mark.parametrize("name", PARTITIONS)
@given(labels=st.lists(st.integers(0, 3), min_size=30, max_size=200), nodes=st.integers(4, 12))
@settings(max_examples=20)
def test_every_row_goes_to_exactly_one_node(name: str, labels: list[int], nodes: int) -> None:
    dealt = PARTITIONS[name](np.array(labels), nodes)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(labels)))
    assert len(dealt) <= nodes


def test_one_class_each_means_one_class_each() -> None:
    labels = np.array([0, 1, 2] * 40)
    assert [set(labels[part].tolist()) for part in one_class(labels, 7)] == [{0}, {0}, {0}, {1}, {1}, {2}, {2}]


@given(st.integers(1, 100_000), st.integers(1, 512))
def test_a_sampling_rate_is_never_below_batch_over_rows(rows: int, batch: int) -> None:
    rate = federated.sampling_rate(rows, batch)
    assert min(1.0, batch / rows) <= rate <= min(1.0, 2 * batch / rows)


def test_federated_averaging_of_equal_nodes_is_training_at_one() -> None:
    node = _rows(64)
    new_model = federated.seeded(lambda: torch.nn.Linear(3, 2), 0)
    sgd = Sgd(batch=64)
    *_, one = federated.fedavg(new_model, [node], 3, sgd, torch.Generator().manual_seed(1))
    *_, three = federated.fedavg(new_model, [node] * 3, 3, sgd, torch.Generator().manual_seed(1))
    for ours, theirs in zip(one.parameters(), three.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_row_moves_a_private_step_by_at_most_the_clipped_gradient() -> None:
    """Without noise to speak of: a full-batch step with and without a row of an enormous gradient."""
    few, clip, rate = _rows(32), 0.5, 1.0
    more = Rows(torch.cat([few.x, torch.full((1, 3), 1e4)]), torch.cat([few.y, torch.tensor([1])]))
    stepped = []
    for node in (few, more):
        model = federated.seeded(lambda: torch.nn.Linear(3, 2), 0)()
        before = torch.cat([weight.detach().clone().reshape(-1) for weight in model.parameters()])
        sgd = PrivateSgd(epsilon=1e6, delta=1e-5, learning_rate=1.0, clip_norm=clip, batch=len(node))
        federated.train_private(model, node, sgd, 1, torch.Generator().manual_seed(0))
        after = torch.cat([weight.detach().reshape(-1) for weight in model.parameters()])
        stepped.append((before - after) * len(node) * rate)
    noise = clip * federated.noise_multiplier(1e6, 1e-5, 1.0, 1)
    moved = float((stepped[1] - stepped[0]).norm())
    assert moved <= clip + 12 * noise
    assert moved > 0.5 * clip


def test_private_counts_are_those_of_the_nodes_with_laplace_noise() -> None:
    nodes = [_rows(1_000)] * 400
    noised = federated.private_counts(nodes, 2, 0.5, torch.Generator().manual_seed(0))
    errors = (noised - federated.counts(nodes, 2)).flatten()
    assert abs(float(errors.mean())) < 0.5
    assert float(errors.std()) == pytest.approx(math.sqrt(2) / 0.5, rel=0.15)


def test_the_network_of_the_literature_has_its_26_010_weights() -> None:
    model = federated.tanh_cnn()
    assert federated.model_bytes(model) == 4 * 26_010
    assert federated.round_bytes(model, 10) * 30 == 62_424_000


def test_a_section_replaces_the_one_of_its_heading_and_no_other() -> None:
    old = page._sections("# Page\n\n## A\n\none\n\n## B\n\ntwo\n")
    new = old | page._sections("## A\n\nthree\n")
    assert list(new) == ["## A", "## B"]
    assert new["## A"].split() == ["##", "A", "three"]
    assert new["## B"] == old["## B"]


def _rows(count: int) -> Rows:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, 3, generator=generator)
    return Rows(x, (x[:, 0] > 0).long())
