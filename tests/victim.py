"""A node to be killed: one process imports everything, and each line on its standard input forks a running daemon.

    python -m tests.victim HOME

The daemon serves HOME on a free port and authors records of its own meanwhile, as a command beside it would. It says
`port N` when it listens and `authored SEQUENCE ID` when a record of its own is kept; its parent says `pid N` before and
`ended` after. The product knows nothing of this.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from pathlib import Path

AUTHOR_EVERY_S = 0.01


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def live(path: Path) -> None:
    from node.config import GossipSettings
    from node.daemon import Daemon
    from node.home import Home

    home = Home.open(path)
    ready: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    daemon = asyncio.create_task(Daemon(home, GossipSettings()).run("127.0.0.1:0", ready))
    say("port", (await ready or "").rpartition(":")[2])
    beside = Home.open(path)
    while not daemon.done():
        record = beside.author.key_card()
        say("authored", record.header.sequence, record.id.hex())
        await asyncio.sleep(AUTHOR_EVERY_S)
    await daemon


def main(path: Path) -> None:
    for module in ("node.daemon", "node.home", "node.publish", "asyncio"):
        importlib.import_module(module)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            asyncio.run(live(path))
            os._exit(0)
        say("pid", child)
        os.waitpid(child, 0)
        say("ended")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
