"""Which rows of a person a release keeps, when its unit of privacy is the person and not the row.

A task with `unit = { column, max_rows }` protects all rows of a person together. Rows are read twice:

* the first pass counts the usable rows of each person (label known, id present);
* the second keeps each person's first `max_rows` of them, in the order of the files, and says with every row
  how many rows k of that person are kept. `fusion.summaries.moments` weighs each by 1/k.

Both answers about a person follow from the rows of that person alone: adding or removing anybody else changes
neither. That independence is what the sensitivity of a person-level release rests on.

Ids are compared as texts, without spaces around them and without the ".0" that some programs append to whole
numbers. Memory is one entry per person (a 16-byte keyed hash and two counts, about 170 bytes), whatever the
length of the ids and the number of rows. The key is drawn anew for every release, so nobody can prepare two ids
that collide; among 2^30 persons any two do with probability below 2^-69, far inside the slack in delta that
`fusion.accounting` sets aside.

This module never shows an id to anybody: no message and no result contains one.
"""

from __future__ import annotations

import hashlib
import secrets
from array import array

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fusion.errors import DataError
from fusion.task import Task

Ints = NDArray[np.int64]

KEY_BYTES = 16
HASH_BYTES = 16

_WHOLE_WITH_POINT = r"^(-?(?:0|[1-9][0-9]*))\.0$"


class PersonPass:
    """One pass over the rows of a release; a second one is made from the first."""

    def __init__(self, max_rows: int, first: PersonPass | None = None) -> None:
        self._max_rows = max_rows
        self._first = first
        self._key: bytes = secrets.token_bytes(KEY_BYTES) if first is None else first._key
        self._index: dict[bytes, int] = {} if first is None else first._index
        self._seen = array("q", bytes(8 * len(self._index)))  # rows of each person so far

    def second(self) -> PersonPass:
        """The pass that follows, over the same rows from the start."""
        return PersonPass(self._max_rows, self)

    @property
    def persons(self) -> int:
        """How many were seen."""
        return len(self._index)

    def take(self, ids: pa.Array) -> tuple[NDArray[np.bool_], Ints]:
        """For the next rows, whose ids are non-null texts: which are kept, and of how many of that person (k).

        k is known in the second pass only; in the first it is what was counted so far and means nothing.
        """
        if len(ids) == 0:
            return np.zeros(0, dtype=np.bool_), np.zeros(0, dtype=np.int64)
        person = self._numbers(ids)
        seen = np.frombuffer(self._seen, dtype=np.int64)
        ordinal = seen[person] + _earlier(person)
        np.add.at(seen, person, 1)
        counted = seen if self._first is None else np.frombuffer(self._first._seen, dtype=np.int64)
        kept_of_person: Ints = np.minimum(counted[person], self._max_rows)
        return ordinal < kept_of_person, kept_of_person

    def _numbers(self, ids: pa.Array) -> Ints:
        """A number per row, the same for the same person."""
        distinct = pc.replace_substring_regex(ids, pattern=_WHOLE_WITH_POINT, replacement=r"\1").dictionary_encode()
        numbers = [self._number(text) for text in distinct.dictionary.to_pylist()]
        person: Ints = np.array(numbers, dtype=np.int64)[distinct.indices.to_numpy(zero_copy_only=False)]
        return person

    def _number(self, text: str) -> int:
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=HASH_BYTES, key=self._key).digest()
        number = self._index.get(digest)
        if number is None:
            if self._first is not None:
                raise DataError("the data changed while it was read; keep the files as they are during a release")
            number = self._index[digest] = len(self._index)
            self._seen.append(0)
        return number


def person_pass(task: Task) -> PersonPass | None:
    """A fresh first pass for a task whose unit is the person; None where it is the row."""
    unit = task.privacy.person
    return None if unit is None else PersonPass(unit.max_rows)


def _earlier(values: Ints) -> Ints:
    """For each entry, how many equal ones come before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    is_first = np.ones(len(values), dtype=np.bool_)
    is_first[1:] = ordered[1:] != ordered[:-1]
    places = np.arange(len(values))
    earlier = np.empty(len(values), dtype=np.int64)
    earlier[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return earlier
