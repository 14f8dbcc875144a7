"""Small files that hold secrets: only their owner may read them, and a crash leaves the old one or the new one, whole.

`what` is how a message calls the file: "keystore", "passphrase file". Messages name files and never what is in them.
"""

import contextlib
import os
import secrets
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from crypto.errors import KeystoreError

OTHERS = 0o077
"""The permission bits that anybody but the owner has."""


def read(path: Path, what: str, limit: int, *, closed_to: int = OTHERS) -> bytes:
    """The bytes of a regular file that has none of the permission bits `closed_to`, at most `limit` of them.

    KeystoreError if it is another kind of file, open to others, or larger; OSError if it cannot be read.
    """
    # O_NONBLOCK: a named pipe must not hang us.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise KeystoreError(f"The {what} {path} is not a regular file: restore it from its backup.")
        if stat.S_IMODE(mode) & closed_to:
            command = f"chmod 600 {shlex.quote(str(path))}"
            raise KeystoreError(f"The {what} {path} is open to others than its owner: run `{command}`.")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise KeystoreError(f"The {what} {path} is too large to be one: restore it from its backup.")
    return data


def write_new(path: Path, data: bytes) -> None:
    """Write a 0600 file that did not exist, on disk when this returns; FileExistsError, OSError."""
    with _written_aside(path, data) as temporary:
        os.link(temporary, path)  # unlike a rename, refuses to replace a file
    _sync_directory(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Put a 0600 file in the place of one that is there, on disk when this returns; OSError changes nothing.

    The caller keeps other writers of this file away.
    """
    for abandoned in path.parent.glob(f".{path.name}.*"):  # by a writer that was killed
        abandoned.unlink()
    with _written_aside(path, data) as temporary:
        os.replace(temporary, path)
    _sync_directory(path.parent)


@contextlib.contextmanager
def _written_aside(path: Path, data: bytes) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # whatever the umask took away
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
