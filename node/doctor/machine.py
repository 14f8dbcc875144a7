"""The machine and the files of a home, looked at without opening the home: it may be what is broken."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from crypto.errors import CryptoError
from node import disk
from node.database import APPLICATION_ID, STORE_FILE
from node.doctor.findings import Finding, fail, ok, warn
from node.gossip.events import Disk
from node.home import KEYSTORE_FILE
from node.migrations import SCHEMA_VERSION
from node.passphrase import check_file
from node.show import duration, moment, size

PACKAGE: Final = "tidings"
WRITTEN_IN: Final = 1_767_225_600
"""2026-01-01: no clock is right that shows an earlier time than this was written at."""
CLOCK_STEP_S: Final = 60.0
PRIVATE_FILES: Final = (KEYSTORE_FILE, STORE_FILE, "ledger.db")
DAMAGE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
NETWORK_FILE_SYSTEMS: Final = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs"}


def clock(home: Path) -> Iterator[Finding]:
    """Whether this machine's clock can be right: it is past this release, and past what was written here last."""
    now = time.time()
    if now < WRITTEN_IN:
        yield fail("clock", f"this machine's clock shows {moment(now)} UTC, which is past", "set it, best with NTP")
        return
    newest = max((path.stat().st_mtime for path in home.glob("*.db")), default=0.0)
    if newest - now > CLOCK_STEP_S:
        text = f"this machine's clock was put back: files here were written {duration(newest - now)} from now"
        yield warn("clock", text, "check it; the order of this node's own entries is kept all the same")
    else:
        yield ok("clock", f"{moment(now)} UTC")


def free_space(home: Path) -> Iterator[Finding]:
    """Room, and whether a write goes through to the disk."""
    usage = shutil.disk_usage(home)
    room = f"{size(usage.free)} free of {size(usage.total)}"
    if disk.is_low(home):
        yield warn("disk", f"{room}: {disk.WORDS[Disk.LOW]}", "make room, or move the home to a larger disk")
    else:
        yield ok("disk", room)
    try:
        with tempfile.TemporaryFile(dir=home) as file:  # has no name where the file system can do that
            file.write(b"tidings")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield fail("disk", f"a write into {home} fails ({error.strerror})", "check disk, quota and permissions")
    kind = _file_system(home)
    if kind in NETWORK_FILE_SYSTEMS:
        text = f"the home is on a network file system ({kind}), whose locks SQLite cannot trust"
        yield warn("disk", text, "keep it on a local disk")


def permissions(home: Path, passphrase_file: Path | None) -> Iterator[Finding]:
    """Who may read and write the home, its files and the passphrase file."""
    found = [*_owners(home)]
    if passphrase_file is not None:
        try:
            check_file(passphrase_file)
        except CryptoError as error:
            found.append(fail("permissions", str(error).rstrip(".")))
    if os.geteuid() == 0:
        text = "this runs as root, and so would the node"
        found.append(warn("permissions", text, "give it a user of its own (deploy/README.md)"))
    yield from found or [ok("permissions", "the home and its secrets are closed to others")]


def _owners(home: Path) -> Iterator[Finding]:
    mode = home.stat().st_mode
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        yield fail("permissions", f"this user cannot write into {home}", "run as its owner, or give the home to it")
    if mode & 0o022:
        yield fail("permissions", f"others may write into {home}", f"run `chmod 700 {home}`")
    elif mode & 0o055:
        yield warn("permissions", f"others may list {home}", f"run `chmod 700 {home}`")
    for name in PRIVATE_FILES:
        path = home / name
        if not path.exists():
            continue
        status = path.stat()
        if stat.S_IMODE(status.st_mode) & 0o077:
            yield fail("permissions", f"{path} is open to others", f"run `chmod 600 {path}`")
        if status.st_uid != home.stat().st_uid:
            yield warn("permissions", f"{path} belongs to another user than the home", "give all of it to one user")


def store_file(home: Path) -> Iterator[Finding]:
    """The store's file: of this release, and whole. Nothing is brought up to date."""
    path = home / STORE_FILE
    if not path.exists():
        yield fail("store", f"there is no store at {path}", "restore the home from a backup")
        return
    try:
        version, verdict = _examined(path)
    except sqlite3.Error as error:
        yield _unread(path, error)
        return
    if verdict != "ok":
        text = f"{path} is damaged ({verdict.splitlines()[0][:120]})"
        yield fail("store", text, "stop the node and restore the home from a backup")
    elif version > SCHEMA_VERSION:
        yield fail("store", "it was written by a newer release", "use that one")
    elif version < SCHEMA_VERSION:
        text = (
            f"it is of an older release (version {version} of {SCHEMA_VERSION}); the next command brings it up to date"
        )
        yield warn("store", text, "back the home up first; run doctor again after it")
    else:
        yield ok("store", f"{size(path.stat().st_size)}, whole")


def _unread(path: Path, error: sqlite3.Error) -> Finding:
    """A backup is an old copy: it is the advice only where the file itself is what is wrong."""
    is_damaged = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in DAMAGE
    advice = "stop the node and restore the home from a backup" if is_damaged else "check disk and permissions first"
    return fail("store", f"{path} cannot be read ({error})", advice)


def _examined(path: Path) -> tuple[int, str]:
    """The schema's version, and what SQLite says of the whole file."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=5.0)
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            return SCHEMA_VERSION, "it is no store of Tidings"
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        return int(version), str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    finally:
        connection.close()


def software() -> Iterator[Finding]:
    """Versions, and whether what this needs is installed."""
    try:
        needed = metadata.requires(PACKAGE) or []
        release = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        yield warn("software", "tidings is not installed as a package", "install it with its lock file")
        return
    lacking = [text for text in map(_lacking, (one for one in needed if "extra ==" not in one)) if text]
    python = ".".join(map(str, sys.version_info[:3]))
    if lacking:
        yield fail("software", f"packages are missing or too old: {', '.join(lacking)}", "install requirements.lock")
    else:
        yield ok("software", f"tidings {release}, Python {python}, SQLite {sqlite3.sqlite_version}")


def _lacking(requirement: str) -> str:
    """The requirement, if it is not met; only `name>=version` is understood, the form that this package uses."""
    match = re.match(r"([A-Za-z0-9._-]+)(?:>=([0-9.]+))?", requirement)
    if match is None:
        return ""
    try:
        found = metadata.version(match[1])
    except metadata.PackageNotFoundError:
        return requirement
    return requirement if match[2] and _numbers(found) < _numbers(match[2]) else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _file_system(home: Path) -> str:
    """The kind of file system under a home, as Linux calls it; empty elsewhere."""
    try:
        mounts = [line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    here = home.resolve()
    under = [fields for fields in mounts if here.is_relative_to(fields[1].replace("\\040", " "))]
    return max(under, key=lambda fields: len(fields[1]))[2] if under else ""
