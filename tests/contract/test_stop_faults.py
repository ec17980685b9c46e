"""Stopping in the middle of a fault: real workers, real signals, each for tasks, threads and child processes.

What can finish within `grace` keeps its results, the rest goes back, and nothing is lost, doubled or left `running`.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncexp.db.base import Target
from tests.contract.audit import invariants
from tests.contract.conftest import Make
from tests.contract.faulty import away, end_of, heard, worker
from tests.contract.shared import Seen, Shared
from tests.contract.sql import fetch as sql
from tests.contract.support import Child, eventually, numbers
from tests.contract.workers.fault import Plain, Task, transactions
from tests.proxy import Commits, Proxy
from tests.servers import Server
from tests.studies import experimenter as new_experimenter

servers_only = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
COUNT = 12
STUDY: dict[str, Any] = {
    "keyfields": numbers(COUNT),
    "execution": {"heartbeat_interval": 50, "lease": 200, "grace": 60},
}
KINDS = {"task": ("task", "task"), "thread": ("plain", "task"), "child": ("plain", "process")}
kinds = pytest.mark.parametrize("kind", KINDS)
twice = pytest.mark.parametrize("signals", [1, 2])


# --------------------------------------------------------------------------------- holding a flush in flight


class Held(Proxy):
    """Holds the answers that come after the next COMMIT, when it was sent."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.armed = False
        self.held = asyncio.Event()
        self._answers = asyncio.Event()
        self._answers.set()
        self._shut = False

    def release(self) -> None:
        self._answers.set()

    def shut(self) -> None:
        """Nobody gets through, and who was is cut off."""
        self._shut = True
        self.cut()

    def open_again(self) -> None:
        self._shut = False

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._shut:
            writer.transport.abort()
        else:
            super()._accept(reader, writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commits = Commits()
        while data := await reader.read(65536):
            if commits(data) and self.armed:
                self.armed = False
                self._answers.clear()
                self.held.set()
            writer.write(data)
            await writer.drain()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._answers.wait()
            writer.write(data)
            await writer.drain()


@dataclass
class Line:
    """The way of a worker to its database, on which the next flush can be held."""

    target: Target
    hold: Callable[[], None]
    in_flight: Callable[[], Any]
    """Returns when it is held."""
    release: Callable[[], None]


@asynccontextmanager
async def line_to(target: Target, ran: Seen) -> AsyncIterator[Line]:
    if target.provider != "sqlite":
        async with Held(target) as proxy:
            yield Line(proxy.target, lambda: setattr(proxy, "armed", True), proxy.held.wait, proxy.release)
        return
    with closing(sqlite3.connect(target.database, isolation_level=None)) as other:
        lock = Lock(other, transactions(ran))
        yield Line(target, lock.take, lock.waited_for, lock.give_back)


class Lock:
    """The lock of a SQLite file, and the transactions that its worker has begun or waits to begin."""

    def __init__(self, other: sqlite3.Connection, begun: Seen) -> None:
        self._other = other
        self._begun = begun
        self._before = 0

    def take(self) -> None:
        self._other.execute("BEGIN IMMEDIATE")
        self._before = len(self._begun)

    async def waited_for(self) -> None:
        await eventually(lambda: len(self._begun) > self._before)
        await asyncio.sleep(0.1)  # it was told just before

    def give_back(self) -> None:
        self._other.execute("ROLLBACK")


# ------------------------------------------------------------------------------------------- what is asked of all


async def filled(target: Target, folder: Path) -> None:
    async with new_experimenter(folder, target, **STUDY) as experimenter:
        await experimenter.fill_table_from_config()


@asynccontextmanager
async def begun(
    target: Target, via: Target, folder: Path, kind: str, ran: Seen, *, jobs: int, lines: int, **more: Any
) -> AsyncIterator[Child]:
    """A worker that runs `jobs` experiments, which have written so many lines and wait; nothing is left to write."""
    function, pool = KINDS[kind]
    given = STUDY | {"marks": {"saves": True}, "n_jobs": jobs, "pool": pool} | more
    async with worker(via, folder, function, ran, **given) as process:
        await eventually(lambda: len(ran) == jobs)
        await eventually(lambda: quiet(target, lines))
        yield process


async def quiet(target: Target, lines: int) -> bool:
    """Whether the lines are written and the worker has given its first sign of life."""
    written = await sql(target, 'SELECT COUNT(*) FROM "experiments__steps"')
    beaten = await sql(target, 'SELECT COUNT(*) FROM "experiments_workers" WHERE "heartbeat" > "started"')
    return (written, beaten) == ([(lines,)], [(1,)])


async def signalled(process: Child, signals: int) -> None:
    process.process.terminate()
    await heard(process, "SIGTERM: no more experiments are started")
    if signals == 2:
        process.process.send_signal(signal.SIGINT)
        await heard(process, "SIGINT: stopped now")


async def childless(process: Child) -> None:
    """Returns when the experiments' processes are gone; the one that starts them is left."""
    family = psutil.Process(process.process.pid)
    await eventually(lambda: len(family.children(recursive=True)) <= 1)


async def ends_well(process: Child) -> dict[str, Any]:
    summary = await end_of(process)
    assert summary["stopped_by"] in ("SIGTERM", "SIGINT")
    assert summary["lost"] == 0
    assert await process.ended() == 0
    return summary


async def everything_runs_later(target: Target, folder: Path, ran: Seen, **killed: int) -> None:
    """Who comes next finishes what is left, continued rows with what they had."""
    async with new_experimenter(folder, target, **STUDY) as experimenter:
        await experimenter.execute(Task(ran))
        await experimenter.execute(Task(ran), from_status="paused")
    assert await invariants(target, COUNT, ran, **killed) == {"done": COUNT}


KEPT = 'SELECT "ID", "status", "result" FROM "experiments" WHERE "result" IS NOT NULL ORDER BY "ID"'


async def checkpoints_were_kept(target: Target, ran: Seen) -> None:
    """Of the first three, which return None, `CREATED` and `PAUSED`."""
    assert await sql(target, KEPT) == [(1, "done", 0.0), (2, "created", 2.0), (3, "paused", 4.0)]
    assert await invariants(target, COUNT, ran) == {"done": 1, "created": COUNT - 2, "paused": 1}


async def all_went_back(target: Target, ran: Seen) -> None:
    assert await sql(target, KEPT) == []
    assert await invariants(target, COUNT, ran) == {"created": COUNT}
    assert await sql(target, 'SELECT DISTINCT "outcome" FROM "experiments_attempts"') == [("released",)]


# ------------------------------------------------------------------------------------------------------ signals


@kinds
@twice
async def test_a_signal_while_a_claim_is_in_flight(
    target: Target, tmp_path: Path, shared: Shared, kind: str, signals: int
) -> None:
    """Its answer comes when no more is wanted: the row that it took goes back and is not begun."""
    ran, may_end = shared.seen(), shared.gate()
    await filled(target, tmp_path)
    async with (
        line_to(target, ran) as line,
        begun(target, line.target, tmp_path, kind, ran, jobs=1, lines=2, may_end=may_end) as process,
    ):
        line.hold()
        may_end.open()
        await line.in_flight()
        await signalled(process, signals)
        line.release()
        assert (await ends_well(process))["done"] == 1
    assert await invariants(target, COUNT, ran) == {"done": 1, "created": COUNT - 1}
    assert len(ran) == 1
    assert await sql(target, 'SELECT DISTINCT "outcome" FROM "experiments_attempts"') == [("released",)]
    await everything_runs_later(target, tmp_path, ran)


@kinds
@twice
async def test_a_signal_while_a_flush_is_in_flight(
    target: Target, tmp_path: Path, shared: Shared, kind: str, signals: int
) -> None:
    """What it reports is kept if the function may still return; with the second signal its row goes back."""
    ran, go_on = shared.seen(), shared.gate()
    await filled(target, tmp_path)
    async with (
        line_to(target, ran) as line,
        begun(target, line.target, tmp_path, kind, ran, jobs=3, lines=3, go_on=go_on) as process,
    ):
        line.hold()
        go_on.open()
        await line.in_flight()
        await signalled(process, signals)
        if signals == 2:  # or else one may still return when its report is answered
            await childless(process)
        line.release()
        await ends_well(process)
    await (checkpoints_were_kept if signals == 1 else all_went_back)(target, ran)
    await everything_runs_later(target, tmp_path, ran)


@kinds
@twice
async def test_a_signal_while_the_database_is_away(
    target: Target, tmp_path: Path, shared: Shared, kind: str, signals: int, request: pytest.FixtureRequest
) -> None:
    """Results are held and written when it is back, within grace; with the second signal rows go back then."""
    ran, go_on = shared.seen(), shared.gate()
    await filled(target, tmp_path)
    async with begun(target, target, tmp_path, kind, ran, jobs=3, lines=3, go_on=go_on) as process:
        with away(target, request):
            go_on.open()
            await heard(process, "The database is away")
            await signalled(process, signals)
            if signals == 2:
                await childless(process)
        await ends_well(process)
    await (checkpoints_were_kept if signals == 1 else all_went_back)(target, ran)
    await everything_runs_later(target, tmp_path, ran)


@kinds
async def test_a_worker_told_to_stop_whose_database_stays_away_ends_in_time_and_not_with_0(
    target: Target, tmp_path: Path, shared: Shared, kind: str, request: pytest.FixtureRequest
) -> None:
    ran, go_on = shared.seen(), shared.gate()
    await filled(target, tmp_path)
    names = ("worker.LAST_FLUSH_SECONDS", "session.CLOSE_LIMIT_SECONDS", "lease.CLOSE_LIMIT_SECONDS")
    limits = {f"asyncexp.{name}": 0.3 for name in names}
    more = {"go_on": go_on, "limits": limits, "grace": 0.3}
    async with begun(target, target, tmp_path, kind, ran, jobs=3, lines=3, **more) as process:
        with away(target, request):
            go_on.open()
            await heard(process, "The database is away")
            process.process.terminate()
            began = time.monotonic()
            await heard(process, "3 ends could not be stored")
            assert await process.ended() == 1
            assert time.monotonic() - began < 30
    assert await sql(target, KEPT) == []
    await everything_runs_later(target, tmp_path, ran, killed=1)  # at once, for its process is gone


# ---------------------------------------------------------------------------------------------------- stop()


@servers_only
@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_stop_of_a_worker_whose_database_is_away(
    make: Make, target: Target, server: Server, shared: Shared, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is heard at once; what runs ends when its results can be written, and keeps them."""
    ran, go_on = shared.seen(), shared.gate()
    experimenter = make(**STUDY)
    await experimenter.fill_table_from_config()
    function = (Task if kind == "async def" else Plain)(ran, go_on, saves=True)
    call = asyncio.create_task(experimenter.execute(function, n_jobs=3))
    await eventually(lambda: len(ran) == 3)
    await eventually(lambda: quiet(target, 3))
    server.stop()
    try:
        go_on.open()
        await eventually(lambda: "The database is away" in caplog.text)
        began = time.monotonic()
        assert len(await experimenter.stop()) == 1
        assert time.monotonic() - began < 20  # the database stays away
        assert not call.done()
    finally:
        server.start()
    summary = await call
    assert (summary.done, summary.released, summary.paused, summary.stopped_by) == (1, 1, 1, "stop")
    await experimenter.aclose()
    await checkpoints_were_kept(target, ran)


@servers_only
@kinds
async def test_stop_of_another_worker_that_cannot_reach_the_database(
    target: Target, tmp_path: Path, shared: Shared, kind: str
) -> None:
    """It hears of it with its first sign of life after that."""
    ran, go_on = shared.seen(), shared.gate()
    await filled(target, tmp_path)
    quick = {"heartbeat_interval": 0.25, "lease": 30}
    async with (
        Held(target) as proxy,
        begun(target, proxy.target, tmp_path, kind, ran, jobs=3, lines=3, go_on=go_on, **quick) as process,
    ):
        async with new_experimenter(tmp_path, target, **STUDY) as experimenter:
            proxy.shut()
            [other] = [each.id for each in await experimenter.workers()]
            assert await experimenter.stop([other]) == [other]
            proxy.open_again()
        await heard(process, "Stop asked for by")
        go_on.open()
        summary = await end_of(process)
        assert await process.ended() == 0
    assert (summary["done"], summary["released"], summary["paused"], summary["stopped_by"]) == (1, 1, 1, "stop")
    await checkpoints_were_kept(target, ran)
