"""What may befall workers and their database; each is dealt like a card, in an order that the seed decides."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random
from typing import Any

import asyncpg
import psutil
import pymysql

from asyncexp import Experimenter
from asyncexp.db.base import Target
from asyncexp.errors import DatabaseError
from tests.chaos.workers import Life, Workers
from tests.contract.sql import fetch
from tests.proxy import Proxy
from tests.servers import Server

ROUND = {
    "kill_worker": 5,
    "kill_child": 2,
    "freeze": 1,
    "terminate": 1,
    "away": 1,
    "end_sessions": 1,
    "cut": 1,
    "cut_commit": 1,
    "swallow": 1,
    "stall": 1,
    "reset": 2,
    "release": 1,
}
"""Fault -> how many of each in a round."""
NEED_A_SERVER = {"end_sessions", "cut", "cut_commit", "swallow", "stall"}
RESET_AT_ONCE, RELEASED_AT_ONCE = 8, 3


class Faults:
    """Deals faults; those that last are over when `end` returns.

    Args:
        server: None for SQLite, whose file is locked instead.
        keeper: one thread that lives as long as the server does, for that ends with the thread that started it.
    """

    def __init__(
        self,
        target: Target,
        server: Server | None,
        keeper: ThreadPoolExecutor,
        experimenter: Experimenter,
        workers: Workers,
        links: list[Proxy],
        lease_seconds: float,
        seed: str,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._target = target
        self._server = server
        self._keeper = keeper
        self._experimenter = experimenter
        self._workers = workers
        self._links = links
        self._lease = lease_seconds
        self._random = Random(f"{seed}/faults")
        self._round: list[str] = []
        self._lasting: set[asyncio.Task[None]] = set()
        self._database_is_away = asyncio.Lock()

    def strike(self) -> None:
        """The next fault."""
        if not self._round:
            self._round = [
                name for name in ROUND for _ in range(ROUND[name]) if self._server or name not in NEED_A_SERVER
            ]
            self._random.shuffle(self._round)
        name = self._round.pop()
        fault: Callable[[], bool] = getattr(self, f"_{name}")
        if fault():
            self.counts[name] += 1

    async def end(self) -> None:
        """What was taken away is back, and what was frozen goes on."""
        while self._lasting:
            await asyncio.gather(*self._lasting)
        for link in self._links:
            link.resume()

    def _lasts(self, effect: Coroutine[Any, Any, None]) -> bool:
        task = asyncio.create_task(effect)
        self._lasting.add(task)
        task.add_done_callback(self._lasting.discard)
        return True

    # ------------------------------------------------------------------------------------- of processes

    def _one(self) -> Life | None:
        living = self._workers.living
        return self._random.choice(living) if living else None

    def _kill_worker(self) -> bool:
        life = self._one()
        return life is not None and life.strike(signal.SIGKILL)

    def _kill_child(self) -> bool:
        """A child in which experiments run, or the process that starts them."""
        families = [family for life in self._workers.living if (family := life.descendants())]
        if not families:
            return False
        try:
            self._random.choice(self._random.choice(families)).kill()
        except psutil.NoSuchProcess:
            return False
        return True

    def _freeze(self) -> bool:
        """For longer than its lease; then it goes on."""
        life, seconds = self._one(), self._random.uniform(1.5, 2.5) * self._lease
        if life is None or not life.strike(signal.SIGSTOP):
            return False
        return self._lasts(_later(seconds, life, signal.SIGCONT))

    def _terminate(self) -> bool:
        """As SLURM does; sometimes twice."""
        life, again, seconds = self._one(), self._random.random() < 0.3, self._random.uniform(0, 0.5)
        if life is None or not life.strike(signal.SIGTERM):
            return False
        return self._lasts(_later(seconds, life, signal.SIGTERM)) if again else True

    # ----------------------------------------------------------------------------------- of the database

    def _away(self) -> bool:
        """For all: mostly for a moment, at times for longer than any lease."""
        long = self._random.random() < 0.2
        seconds = self._random.uniform(1.2, 2.0) * self._lease if long else self._random.uniform(0, 0.5)
        if self._database_is_away.locked():
            return False
        return self._lasts(self._locked(seconds) if self._server is None else self._restarted(self._server, seconds))

    async def _restarted(self, server: Server, after_seconds: float) -> None:
        async with self._database_is_away:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._keeper, server.kill)
            await asyncio.sleep(after_seconds)
            await loop.run_in_executor(self._keeper, server.start)

    async def _locked(self, seconds: float) -> None:
        async with self._database_is_away:
            await asyncio.to_thread(_lock, self._target.database, seconds)

    def _end_sessions(self) -> bool:
        """All at once, by the administrator's command."""
        return self._lasts(self._sessions_ended())

    async def _sessions_ended(self) -> None:
        assert self._server is not None
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, pymysql.MySQLError):  # away itself
            await asyncio.to_thread(self._server.end_sessions, self._target.database)

    # --------------------------------------------------------------------------------------- of links

    def _cut(self) -> bool:
        self._random.choice(self._links).cut()
        return True

    def _cut_commit(self) -> bool:
        """The server commits, and cannot say so."""
        self._random.choice(self._links).cut_after_commit()
        return True

    def _swallow(self) -> bool:
        """What is sent arrives; the answers never do."""
        link = self._random.choice(self._links)
        link.swallow_after_commit()
        return self._lasts(_resume(link, self._random.uniform(0.2, 1.5) * self._lease))

    def _stall(self) -> bool:
        link = self._random.choice(self._links)
        link.stall()
        return self._lasts(_resume(link, self._random.uniform(0.2, 2.5) * self._lease))

    # ---------------------------------------------------------------------------------- of other people

    def _reset(self) -> bool:
        return self._lasts(self._for_some("done", RESET_AT_ONCE, self._experimenter.reset_experiments))

    def _release(self) -> bool:
        return self._lasts(self._for_some("running", RELEASED_AT_ONCE, self._release_these))

    async def _release_these(self, _: str, *, ids: list[int]) -> None:
        await self._experimenter.release(ids)

    async def _for_some(self, status: str, most: int, change: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        """Changes a few rows of a status beside everybody who works."""
        choice = Random(self._random.random())
        with suppress(DatabaseError):
            text = 'SELECT "ID" FROM "experiments" WHERE "status" = :status ORDER BY "ID"'
            ids = [row[0] for row in await fetch(self._target, text, status=status)]
            if ids:
                await change(status, ids=choice.sample(ids, min(len(ids), most)))


async def _later(seconds: float, life: Life, which: signal.Signals) -> None:
    await asyncio.sleep(seconds)
    life.strike(which)


async def _resume(link: Proxy, after_seconds: float) -> None:
    await asyncio.sleep(after_seconds)
    link.resume()


def _lock(file: str, seconds: float) -> None:
    database = sqlite3.connect(file, timeout=60, isolation_level=None)
    try:
        database.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        database.execute("ROLLBACK")
    finally:
        database.close()
