"""Where a passphrase comes from: a file, else the environment, else the person at the terminal.

The file is for services: it must be closed to others (0600), as the keystore itself. A file in the folder that systemd
gives a service for its credentials may have the group bit: systemd sets it when it grants the service's user access
through an access-control list, and no group has that access.

The variable is taken out of the environment when it is read, so that no process started later inherits it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from crypto import private_files
from crypto.errors import KeystoreError, KeystoreLocked, Malformed
from crypto.keystore import MAX_SECRET_BYTES, Ask, Keystore, nobody_to_ask
from crypto.recovery import RecoveryKey
from node.errors import UsageError

VARIABLE: Final = "TIDINGS_PASSPHRASE"
CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"
MIN_CHARACTERS: Final = 10
MAX_BYTES: Final = 4096
LENGTH_BYTES: Final = 4


def source(file: Path | None) -> Ask:
    """Gives the passphrase that a keystore has. KeystoreError if the file is not as it must be, KeystoreLocked if there
    is neither file, nor variable, nor terminal. The file may be read again later; a person is asked once, because a
    node that runs must not stand still and wait for an answer."""
    may_prompt = True

    def ask(keystore: Path) -> str:
        nonlocal may_prompt
        if file is not None:
            return _read(file)
        prompted, may_prompt = may_prompt, False
        found = _taken_from_environment() or (_ask(f"Passphrase of {keystore}: ") if prompted else None)
        return found or nobody_to_ask(keystore)

    return ask


def choice(file: Path | None, *, environment: bool) -> Callable[[], str]:
    """Gives a new passphrase, typed twice at a terminal. UsageError if it is too short, or there is nowhere to take it
    from. `environment`: whether the variable may hold it."""

    def choose() -> str:
        chosen = _read(file) if file is not None else (_taken_from_environment() if environment else None)
        if chosen is None:
            chosen = _ask("New passphrase: ")
            if chosen is None:
                raise UsageError("There is no terminal to ask for the new passphrase; name a file that holds it.")
            if _ask("The same once more: ") != chosen:
                raise UsageError("These were two different passphrases; nothing was changed.")
        if len(chosen) < MIN_CHARACTERS:
            raise UsageError(
                f"A passphrase has {MIN_CHARACTERS} characters or more; five words drawn by chance are good."
            )
        return chosen

    return choose


def recovery_key(file: Path | None) -> RecoveryKey:
    """The recovery key that a person typed, piped in, or wrote into a file (0600); never an argument, which shows in
    process lists. UsageError if it is none, KeystoreError if the file is not as it must be."""
    if file is not None:
        text: str | None = _read(file, "recovery key file")
    else:
        try:
            text = _ask("Recovery key: ") if sys.stdin.isatty() else sys.stdin.readline(MAX_BYTES)
        except UnicodeDecodeError:
            text = None  # the cause quotes what was typed
    try:
        return RecoveryKey.parse(text or "")
    except Malformed as error:
        raise UsageError(str(error)) from None


def check_file(file: Path) -> None:
    """KeystoreError, in words, if a passphrase file is not as it must be."""
    _read(file)


def hand_over(keystore: Keystore) -> bytes:
    """What `serve` writes to the standard input of a process that it starts, before anything else."""
    secrets = keystore.to_bytes()
    return len(secrets).to_bytes(LENGTH_BYTES, "big") + secrets


def handed_over() -> Keystore:
    """The keys that `hand_over` wrote, from standard input, which is read no further; Malformed if it is not that."""
    size = int.from_bytes(sys.stdin.buffer.read(LENGTH_BYTES), "big")
    return Keystore.from_bytes(sys.stdin.buffer.read(min(size, MAX_SECRET_BYTES)))


def _read(file: Path, what: str = "passphrase file") -> str:
    """The text of a secret file, without the newline at its end."""
    directory = os.environ.get(CREDENTIALS_VARIABLE)
    is_credential = directory is not None and file.resolve().parent == Path(directory).resolve()
    closed_to = 0o037 if is_credential else private_files.OTHERS
    try:
        text = private_files.read(file, what, MAX_BYTES, closed_to=closed_to).decode("utf-8")
    except UnicodeDecodeError:
        # The cause quotes the passphrase, so it is dropped.
        raise KeystoreError(f"The {what} {file} is not text (UTF-8): write it again.") from None
    except OSError as error:
        raise KeystoreError(f"The {what} {file} cannot be read ({error.strerror}).") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise KeystoreError(f"The {what} {file} is empty: write the {what.removesuffix(' file')} into it.")
    return text


def _taken_from_environment() -> str | None:
    return os.environ.pop(VARIABLE, None) or None


def _ask(prompt: str) -> str | None:
    """What a person types without it being shown; None where there is no terminal."""
    if not sys.stdin.isatty():
        return None
    import getpass

    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise KeystoreLocked("No passphrase was typed: nothing was changed.") from None
