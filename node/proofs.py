"""Proofs: what a store knows of numbers that their origins gave to two records, and what follows from it.

A number (origin, incarnation, sequence) is *contested* as soon as two records with it are known, from meeting both or
from an EVIDENCE record, whoever signed that one. It stays so. Of a contested number nothing is used, whichever of its
records is here, and bodies go; what any of its known records took back stays taken back.

An origin with MAX_CONTESTED of them is *condemned*: nothing that it signed is used, and no further proof is noted. So
nobody can make others write without end.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Any

from crypto.keys import PublicKey
from node.config import MAX_CONTESTED
from node.local_tables import LocalTables
from node.records import Evidence, Header, Kind, Record, Slot, slot_of
from node.wire import evidence_from_bytes, read_evidence, write_payload


class ProofTables(LocalTables):
    """The proofs of equivocation that are known here."""

    def is_contested(self, slot: Slot) -> bool:
        """Whether two records with this number are known."""
        return bool(self._proofs_of(slot))

    def is_condemned(self, origin: PublicKey) -> bool:
        """Whether nothing that this origin signed is used any more."""
        count = (
            "SELECT (SELECT count(*) FROM (SELECT DISTINCT incarnation, sequence FROM proofs WHERE origin = ?1))"
            " + (SELECT count(DISTINCT target) FROM graves WHERE origin = ?1)"
        )
        return bool(self._rows(count, origin.raw)[0][0] >= MAX_CONTESTED)

    def condemned(self) -> frozenset[PublicKey]:
        """The origins that are."""
        # All at once: whoever makes up keys can have thousands of them accused.
        numbers = "SELECT origin, count(*) AS n FROM (SELECT DISTINCT origin, incarnation, sequence FROM proofs)"
        targets = "SELECT origin, count(DISTINCT target) AS n FROM graves WHERE origin IN (SELECT origin FROM proofs)"
        each = f"{numbers} GROUP BY origin UNION ALL {targets} GROUP BY origin"
        rows = self._rows(f"SELECT origin FROM ({each}) GROUP BY origin HAVING sum(n) >= ?", MAX_CONTESTED)  # noqa: S608
        return frozenset(self._key(raw) for (raw,) in rows)

    def why_unusable(self, header: Header) -> str:
        """Why the record with this header must not be used, in words; empty if its number is its own."""
        if self.is_contested(slot_of(header)):
            return f"its origin signed two records with number {header.sequence}: neither is used"
        if self.is_condemned(header.origin):
            return "its origin signed two records with one number, again and again: nothing of it is used"
        return ""

    def proofs(self, about: Iterable[PublicKey] | None = None) -> list[Evidence]:
        """What is known, of everybody or of these, in order of arrival; several of one number if these take back
        different records."""
        if about is None:
            rows = self._rows("SELECT rowid, evidence FROM proofs")
        else:
            of_one = "SELECT rowid, evidence FROM proofs WHERE origin = ?"
            rows = [row for origin in about for row in self._rows(of_one, origin.raw)]
        return [evidence_from_bytes(data) for _, data in sorted(rows)]

    def accused_origins(self) -> frozenset[PublicKey]:
        """Whom proofs accuse, as far as records of theirs are here."""
        rows = self._rows("SELECT DISTINCT origin FROM proofs WHERE origin IN (SELECT origin FROM records)")
        return frozenset(self._key(raw) for (raw,) in rows)

    def testimonies(self) -> list[tuple[Slot, bytes, bytes]]:
        """Every EVIDENCE here: the number that it is about, its author's key, its id."""
        rows = self._rows("SELECT origin, incarnation, sequence, author, record FROM testimonies ORDER BY rowid")
        return [((origin, incarnation, number), author, record) for origin, incarnation, number, author, record in rows]

    def targets_of(self, records: Collection[bytes]) -> frozenset[bytes]:
        """What the records named in these EVIDENCE records took back."""
        return frozenset(
            target
            for record in records
            for (target,) in self._rows("SELECT target FROM graves WHERE record = ?", record)
        )

    def _add_proof(self, evidence: Evidence) -> None:
        """Note a proof, unless it says nothing that others of its number do not."""
        known = [evidence_from_bytes(data) for (data,) in self._proofs_of(evidence.slot)]
        told = frozenset[bytes]().union(*(one.targets for one in known))
        if (known and evidence.targets <= told) or self.is_condemned(evidence.accused):
            return
        data = write_payload(evidence)
        self._rows("INSERT OR IGNORE INTO proofs VALUES (?, ?, ?, ?, ?)", *evidence.slot, data, time.time())

    def _proofs_of(self, slot: Slot) -> list[tuple[Any, ...]]:
        return self._rows("SELECT evidence FROM proofs WHERE origin = ? AND incarnation = ? AND sequence = ?", *slot)

    def _add_testimony(self, record: Record) -> Evidence | None:
        """Note what an EVIDENCE record that is kept says; None for a record of another kind."""
        if record.header.kind is not Kind.EVIDENCE:
            return None
        evidence = read_evidence(record)
        self._add_proof(evidence)
        self._rows(
            "INSERT OR IGNORE INTO testimonies VALUES (?, ?, ?, ?, ?)",
            record.id,
            record.header.origin.raw,
            *evidence.slot,
        )
        self._db.executemany(
            "INSERT OR IGNORE INTO graves VALUES (?, ?, ?)",
            ((evidence.accused.raw, target, record.id) for target in sorted(evidence.targets)),
        )
        return evidence

    def _evidence_burying(self, record: Record) -> bytes | None:
        """The id of an EVIDENCE that is a reason not to keep the body of this record; None if there is none."""
        header = record.header
        if not header.body_bytes:
            return None
        buriers = self._rows(
            "SELECT record FROM graves WHERE origin = ? AND target = ? UNION ALL"
            " SELECT record FROM testimonies WHERE origin = ? AND incarnation = ? AND sequence = ? LIMIT 1",
            header.origin.raw,
            record.id,
            *slot_of(header),
        )
        return buriers[0][0] if buriers else None
