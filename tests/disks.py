"""Disks whose past comes back, for tests."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from node.database import STORE_FILE


def rolled_back(home: Path) -> Path:
    """Make a copied home look as if its disk had been rolled back as a whole: these are the files that they were, and
    only what peers hold can tell that time has passed."""
    with contextlib.closing(sqlite3.connect(home / STORE_FILE)) as database, database:
        database.execute("DELETE FROM place")
    return home
