"""The story of a node whose disk fills up, played on a real small disk: a tmpfs, mounted in a namespace of its own.

    unshare --user --map-root-user --mount python -m tests.full_disk FOLDER

Three real nodes in a line; the one in the middle lives on the small disk. Each step is asserted as the command line
and the stores show it. `test_disk.py` runs this where the machine permits such a namespace.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from crypto.sealing import new_epoch_key
from node.author import EpochKey
from node.home import Home
from node.membership import add_peer
from node.records import HeldState, Kind, Record
from node.rehearsal import Site, free_ports
from node.status import status

DISK_MB = 96
BODY = 1_000_000
WAIT_S = 40.0


def until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain until {what}")
        time.sleep(0.1)
    print(what, flush=True)


class Story:
    """The three nodes: `source` authors, `middle` is on the small disk, `reader` knows nobody else."""

    def __init__(self, folder: Path) -> None:
        self.disk = folder / "disk"
        self.disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(self.disk)], check=True)
        address = f"127.0.0.1:{free_ports(1)[0]}"
        self.source = self._site(folder / "source", None)
        self.middle = self._site(self.disk / "middle", address)
        self.reader = self._site(folder / "reader", None)
        for outer in (self.source, self.reader):
            self._knows(outer, self.middle, address)
            self._knows(self.middle, outer, None)
        self._knows(self.reader, self.source, None)
        self.author = self.source.open()
        self.eyes = self.middle.open()

    def _site(self, path: Path, address: str | None) -> Site:
        Home.init(path, path.name, address).store.close()
        return Site(path.name, path, address)

    def _knows(self, site: Site, other: Site, address: str | None) -> None:
        home = site.open()
        add_peer(home, other.open().me.text, other.name, address, query_only=False)
        home.store.close()

    def publish(self) -> Record:
        return self.author.author.sealed(Kind.SUMMARY, bytes(32), os.urandom(BODY), EpochKey(1, new_epoch_key()))

    def state(self, record: Record, home: Home | None = None) -> HeldState | None:
        held = (home or self.eyes).store.get(record.id)
        return held.state if held else None

    def fill(self, leave: int) -> None:
        """Fill the disk up, but for so many bytes."""
        with open(self.disk / "filler", "ab") as filler:
            while (free := self._free()) > leave:
                try:
                    filler.write(bytes(min(1 << 20, free - leave)))
                    filler.flush()
                except OSError:
                    return

    def _free(self) -> int:
        usage = os.statvfs(self.disk)
        return usage.f_bavail * usage.f_frsize

    def empty(self) -> None:
        (self.disk / "filler").unlink()

    def notices(self) -> str:
        return " ".join(notice["reason"] for notice in status(self.eyes)["notices"])

    def play(self) -> None:
        first, second = self.publish(), self.publish()
        self.source.start()
        self.middle.start()
        until("two bodies are here", lambda: {self.state(first), self.state(second)} == {HeldState.COMPLETE})
        assert "disk" not in self.notices()

        self.fill(leave=2 << 20)
        until("the status says that the disk is nearly full", lambda: "the disk is nearly full" in self.notices())
        time.sleep(1.0)  # the daemon looks twice a second
        third = self.publish()
        until("a header is here without its body", lambda: self.state(third) is HeldState.FETCHING)
        self.author.author.withdrawal(first)
        until("a withdrawal is here", lambda: self.state(first) is HeldState.BURIED)
        held = self.eyes.store.get(third.id)
        assert held is not None
        assert len(held.missing) == len(third.header.chunk_hashes), "no chunk was taken"

        self.fill(leave=0)
        more = [self.publish() for _ in range(40)]  # headers, until not even these fit
        time.sleep(4.0)
        assert self.middle.process is not None
        assert self.middle.process.poll() is None, "the node is still running"
        self.reader.start()
        reader = self.reader.open()
        until("it serves what it has", lambda: self.state(second, reader) is HeldState.COMPLETE)
        assert self.state(more[-1]) is not HeldState.COMPLETE

        self.empty()
        until(
            "it recovered by itself",
            lambda: all(self.state(record) is HeldState.COMPLETE for record in (third, *more)),
        )
        until("its status is clean", lambda: "the disk is nearly full" not in self.notices())
        until(
            "everything went on to the reader",
            lambda: all(self.state(record, reader) is HeldState.COMPLETE for record in more),
        )

    def end(self) -> None:
        for site in (self.source, self.middle, self.reader):
            if site.process is not None:
                site.process.kill()
                site.process.wait()
            log = site.path / "serve.log"
            print(f"--- {site.name}\n{log.read_text(errors='replace') if log.exists() else ''}", flush=True)
            Home.open(site.path).store.close()  # it opens clean


def main(words: list[str]) -> None:
    story = Story(Path(words[0]))
    try:
        story.play()
    finally:
        story.end()


if __name__ == "__main__":
    main(sys.argv[1:])
