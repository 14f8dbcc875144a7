"""Migrations: how a store that an older Tidings wrote becomes one of today's schema.

Step n takes a store from schema n to n + 1, in one transaction that moves SQLite's `user_version` with it: whoever dies
in between leaves the old store, whole, and of two processes that open one store at once the second finds it done.
A step is never edited once it was released, since stores that took it are out there; a change of schema is a new step
at the end. Steps keep everything that an operator or a peer gave; what a daemon writes down while it runs may be
dropped, since it is forgotten at every start. There is no way back: an older Tidings refuses a newer store.
"""

from __future__ import annotations

import sqlite3
from typing import Final

_SEVERAL_ADDRESSES: Final = """
CREATE TABLE peer_addresses (
    peer    BLOB NOT NULL REFERENCES peers (key) ON DELETE CASCADE,
    place   INTEGER NOT NULL,
    address TEXT NOT NULL,
    PRIMARY KEY (peer, place)
) STRICT;
INSERT INTO peer_addresses SELECT key, 0, address FROM peers WHERE address IS NOT NULL;
ALTER TABLE peers DROP COLUMN address;
DROP TABLE links;
CREATE TABLE links (
    peer           BLOB PRIMARY KEY,
    state          TEXT NOT NULL,
    reason         TEXT NOT NULL,
    since          REAL NOT NULL,
    last_seen      REAL,
    bytes_sent     INTEGER NOT NULL,
    bytes_received INTEGER NOT NULL,
    retry_at       REAL
) STRICT;
CREATE TABLE notices (
    about  BLOB NOT NULL,
    topic  TEXT NOT NULL,
    reason TEXT NOT NULL,
    since  REAL NOT NULL,
    PRIMARY KEY (about, topic)
) STRICT;
CREATE TABLE unsourced (
    record BLOB PRIMARY KEY
) STRICT;
CREATE TABLE listening (
    address TEXT NOT NULL
) STRICT;
ALTER TABLE peers ADD COLUMN via TEXT NOT NULL DEFAULT 'operator';
CREATE TABLE denied_peers (
    public_key BLOB PRIMARY KEY,
    since      REAL NOT NULL,
    reason     TEXT NOT NULL
) STRICT;
CREATE TABLE recovery (
    public_key BLOB PRIMARY KEY,
    hash       BLOB NOT NULL
) STRICT;
CREATE TABLE place (
    file      INTEGER NOT NULL,
    directory INTEGER NOT NULL
) STRICT;
CREATE TABLE numbered (
    incarnation   BLOB PRIMARY KEY,
    last_sequence INTEGER NOT NULL
) STRICT;
INSERT INTO numbered SELECT incarnation, last_sequence FROM node;
CREATE INDEX records_about_keys ON records (position) WHERE kind IN (1, 10, 11);
CREATE TABLE followed_roster (
    only_row  INTEGER PRIMARY KEY CHECK (only_row = 1),
    coalition BLOB NOT NULL,
    root      BLOB NOT NULL,
    chosen    BLOB NOT NULL,
    since     REAL NOT NULL
) STRICT;
CREATE TABLE rosters (
    hash     BLOB PRIMARY KEY,
    previous BLOB NOT NULL,
    version  INTEGER NOT NULL,
    signed   BLOB NOT NULL
) STRICT;
CREATE TABLE signed_rosters (
    coalition BLOB NOT NULL,
    version   INTEGER NOT NULL,
    hash      BLOB NOT NULL,
    PRIMARY KEY (coalition, version, hash)
) STRICT;
CREATE TABLE proofs (
    origin      BLOB NOT NULL,
    incarnation BLOB NOT NULL,
    sequence    INTEGER NOT NULL,
    evidence    BLOB NOT NULL,
    learned_at  REAL NOT NULL,
    PRIMARY KEY (origin, incarnation, sequence, evidence)
) STRICT;
CREATE TABLE testimonies (
    record      BLOB PRIMARY KEY,
    author      BLOB NOT NULL,
    origin      BLOB NOT NULL,
    incarnation BLOB NOT NULL,
    sequence    INTEGER NOT NULL
) STRICT;
CREATE INDEX testimonies_by_number ON testimonies (origin, incarnation, sequence);
CREATE TABLE graves (
    origin BLOB NOT NULL,
    target BLOB NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (origin, target, record)
) STRICT;
CREATE INDEX graves_by_record ON graves (record);
"""
"""1 to 2: a peer has a list of addresses; the daemon also tells where it listens, when it dials next, what its operator
should hear of, and which bodies nobody has the rest of; who made whom a peer, and who must not become one again;
the signed list of members that the node follows; what is known of recovery keys and of copies of this home; proofs of
equivocation."""

STEPS: Final = (_SEVERAL_ADDRESSES,)

SCHEMA_VERSION: Final = 1 + len(STEPS)


def statements(script: str) -> list[str]:
    """The statements of an SQL script; our scripts have no semicolon at the end of a line but those between them."""
    return [statement for statement in script.split(";\n") if statement.strip()]


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an older store up to SCHEMA_VERSION, step by step; one that is there already is left alone.

    The connection is in autocommit mode (`isolation_level=None`). Raises sqlite3.Error, after a roll-back.
    """
    while _version(connection) < SCHEMA_VERSION:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = _version(connection)  # read again: another process may have been quicker
            if version < SCHEMA_VERSION:
                for statement in statements(STEPS[version - 1]):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
