"""Answers: what a running node does when a peer asks for a model.

Fusing happens in a process of its own (`fusing`): gossip never stalls, an idle node never holds torch in memory, what a
query takes is given back when it ends, and what cannot write cannot change anything. What was fused is remembered
(`model_cache`), and a query for what is being fused waits for that. How often a key may ask, and whose turn it is when
several must wait, is decided by `admission`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from logging import ERROR, WARNING
from typing import Final

from crypto.errors import KeystoreError
from crypto.keys import PublicKey
from node.admission import Allowances, Line
from node.config import QuerySettings
from node.errors import AskLater, NodeError, QueryRefused
from node.frames import Query
from node.fusing import Told, told
from node.home import Home
from node.logs import MAX_TEXT, tell
from node.model_cache import ModelCache, basis
from node.passphrase import hand_over
from node.wire import query_to_bytes

PURGE_S: Final = 1.0
"""How soon after a change of the store the models that it makes old are dropped."""


@dataclass(eq=False)
class _Work:
    """A process under way, and how many queries wait for it."""

    format: str
    task: asyncio.Task[bytes]
    waiting: int = 0


class Answers:
    """The queries that one node answers and has waiting."""

    def __init__(self, home: Home, settings: QuerySettings | None = None) -> None:
        settings = settings or QuerySettings()
        self._home = home
        self._settings = settings
        self._allowances = Allowances(settings.burst, settings.per_hour, time.monotonic)
        self._line = Line(settings.fusions, settings.max_waiting, settings.max_waiting_each)
        self._cache = ModelCache(settings.remembered, settings.remembered_bytes)
        self._under_way: dict[bytes, _Work] = {}
        self._asking: Counter[PublicKey] = Counter()
        self._purge: asyncio.TimerHandle | None = None
        #: How many fits were begun; the rest was remembered, shared, or refused.
        self.fits = 0

    async def answer(self, peer: PublicKey, query: Query) -> AsyncGenerator[bytes | str, None]:
        """Progress first, then the file; QueryRefused in words, AskLater where it is a matter of time."""
        if self._asking[peer] >= self._settings.max_open_each:
            raise AskLater("It is answering as many of your queries as it does at once; ask again after those.")
        self._allowances.spend(peer)
        self._asking[peer] += 1
        try:
            file = self._cache.get(basis(self._home, query)).get(query.format)
            if file is None:
                yield f"the other node is fusing ({self._line.waiting} waiting)"
                file = await self._made(peer, query)
            yield file
        finally:
            self._asking[peer] -= 1
            self._asking += Counter()  # forgets whom nothing is under way for

    def changed(self) -> None:
        """The store holds other things now: soon drop the models of what it held before."""
        if len(self._cache) and self._purge is None:
            self._purge = asyncio.get_running_loop().call_later(PURGE_S, self._drop_old)

    def close(self) -> None:
        """Forget every model; nothing is answered any more."""
        if self._purge is not None:
            self._purge.cancel()
        self._cache.keep_only(lambda _key, _query: False)

    def _drop_old(self) -> None:
        self._purge = None
        try:
            self._cache.keep_only(lambda key, query: key == basis(self._home, query))
        except NodeError as error:  # the store cannot be read now: nothing may be trusted to be current
            tell(WARNING, "models_dropped", str(error), reason=str(error))
            self._cache.keep_only(lambda _key, _query: False)

    async def _made(self, peer: PublicKey, query: Query) -> bytes:
        """The file, by work of its own or by what others asked for."""
        while True:
            key = basis(self._home, query)
            files = self._cache.get(key)
            if query.format in files:
                return files[query.format]
            work = self._under_way.get(key)
            is_own = work is None or work.task.done()
            if work is None or is_own:
                begun = asyncio.create_task(self._work(peer, query, key, next(iter(files.values()), None)))
                work = self._under_way[key] = _Work(query.format, begun)
            try:
                file = await self._wait_for(key, work)
            except AskLater:
                if is_own:
                    raise
                continue  # another key has no room to wait, which says nothing about this one
            if work.format == query.format:
                return file

    async def _wait_for(self, key: bytes, work: _Work) -> bytes:
        """Its result; it is given up when nobody waits for it any more."""
        work.waiting += 1
        try:
            return await asyncio.shield(work.task)
        finally:
            work.waiting -= 1
            if not work.waiting:
                work.task.cancel()
                if self._under_way.get(key) is work:
                    del self._under_way[key]

    async def _work(self, peer: PublicKey, query: Query, key: bytes, made: bytes | None) -> bytes:
        """Fuse, or write again what was made before, when it is this key's turn."""
        async with self._line.place(peer):
            if made is not None:
                kind, file = Told.FUSED, await self._run("--rewrite", query.format, given=made)
            else:
                kind, file = await self._fuse(query)
        # Not if the store has changed meanwhile: nobody knows which state was read. Nor a shared model.
        if kind is Told.FUSED and key == basis(self._home, query):
            self._cache.put(key, query, file)
        return file

    async def _fuse(self, query: Query) -> tuple[Told, bytes]:
        try:
            keys = hand_over(self._home.keystore.open())
        except KeystoreError as error:
            tell(ERROR, "keystore_locked", f"A query is refused: {error}", reason=str(error))
            raise QueryRefused("That node must be started again: its keys were changed.") from error
        self.fits += 1
        kind, content = told(await self._run(given=keys + query_to_bytes(query)))
        if kind is Told.REFUSED:
            raise QueryRefused(content.decode("utf-8", errors="replace"))
        return kind, content

    async def _run(self, *options: str, given: bytes) -> bytes:
        """What a process of this program answers to what it is given; QueryRefused, and a line in the log, if it
        fails. Secrets go through the pipe: an argument shows in process lists, and a variable stays in the environment
        of all that it starts."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "node", "--home", str(self._home.path), "--keys-on-stdin", "answer", *options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(self._settings.fusion_limit_s):
                answered, complaint = await process.communicate(given)
        except TimeoutError:
            process.kill()
            await process.wait()
            reason = f"it took more than {self._settings.fusion_limit_s:g} s and was given up"
            tell(ERROR, "fusion_failed", f"A fusion failed: {reason}.", reason=reason)
            raise QueryRefused("The fusion takes too long there; its operator finds more in the log.") from None
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        if process.returncode != 0:
            reason = complaint.decode("utf-8", errors="replace").strip()[-MAX_TEXT // 2 :]  # its last lines say what
            tell(ERROR, "fusion_failed", f"A fusion failed: {reason}", reason=reason)
            raise QueryRefused("The fusion failed there; its operator finds why in the log.")
        return answered
