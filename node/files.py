"""Files written whole or not at all, and files read up to a limit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


def read_at_most(path: Path, most: int) -> bytes | None:
    """The bytes of a file; None if there are more than `most`, whatever the file system says of its size."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    return data if len(data) <= most else None


@contextmanager
def written_whole(path: Path, mode: str, *, private: bool = False) -> Iterator[IO[Any]]:
    """A file beside `path` that takes its place at the end: a crash or an error leaves the old one.

    A private one can be read by its owner only, and is on the disk when this returns: a stick may be pulled then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with os.fdopen(handle, mode, **text) as file:
            yield file
            if private:
                file.flush()
                os.fsync(file.fileno())
        if not private:
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(draft, 0o666 & ~umask)
        os.replace(draft, path)
        if private:
            _sync_directory(path.parent)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(draft)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write that fails does not say where
        raise


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems of sticks cannot; the file itself is synced
            os.fsync(handle)
    finally:
        os.close(handle)
