"""Parts of a dataset: some of its rows, chosen by a rule that reads the row and nothing else.

    site=Leeds             the rows whose cell in column "site" is Leeds
    hash(patient)=3/10     the rows whose cell in column "patient" hashes to the third of ten shares

The parts of one rule are disjoint, and which part a row is in does not depend on any other row. So adding or removing
a record changes one part of a rule and leaves the rows of all others as they were: parallel composition, a dataset's
parts cost the maximum over parts and not the sum (F. McSherry, "Privacy integrated queries", SIGMOD 2009, theorem 4;
docs/privacy.md derives it for releases that are chosen one after another).

Cells are compared in one canonical text form (trimmed; 7.0 is 7), so that two spellings cannot put one row into two
parts. A row whose cell is missing is in no part. The hash is public and unkeyed: a share is a fair-sized piece, not a
secret.

Refused: rules that need other rows ("every 1,000 rows", row numbers). One row more at the top of the file would move
all the others, and every part would change.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion.errors import BudgetError
from fusion.task import MAX_NAME_CHARS, Task

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

MAX_SHARES = 1_000_000

_PERSON = b"tidings-part-v1"
_HASH = re.compile(r"hash\((?P<column>.+)\)\s*=\s*(?P<share>[0-9]{1,7})\s*/\s*(?P<shares>[0-9]{1,7})", re.DOTALL)
_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")
_ROW_NUMBERS = frozenset({"row", "rows", "row number", "row_number", "rownumber", "line", "lines", "#"})
_ADVICE = (
    "a part is a rule on the row alone, COLUMN=VALUE or hash(COLUMN)=K/N; row numbers or every so many rows are not, "
    "since one row more would move the others to other parts, and their costs would add up"
)


@dataclass(frozen=True)
class Part:
    """One part under one rule. `shares` is None for COLUMN=VALUE, else `value` is the share, from 1."""

    column: str
    value: str
    shares: int | None = None

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part in COLUMN=VALUE or hash(COLUMN)=K/N; BudgetError explains what is no such rule."""
        hashed = _HASH.fullmatch(text.strip())
        if hashed:
            share, shares = int(hashed["share"]), int(hashed["shares"])
            if not 1 <= share <= shares or not 2 <= shares <= MAX_SHARES:
                raise BudgetError(f"{text!r} is no share: write hash(COLUMN)=K/N with K from 1 to N, N at least 2")
            part = cls(hashed["column"].strip(), str(share), shares)
        else:
            column, equals, value = (piece.strip() for piece in text.partition("="))
            if not equals or not column or not value or column.startswith("hash("):
                raise BudgetError(f"{text!r} does not name a part: {_ADVICE}")
            part = cls(column, canonical_cell(value))
        if part.column.lower() in _ROW_NUMBERS:
            raise BudgetError(f"{text!r} goes by the number of the row: {_ADVICE}")
        if not part.text.isprintable() or max(len(part.column), len(part.value)) > MAX_NAME_CHARS:
            raise BudgetError(f"a part is named with at most {MAX_NAME_CHARS} printable characters a side")
        return part

    @property
    def rule(self) -> str:
        """What makes parts comparable: two parts of one rule are the same or share no row."""
        return self.column if self.shares is None else f"hash({self.column})/{self.shares}"

    @property
    def text(self) -> str:
        """As a person writes it."""
        if self.shares is None:
            return f"{self.column}={self.value}"
        return f"hash({self.column})={self.value}/{self.shares}"

    def check(self, task: Task) -> None:
        """BudgetError unless all rows of one privacy unit are in one part."""
        # A unit of persons names the column of their ids; the unit "record" has none.
        person_column = task.privacy.person.column if task.privacy.person else None
        if person_column is not None and self.column != person_column:
            raise BudgetError(
                f"this task protects persons, so a part is a rule on their column {person_column}; by {self.column} "
                "one person's rows could lie in several parts, and their costs would add up"
            )

    def keeps(self, cells: pa.Array) -> NDArray[np.bool_]:
        """(n,): which rows are in this part, from their cells as trimmed texts (null: missing)."""
        import pyarrow.compute as pc

        encoded = pc.dictionary_encode(cells)
        chosen = np.array([self._holds(text) for text in encoded.dictionary.to_pylist()] + [False])
        kept: NDArray[np.bool_] = chosen[pc.fill_null(encoded.indices, len(chosen) - 1).to_numpy(zero_copy_only=False)]
        return kept

    def _holds(self, text: str) -> bool:
        cell = canonical_cell(text)
        return self.value == (cell if self.shares is None else str(share_of(cell, self.shares)))


def canonical_cell(text: str) -> str:
    """One text for all spellings of a cell: trimmed, and a whole number without its zeros behind the point."""
    whole = _WHOLE.fullmatch(text.strip())
    return whole[1] if whole else text.strip()


def share_of(cell: str, shares: int) -> int:
    """The share, from 1 to `shares`, of a cell in canonical form."""
    digest = hashlib.blake2b(cell.encode("utf-8"), digest_size=16, person=_PERSON).digest()
    return int.from_bytes(digest, "big") % shares + 1


def as_entry(part: Part | None) -> dict[str, Any] | None:
    """How the ledger writes a part; None is the whole dataset."""
    return None if part is None else {"column": part.column, "value": part.value, "shares": part.shares}
