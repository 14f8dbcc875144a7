"""Answers: what a running node does when a peer asks for a model.

It runs this program's own `query` in a process of its own, one at a time: gossip never stalls, an idle node never holds
torch in memory, and what a query takes is given back when it ends. A query only reads.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from crypto.errors import KeystoreLocked
from crypto.keys import PublicKey
from node.errors import QueryRefused
from node.frames import Query
from node.home import Home

log = logging.getLogger("tidings")

MAX_WAITING_QUERIES: Final = 8
"""Queries that may wait for the one that runs; each costs a process with torch in it."""


class Answers:
    """The queries that one node answers and has waiting."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._one_query = asyncio.Lock()
        self._queries = 0

    async def answer(self, peer: PublicKey, query: Query) -> AsyncIterator[bytes | str]:
        """Fuse in a process of its own, one query at a time; progress first, then the file."""
        if self._queries >= MAX_WAITING_QUERIES:
            raise QueryRefused("This node is answering as many queries as it can; ask again in a minute.")
        self._queries += 1
        try:
            log.info("%s asks for a model", self._home.peers.name_of(peer))
            yield "the other node is fusing"
            async with self._one_query:
                yield await self._fuse(query)
        finally:
            self._queries -= 1

    async def _fuse(self, query: Query) -> bytes:
        """Run this program's own `query` command on this home; QueryRefused with its error line if it fails.

        The keys go to it through a pipe, which nobody else can read and which is empty afterwards: an argument shows in
        process lists, and a variable stays in the environment of all that it starts.
        """
        try:
            keys = self._home.keystore.open().to_bytes()
        except KeystoreLocked as error:
            log.error("A query is refused: %s", error)
            raise QueryRefused("That node must be started again: its keys were changed.") from error
        with tempfile.TemporaryDirectory(prefix="tidings-query-") as scratch:
            output = Path(scratch) / f"model.{query.format}"
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "node", "--home", str(self._home.path), "--keys-on-stdin"),
                *("query", query.task_id.hex()),
                *(("--head", query.head) if query.head else ()),
                *(("--only", ",".join(PublicKey(key).text for key in query.only)) if query.only else ()),
                *(("--without", ",".join(PublicKey(key).text for key in query.without)) if query.without else ()),
                *(("--robust", str(query.robust)) if query.robust else ()),
                *("--output", str(output), "--json"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                _, stderr = await process.communicate(keys)
            except asyncio.CancelledError:
                process.kill()
                raise
            if process.returncode != 0:
                lines = stderr.decode("utf-8", errors="replace").strip().splitlines()
                raise QueryRefused(lines[-1].removeprefix("Error: ") if lines else "The fusion failed.")
            return output.read_bytes()
