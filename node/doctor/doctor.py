"""The examination: every look in order, each on what the ones before it found to be sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from crypto.errors import CryptoError
from crypto.keystore import Ask
from node.client import Dialer
from node.database import STORE_FILE
from node.doctor import machine, network, state
from node.doctor.findings import Finding, Level, fail, ok
from node.errors import NodeError
from node.home import KEYSTORE_FILE, WITHOUT_KEYS, Home


def examine(path: Path, ask: Ask, passphrase_file: Path | None = None) -> Iterator[Finding]:
    """Look at the home in `path`, and tell each finding as it is made. `ask` gives the passphrase, if one is needed."""
    yield from machine.software()
    if not (path / KEYSTORE_FILE).exists() and (path / STORE_FILE).exists():
        yield fail("home", f"{path / KEYSTORE_FILE} is gone", f"restore it from a backup; {WITHOUT_KEYS}")
        return
    if not (path / KEYSTORE_FILE).exists():
        yield fail("home", f"there is no node in {path}", f"run `tidings --home {path} init`, or name its --home")
        return
    yield from machine.clock(path)
    yield from machine.free_space(path)
    yield from machine.permissions(path, passphrase_file)
    sound = True
    for finding in machine.store_file(path):
        sound &= finding.level is Level.OK
        yield finding
    if sound:
        yield from _of_home(path, ask)


def _of_home(path: Path, ask: Ask) -> Iterator[Finding]:
    try:
        home = Home.open(path, ask)
    except NodeError as error:
        yield fail("home", str(error).rstrip("."))
        return
    try:
        served = home.is_served()
        yield ok("node", f"{home.settings.name} is {'running' if served else 'not running; `tidings serve` starts it'}")
        yield from state.keystore(home)
        dialer = _dialer(home)
        looks: tuple[Callable[[], Iterator[Finding]], ...] = (
            lambda: network.ports(home, served, dialer),
            lambda: network.peers(home, served, dialer),
            lambda: state.key_cards(home),
            lambda: state.roster(home),
            lambda: state.records(home),
            lambda: state.budget(home),
        )
        for look in looks:
            try:
                yield from look()
            except NodeError as error:
                yield fail("home", str(error).rstrip("."))
    finally:
        home.store.close()


def _dialer(home: Home) -> Dialer | None:
    """Speaks to peers in this node's name; None if its keystore stays locked."""
    try:
        return Dialer.for_identity(home.keystore.identity)
    except CryptoError:
        return None
