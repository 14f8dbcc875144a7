"""Rows dealt out to nodes: the settings of the federated learning literature, from even to one class each.

The Dirichlet partition is that of T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the effects of non-identical data
distribution for federated visual classification", 2019, class by class: the shares of the nodes in a class are drawn
from a symmetric Dirichlet distribution. A node may end up without any row; it then takes no part.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Partition = Callable[[Ints, int], list[Ints]]

SEED = 0


def iid(labels: Ints, nodes: int) -> list[Ints]:
    """Shuffled and cut into even parts."""
    return [np.sort(part) for part in np.array_split(np.random.default_rng(SEED).permutation(len(labels)), nodes)]


def dirichlet(concentration: float) -> Partition:
    """The partition at that concentration: 0.1 is skewed, 0.01 leaves most nodes with one class."""

    def deal(labels: Ints, nodes: int) -> list[Ints]:
        rng = np.random.default_rng(SEED)
        parts: list[list[Ints]] = [[] for _ in range(nodes)]
        for label in range(int(labels.max()) + 1):
            own = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(nodes, concentration))
            cuts = (np.cumsum(shares)[:-1] * len(own)).astype(np.int64)
            for part, piece in zip(parts, np.split(own, cuts), strict=True):
                part.append(piece)
        return [np.sort(np.concatenate(part)) for part in parts if sum(map(len, part))]

    return deal


def one_class(labels: Ints, nodes: int) -> list[Ints]:
    """Every node has rows of one class only; classes take turns, and share out their rows evenly."""
    classes = int(labels.max()) + 1
    parts: list[Ints] = []
    for label in range(classes):
        holders = len(range(label, nodes, classes))
        own = np.random.default_rng(SEED).permutation(np.flatnonzero(labels == label))
        parts += [np.sort(part) for part in np.array_split(own, holders)]
    return parts


PARTITIONS: dict[str, Partition] = {
    "IID": iid,
    "Dirichlet 0.1": dirichlet(0.1),
    "Dirichlet 0.01": dirichlet(0.01),
    "one class each": one_class,
}
