"""One node's home directory: the keystore, the store, the ledger, two locks, and who may write what when.

    keystore.json   identity and encryption keys, 0600, sealed under a passphrase if there is one
    node.db         records, peers, tasks, links (store.py)
    ledger.db       the privacy budget (fusion/ledger.py)
    node.json       name and listening address, for the operator to read and edit
    backbones/      ONNX files that tasks name by hash (fusion/backbones.py)
    daemon.lock     held by `serve`: one daemon a home
    author.lock     held while this node authors a record or changes its keys, by the daemon or by a command

The command line and the daemon work on the same home at once; SQLite and the two locks keep them apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from crypto.errors import CryptoError
from crypto.keys import DATASET_NAMES_PERSON, PublicKey
from crypto.keystore import MODERATE, Ask, Cost, Keyring, Keystore, WrappingKey, nobody_to_ask
from fusion import backbones
from fusion.outside import parse_json
from node.author import Author
from node.database import STORE_FILE
from node.epochs import EpochKeys
from node.errors import HomeError, StoreFull, UsageError
from node.files import read_at_most
from node.logs import tell
from node.peers import PeerBook, check_address, check_name
from node.store import Store

if TYPE_CHECKING:
    from fusion.ledger import Ledger

KEYSTORE_FILE = "keystore.json"
LEDGER_FILE = "ledger.db"
WITHOUT_KEYS = 'without one see "After a theft or a loss" in docs/operations.md'
MAX_QUOTAS = 1e6
MAX_SETTINGS_BYTES = 64 * 1024
MAX_SETTINGS_DEPTH = 4
LOOK_S = 1.0
"""How long a daemon that starts waits for its lock: a command that looks whether one runs holds it for a moment."""


@dataclass(frozen=True)
class NodeSettings:
    """What the operator chose at `init`."""

    name: str
    listen: str | None
    quotas: float = 1.0
    """Times the usual quotas of each origin (`config.QUOTA_RECORDS`)."""


@dataclass(frozen=True)
class Home:
    """An open home."""

    path: Path
    settings: NodeSettings
    keystore: Keyring
    store: Store
    peers: PeerBook
    author: Author
    epochs: EpochKeys

    @classmethod
    def init(
        cls,
        path: Path,
        name: str,
        listen: str | None,
        choose: Callable[[], str] | None = None,
        cost: Cost = MODERATE,
        recovery_hash: bytes | None = None,
    ) -> Home:
        """Make identity and store in a new home, all or nothing; HomeError if one is there already.

        `choose` gives the passphrase that the keystore is sealed under, `cost` what a guess at it costs;
        `recovery_hash` is published in the key card.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise HomeError(f"{path} exists and is not empty; choose another --home, or use the node that is there.")
        passphrase = choose() if choose else None
        wrapping = WrappingKey.derive(passphrase, cost) if passphrase is not None else None
        keystore = Keystore.generate()
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".tidings-init-", dir=path if path.exists() else path.parent))
        try:
            keystore.write_new(draft / KEYSTORE_FILE, wrapping)
            _write_settings(draft / "node.json", NodeSettings(name, listen))
            Store.create(draft).close()
            home = cls.open(draft, opened=keystore)
            if recovery_hash is not None:
                home.store.set_recovery_hash(home.me, recovery_hash)
            home.author.key_card()
            if path.exists():
                home.store.forget_place()  # its directory will be another one
            home.store.close()
            _settle(draft, path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return cls.open(path, nobody_to_ask if passphrase is None else lambda _: passphrase, keystore)

    @classmethod
    def open(cls, path: Path, ask: Ask = nobody_to_ask, opened: Keystore | None = None) -> Home:
        """Open an initialised home; HomeError or StoreError says what is wrong with it.

        `ask` gives the passphrase when a secret is needed for the first time, which may be never; `opened` are the
        secrets, from a process that has them.
        """
        if not (path / KEYSTORE_FILE).exists():
            if (path / STORE_FILE).exists():
                raise HomeError(f"{path / KEYSTORE_FILE} is gone: restore it from a backup; {WITHOUT_KEYS}.")
            raise HomeError(f"There is no node in {path}; run `tidings --home {path} init` first.")
        try:
            keystore = Keyring(path / KEYSTORE_FILE, ask, opened)
        except CryptoError as error:
            raise HomeError(str(error)) from error
        store = Store.open(path)
        store.owner = keystore.public_key
        with contextlib.suppress(StoreFull):  # noticed as soon as there is room
            if store.notice_place():
                text = f"{path} is a copy, or was restored from one: its records are numbered apart from now on."
                tell(WARNING, "home_restored", text)
        settings = read_settings(path / "node.json")
        peers = PeerBook(store, keystore.public_key, settings.name)
        author = Author(store, keystore, FileLock(path / "author.lock"))
        return cls(path, settings, keystore, store, peers, author, EpochKeys(store, keystore, author, peers))

    @property
    def backbones(self) -> Path:
        """Where this node keeps the backbones of its tasks."""
        return backbones.of_home(self.path)

    @property
    def me(self) -> PublicKey:
        """This node's public key; needs no passphrase."""
        return self.keystore.public_key

    @property
    def trusted(self) -> frozenset[PublicKey]:
        """The origins whose records this node keeps and passes on: its members, itself, and the earlier identities of
        both, but those condemned."""
        return self.store.standing().trusted - self.store.condemned()

    @property
    def has_ledger(self) -> bool:
        """Whether there is a privacy budget yet, or still."""
        return (self.path / LEDGER_FILE).exists()

    def ledger(self) -> Ledger:
        """The privacy budget of this home; loads what only releases need."""
        from fusion.ledger import Ledger

        # From the identity: if the ledger is lost, what peers hold still says which dataset it means.
        # From the oldest one: what peers were told of a dataset goes on when the identity is replaced.
        return Ledger(self.path / LEDGER_FILE, name_key=self._name_key)

    def _name_key(self) -> bytes:
        oldest = (self.keystore.identity, *self.keystore.former)[-1]
        return oldest.derive(DATASET_NAMES_PERSON)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Hold this home for one daemon; HomeError if another has it, KeystoreError if its identity was replaced since
        it was opened, which only the holder of this lock does."""
        with self._holding(LOOK_S):
            self.keystore.refuse_if_replaced()
            yield

    @contextmanager
    def _holding(self, patience_s: float) -> Iterator[None]:
        lock = FileLock(self.path / "daemon.lock")
        try:
            lock.acquire(timeout=patience_s)
        except Timeout as error:
            raise HomeError(f"A node is already serving {self.path}; stop it first, or use another --home.") from error
        try:
            yield
        finally:
            lock.release()

    def is_served(self) -> bool:
        """Whether a daemon holds this home right now. Asking makes no file: where no daemon ever ran there is no
        lock."""
        if not (self.path / "daemon.lock").exists():
            return False
        try:
            with self._holding(0.0):
                return False
        except HomeError:
            return True


def _settle(draft: Path, path: Path) -> None:
    """Move a new home to its place. A directory that is there stays: an administrator made it for a user who can write
    into nothing above it, or it is a volume. Then its files are moved one by one, and the keystore, without which there
    is no node, is the last."""
    if not path.exists():
        draft.rename(path)
        _sync(path.parent)
        return
    with contextlib.suppress(PermissionError):  # of a volume that belongs to somebody else; the files are closed
        path.chmod(0o700)
    names = sorted((one.name for one in draft.iterdir()), key=lambda name: name == KEYSTORE_FILE)
    moved: list[Path] = []
    try:
        for name in names:
            (draft / name).rename(path / name)
            moved.append(path / name)
        draft.rmdir()
        _sync(path)
    except BaseException:
        for one in moved:
            one.unlink()
        raise


def _sync(directory: Path) -> None:
    """Make a rename survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_settings(path: Path, settings: NodeSettings) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(asdict(settings), file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def read_settings(path: Path) -> NodeSettings:
    """What the operator wrote; HomeError if it is not a name and an address."""
    try:
        data = read_at_most(path, MAX_SETTINGS_BYTES)
        if data is None:
            raise ValueError
        content = parse_json(data.decode("utf-8"), values=MAX_SETTINGS_BYTES, depth=MAX_SETTINGS_DEPTH)
        name, listen = content["name"], content["listen"]
        if not isinstance(name, str) or not isinstance(listen, str | None):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HomeError(f'{path} is not readable; write {{"name": "…", "listen": null}} into it.') from error
    try:
        return NodeSettings(
            check_name(name),
            None if listen is None else check_address(listen),
            _checked_quotas(content.get("quotas", 1.0)),
        )
    except (HomeError, UsageError) as error:
        raise HomeError(f"{path} cannot be used: {error}") from None


def _checked_quotas(times: object) -> float:
    if not isinstance(times, int | float) or isinstance(times, bool) or not 0 < times <= MAX_QUOTAS:
        raise UsageError(f"quotas multiplies each quota: it is a number above 0, at most {MAX_QUOTAS:,.0f}.")
    return float(times)
