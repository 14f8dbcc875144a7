"""Fused models that a running node remembers: ten queries for one set of summaries cost one fit.

A model is found by its *basis*: what the store holds that it depends on (`Store.basis`), and everything that was asked
except for the form of the file and by which words the origins were chosen. So different keys share a model, and so do
different ways of choosing the same origins; a summary that comes, is withdrawn or becomes readable leads to another
basis, and what was made of the old one can never be found again.

In memory only, so no longer than the release that fused it runs: the disk of a stolen node holds no model that nobody
put there, and a summary that was taken back does not live on in a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from node.frames import Query
from node.home import Home

PERSON: Final = b"tidings-cache-v1"


def basis(home: Home, query: Query) -> bytes:
    """32 bytes: what the answer to this query depends on. A field that queries get later counts by itself."""
    only, without = frozenset(query.only), frozenset(query.without)
    origins = home.store.basis(
        query.task_id, home.me, lambda origin: (not only or origin in only) and origin not in without
    )
    # A query that names origins or a head is refused where another gets a shared model; only fused ones are remembered.
    asked = replace(query, only=(), without=(), format="")
    return hashlib.blake2b(repr((asked, origins)).encode(), digest_size=32, person=PERSON).digest()


@dataclass
class Remembered:
    """One model: the query that it first answered, and its files by format."""

    query: Query
    files: dict[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        """What it takes."""
        return sum(map(len, self.files.values()))


class ModelCache:
    """Models by basis, the least recently asked for first; `most` of them, of `most_bytes` in all."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._models: dict[bytes, Remembered] = {}

    def __len__(self) -> int:
        return len(self._models)

    @property
    def size(self) -> int:
        """What all of them take."""
        return sum(model.size for model in self._models.values())

    def get(self, key: bytes) -> dict[str, bytes]:
        """The files of this model by format; none if it is not remembered."""
        model = self._models.pop(key, None)
        if model is None:
            return {}
        self._models[key] = model
        return model.files

    def put(self, key: bytes, query: Query, file: bytes) -> None:
        """Remember the answer to a query; others that were asked for longer ago go. One that is too large is not."""
        model = self._models.pop(key, None) or Remembered(query)
        model.files[query.format] = file
        if model.size > self._most_bytes:
            return
        self._models[key] = model
        while len(self._models) > self._most or self.size > self._most_bytes:
            del self._models[next(iter(self._models))]

    def keep_only(self, is_current: Callable[[bytes, Query], bool]) -> None:
        """Drop what cannot be found again."""
        self._models = {key: model for key, model in self._models.items() if is_current(key, model.query)}
