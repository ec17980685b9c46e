"""S12: how soon a worker that waits (`until="finished"`) starts a row that somebody adds.

The worker waits in a process of its own, for a row of another worker still runs: one that this process holds.
This process adds rows one by one, over a connection that notes when it commits; the function notes when it
begins; both read the same clock. The limit is a bare driver that listens, or looks once in a poll interval.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar
from unittest import mock

from asyncexp import Experimenter, ResultProcessor
from asyncexp.db import connect
from asyncexp.db.base import Database, Target, Transaction
from benchmarks import bare, study
from benchmarks.places import Place
from benchmarks.processes import Child, child, say
from benchmarks.rounds import Line, all_in_turns

T = TypeVar("T")
Side = Literal["bare", "ours"]
SIDES: tuple[Side, ...] = ("bare", "ours")
FIRST = 2
"""Rows that are there before: the one that is held, and one that warms the waiting worker up."""
NOTIFIED_MS, BEYOND_MS = 50.0, 10.0


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rows: int
    """Added in each round."""
    rounds: int
    poll_seconds: float = 1.0
    """By default that of `execute`; it counts where nobody is notified."""


def measured(place: Place, size: Size) -> Line:
    """Milliseconds from the commit to the start, of all rows of all rounds."""
    taken = all_in_turns(size.rounds, {side: partial(_latencies, place, size, side) for side in SIDES})
    limit, ours = ([ms for figures in taken[side] for ms in figures] for side in SIDES)
    notified = place.provider == "postgresql"
    how = "a bare LISTEN" if notified else f"a bare look each {size.poll_seconds:g} s"
    what = f"a waiting worker starts a new row; limit: {how}"
    reach = NOTIFIED_MS if notified else size.poll_seconds * 1e3
    facts = {"rows": len(ours), "worst_ms": max(ours), "worst_bare_ms": max(limit)}
    return Line("S12", what, "ms", limit, ours, place.shown, 1, reach, BEYOND_MS, judged="figure", facts=facts)


def _latencies(place: Place, size: Size, side: Side) -> list[float]:
    with place.empty() as (folder, target):
        study.prepared(folder, target, FIRST)
        taken = study.run(_adding(folder, size, side))
        [(done,)] = study.run(study.ask(target, f"SELECT COUNT(*) FROM {study.TABLE} WHERE status = 'done'"))
        assert done == FIRST + size.rows, (done, size)
        return taken


async def _adding(folder: Path, size: Size, side: Side) -> list[float]:
    """Adds rows while another one is held; milliseconds until each was started."""
    commits = Commits()
    with ExitStack() as ends_last:  # for the worker waits until the held row is done
        async with _held_row(folder), commits.noted(folder) as adder:
            arguments = (str(folder), side, str(size.rows + 1), str(size.poll_seconds))
            waiting = ends_last.enter_context(child("waking", *arguments))
            await asyncio.to_thread(waiting.hear)
            return [await _one(adder, commits, waiting, number, size) for number in range(1, size.rows + 1)]


async def _one(adder: Experimenter, commits: Commits, waiting: Child, number: int, size: Size) -> float:
    await asyncio.sleep(size.poll_seconds * random.uniform(0.1, 1.1))  # at any moment between two looks
    await adder.fill_table_with_rows([{"number": number, "kind": study.KINDS[0]}])
    committed = commits.taken()
    assert committed, "the fill committed nothing"
    told = await asyncio.to_thread(waiting.hear)
    assert told["number"] == number, (told, number)
    return float(told["started"] - committed) * 1e3


@asynccontextmanager
async def _held_row(folder: Path) -> AsyncIterator[None]:
    """A worker here runs the first row meanwhile."""
    begun, over = asyncio.Event(), asyncio.Event()

    async def hold(_: study.Keys, __: ResultProcessor, ___: study.Keys) -> None:
        begun.set()
        await over.wait()

    async with study.joined(folder) as holder:
        holding = asyncio.ensure_future(holder.execute(hold, n_jobs=1, max_experiments=1, progress=False))
        await begun.wait()
        try:
            yield
        finally:
            over.set()
            await holding


class Commits:
    """When an experimenter began to commit last."""

    def __init__(self) -> None:
        self._last = 0.0

    def taken(self) -> float:
        """The time of the last one, once; 0 if there was none since."""
        last, self._last = self._last, 0.0
        return last

    @asynccontextmanager
    async def noted(self, folder: Path) -> AsyncIterator[Experimenter]:
        """An experimenter whose commits are noted."""
        with mock.patch("asyncexp.experimenter.connect", lambda *way: Noting(connect(*way), self)):
            made = study.joined(folder)
            await made.create_table()  # connects
        try:
            yield made
        finally:
            await made.aclose()

    def begin(self) -> None:
        self._last = time.monotonic()


class Noting:
    """A `Database` that notes when a transaction's work is done and its commit begins."""

    def __init__(self, inner: Database, commits: Commits) -> None:
        self._inner = inner
        self._commits = commits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def run(self, work: Callable[[Transaction], Awaitable[T]], *, limit_seconds: float = 30.0) -> T:
        async def noted(tx: Transaction) -> T:
            done = await work(tx)
            self._commits.begin()
            return done

        return await self._inner.run(noted, limit_seconds=limit_seconds)


# ------------------------------------------------------------------------------- in the waiting worker


def _begins(number: int) -> None:
    say(started=time.monotonic(), number=number)


async def _ours(folder: Path, _: int, poll_seconds: float) -> None:
    async def experiment(keyfields: study.Keys, _: ResultProcessor, __: study.Keys) -> None:
        _begins(keyfields["number"])

    async with study.joined(folder) as made:
        keywords: dict[str, Any] = {"n_jobs": 1, "poll_interval": poll_seconds, "progress": False}
        await made.execute(experiment, until="finished", **keywords)


async def _bare(folder: Path, rows: int, poll_seconds: float) -> None:
    made = study.joined(folder)
    target = study.target(folder)
    ended: list[int] = []
    async with bare.opened(target) as driver, _woken(target, study.schema(made).channel, poll_seconds) as woken:
        for _ in range(rows):
            while not (taken := await driver.turn(ended, 1)):
                ended = []
                await woken()
            [(id_, number, _)] = taken
            _begins(number)
            ended = [id_]
        await driver.turn(ended, 0)


@asynccontextmanager
async def _woken(target: Target, channel: str, poll_seconds: float) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """What returns when it is worth a look."""
    if target.provider != "postgresql":
        yield lambda: asyncio.sleep(poll_seconds * random.uniform(0.8, 1.2))
        return
    heard = asyncio.Event()

    async def woken() -> None:
        await heard.wait()
        heard.clear()

    connection = await bare.Postgres.connect(target)
    try:
        await connection.add_listener(channel, lambda *_: heard.set())
        yield woken
    finally:
        await connection.close()


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.waking")
    parser.add_argument("folder", type=Path)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("rows", type=int)
    parser.add_argument("poll_seconds", type=float)
    given = parser.parse_args()
    work = _ours if given.side == "ours" else _bare
    asyncio.run(work(given.folder, given.rows, given.poll_seconds))


if __name__ == "__main__":
    main()
